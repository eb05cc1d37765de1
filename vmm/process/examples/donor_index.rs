//! How long it takes until what a donor holds is indexed, beside one hash pass over the same memory by all processors:
//! `cargo run --release -p rebec-vmm --example donor_index -- [MiB]`. The donor answers over a real socket; every page is another.

#[path = "../src/moving/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the program uses the rest")]
mod moving;

use std::{
    io,
    os::unix::net::UnixStream,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use moving::donor::{self, DonorHandle, Judges};
use rebec_devices::Threads;
use rebec_kvm::Ram;
use rebec_migrate::{
    MoveId, Target, TargetInput, TargetOutput, UNIT_BYTES, VmId,
    donor::Response,
    index::Holder,
    message::{FromSource, Shape},
    page::{self, Key},
};

const KEY: Key = Key([7; 32]);
/// The best of so many counts: other work on the machine only adds.
const TRIES: usize = 3;

struct PlainThreads;

impl Threads for PlainThreads {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name.into()).spawn(body)
    }
}

fn main() -> Result<()> {
    let mebibytes: u64 = std::env::args().nth(1).map_or(Ok(2048), |text| text.parse()).context("a number of MiB is expected")?;
    let ram = Ram::new(mebibytes << 20)?;
    let mut word = 1_u64;
    for number in 0..ram.pages() {
        let mut unit = [0; UNIT_BYTES];
        for chunk in unit.chunks_exact_mut(8) {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        ram.write_page(number, &unit)?;
    }
    let threads = std::thread::available_parallelism()?.get();
    let (mut pass, mut index) = (Duration::MAX, Duration::MAX);
    for _ in 0..TRIES {
        pass = pass.min(hash_all(&ram, threads)?);
        index = index.min(index_all(&ram)?);
    }
    let (pass, index) = (pass.as_secs_f64(), index.as_secs_f64());
    println!("{mebibytes} MiB {threads} threads pass {pass:.3} s index {index:.3} s ratio {:.3}", index / pass);
    Ok(())
}

/// One pass over all of it, with nothing but hashing.
fn hash_all(ram: &Ram, threads: usize) -> Result<Duration> {
    let start = Instant::now();
    let each = ram.pages().div_ceil(threads as u64);
    std::thread::scope(|scope| {
        let pass = |first: u64| {
            let mut copy = vec![0; 64 * UNIT_BYTES];
            for batch in (first..(first + each).min(ram.pages())).step_by(64) {
                for (number, unit) in (batch..).zip(copy.as_chunks_mut().0) {
                    if number < ram.pages() {
                        ram.read_page(number, unit)?;
                    }
                }
                std::hint::black_box(page::judge(&KEY, &copy));
            }
            anyhow::Ok(())
        };
        let running: Vec<_> = (0..threads as u64).map(|number| scope.spawn(move || pass(number * each))).collect();
        running.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    Ok(start.elapsed())
}

/// From a machine that is built to the filter that its source waits for.
fn index_all(ram: &Ram) -> Result<Duration> {
    let (near, far) = UnixStream::pair()?;
    let lent = ram.clone();
    let lending = std::thread::spawn(move || donor::serve(&lent, &Judges::start(&PlainThreads, &lent)?, near));
    let asker = DonorHandle::start(&PlainThreads, far)?;
    let mut target = Target::new(MoveId([1; 16]), 1);
    let shape = Shape {
        vm: VmId([1; 16]),
        epoch: 1,
        memory_bytes: 1 << 20,
        vcpus: 1,
        nets: vec![],
        disks: vec![],
        cpu_model: vec![],
        memory_max_bytes: None,
    };
    target.handle(Duration::ZERO, TargetInput::Control(FromSource::Offer { shape, key: KEY.0 }));
    let start = Instant::now();
    target.handle(Duration::ZERO, TargetInput::Built { holders: vec![Holder::Donor(0)], ports: vec![], bases: vec![] });
    while let Some(output) = target.poll_output() {
        if let TargetOutput::Index { first, count, .. } = output {
            let Some(Response::Digests { next, found }) = asker.digests(KEY, first, count) else { anyhow::bail!("the donor is gone") };
            let found = found.into_iter().map(|(offset, digest)| (first + u64::from(offset), digest)).collect();
            target.handle(Duration::ZERO, TargetInput::Indexed { next, found });
        }
    }
    let took = start.elapsed();
    drop(asker);
    lending.join().map_err(|_| anyhow::anyhow!("the donor panicked"))??;
    Ok(took)
}
