//! Joins a tap device to a LAN: a kernel's own TCP stack as the guest of a `LanPort`, with TSO frames both ways. For measuring and for
//! proving the wire format without a VM; `examples/lan_tap.py` opens the tap (an ioctl that needs no code here) and runs it.
//!
//! The tap is standard input. One argument, as `rebec-vmm run --net` takes it.

#[expect(dead_code, reason = "the program uses all of it")]
#[path = "../src/lan/mod.rs"]
mod lan;

use std::{
    io::{self, Read, Write},
    os::fd::AsFd,
    time::Instant,
};

use anyhow::{Context, Result};
use rebec_devices::net::{FramePort, HEADER_BYTES, header};
use rebec_offload::{Accepts, FRAME_BYTES_MAX};
use rebec_vmm_api::NetConfig;
use rustix::event::{PollFd, PollFlags, poll};

/// Frames one side may pass before the other is looked at.
const BURST: usize = 32;

fn main() -> Result<()> {
    env_logger::init();
    let argument = std::env::args().nth(1).context("argument: vni=N,mac=MAC,local=IP:PORT[,peer=MAC@IP:PORT]...")?;
    let config: NetConfig = argument.parse()?;
    let mut tap = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let lan = lan::Lan::bind(&config, None)?;
    let mut port = lan.port()?;
    port.set_accepts(Accepts { checksum: true, tcp4: true, tcp6: true, ecn: true });
    port.announce();
    let mut buffer = vec![0; HEADER_BYTES + FRAME_BYTES_MAX];
    let mut out = Vec::with_capacity(HEADER_BYTES + FRAME_BYTES_MAX);
    let started = Instant::now();
    let mut reported = started;
    loop {
        let mut idle = true;
        for _ in 0..BURST {
            let bytes = match tap.read(&mut buffer) {
                Ok(bytes) if bytes > HEADER_BYTES => bytes,
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("read the tap"),
            };
            idle = false;
            let (bytes, frame) = buffer[..bytes].split_first_chunk().context("a frame without its header")?;
            match header::parse(bytes, frame.len()) {
                Ok(offload) => port.send(&offload, frame)?,
                Err(error) => eprintln!("from the tap: {error}"),
            }
        }
        port.flush()?;
        for _ in 0..BURST {
            let Some(received) = port.receive()? else { break };
            idle = false;
            out.clear();
            out.extend_from_slice(&header::to_bytes(&received.offload, 1));
            received.frame.iter().for_each(|piece| out.extend_from_slice(piece));
            if let Err(error) = tap.write(&out) {
                eprintln!("to the tap: {} bytes, {:?}: {error}", received.frame.len(), received.offload);
            }
        }
        let now = Instant::now();
        if port.next_deadline().is_some_and(|due| due <= now) {
            port.tick(now);
        }
        if idle {
            let mut descriptors =
                [PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN), PollFd::from_borrowed_fd(port.descriptor(), PollFlags::IN)];
            let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            poll(&mut descriptors, Some(&timeout))?;
        }
        if now.duration_since(reported).as_secs() >= 2 {
            reported = now;
            eprintln!("{:?}", lan.counters());
        }
    }
}
