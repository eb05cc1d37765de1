//! VMs of this host. Each is a folder, a VMM process and a task that watches it:
//!
//! ```text
//! vms/ID/vm.json       what it is, what is wanted, where its ports are: enough for a new agent
//!        disk.qcow2    its copy-on-write layer over the image's disk
//!        seed.img      its NoCloud seed disk
//!        ledger        who may run it (docs/formats/ledger.md)
//!        control.sock, console.sock      the VMM's
//!        arrive.sock   where it arrives, if it does
//!        console.log, vmm.log            what the guest and the VMM said; what is long is cut, its end kept in *.log.1
//! vms/.gone-ID         a VM that is being removed
//! ```

pub mod adopt;
pub mod arrive;
pub mod create;
pub mod depart;
pub mod grants;
pub mod keeper;
pub mod launch;
pub mod lease;
pub mod ports;
pub mod release;
pub mod start;
pub mod stop;
pub mod watch;

use std::{
    net::SocketAddrV4,
    path::{Path, PathBuf},
    sync::{Mutex, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context, Result};
use rebec_book::{
    Body, Grant, Key,
    key::Id,
    record::{Kind, REASON_BYTES_MAX, SeenBody, SeenState, VmBody, VmPrivate},
};
use rebec_host::reserve::{self, Reserve};
pub use rebec_host::{console, control, failed, ledger, process, seed, sockets};
use rebec_vmm_api::control::Command;
use serde::{Deserialize, Serialize};

use self::control::Control;
use crate::{
    agent::{Agent, lock},
    stall,
};

/// What is wanted of a VM here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Want {
    /// It runs.
    Running,
    /// It does not.
    Stopped,
    /// It arrives from another host.
    Arriving,
    /// It runs at another host; what is left here goes once its VMM has ended.
    Gone,
}

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

/// A VM that is here.
pub struct LocalVm {
    /// Its folder.
    pub folder: PathBuf,
    /// Its console.
    pub console: console::Console,
    /// One change of its life at a time: start, stop, move, remove.
    pub change: tokio::sync::Mutex<()>,
    /// Whether a granted right is being brought to the other side.
    pub insisting: AtomicBool,
    /// Whether its last stop was a cut of its power.
    pub power_cut: AtomicBool,
    /// When the host that sends it was heard last, and its streams.
    pub arrival: Mutex<arrive::Arrival>,
    /// Held while a word about it is written.
    saying: Mutex<()>,
    /// Held while what is kept of it is written.
    keeping: Mutex<()>,
    inner: Mutex<Inner>,
}

struct Inner {
    kept: Kept,
    seen: SeenBody,
    fdb: ports::Stations,
    /// End of its lease (CLOCK_BOOTTIME). Not kept: a new agent asks, and its VMM knows.
    lease_ends: Duration,
}

impl LocalVm {
    /// A VM whose folder exists.
    pub fn new(folder: PathBuf, kept: Kept) -> Self {
        let console = console::Console::open(&folder);
        let seen = SeenBody {
            epoch: kept.epoch,
            state: SeenState::Stopped,
            reason: None,
            endpoints: vec![],
            memory_bytes: kept.body.memory_bytes,
            pid: 0,
            grants: kept.grants.clone(),
            to: None,
        };
        Self {
            folder,
            console,
            change: tokio::sync::Mutex::default(),
            insisting: AtomicBool::new(false),
            power_cut: AtomicBool::new(false),
            arrival: Mutex::default(),
            saying: Mutex::default(),
            keeping: Mutex::default(),
            inner: Mutex::new(Inner { kept, seen, fdb: ports::Stations::new(), lease_ends: Duration::ZERO }),
        }
    }

    /// What is kept of it.
    pub fn kept(&self) -> Kept {
        lock(&self.inner).kept.clone()
    }

    /// Its id.
    pub fn id(&self) -> Id {
        lock(&self.inner).kept.id
    }

    /// Its name, for messages.
    pub fn name(&self) -> String {
        lock(&self.inner).kept.body.name.clone()
    }

