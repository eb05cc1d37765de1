//! VMs of this host. Each is a folder, a VMM process and a task that watches it:
//!
//! ```text
//! vms/ID/vm.json       what it is, what is wanted, where its ports are: enough for a new agent
//!        disk.qcow2    its copy-on-write layer over the image's disk
//!        disk-NAME.qcow2   a further disk
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
pub mod disks;
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
    collections::VecDeque,
    net::SocketAddrV4,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result};
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Body, Grant, Key,
    key::Id,
    record::{Kind, REASON_BYTES_MAX, SeenBody, SeenState, VmBody, VmPrivate},
};
pub use rebec_host::{console, control, failed, ledger, life::Want, process, seed, sockets};
use rebec_host::{
    facts,
    life::{Durable, Input, Life, Output, Refused, Word},
    reserve::{self, Reserve},
};
use rebec_vmm_api::control::Command;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch as changes};

use self::control::Control;
use crate::{
    agent::{Agent, lock},
    stall,
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
    /// What its life needs of it.
    pub fn durable(&self) -> Durable {
        Durable { want: self.want, epoch: self.epoch, from: self.from, to: self.to, granting: self.granting }
    }
}

/// A VM that is here.
pub struct LocalVm {
    /// Its folder.
    pub folder: PathBuf,
    /// Its console.
    pub console: console::Console,
    /// Held while its life takes something in, and what follows of that is written: the last word said is the last one in the log.
    living: Mutex<()>,
    /// Held while what is kept of it is written.
    keeping: Mutex<()>,
    inner: Mutex<Inner>,
    /// Wakes its task.
    woken: Notify,
    /// Wakes who waits for a change of its life.
    changed: changes::Sender<()>,
}

struct Inner {
    kept: Kept,
    seen: SeenBody,
    fdb: ports::Stations,
    /// End of its lease (CLOCK_BOOTTIME). Not kept: a new agent asks, and its VMM knows.
    lease_ends: Duration,
    life: Life,
    /// What its task is to do.
    work: VecDeque<Output>,
}

impl LocalVm {
    /// A VM that has just been given its folder.
    pub fn new(folder: PathBuf, kept: Kept) -> Self {
        let life = Life::new(kept.durable());
        Self::with(folder, kept, life)
    }

    /// A VM that an earlier agent had; `how` says how its VMM ended, if it has.
    pub fn found(folder: PathBuf, kept: Kept, how: String) -> Self {
        let life = Life::found(facts::boot_time(), kept.durable(), how);
        Self::with(folder, kept, life)
    }

    fn with(folder: PathBuf, kept: Kept, life: Life) -> Self {
        let console = console::Console::open(&folder);
        let seen = SeenBody {
            epoch: kept.epoch,
            state: SeenState::Stopped,
            reason: None,
            endpoints: vec![],
            memory_bytes: kept.body.memory_bytes,
            pid: 0,
            grants: kept.grants.clone(),
            to: life.word().to,
        };
        let (fdb, work) = (ports::Stations::new(), VecDeque::new());
        Self {
            folder,
            console,
            living: Mutex::default(),
            keeping: Mutex::default(),
            inner: Mutex::new(Inner { kept, seen, fdb, lease_ends: Duration::ZERO, life, work }),
            woken: Notify::new(),
            changed: changes::Sender::new(()),
        }
    }

    /// Tells its life what happened, and writes what follows at once: what is to be kept, and what is to be said. Its task does the rest. Only a wish is
    /// ever refused; also where it cannot be written down, and then nothing has changed.
    pub fn hear(&self, agent: &Agent, input: Input) -> Result<(), ApiError> {
        let is_wish = matches!(input, Input::Want(_));
        self.live(agent, is_wish, |life| life.handle(facts::boot_time(), input))
    }

    /// Tells its life what happened where that is no wish.
    pub fn learn(&self, agent: &Agent, input: Input) {
        if let Err(error) = self.hear(agent, input) {
            log::error!("{error}");
        }
    }

    /// Tells its life that time has passed.
    pub fn tick(&self, agent: &Agent) {
        let ticked = self.live(agent, false, |life| {
            life.tick(facts::boot_time());
            Ok(())
        });
        if let Err(error) = ticked {
            log::error!("{error}");
        }
    }

