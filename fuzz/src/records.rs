//! A ledger file as it is found when a VMM starts, and what donor and asker say to each other.
//!
//! ```text
//! input = choice:u8 rest        0 ledger file; 1 ledger whose records get their checksums; 2 donor request; 3 donor answer:
//!                               digests:bool first:u64 count:u16 answer
//! ```

use rebec_migrate::{
    MoveId, Record, UNIT_BYTES, VmId,
    donor::{DIGESTS_MAX, PAGES_MAX, Parsed, Request, Response},
    ledger::{self, Decision, RECORD_BYTES, Right},
    page::{Digest, Key},
};

use crate::input::Input;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() {
        0 => ledger_file(input.rest()),
        1 => ledger_put_right(input.rest()),
        2 => request(input.rest()),
        _ => answer(input),
    }
}

fn ledger_put_right(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    for record in bytes.chunks_exact_mut(RECORD_BYTES) {
        let crc = crc32fast::hash(&record[..RECORD_BYTES - 4]);
        record[RECORD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    ledger_file(&bytes);
}

fn ledger_file(bytes: &[u8]) {
    let Ok(found) = ledger::read(bytes) else { return };
    assert!(found.append_at <= bytes.len() as u64);
    // What counts is what a file without the torn tail says.
    assert_eq!(ledger::read(&bytes[..found.append_at as usize]), Ok(found));
    let (decision, reason) = ledger::may_run(found.last.as_ref());
    assert!(!reason.is_empty());
    if let Some(last) = found.last {
        // What it decides can be written down behind what is there.
        let next = match decision {
            Decision::Release(record) => record,
            Decision::Run { epoch } => Record { right: Right::Granted, epoch: epoch.saturating_add(1), ..last },
            Decision::Wait | Decision::Nothing => return,
        };
        ledger::read(&[&bytes[..found.append_at as usize], &next.to_bytes()].concat()).ok();
        if let Decision::Release(record) = decision {
            assert!(record.may_follow(Some(&last)), "{record:?} after {last:?}");
        }
    }
}

fn request(bytes: &[u8]) {
    match Request::parse(bytes) {
        Ok(Parsed::Whole(request)) => {
            let again = request.to_bytes();
            assert!(bytes.starts_with(&again));
            assert_eq!(Request::parse(&again), Ok(Parsed::Whole(request)));
        }
        Ok(Parsed::Needs(count)) => assert!(count > bytes.len() && count <= 3 + PAGES_MAX * 8, "needs {count}"),
        Err(_) => {}
    }
}

fn answer(mut input: Input<'_>) {
    let digests = input.u8() & 1 == 0;
    let (first, count) = (input.u64(), input.u16());
    let request = if digests {
        Request::Digests { key: Key([5; 32]), first, count: u32::from(count).clamp(1, DIGESTS_MAX) }
    } else {
        Request::Pages((0..u64::from(count).clamp(1, PAGES_MAX as u64)).map(|page| first.wrapping_add(page)).collect())
    };
    let bytes = input.rest();
    match Response::parse(bytes, &request) {
        Ok(Parsed::Whole(response)) => {
            let again = response.to_bytes();
            assert!(bytes.starts_with(&again));
            assert_eq!(Response::parse(&again, &request), Ok(Parsed::Whole(response)));
        }
        Ok(Parsed::Needs(needed)) => assert!(needed > bytes.len() && needed <= 13 + PAGES_MAX * UNIT_BYTES, "needs {needed}"),
        Err(_) => {}
    }
}

/// Ledgers of a source and of a target, requests and answers of both kinds.
pub fn seeds() -> Vec<Vec<u8>> {
    let record = |right, epoch, of| Record { right, vm: VmId([2; 16]), epoch, move_id: MoveId([of; 16]) };
    let source = [record(Right::Holding, 1, 0), record(Right::Granted, 2, 8), record(Right::Holding, 3, 8), record(Right::Granted, 4, 9)];
    let target =
        [record(Right::Prepared, 2, 8), record(Right::Released, 2, 8), record(Right::Prepared, 4, 9), record(Right::Running, 4, 9)];
    let file = |records: &[Record]| records.iter().flat_map(Record::to_bytes).collect::<Vec<u8>>();
    let mut seeds = vec![[&[0][..], &file(&source)].concat(), [&[0][..], &file(&target)].concat()];
    seeds.extend((1..=4).map(|count| [&[1][..], &file(&source[..count])].concat()));
    seeds.extend((1..=4).map(|count| [&[1][..], &file(&target[..count])].concat()));
    for request in [Request::Digests { key: Key([5; 32]), first: 7, count: 4096 }, Request::Pages(vec![3, 4])] {
        seeds.push([&[2][..], &request.to_bytes()].concat());
    }
    let asked = |digests: u8, count: u8| [&[3, digests][..], &[7, 0, 0, 0, 0, 0, 0, 0], &[count, 0]].concat();
    let digests = Response::Digests { next: Some(99), found: vec![(2, Digest([6; 16])), (3, Digest([7; 16]))] };
    seeds.push([asked(0, 64), digests.to_bytes()].concat());
    seeds.push([asked(1, 1), Response::Pages(vec![1; UNIT_BYTES]).to_bytes()].concat());
    seeds
}
