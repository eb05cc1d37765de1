//! How fast a whole move is on this machine, drivers and sockets included, without a guest:
//! `cargo run --release -p rebec-vmm --example move_loopback -- [MiB] [streams]`. Memory is a third zero pages, a third text, a third
//! incompressible; ratios are against 1 Gbit/s, on which a plain page takes 35 us.

#[path = "../src/moving/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the program uses the rest")]
mod moving;

use std::{
    io,
    net::{SocketAddrV4, TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use moving::{Incoming, MovingMachine, Outgoing};
use rebec_bits::BitSet;
use rebec_devices::{Threads, disk::Disk};
use rebec_kvm::Ram;
use rebec_migrate::{MoveId, Record, SourceConfig, VmId, message::Shape, page::Key};

struct PlainThreads;

impl Threads for PlainThreads {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name.into()).spawn(body)
    }
}

/// Memory without a machine around it.
struct Still(Ram);

impl MovingMachine for Still {
    fn ram(&self) -> &Ram {
        &self.0
    }
    fn disks(&self) -> &[Arc<Disk>] {
        &[]
    }
    fn bases(&self) -> &[Option<Arc<moving::BaseDigests>>] {
        &[]
    }
    fn ports(&self) -> Vec<SocketAddrV4> {
        vec![]
    }
    fn dirty_log_start(&self) -> Result<()> {
        Ok(())
    }
    fn dirty_log_take(&self, pages: &mut BitSet) -> Result<()> {
        self.0.take_device_dirty(pages);
        Ok(())
    }
    fn dirty_log_stop(&self) -> Result<()> {
        Ok(())
    }
    fn throttle(&self, _percent: u8) {}
    fn pause(&self) -> Result<Instant> {
        Ok(Instant::now())
    }
    fn resume(&self, _epoch: u64) -> Result<()> {
        Ok(())
    }
    fn save(&self, _version: u16) -> Result<Vec<u8>> {
        Ok(vec![])
    }
    fn restore(&self, _saved: &[u8]) -> Result<()> {
        Ok(())
    }
    fn populator(&self) -> Option<moving::Populate> {
        None
    }
    fn write_ledger(&self, _record: Record) -> io::Result<()> {
        Ok(())
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse().context("a number is expected"));
    let (mebibytes, streams) = (number(512)?, number(1)? as usize);
    let source = Still(Ram::new(mebibytes << 20)?);
    for page in 0..source.0.pages() {
        source.0.write_page(page, &content(page))?;
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let connections: Vec<OwnedFd> = (0..=streams).map(|_| TcpStream::connect(address).map(OwnedFd::from)).collect::<io::Result<_>>()?;
    let incoming = Incoming::new(listener, vec![], Arc::new(PlainThreads));
    let build = |shape: &Shape| Ram::new(shape.memory_bytes).map(Still).map_err(|error| error.to_string());
    let receiving = std::thread::spawn(move || incoming.run(build, |_| {}).map(drop));
    let shape = Shape {
        vm: VmId([1; 16]),
        epoch: 1,
        memory_bytes: mebibytes << 20,
        vcpus: 1,
        nets: vec![],
        disks: vec![],
        cpu_model: vec![],
        memory_max_bytes: None,
    };
    let config = SourceConfig {
        move_id: MoveId([1; 16]),
        key: Key([1; 32]),
        shape,
        streams,
        downtime_max: Duration::from_millis(300),
        bytes_per_second_max: None,
    };
    let start = Instant::now();
    let report = Outgoing::new(config).run(&source, &PlainThreads, connections, |_| {})?;
    let seconds = start.elapsed().as_secs_f64();
    receiving.join().map_err(|_| anyhow::anyhow!("the target panicked"))??;
    let pages = source.0.pages() as f64;
    println!(
        "{mebibytes} MiB, {streams} streams: {seconds:.2} s, {:.0} pages/s, {:.1} x 1 Gbit/s",
        pages / seconds,
        pages * 35e-6 / seconds
    );
    println!("{:.0} MB on the wire, downtime {} ms, {:?}", report.wire_bytes as f64 / 1e6, report.downtime_ms, report.pages);
    Ok(())
}

fn content(page: u64) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    let mut word = page.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word
    };
    match page % 3 {
        0 => {}
        1 => bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&next().to_le_bytes())),
        _ => {
            let words: [&[u8; 8]; 8] =
                [b"the page", b" of text", b" target ", b"and its ", b"ledger, ", b"\nepoch: ", b"0x0000ff", b" source."];
            bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(words[(next() >> 60) as usize % 8]));
        }
    }
    bytes
}
