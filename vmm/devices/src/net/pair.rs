//! The thread of a queue pair: receive, transmit and the port's clock in turn, then sleep until a kick, a frame or a deadline.

use std::{
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rebec_offload::Offload;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::{
    FramePort, NetCounters, RX,
    counters::add,
    rx::{Held, RxProgress, RxQueue},
    tx::{TxProgress, TxQueue},
};
use crate::limit::{Limit, Rate};
use crate::virtio::{
    QueueEnvironment, QueueSetup, QueueState, Signals, StartError,
    ring::{Broken, Ring},
    wait::{Ready, Waiter, take_kicks},
    worker::Stop,
};

const RX_KICK: u64 = 0;
const TX_KICK: u64 = 1;
const PORT: u64 = 2;
/// How long a port that failed is left alone, so that one that fails for ever does not eat a CPU.
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// What outlives the rings: the port, the frame that waits, the counters.
pub(super) struct Station {
    pub(super) port: Box<dyn FramePort>,
    pub(super) held: Held,
    pub(super) counters: Arc<NetCounters>,
    pub(super) limits: Box<EachWay>,
}

/// What may pass a second.
#[derive(Debug, Default)]
pub(super) struct EachWay {
    pub(super) rx: Limits,
    pub(super) tx: Limits,
}

/// Of the VM and of the LAN: what both let through.
#[derive(Debug, Default)]
pub(super) struct Limits([Limit; 2]);

impl Limits {
    pub(super) fn new(rates: [&Arc<Rate>; 2]) -> Self {
        Self(rates.map(|rate| Limit::new(Arc::clone(rate))))
    }

    /// When to ask again; none, when something may pass now.
    pub(super) fn not_before(&mut self) -> Option<Instant> {
        let [one, other] = &mut self.0;
        one.not_before().max(other.not_before())
    }

    /// Something has passed.
    pub(super) fn took(&mut self, bytes: u64) {
        self.0.iter_mut().for_each(|limit| limit.took(bytes));
    }
}

/// What the thread works with.
pub(super) struct Pair {
    station: Station,
    rx: Option<RxQueue>,
    tx: Option<TxQueue>,
    signals: Arc<dyn Signals>,
    arrived: bool,
}

impl Station {
    pub(super) fn new(port: Box<dyn FramePort>, counters: Arc<NetCounters>) -> Self {
        Self { port, held: Held::default(), counters, limits: Box::default() }
    }

    pub(super) fn send(&mut self, offload: &Offload, frame: &[u8]) {
        match self.port.send(offload, frame) {
            Ok(()) => {
                add(&self.counters.tx_frames, 1);
                add(&self.counters.tx_bytes, frame.len() as u64);
            }
            Err(error) => {
                log::debug!("send a frame: {error}");
                add(&self.counters.tx_dropped, 1);
            }
        }
    }

    pub(super) fn flush(&mut self) {
        if let Err(error) = self.port.flush() {
            log::debug!("flush the port: {error}");
        }
    }
}

impl Pair {
    /// Takes the rings over. A driver may leave one of them out.
    pub(super) fn new(station: Station, queues: Vec<QueueSetup>, environment: &QueueEnvironment) -> Result<Self, (Station, StartError)> {
        let mergeable = environment.features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let (signals, arrived) = (Arc::clone(&environment.signals), environment.arrived);
        let mut pair = Self { station, rx: None, tx: None, signals, arrived };
        for setup in queues {
            match Ring::new(&setup, environment) {
                Err(error) => return Err((pair.station, error)),
                Ok(ring) if setup.index == RX => pair.rx = Some(RxQueue::new(ring, setup.kick, mergeable)),
                Ok(ring) => pair.tx = Some(TxQueue::new(ring, setup.kick)),
            }
        }
        Ok(pair)
    }

    pub(super) fn into_station(self) -> Station {
        self.station
    }

    pub(super) fn states(&self) -> Vec<(u16, QueueState)> {
        let rings = self.rx.iter().map(|rx| &rx.ring).chain(self.tx.iter().map(|tx| &tx.ring));
        rings.map(Ring::state).collect()
    }

    pub(super) fn run(&mut self, stop: &Stop) {
        if let Err(why) = self.serve(stop) {
            log::warn!("network card: {why}; the device waits for a reset");
            self.signals.broken();
        }
    }

    fn serve(&mut self, stop: &Stop) -> Result<(), Broken> {
        let waiter = self.waiter(stop)?;
        let mut listening = true;
        if std::mem::take(&mut self.arrived) {
            self.station.port.announce();
            self.station.flush();
        }
        loop {
            // First thing after a start too: what was available before it brings no kick.
            let progress = self.receive(stop)?;
            let sent = self.transmit(stop)?;
            let deadline = self.tick();
            if stop.requested() {
                return Ok(());
            }
            // What the guest has just sent may have an answer at once. Without buffers to take it the guest's kick wakes us.
            let answered = progress == RxProgress::Idle && self.station.port.has_answer();
            if progress == RxProgress::More || sent == TxProgress::More || answered {
                continue;
            }
            // While the guest has no buffers, a readable port would wake us for nothing.
            let listen = progress == RxProgress::Idle;
            if listen != listening {
                waiter.listen(&self.station.port.descriptor(), PORT, listen)?;
                listening = listen;
            }
            let retry = (progress == RxProgress::Failed).then(|| Instant::now() + RETRY_AFTER);
            let limited = [progress.later(), sent.later()];
            let wake_at = [deadline, retry].into_iter().chain(limited).flatten().min();
            let ready = waiter.wait(wake_at.map(|at| at.saturating_duration_since(Instant::now())))?;
            self.take_kicks(ready);
        }
    }

    /// Takes kicks before the rings are looked at: one that comes in between wakes again.
    fn take_kicks(&self, ready: Ready) {
        if let Some(rx) = self.rx.as_ref().filter(|_| ready.contains(RX_KICK)) {
            take_kicks(&rx.kick);
        }
        if let Some(tx) = self.tx.as_ref().filter(|_| ready.contains(TX_KICK)) {
            take_kicks(&tx.kick);
        }
    }

    fn waiter(&self, stop: &Stop) -> Result<Waiter, Broken> {
        let waiter = Waiter::new(stop)?;
        if let Some(rx) = &self.rx {
            waiter.add(&rx.kick, RX_KICK)?;
        }
        if let Some(tx) = &self.tx {
            waiter.add(&tx.kick, TX_KICK)?;
        }
        waiter.add(&self.station.port.descriptor().as_raw_fd(), PORT)?;
        Ok(waiter)
    }

    fn receive(&mut self, stop: &Stop) -> Result<RxProgress, Broken> {
        let Some(rx) = &mut self.rx else { return Ok(RxProgress::Starved) };
        rx.run(&mut self.station, stop)
    }

    fn transmit(&mut self, stop: &Stop) -> Result<TxProgress, Broken> {
        let Some(tx) = &mut self.tx else { return Ok(TxProgress::Idle) };
        tx.run(&mut self.station, stop)
    }

    /// Lets the port do what is due; says when it wants to be called next.
    fn tick(&mut self) -> Option<Instant> {
        let port = &mut self.station.port;
        let now = Instant::now();
        if port.next_deadline().is_some_and(|deadline| deadline <= now) {
            port.tick(now);
            self.station.flush();
        }
        self.station.port.next_deadline()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::PerSecond;

    #[test]
    fn the_slower_of_vm_and_lan_counts() {
        let rates = [0, 1].map(|_| Arc::new(Rate::default()));
        let mut limits = Limits::new([&rates[0], &rates[1]]);
        limits.took(1 << 20);
        assert_eq!(limits.not_before(), None);
        for slow in [0, 1] {
            rates[slow].set(PerSecond { requests: 0, bytes: 1000 });
            limits.took(1 << 20);
            assert!(limits.not_before().is_some(), "rate {slow}");
            rates[slow].set(PerSecond::default());
            assert_eq!(limits.not_before(), None);
        }
    }
}
