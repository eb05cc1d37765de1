//! The vCPU threads. Each owns its vCPU for life and takes orders over a channel; nobody else touches the vCPU.
//!
//! ```text
//!            Run                      exits that end or restart the machine
//! [parked] ------> [running in KVM] ----------------------------------------> reported, then parked
//!     ^  ^                 |
//!     |  '-----------------'  an order arrives: the owner sends it, then kicks
//!     '-- EnterPvh, Save, Restore and Park are answered here
//! ```
//! A vCPU that is to run and whose lease has ended stands still until it has one again, and hears orders meanwhile.

use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc::{Receiver, RecvError, Sender, SyncSender, TryRecvError, channel, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rebec_devices::Threads;
use rebec_kvm::{Exits, Populated, Vcpu, VcpuExit, VcpuKicker};
use rebec_migrate::source::THROTTLE_PERCENT_MAX;
use rebec_vmm_saved::{Part, SavedMachine};

use super::{MachineEvent, Report, bus::Buses};
use crate::{
    lease::{Lease, STILL_PERIOD},
    threads::ServiceThreads,
};

/// Orders one thread may have waiting: each is answered before the owner sends the next.
const ORDERS_MAX: usize = 4;
/// How often a slowed vCPU is made to rest.
const THROTTLE_PERIOD: Duration = Duration::from_millis(10);

/// Why vCPUs could not do what they were told.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The thread could not be started.
    #[error("vCPU {index}: start its thread")]
    Spawn {
        /// The vCPU.
        index: usize,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody would end the lease.
    #[error("start the thread that ends the lease")]
    Lease(#[source] io::Error),
    /// The thread is gone.
    #[error("vCPU {index}: its thread ended")]
    Gone {
        /// The vCPU.
        index: usize,
    },
    /// KVM refused to give or take the state.
    #[error(transparent)]
    State(#[from] rebec_kvm::Error),
}

/// What a vCPU reports that ends or restarts the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VcpuEvent {
    /// Triple fault: the guest has no way on.
    TripleFault {
        /// The vCPU.
        index: usize,
        /// Where the guest stood, as far as it is known.
        place: String,
    },
    /// KVM could not go on.
    Failed {
        /// The vCPU.
        index: usize,
        /// Why.
        reason: String,
    },
}

type Done<T = ()> = Result<T, rebec_kvm::Error>;

enum Order {
    EnterPvh { rip: u32, start_info: u32, reply: Sender<Done> },
    Run,
    Park(Sender<Instant>),
    Save(Sender<Done<Part>>),
    Restore(Part, Sender<Done>),
    Populate(Range<u64>, Sender<Done<Populated>>),
    Exit,
}

struct Thread {
    orders: SyncSender<Order>,
    kicker: VcpuKicker,
    exits: Arc<Exits>,
    handle: Option<JoinHandle<()>>,
}

/// All vCPU threads of a machine.
pub struct VcpuThreads {
    threads: Vec<Thread>,
    throttle: Arc<Throttle>,
}

impl VcpuThreads {
    /// Starts a parked thread for each vCPU.
    pub fn start(vcpus: Vec<Vcpu>, buses: &Arc<Buses>, threads: &dyn Threads, report: &Report, lease: &Lease) -> Result<Self, VcpuError> {
        let mut started = Self { threads: Vec::with_capacity(vcpus.len()), throttle: Arc::default() };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let (kicker, exits) = (vcpu.kicker(), vcpu.exits());
            let (orders, inbox) = sync_channel(ORDERS_MAX);
            let throttle = started.throttle.clone();
            let (buses, report, lease) = (buses.clone(), report.clone(), lease.clone());
            let body = VcpuLoop { index, vcpu, inbox, buses, report, throttle, lease, has_run: false, turn: Turn::default() };
            let handle = threads.spawn(&format!("vcpu{index}"), Box::new(move || body.serve()));
            let handle = Some(handle.map_err(|source| VcpuError::Spawn { index, source })?);
            started.threads.push(Thread { orders, kicker, exits, handle });
        }
        let kickers = started.threads.iter().map(|thread| thread.kicker.clone()).collect();
        lease.enforce(Arc::downgrade(&started.throttle), kickers).map_err(VcpuError::Lease)?;
        Ok(started)
    }

    /// Makes every vCPU ready to boot. They must be parked.
    pub fn enter_pvh(&self, rip: u32, start_info: u32) -> Result<(), VcpuError> {
        let done = self.ask(|_, reply| Order::EnterPvh { rip, start_info, reply })?;
        Ok(done.into_iter().collect::<Done>()?)
    }

    /// Lets every vCPU run.
    pub fn run(&self) -> Result<(), VcpuError> {
        for (index, thread) in self.threads.iter().enumerate() {
            thread.give(index, Order::Run)?;
        }
        Ok(())
    }

    /// Stops every vCPU; returns when the last one stands still, with that instant.
    pub fn park(&self) -> Result<Instant, VcpuError> {
        let stopped = self.ask(|_, reply| Order::Park(reply))?;
        stopped.into_iter().max().ok_or(VcpuError::Gone { index: 0 })
    }

    /// Saves every vCPU. They must be parked.
    pub fn save(&self, machine: &mut SavedMachine) -> Result<(), VcpuError> {
        for part in self.ask(|_, reply| Order::Save(reply))? {
            machine.push(part?);
        }
        Ok(())
    }

    /// Restores every vCPU from its part, one for each. They must be parked.
    pub fn restore(&self, parts: Vec<Part>) -> Result<(), VcpuError> {
        let mut parts = parts.into_iter();
        let order = |index, reply| match parts.next() {
            Some(part) => Ok(Order::Restore(part, reply)),
            None => Err(VcpuError::Gone { index }),
        };
        Ok(self.try_ask(order)?.into_iter().collect::<Done>()?)
    }

    /// How often each left the guest.
    pub fn exits(&self) -> Vec<Arc<Exits>> {
        self.threads.iter().map(|thread| thread.exits.clone()).collect()
    }

    /// Makes every vCPU rest for this share of the time, in percent; 0 is full speed.
    pub fn throttle(&self, percent: u32) {
        self.throttle.percent.store(percent.min(THROTTLE_PERCENT_MAX.into()), Ordering::Relaxed);
        if percent > 0 && !self.throttle.has_ticker.swap(true, Ordering::AcqRel) {
            let kickers = self.threads.iter().map(|thread| thread.kicker.clone()).collect();
            let throttle = self.throttle.clone();
            let ticker = ServiceThreads.spawn("throttle", Box::new(move || throttle.tick(kickers)));
            if let Err(error) = ticker {
                log::warn!("vCPUs are not slowed: {error}");
                self.throttle.has_ticker.store(false, Ordering::Release);
            }
        }
    }

    /// A handle by which the first vCPU maps memory ahead. It answers nothing once the vCPU runs or is gone.
    pub fn populator(&self) -> Option<impl FnMut(Range<u64>) -> Option<Populated> + Send + use<>> {
        let first = self.threads.first()?;
        let (orders, kicker) = (first.orders.clone(), first.kicker.clone());
        Some(move |pages: Range<u64>| {
            let (reply, answer) = channel();
            orders.send(Order::Populate(pages, reply)).ok()?;
            kicker.kick();
            match answer.recv().ok()? {
                Ok(populated) => Some(populated),
                Err(error) => {
                    log::warn!("{error}");
                    None
                }
            }
        })
    }

    fn ask<T>(&self, mut order: impl FnMut(usize, Sender<T>) -> Order) -> Result<Vec<T>, VcpuError> {
        self.try_ask(|index, reply| Ok(order(index, reply)))
    }

    /// Gives all vCPUs an order at once, then collects the answers in the order of the vCPUs.
    fn try_ask<T>(&self, mut order: impl FnMut(usize, Sender<T>) -> Result<Order, VcpuError>) -> Result<Vec<T>, VcpuError> {
        let mut answers = Vec::with_capacity(self.threads.len());
        for (index, thread) in self.threads.iter().enumerate() {
            let (reply, answer) = channel();
            thread.give(index, order(index, reply)?)?;
            answers.push(answer);
        }
        let received = answers.into_iter().enumerate();
        received.map(|(index, answer)| answer.recv().map_err(|_| VcpuError::Gone { index })).collect()
    }
}

impl Thread {
    fn give(&self, index: usize, order: Order) -> Result<(), VcpuError> {
        self.orders.send(order).map_err(|_| VcpuError::Gone { index })?;
        self.kicker.kick();
        Ok(())
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        for (index, thread) in self.threads.iter_mut().enumerate() {
            // A thread that is gone already has nothing left to end.
            if thread.give(index, Order::Exit).is_ok()
                && let Some(handle) = thread.handle.take()
                && handle.join().is_err()
            {
                log::error!("vCPU {index}: its thread panicked");
            }
        }
    }
}

/// How vCPUs are slowed: a ticker takes them out of the guest once a period, and each rests before it goes back in.
#[derive(Default)]
struct Throttle {
    percent: AtomicU32,
    has_ticker: AtomicBool,
}

impl Throttle {
    fn tick(&self, kickers: Vec<VcpuKicker>) {
        while self.rest().is_some() {
            kickers.iter().for_each(VcpuKicker::kick);
            std::thread::sleep(THROTTLE_PERIOD);
        }
        self.has_ticker.store(false, Ordering::Release);
    }

    /// How long to rest in each period.
    fn rest(&self) -> Option<Duration> {
        let percent = self.percent.load(Ordering::Relaxed);
        (percent > 0).then(|| THROTTLE_PERIOD * percent / 100)
    }
}

/// A slowed vCPU's turn in the guest. A kick that comes while it rests is not lost, and takes it out again at once: it must not rest for that,
/// or it would never run.
#[derive(Debug, Default)]
struct Turn {
    began: Option<Instant>,
    was_kicked: bool,
}

impl Turn {
    /// It was taken out of the guest.
    fn kicked(&mut self) {
        self.was_kicked = true;
    }

    /// Until when it rests before it goes in, if it has had what it keeps of a period.
    fn rests_until(&mut self, now: Instant, rest: Option<Duration>) -> Option<Instant> {
        let was_kicked = std::mem::take(&mut self.was_kicked);
        let Some(rest) = rest else {
            self.began = None;
            return None;
        };
        let began = *self.began.get_or_insert(now);
        let has_run = was_kicked && now.saturating_duration_since(began) >= THROTTLE_PERIOD.saturating_sub(rest);
        has_run.then(|| {
            self.began = Some(now + rest);
            now + rest
        })
    }
}

struct VcpuLoop {
    index: usize,
    vcpu: Vcpu,
    inbox: Receiver<Order>,
    buses: Arc<Buses>,
    report: Report,
    throttle: Arc<Throttle>,
    lease: Lease,
    /// Whether the guest ran here since it was last told of a pause.
    has_run: bool,
    turn: Turn,
}

impl VcpuLoop {
    fn serve(mut self) {
        let mut running = false;
        // Whether it would run, had it a lease.
        let mut still = false;
        let mut rests_until = None;
        loop {
            if running && rests_until.is_none() {
                rests_until = self.turn.rests_until(Instant::now(), self.throttle.rest());
            }
            let order = match (running, self.inbox.try_recv()) {
                (_, Ok(order)) => Some(order),
                (true, Err(TryRecvError::Empty)) if !self.lease.holds() => {
                    still = true;
                    match self.inbox.recv_timeout(STILL_PERIOD) {
                        Ok(order) => Some(order),
                        Err(_) => continue,
                    }
                }
                // Whoever has an order need not wait until it has rested.
                (true, Err(TryRecvError::Empty)) if let Some(until) = rests_until => {
                    match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                        Ok(order) => Some(order),
                        Err(_) => {
                            rests_until = None;
                            None
                        }
                    }
                }
                (true, Err(TryRecvError::Empty)) => None,
                (false, Err(TryRecvError::Empty)) => match self.inbox.recv() {
                    Ok(order) => Some(order),
                    Err(RecvError) => return,
                },
                (_, Err(TryRecvError::Disconnected)) => return,
            };
            running = match order {
                Some(Order::Exit) => return,
                Some(order) => self.obey(order, running),
                None => {
                    if std::mem::take(&mut still) {
                        self.tell_of_pause();
                    }
                    self.run_once()
                }
            };
        }
    }

    /// Whoever asked may have given up waiting: an answer that nobody reads is no error.
    fn obey(&mut self, order: Order, running: bool) -> bool {
        match order {
            Order::Run => {
                self.tell_of_pause();
                return true;
            }
            Order::Park(reply) => reply.send(Instant::now()).unwrap_or_default(),
            Order::EnterPvh { rip, start_info, reply } => reply.send(self.vcpu.enter_pvh(rip, start_info)).unwrap_or_default(),
            Order::Save(reply) => reply.send(self.vcpu.save()).unwrap_or_default(),
            Order::Restore(part, reply) => reply.send(self.vcpu.restore(part)).unwrap_or_default(),
            Order::Populate(pages, reply) => {
                // A guest that runs maps its memory itself: the asker hears nothing.
                if !running {
                    reply.send(self.vcpu.populate(pages)).unwrap_or_default();
                }
                return running;
            }
            Order::Exit => return running,
        }
        false
    }

    /// A guest that ran here and was paused must not blame a CPU for the gap.
    fn tell_of_pause(&mut self) {
        if std::mem::replace(&mut self.has_run, true)
            && let Err(error) = self.vcpu.note_pause()
        {
            log::warn!("{error}: the guest may report a CPU that stood still");
        }
    }

    /// Enters the guest until something asks for attention; returns whether to go on running.
    fn run_once(&mut self) -> bool {
        let index = self.index;
        let event = match self.vcpu.run(&*self.buses) {
            Ok(VcpuExit::Interrupted) => {
                self.turn.kicked();
                return true;
            }
            Ok(VcpuExit::Shutdown) => VcpuEvent::TripleFault { index, place: self.vcpu.last_state() },
            Ok(VcpuExit::SystemEvent { kind }) => VcpuEvent::Failed { index, reason: format!("KVM reports system event {kind}") },
            Err(error) => VcpuEvent::Failed { index, reason: error.to_string() },
        };
        (self.report)(MachineEvent::Vcpu(event));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_slowed_vcpu_rests_after_its_share_and_not_before() {
        let (mut turn, start, rest) = (Turn::default(), Instant::now(), Some(MS(9)));
        assert_eq!(turn.rests_until(start, rest), None, "it begins with its share");
        turn.kicked();
        assert_eq!(turn.rests_until(start + MS(1), rest), Some(start + MS(10)));
        // The kick of the next period came while it rested: it is taken out again before one instruction.
        turn.kicked();
        assert_eq!(turn.rests_until(start + MS(10), rest), None);
        assert_eq!(turn.rests_until(start + MS(11), rest), None, "nobody took it out");
        turn.kicked();
        assert_eq!(turn.rests_until(start + MS(11), rest), Some(start + MS(20)));
        turn.kicked();
        assert_eq!(turn.rests_until(start + MS(20), None), None, "full speed");
    }
}
