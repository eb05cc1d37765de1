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
pub mod clock;
pub mod depart;
pub mod disks;
mod gather;
pub mod grants;
pub mod launch;
pub mod lease;
pub mod look;
mod memory;
pub mod outcast;
pub mod paths;
pub mod ports;
mod roads;
pub mod room;
pub mod start;
pub mod stop;
pub mod traffic;
pub mod underlay;
pub mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Result;
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Body, Key,
    key::{Id, Name},
    record::{Kind, PortAhead, REASON_BYTES_MAX, SeenBody, SeenState},
};
use rebec_host::{
    Host, console, control, facts, failed, kept, ledger,
    life::{Durable, Input, Life, Output, Refused, Word},
    lock, process, sockets,
    traffic::Traffic,
};
pub use rebec_host::{kept::Kept, life::Want};
use rebec_vmm_api::{
    MacAddr,
    control::{Command, Status},
};
use tokio::sync::{Notify, watch as changes};

use self::control::Control;
use crate::{jobs::Jobs, keeper::Keeper, knowledge::Knowledge, peers::Peers, stall, store::Store};

/// The VMs of this host, and what their tasks need.
pub struct Vms {
    host: Arc<Host>,
    knowledge: Arc<Knowledge>,
    peers: Arc<Peers>,
    /// Of VMs that this host keeps: also of some that run here.
    keeper: Arc<Keeper>,
    store: Arc<Store>,
    jobs: Arc<Jobs>,
    here: Mutex<BTreeMap<Id, Arc<LocalVm>>>,
    /// Serialises what checks the room of this host and then takes it.
    admission: tokio::sync::Mutex<()>,
    /// VMs that had no record at the last look, and of which it is kept what they start with.
    unlisted: Mutex<BTreeSet<Id>>,
}

impl Vms {
    /// None is here yet.
    pub fn new(
        host: Arc<Host>,
        knowledge: Arc<Knowledge>,
        peers: Arc<Peers>,
        keeper: Arc<Keeper>,
        store: Arc<Store>,
        jobs: Arc<Jobs>,
    ) -> Arc<Self> {
        let (here, admission, unlisted) = Default::default();
        Arc::new(Self { host, knowledge, peers, keeper, store, jobs, here, admission, unlisted })
    }

    /// A VM that is here.
    pub fn get(&self, id: &Id) -> Option<Arc<LocalVm>> {
        lock(&self.here).get(id).cloned()
    }

    /// All VMs that are here.
    pub fn all(&self) -> Vec<Arc<LocalVm>> {
        lock(&self.here).values().cloned().collect()
    }

    /// A VM is here from now on.
    pub fn insert(&self, vm: Arc<LocalVm>) {
        lock(&self.here).insert(vm.id(), vm);
    }

    /// Nothing of it is here any more.
    fn forget(&self, id: &Id) {
        lock(&self.here).remove(id);
    }
}

/// A VM that is here.
pub struct LocalVm {
    /// Where its words go, and what it is told of.
    knowledge: Arc<Knowledge>,
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
    /// The public keys of its ports, as its VMM says; none of one that does not seal.
    port_keys: Vec<Option<Key>>,
    /// Whose keys its ports were told.
    keys_told: ports::Told,
    /// What its ports were told that their LANs let through.
    rates_told: BTreeMap<MacAddr, u64>,
    /// Why its ports do not leave from where this host is reached, if so.
    stranded: Option<String>,
    /// Whom it talks to.
    traffic: Traffic,
    /// End of its lease (CLOCK_BOOTTIME). Not kept: a new agent asks, and its VMM knows.
    lease_ends: Duration,
    life: Life,
    /// What its task is to do.
    work: VecDeque<Output>,
}

impl LocalVm {
    /// A VM that has just been given its folder.
    pub fn new(knowledge: Arc<Knowledge>, folder: PathBuf, kept: Kept) -> Self {
        let life = Life::new(kept.durable());
        Self::with(knowledge, folder, kept, life)
    }

