//! The key of the user who runs the command line: it signs commands, and domains give it roles (`rebec user add`). It is made at first need
//! and never leaves its file.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use ed25519_dalek::SigningKey;
use rebec_book::key::{Key, Name, public};

use crate::{args::AgentOptions, chance::random, client::Target};

/// The file below the user's folder of settings.
const FILE: &str = "rebec/user.key";
/// 64 digits and a line's end, and what an editor may add.
const FILE_BYTES_MAX: u64 = 128;

/// Where the key is that signs commands for an agent; none where they are not signed: at a socket, and with a token, unless the user says
/// so.
pub fn place(options: &AgentOptions, target: &Target, environment: impl Fn(&str) -> Option<String>) -> Result<Option<PathBuf>, String> {
    if options.user_key.is_some() && options.token_file.is_some() {
        return Err("--user-key and --token-file are two ways in; leave one out".to_owned());
    }
    if target.token().is_some() && options.user_key.is_none() {
        return Ok(None);
    }
    if let Some(named) = options.user_key.clone().or_else(|| environment("REBEC_USER_KEY").map(PathBuf::from)) {
        return Ok(Some(named));
    }
    match target {
        Target::Remote(_) => usual(environment).map(Some),
        Target::Socket(_) => Ok(None),
    }
}

/// Where it is when nobody says otherwise.
pub fn usual(environment: impl Fn(&str) -> Option<String>) -> Result<PathBuf, String> {
    let folder = environment("XDG_CONFIG_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let folder = folder.or_else(|| Some(PathBuf::from(environment("HOME")?).join(".config")));
    folder.map(|folder| folder.join(FILE)).ok_or_else(|| "HOME is not set: say with --user-key where your key is, or is to be".to_owned())
}

/// The key in a file, which is made if there is none.
pub fn open(path: &Path) -> Result<SigningKey, String> {
    match File::open(path) {
        Ok(file) => read(path, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path).map_err(|error| format!("make {}: {error}", path.display())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// What others know it by.
pub fn known_as(key: &SigningKey) -> Key {
    public(key)
}

fn read(path: &Path, file: File) -> Result<SigningKey, String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        return Err(format!(
            "{0}: others may read this key; `chmod 600 {0}`, or remove it and have `rebec user key` make another",
            path.display()
        ));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    let secret: Name<32> = text.trim().parse().map_err(|_| format!("{}: not a user's key of 64 hexadecimal digits", path.display()))?;
    Ok(SigningKey::from_bytes(&secret.0))
}

fn make(path: &Path) -> io::Result<SigningKey> {
    let secret = random::<32>()?;
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // It has its name once it is whole.
    let new = path.with_extension(format!("new{}", std::process::id()));
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(format!("{}\n", Name(secret)).as_bytes())?;
        file.sync_all()?;
        fs::hard_link(&new, path)
    })();
    fs::remove_file(&new)?;
    written?;
    Ok(SigningKey::from_bytes(&secret))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_user_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/rebec/user.key");
        let key = open(&path).unwrap();
        assert_eq!(open(&path).unwrap(), key);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.len()), (0o600, 65));
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "something else stays beside it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(open(&path).unwrap_err().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "07").unwrap();
        assert!(open(&path).unwrap_err().contains("64 hexadecimal digits"));
    }

    #[test]
    fn it_is_in_the_users_folder_of_settings() {
        let of = |set: &[(&str, &str)]| usual(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()));
        assert_eq!(of(&[("HOME", "/home/anna")]), Ok("/home/anna/.config/rebec/user.key".into()));
        assert_eq!(of(&[("HOME", "/home/anna"), ("XDG_CONFIG_HOME", "/etc/anna")]), Ok("/etc/anna/rebec/user.key".into()));
        assert!(of(&[("XDG_CONFIG_HOME", "relative")]).unwrap_err().contains("--user-key"));
    }
}
