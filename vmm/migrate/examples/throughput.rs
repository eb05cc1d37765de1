//! How many pages a second one core judges, packs and unpacks, by kind of content:
//! `cargo run --release -p rebec-migrate --example throughput`. Ratios against the bare link: a page is 35 us on 1 Gbit/s.

use std::{hint::black_box, time::Instant};

use rebec_migrate::{
    Space, UNIT_BYTES,
    frame::{FrameHead, HEAD_BYTES, RawHead},
    page::{self, Form, Key, Packer, Unpacker, Verdict},
    unit::BATCH_BYTES,
};

const ROUNDS: usize = 400;
const PAGE_ON_GIGABIT_US: f64 = 35.0;

fn main() -> std::io::Result<()> {
    println!("{:<8} {:>12} {:>12} {:>12} {:>12} {:>10}", "content", "judge p/s", "pack p/s", "unpack p/s", "source p/s", "x 1 Gbit/s");
    for (name, batch) in [("zero", vec![0; BATCH_BYTES]), ("text", text()), ("random", random()), ("mixed", mixed())] {
        measure(name, &batch)?;
    }
    Ok(())
}

fn measure(name: &str, batch: &[u8]) -> std::io::Result<()> {
    let key = Key([1; 32]);
    let judge = seconds(|| drop(black_box(page::judge(&key, batch))));
    let verdicts = page::judge(&key, batch);
    let form = |verdict: &Verdict| match verdict {
        Verdict::Zero => Form::Zero,
        Verdict::Content(digest) => Form::Bytes(*digest),
    };
    let forms: Vec<Form> = verdicts.iter().map(form).collect();
    let numbers: Vec<u64> = (0..forms.len() as u64).collect();
    let head = FrameHead { space: Space::MEMORY, round: 0, sequence: 0 };
    let (mut packer, mut unpacker, mut frame) = (Packer::new()?, Unpacker::new()?, vec![]);
    let pack = seconds(|| {
        frame.clear();
        packer.pack(head, &numbers, &forms, batch, &mut frame);
    });
    let unpack = seconds(|| {
        let raw = RawHead::from_bytes(frame[..HEAD_BYTES].try_into().expect("invariant: a head's bytes")).expect("our own frame");
        let (entries, body) = frame[HEAD_BYTES..].split_at(raw.entries_bytes());
        let entries = raw.entries(entries, 0, 1).expect("our own frame");
        black_box(unpacker.unpack(&key, &entries, raw.compressed, body.to_vec()).expect("our own frame"));
    });
    let per_second = |seconds: f64| (BATCH_BYTES / UNIT_BYTES * ROUNDS) as f64 / seconds;
    let source = per_second(judge + pack);
    let ratio = source * PAGE_ON_GIGABIT_US / 1e6;
    println!("{name:<8} {:>12.0} {:>12.0} {:>12.0} {source:>12.0} {ratio:>10.1}", per_second(judge), per_second(pack), per_second(unpack));
    Ok(())
}

fn seconds(mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..ROUNDS).for_each(|_| work());
    start.elapsed().as_secs_f64()
}

fn text() -> Vec<u8> {
    let words = ["page", "round", "stream", "target", "the", "of", "and", "ledger", "epoch", "\n", "0x1f", "source"];
    let mut number = 1_u64;
    let mut text = Vec::with_capacity(BATCH_BYTES + 8);
    while text.len() < BATCH_BYTES {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        text.extend_from_slice(words[(number >> 40) as usize % words.len()].as_bytes());
        text.push(b' ');
    }
    text.truncate(BATCH_BYTES);
    text
}

fn random() -> Vec<u8> {
    let mut number = 1_u64;
    let next = || {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (number >> 56) as u8
    };
    std::iter::repeat_with(next).take(BATCH_BYTES).collect()
}

/// Text and random units in turn.
fn mixed() -> Vec<u8> {
    let (text, random) = (text(), random());
    let units = text.chunks_exact(UNIT_BYTES).zip(random.chunks_exact(UNIT_BYTES));
    units.enumerate().flat_map(|(number, (text, random))| if number % 2 == 0 { text } else { random }.to_vec()).collect()
}