    /// A VM that an earlier agent had; `how` says how its VMM ended, if it has.
    pub fn found(knowledge: Arc<Knowledge>, folder: PathBuf, kept: Kept, how: String) -> Self {
        let life = Life::found(facts::boot_time(), kept.durable(), how);
        Self::with(knowledge, folder, kept, life)
    }

    fn with(knowledge: Arc<Knowledge>, folder: PathBuf, kept: Kept, life: Life) -> Self {
        let console = console::Console::open(&folder);
        let seen = SeenBody {
            epoch: kept.epoch,
            state: SeenState::Stopped,
            reason: None,
            endpoints: vec![],
            memory_bytes: kept.body.granted_bytes(),
            pid: 0,
            grants: kept.grants.clone(),
            to: life.word().to,
            keys: None,
            ahead: None,
        };
        let (fdb, port_keys, keys_told, rates_told, stranded, traffic, work) = Default::default();
        Self {
            knowledge,
            folder,
            console,
            living: Mutex::default(),
            keeping: Mutex::default(),
            inner: Mutex::new(Inner {
                kept,
                seen,
                fdb,
                port_keys,
                keys_told,
                rates_told,
                stranded,
                traffic,
                lease_ends: Duration::ZERO,
                life,
                work,
            }),
            woken: Notify::new(),
            changed: changes::Sender::new(()),
        }
    }

    /// Tells its life what happened, and writes what follows at once: what is to be kept, and what is to be said. Its task does the rest. Only a wish is
    /// ever refused; also where it cannot be written down, and then nothing has changed.
    pub fn hear(&self, input: Input) -> Result<(), ApiError> {
        let is_wish = matches!(input, Input::Want(_));
        self.live(is_wish, |life| life.handle(facts::boot_time(), input))
    }

    /// Tells its life what happened where that is no wish.
    pub fn learn(&self, input: Input) {
        if let Err(error) = self.hear(input) {
            log::error!("{error}");
        }
    }