    /// Refuses a wish that its life would refuse now.
    pub fn require(&self, wish: &rebec_host::life::Goal) -> Result<(), ApiError> {
        let wished = self.life(Life::clone).handle(facts::boot_time(), Input::Want(wish.clone()));
        wished.map_err(|refused| self.refusal(refused))
    }

    fn refusal(&self, refused: Refused) -> ApiError {
        ApiError::new(ErrorCode::Conflict, format!("VM {} {refused}", self.name()))
    }

    fn live(&self, agent: &Agent, is_wish: bool, step: impl FnOnce(&mut Life) -> Result<(), Refused>) -> Result<(), ApiError> {
        let _alone = lock(&self.living);
        let mut life = self.life(Life::clone);
        step(&mut life).map_err(|refused| self.refusal(refused))?;
        let (mut work, mut says) = (VecDeque::new(), false);
        while let Some(output) = life.poll_output() {
            match output {
                Output::Keep { durable, grants } => match self.keep_life(agent, durable, &grants) {
                    Err(error) if is_wish => return Err(failed(&error)),
                    Err(error) => log::error!("vm {}: {error:#}", self.name()),
                    Ok(()) => {}
                },
                Output::Say => says = true,
                other => work.push_back(other),
            }
        }
        {
            let mut inner = lock(&self.inner);
            inner.life = life;
            inner.work.append(&mut work);
        }
        if says {
            self.say(agent);
        }
        self.woken.notify_one();
        self.changed.send_replace(());
        Ok(())
    }

    fn keep_life(&self, agent: &Agent, durable: Durable, grants: &[rebec_host::life::Grant]) -> Result<()> {
        let mut new = grants::signed(agent, &self.kept(), grants);
        if new.is_empty() && self.kept().durable() == durable {
            return Ok(());
        }
        self.keep(|kept| {
            let Durable { want, epoch, from, to, granting } = durable;
            (kept.want, kept.epoch, kept.from, kept.to, kept.granting) = (want, epoch, from, to, granting);
            kept.grants.append(&mut new);
            let surplus = kept.grants.len().saturating_sub(rebec_book::grant::GRANTS_MAX);
            kept.grants.drain(..surplus);
        })
    }

    /// Looks at its life.
    pub fn life<T>(&self, look: impl FnOnce(&Life) -> T) -> T {
        look(&lock(&self.inner).life)
    }

    /// What its task is to do next.
    pub fn next_work(&self) -> Option<Output> {
        lock(&self.inner).work.pop_front()
    }

    /// Until its life has changed, since the last time that this was waited for. For its task.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }

    /// Until its life is so.
    pub async fn until(&self, is_so: impl Fn(&Life) -> bool) {
        let mut changed = self.changed.subscribe();
        while !self.life(&is_so) {
            if changed.changed().await.is_err() {
                return;
            }
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

    /// Says that its VMM is of a version that this agent does not understand.
    pub fn say_strange(&self, agent: &Agent, reason: String) {
        self.say_word(agent, Word { state: SeenState::Other, reason: Some(reason), pid: 0, to: None });
    }

    /// Says how it is, to this host and to the pool, with what proves that it is here.
    pub fn say(&self, agent: &Agent) {
        let mut word = self.life(|life| life.word().clone());
        if word.state == SeenState::Paused && self.kept().stands_still {
            let what = "it stands still: its disk grows, and its host is short of room; remove a VM or an image there, or";
            word.reason = Some(format!("{what} `rebec vm move {}`", self.name()));
        }
        self.say_word(agent, word);
    }

    fn say_word(&self, agent: &Agent, word: Word) {
        let (id, mut seen) = {
            let mut inner = lock(&self.inner);
            let endpoints = if word.pid == 0 { vec![] } else { inner.kept.endpoints.clone() };
            let reason = word.reason.map(|mut reason| {
                reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
                reason
            });
            let epoch = inner.seen.epoch.max(inner.kept.epoch);
            inner.seen = SeenBody { epoch, state: word.state, reason, endpoints, pid: word.pid, to: word.to, ..inner.seen.clone() };
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
