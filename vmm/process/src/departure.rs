//! The VM leaves: a thread moves it and gives it back with the outcome; when it is gone, its ports forward late frames.

use std::{
    net::SocketAddrV4,
    os::fd::OwnedFd,
    sync::mpsc::{SyncSender, sync_channel},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rebec_devices::Threads;
use rebec_migrate::{MoveId, SourceConfig, page::Key};
use rebec_vmm_api::{
    control::{MigrateOptions, ResponseBody},
    report::MoveReport,
};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::{
    control::Reply,
    held::Held,
    lan::Lan,
    later,
    moving::Outgoing,
    threads::{ServiceThreads, WorkThreads},
};

/// How long the old place sends late frames on: longer than the seconds it takes to tell every peer.
const FORWARD_TIME: Duration = Duration::from_secs(5);

/// A VM on its way, and whom to tell.
pub struct Departure {
    pub held: Box<Held>,
    pub outgoing: Box<Outgoing>,
    pub connections: Vec<OwnedFd>,
    pub reply: Reply,
}

/// A VM that comes back from a move's thread, with how that ended.
pub struct Departed {
    pub held: Box<Held>,
    pub outgoing: Box<Outgoing>,
    /// An error: nothing has happened to the VM.
    pub report: Result<MoveReport>,
    pub reply: Reply,
}

/// A move as the user wants it.
pub fn outgoing(held: &Held, options: MigrateOptions) -> Result<Box<Outgoing>> {
    let mut random = [0; 48];
    getrandom(&mut random, GetRandomFlags::empty()).context("make the move's identity and key")?;
    let (mut move_id, mut key) = ([0; 16], [0; 32]);
    move_id.copy_from_slice(&random[..16]);
    key.copy_from_slice(&random[16..]);
    let outgoing = Outgoing::new(SourceConfig {
        move_id: MoveId(move_id),
        key: Key(key),
        shape: held.move_shape(),
        streams: usize::from(options.streams),
        downtime_max: Duration::from_millis(options.downtime_ms_max.into()),
        bytes_per_second_max: options.bandwidth_mbit_max.map(|mbit| u64::from(mbit) * 1_000_000 / 8),
    });
    Ok(Box::new(outgoing.speaking(later::moves()).where_clock_is_ahead(options.clock_ahead_ms)))
}

/// A thread that waits for a VM to move; it gives it to `back`. Made before the VM is given away: a machine out of threads must not cost the VM.
pub fn thread(back: impl FnOnce(Box<Departed>) + Send + 'static) -> Result<SyncSender<Departure>> {
    let (give, take) = sync_channel::<Departure>(1);
    let body = move || {
        let Ok(Departure { held, mut outgoing, connections, reply }) = take.recv() else { return };
        let report = outgoing.run(&*held, &WorkThreads, connections, |progress| reply.send(ResponseBody::Progress(progress)));
        back(Box::new(Departed { held, outgoing, report, reply }));
    };
    WorkThreads.spawn("move", Box::new(body)).context("start the move's thread")?;
    Ok(give)
}

/// The VM runs elsewhere: frees its memory and sends on what still arrives for it, each port to the target's of the same
/// number; then calls `ended`.
pub fn forward(held: Box<Held>, lans: &[Lan], to: &[SocketAddrV4], ended: impl FnOnce(()) + Send + 'static) -> Result<()> {
    let until = Instant::now() + FORWARD_TIME;
    for (lan, &to) in lans.iter().zip(to) {
        let (forwarder, mac) = (lan.forwarder(to, until), lan.mac());
        let body = move || match forwarder.run() {
            Ok(counters) => log::info!("net {mac}: {} late datagrams forwarded to {to}", counters.relayed),
            Err(error) => log::warn!("net {mac}: forward late frames to {to}: {error}"),
        };
        ServiceThreads.spawn("forward", Box::new(body)).with_context(|| format!("net {mac}: start forwarding late frames"))?;
    }
    let body = move || {
        drop(held);
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        ended(());
    };
    ServiceThreads.spawn("moved", Box::new(body)).context("start the thread that frees the VM's memory")?;
    Ok(())
}