    /// How it is.
    pub fn seen(&self) -> SeenBody {
        lock(&self.inner).seen.clone()
    }

    /// Changes what is kept, on the disk first. Who asks meanwhile hears what was kept before, and does not wait for the disk.
    pub fn keep(&self, change: impl FnOnce(&mut Kept)) -> Result<()> {
        let _keeping = lock(&self.keeping);
        let mut kept = self.kept();
        change(&mut kept);
        stall::may(|| write_kept(&self.folder, &kept))?;
        lock(&self.inner).kept = kept;
        Ok(())
    }

    /// The VMM's control socket.
    pub fn control(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Has its VMM go on, if it stands still for want of room.
    pub async fn go_on(&self) -> Result<()> {
        if self.kept().stands_still {
            if let Err(error) = self.talk(|control| control.tell(Command::Resume)).await {
                log::debug!("vm {}: {error:#}", self.name());
            }
            self.keep(|kept| kept.stands_still = false)?;
        }
        Ok(())
    }

    /// What is wanted of it.
    pub fn want(&self) -> Want {
        lock(&self.inner).kept.want
    }

    /// Asks its VMM.
    pub async fn talk<T: Send + 'static>(&self, ask: impl FnOnce(&mut Control) -> Result<T> + Send + 'static) -> Result<T> {
        self.turn(|mut control| ask(&mut control)).await
    }

    /// Makes something else of a connection to its VMM.
    pub async fn turn<T: Send + 'static>(&self, make: impl FnOnce(Control) -> Result<T> + Send + 'static) -> Result<T> {
        let path = self.control();
        tokio::task::spawn_blocking(move || make(Control::connect(&path)?)).await?
    }

    /// Says how it is, to this host and to the pool, with what proves that it is here.
    pub fn say(&self, agent: &Agent, change: impl FnOnce(&mut SeenBody)) {
        // One word after the other: the last one said is the last one written.
        let _saying = lock(&self.saying);
        let (id, mut seen) = {
            let mut inner = lock(&self.inner);
            change(&mut inner.seen);
            inner.seen.epoch = inner.seen.epoch.max(inner.kept.epoch);
            if let Some(reason) = &mut inner.seen.reason {
                reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
            }
            (inner.kept.id, inner.seen.clone())
        };
        seen.grants = grants::known(agent, id, &self.kept().grants);
        let body = Body::Seen(seen.into());
        if agent.book(|book| book.get(Kind::SEEN, id, agent.key()) == Some(&body)) == Some(true) {
            return;
        }
        if let Err(error) = agent.publish(Kind::SEEN, id, Some(body)) {
            log::error!("vm {}: {error}", self.name());
        }
    }

    /// Says that it ended or could not start.
    pub fn say_stopped(&self, agent: &Agent, state: SeenState, reason: Option<String>) {
        self.say(agent, |seen| {
            seen.state = state;
            seen.reason = reason;
            seen.endpoints = vec![];
            seen.pid = 0;
        });
    }

    /// Its keeper has promised that it may run until then.
    pub fn leased_until(&self, ends: Duration) {
        let mut inner = lock(&self.inner);
        inner.lease_ends = inner.lease_ends.max(ends);
    }

    /// Until when it may run, as far as this agent has heard.
    pub fn lease_ends(&self) -> Duration {
        lock(&self.inner).lease_ends
    }

    /// What the VMM's ports were told last.
    pub fn fdb<T>(&self, change: impl FnOnce(&mut ports::Stations) -> T) -> T {
        change(&mut lock(&self.inner).fdb)
    }
}

/// The folder of a VM.
pub fn folder(state: &Path, id: &Id) -> PathBuf {
    state.join("vms").join(id.to_string())
}

/// Writes `vm.json`: whole or as it was.
pub fn write_kept(folder: &Path, kept: &Kept) -> Result<()> {
    let path = folder.join("vm.json");
    let bytes = serde_json::to_vec(kept)?;
    Reserve::of_vm(folder).write(|| reserve::replace(&path, &bytes)).with_context(|| format!("write {}", path.display()))
}
