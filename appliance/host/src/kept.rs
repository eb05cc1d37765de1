//! What is kept of a VM in its folder: `vm.json`, enough for a new agent.

use std::{
    fs,
    net::SocketAddrV4,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rebec_book::{
    Grant, Key,
    key::Id,
    record::{VmBody, VmPrivate},
};
use serde::{Deserialize, Serialize};

use crate::{
    durable,
    life::{Durable, Want},
    reserve::Reserve,
};

/// `vm.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// Its id.
    pub id: Id,
    /// Its home host.
    pub home: Key,
    /// Its desired record.
    #[serde(with = "rebec_book::record::as_text")]
    pub body: VmBody,
    /// What others are not told of it.
    #[serde(with = "rebec_book::record::as_text")]
    pub private: VmPrivate,
    /// What is wanted of it.
    pub want: Want,
    /// The boot of this machine in which its VMM was last started.
    pub boot: String,
    /// Endpoints of its NICs.
    pub endpoints: Vec<SocketAddrV4>,
    /// The host that sends it here: only its streams are let through to the VMM that waits.
    #[serde(default)]
    pub from: Option<Key>,
    /// The last ownership counter seen; of one that arrives, the counter it will have.
    pub epoch: u64,
    /// The host it was last sent to: whom a granted right waits for.
    pub to: Option<Key>,
    /// The ownership counter that it will have there.
    #[serde(default)]
    pub granting: Option<u64>,
    /// How the right to run it came here, and where it went on, as far as others have not taken notice.
    #[serde(default)]
    pub grants: Vec<Grant>,
    /// Whether its VMM was told to stand still, because the disk of this host is nearly full.
    #[serde(default)]
    pub stands_still: bool,
}

impl Kept {
    /// A VM that was not here before.
    pub fn new(id: Id, home: Key, body: VmBody, private: VmPrivate, want: Want) -> Self {
        Self {
            id,
            home,
            body,
            private,
            want,
            boot: String::new(),
            endpoints: vec![],
            from: None,
            epoch: 0,
            to: None,
            granting: None,
            grants: vec![],
            stands_still: false,
        }
    }

    /// What its life needs of it.
    pub fn durable(&self) -> Durable {
        Durable { want: self.want, epoch: self.epoch, from: self.from, to: self.to, granting: self.granting }
    }
}

/// The folder of a VM.
pub fn folder(state: &Path, id: &Id) -> PathBuf {
    state.join("vms").join(id.to_string())
}

/// Makes the folder of a VM: what a guest says and writes is nobody else's.
pub fn make_folder(folder: &Path) -> Result<()> {
    let all = folder.parent().unwrap_or(folder);
    fs::create_dir_all(all).and_then(|()| durable::make_folder(folder)).with_context(|| format!("create {}", folder.display()))
}

/// Writes `vm.json`: whole or as it was.
pub fn write(folder: &Path, kept: &Kept) -> Result<()> {
    let path = folder.join("vm.json");
    let bytes = serde_json::to_vec(kept)?;
    Reserve::of_vm(folder).write(|| durable::replace(&path, &bytes)).with_context(|| format!("write {}", path.display()))
}

/// Reads it.
pub fn read(folder: &Path) -> Result<Kept> {
    let path = folder.join("vm.json");
    serde_json::from_slice(&fs::read(&path).with_context(|| format!("read {}", path.display()))?).context("understand vm.json")
}
