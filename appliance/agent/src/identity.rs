//! The secret keys of a host: its own, and those of the pool and of a domain where it founded them.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use iroh::SecretKey;
use rebec_book::Key;

/// Where secrets are: `keys/` in the state folder, each file 32 bytes, readable by its owner alone.
pub struct Identity {
    folder: PathBuf,
    host: SecretKey,
}

/// What a secret key is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The host itself.
    Host,
    /// The pool, at the host that founded it.
    Pool,
    /// A domain, at the host that founded it.
    Domain,
}

impl Role {
    fn file(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Pool => "pool",
            Self::Domain => "domain",
        }
    }
}

impl Identity {
    /// Reads the host's key, or makes one on the first start.
    pub fn open(state: &Path) -> Result<Self> {
        let folder = state.join("keys");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let host = match read(&folder, Role::Host)? {
            Some(key) => key,
            None => make(&folder, Role::Host)?,
        };
        Ok(Self { folder, host })
    }

    /// The host's secret key.
    pub fn host(&self) -> &SecretKey {
        &self.host
    }

    /// The host's public key.
    pub fn key(&self) -> Key {
        rebec_book::key::Name(*self.host.public().as_bytes())
    }

    /// A key that this host may hold.
    pub fn get(&self, role: Role) -> Result<Option<SecretKey>> {
        read(&self.folder, role)
    }

    /// Makes a key that did not exist.
    pub fn make(&self, role: Role) -> Result<SecretKey> {
        make(&self.folder, role)
    }

    /// Takes a key that was made elsewhere.
    pub fn keep(&self, role: Role, key: &SecretKey) -> Result<()> {
        write(&self.folder, role, key)
    }

    /// Forgets the keys of a pool that this host leaves.
    pub fn forget(&self) -> Result<()> {
        for role in [Role::Pool, Role::Domain] {
            let path = self.folder.join(role.file());
            if path.exists() {
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

fn read(folder: &Path, role: Role) -> Result<Option<SecretKey>> {
    let path = folder.join(role.file());
    match fs::read(&path) {
        Ok(bytes) => match <[u8; 32]>::try_from(bytes) {
            Ok(bytes) => Ok(Some(SecretKey::from_bytes(&bytes))),
            Err(_) => bail!("{}: not a key of 32 bytes; restore it from a backup, or start with an empty state folder", path.display()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn make(folder: &Path, role: Role) -> Result<SecretKey> {
    let key = SecretKey::generate();
    write(folder, role, &key)?;
    Ok(key)
}

/// The file is whole or absent, whatever happens.
fn write(folder: &Path, role: Role, key: &SecretKey) -> Result<()> {
    let path = folder.join(role.file());
    let new = folder.join(format!(".{}", role.file()));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&key.to_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}