    /// Tells its life that time has passed.
    pub fn tick(&self) {
        let ticked = self.live(false, |life| {
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

    fn live(&self, is_wish: bool, step: impl FnOnce(&mut Life) -> Result<(), Refused>) -> Result<(), ApiError> {
        let _alone = lock(&self.living);
        let mut life = self.life(Life::clone);
        step(&mut life).map_err(|refused| self.refusal(refused))?;
        let (mut work, mut says) = (VecDeque::new(), false);
        while let Some(output) = life.poll_output() {
            match output {
                Output::Keep { durable, grants } => match self.keep_life(durable, &grants) {
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
        // A VMM that has ended does not stand still, and nobody has it go on.
        if self.life(Life::vmm).is_none()
            && self.kept().stands_still
            && let Err(error) = self.keep(|kept| kept.stands_still = false)
        {
            log::error!("vm {}: {error:#}", self.name());
        }
        if says {
            self.say_in_turn();
        }
        self.woken.notify_one();
        self.changed.send_replace(());
        Ok(())
    }

    fn keep_life(&self, durable: Durable, grants: &[rebec_host::life::Grant]) -> Result<()> {
        let mut new = grants::signed(&self.knowledge, &self.kept(), grants);
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

    /// Why a VM that was to run or to wait here does not.
    pub fn why_not(&self) -> ApiError {
        let reason = self.life(|life| life.word().reason.clone()).unwrap_or_else(|| "it ended; see the agent's log".to_owned());
        ApiError::new(ErrorCode::Failed, reason)
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

    /// What its host counts as its memory from now on; whether that is something new.
    fn counts(&self, memory_bytes: u64) -> bool {
        std::mem::replace(&mut lock(&self.inner).seen.memory_bytes, memory_bytes) != memory_bytes
    }

    /// Changes what is kept, on the disk first. Who asks meanwhile hears what was kept before, and does not wait for the disk.
    pub fn keep(&self, change: impl FnOnce(&mut Kept)) -> Result<()> {
        let _keeping = lock(&self.keeping);
        let mut kept = self.kept();
        change(&mut kept);
        stall::may(|| kept::write(&self.folder, &kept))?;
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
    pub fn say_strange(&self, reason: String) {
        self.say_word(Word { state: SeenState::Other, reason: Some(reason), pid: 0, to: None });
    }

    /// Says how it is, to this host and to the pool, with what proves that it is here.
    pub fn say(&self) {
        let _alone = lock(&self.living);
        self.say_in_turn();
    }

    /// The same for whoever holds `living`: of two who say something the later one says what is so last.
    fn say_in_turn(&self) {
        let mut word = self.life(|life| life.word().clone());
        if word.state == SeenState::Paused && self.kept().stands_still {
            let what = "it stands still: its disk grows, and its host is short of room; remove a VM or an image there, or";
            word.reason = Some(format!("{what} `rebec vm move {}`", self.name()));
        }
        if word.state == SeenState::Running
            && let Some(why) = lock(&self.inner).stranded.clone()
        {
            word.reason = Some(format!("its LANs do not reach it, because the address of its host has changed: {why}"));
        }
        self.say_word(word);
    }

    /// Whether its ports leave from where this host is reached.
    pub fn lans_reach(&self, so: Result<()>) {
        lock(&self.inner).stranded = so.err().map(|error| format!("{error:#}"));
    }

    fn say_word(&self, word: Word) {
        let (id, mut seen) = {
            let mut inner = lock(&self.inner);
            let endpoints = if word.pid == 0 { vec![] } else { inner.kept.endpoints.clone() };
            let keys = (word.pid != 0 && inner.port_keys.iter().any(Option::is_some)).then(|| inner.port_keys.clone());
            let ahead = inner.seen.ahead.take().filter(|_| word.to.is_some());
            let reason = word.reason.map(|mut reason| {
                reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
                reason
            });
            let epoch = inner.seen.epoch.max(inner.kept.epoch);
            let seen =
                SeenBody { epoch, state: word.state, reason, endpoints, pid: word.pid, to: word.to, keys, ahead, ..inner.seen.clone() };
            inner.seen = seen;
            (inner.kept.id, inner.seen.clone())
        };
        seen.grants = grants::known(&self.knowledge, id, &self.kept().grants);
        let body = Body::Seen(seen.into());
        if self.knowledge.read(|book| book.get(Kind::SEEN, id, self.knowledge.key()) == Some(&body)) == Some(true) {
            return;
        }
        if let Err(error) = self.knowledge.publish(Kind::SEEN, id, Some(body)) {
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

    /// The public keys of its ports.
    pub fn port_keys(&self) -> Vec<Option<Key>> {
        lock(&self.inner).port_keys.clone()
    }

    /// Its VMM said what the public keys of its ports are. Whether that is news.
    pub fn ports_have(&self, status: &Status) -> bool {
        let keys = status.nets.iter().map(|net| net.key.map(|key| Name(key.0))).collect();
        let mut inner = lock(&self.inner);
        std::mem::replace(&mut inner.port_keys, keys) != inner.port_keys
    }

    /// Where its ports will be on the host that it is sent to: said with its next word.
    pub fn ahead(&self, ports: Vec<PortAhead>) {
        lock(&self.inner).seen.ahead = Some(ports);
    }

    /// Whose keys its ports were told.
    pub fn keys_told<T>(&self, change: impl FnOnce(&mut ports::Told) -> T) -> T {
        change(&mut lock(&self.inner).keys_told)
    }

    /// What its ports were told that their LANs let through.
    pub fn rates_told<T>(&self, change: impl FnOnce(&mut BTreeMap<MacAddr, u64>) -> T) -> T {
        change(&mut lock(&self.inner).rates_told)
    }

    /// Whom it talks to.
    pub fn traffic<T>(&self, look: impl FnOnce(&mut Traffic) -> T) -> T {
        look(&mut lock(&self.inner).traffic)
    }

    /// What the VMM's ports were told last.
    pub fn fdb<T>(&self, change: impl FnOnce(&mut ports::Stations) -> T) -> T {
        change(&mut lock(&self.inner).fdb)
    }
}
