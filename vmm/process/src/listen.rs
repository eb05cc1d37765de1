//! Unix sockets that this process creates: the control socket and `--serial unix:`. Created before sealing, mode 0600,
//! never in the place of something that is still in use. Removed when dropped before sealing; afterwards no path leads there,
//! and the unsealed parent removes them at the end.

use std::{
    io::{self, ErrorKind},
    os::unix::{
        fs::FileTypeExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, RenameFlags, renameat_with},
    io::Errno,
};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error("socket `{0}`: another process listens there; end it, or choose another path")]
    InUse(PathBuf),
    /// A file of another kind is in the way.
    #[error("socket `{0}`: a file that is not a socket is there; remove it, or choose another path")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("create socket `{path}`")]
    Create {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The file of a socket that [`listen`] created.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A sealed process may not even try, and its parent does it.
        if !crate::lists::in_force() {
            remove(&self.0);
        }
    }
}

/// Creates a listening socket that only this user can connect to. A socket that a killed process left behind is replaced.
///
/// The socket gets its name when it listens: who sees it can connect, and nobody takes it for one that was left behind.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    let failed = |source| ListenError::Create { path: path.to_owned(), source };
    clear_way(path)?;
    let unnamed = unnamed(path);
    // No other process has this number: a socket there was left by one that was killed before it gave it a name.
    if std::fs::symlink_metadata(&unnamed).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        remove(&unnamed);
    }
    // The mode is right from the first moment; this process has one thread, so nobody else sees the mask.
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let bound = UnixListener::bind(&unnamed);
    rustix::process::umask(before);
    let listener = bound.map_err(failed)?;
    match renameat_with(CWD, &unnamed, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => Ok((listener, SocketFile(path.to_owned()))),
        Err(error) => {
            remove(&unnamed);
            Err(if error == Errno::EXIST { ListenError::InUse(path.to_owned()) } else { failed(error.into()) })
        }
    }
}

/// Where a socket stands until it listens.
fn unnamed(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{:x}", std::process::id()))
}

/// Removes a socket that [`listen`] created. Somebody may have done so already.
pub fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => log::warn!("remove socket `{}`: {error}", path.display()),
        _ => {}
    }
}

fn clear_way(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Create { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(ListenError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(failed),
        Err(error) => Err(failed(error)),
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (listener, file) = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(listen(&path), Err(ListenError::InUse(_))));
        drop(listener);
        std::mem::forget(file);
        assert!(path.exists(), "as if its process had been killed");
        let second = listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn what_an_earlier_process_of_this_number_left_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(unnamed(&path)).unwrap());
        assert!(unnamed(&path).exists(), "as if it had been killed between bind and rename");
        let (_listener, _file) = listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert!(!unnamed(&path).exists());
    }

    #[test]
    fn a_file_in_the_way_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(matches!(listen(&path), Err(ListenError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
        let nowhere = listen(&folder.path().join("no/such/folder")).unwrap_err();
        assert!(matches!(nowhere, ListenError::Create { .. }));
    }
}
