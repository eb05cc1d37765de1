//! Which of a queue's requests may begin. Pure: it knows what each one does to which bytes, and neither rings nor files.
//!
//! ```text
//! arrive ──► waiting ──next, when nothing before it stands in its way──► under way ──end──► gone
//! ```
//! Requests go on side by side and end in any order, but for these, in the order of their arrival:
//! - two that touch the same bytes, if one of them writes: who reads behind a write sees it, and of two writes the later one stays;
//! - a flush waits for the writes before it, so that it covers them, and nothing waits for a flush;
//! - what changes where bytes lie (discard, zeros) waits for all before it, and all behind it wait for it.

use std::ops::Range;

/// What a request does, as far as others are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Does {
    Read,
    Write,
    /// Changes where bytes lie.
    Change,
    Flush,
}

/// A queue's requests that have not ended, in the order of their arrival. Who uses it numbers them, and lets no more come than its ring is long.
#[derive(Debug, Default)]
pub(super) struct Flight {
    requests: Vec<Request>,
    waiting: usize,
}

#[derive(Debug)]
struct Request {
    number: usize,
    does: Does,
    range: Range<u64>,
    is_under_way: bool,
}

impl Flight {
    /// A request has come.
    pub(super) fn arrive(&mut self, number: usize, does: Does, range: Range<u64>) {
        self.requests.push(Request { number, does, range, is_under_way: false });
        self.waiting += 1;
    }

    /// The first that waits and need not: it is under way from now on.
    pub(super) fn next(&mut self) -> Option<usize> {
        if self.waiting == 0 {
            return None;
        }
        let is_free = |at: &usize| {
            let request = &self.requests[*at];
            !request.is_under_way && !self.requests[..*at].iter().any(|before| before.holds_back(request))
        };
        let at = (0..self.requests.len()).find(is_free)?;
        self.requests[at].is_under_way = true;
        self.waiting -= 1;
        Some(self.requests[at].number)
    }

    /// One that was under way has ended.
    pub(super) fn end(&mut self, number: usize) {
        if let Some(at) = self.requests.iter().position(|request| request.number == number && request.is_under_way) {
            self.requests.remove(at);
        }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether all have ended.
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Forgets those that have not begun, and says which they were.
    pub(super) fn give_up(&mut self) -> Vec<usize> {
        self.waiting = 0;
        self.requests.extract_if(.., |request| !request.is_under_way).map(|request| request.number).collect()
    }
}

impl Request {
    /// Whether another one that came later waits for this one's end.
    fn holds_back(&self, later: &Self) -> bool {
        match (self.does, later.does) {
            (Does::Change, _) | (_, Does::Change) => true,
            (does, Does::Flush) => does == Does::Write,
            (Does::Flush, _) | (Does::Read, Does::Read) => false,
            _ => self.range.start < later.range.end && later.range.start < self.range.end,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all_next(flight: &mut Flight) -> Vec<usize> {
        std::iter::from_fn(|| flight.next()).collect()
    }

    #[test]
    fn what_is_of_no_concern_to_each_other_goes_on_side_by_side() {
        let mut flight = Flight::default();
        for (number, does, range) in [(0, Does::Read, 0..8), (1, Does::Read, 4..12), (2, Does::Write, 12..16), (3, Does::Flush, 0..0)] {
            flight.arrive(number, does, range);
        }
        assert_eq!(all_next(&mut flight), [0, 1, 2], "the flush waits for the write");
        flight.arrive(4, Does::Write, 16..20);
        assert_eq!(all_next(&mut flight), [4], "nothing waits for the flush");
        flight.end(2);
        assert_eq!(all_next(&mut flight), [3], "not for a write behind it");
    }

    #[test]
    fn one_that_waits_holds_back_those_behind_it() {
        let mut flight = Flight::default();
        for (number, does, range) in [(0, Does::Read, 0..8), (1, Does::Write, 4..12), (2, Does::Read, 8..16), (3, Does::Read, 16..17)] {
            flight.arrive(number, does, range);
        }
        assert_eq!(all_next(&mut flight), [0, 3]);
        flight.end(0);
        assert_eq!(all_next(&mut flight), [1]);
        flight.arrive(4, Does::Change, 100..200);
        flight.arrive(5, Does::Read, 0..1);
        flight.end(1);
        flight.end(3);
        assert_eq!(all_next(&mut flight), [2], "the change waits for all");
        assert_eq!(flight.waiting(), 2);
        flight.end(2);
        assert_eq!(all_next(&mut flight), [4], "and all wait for the change");
        flight.end(4);
        assert_eq!(all_next(&mut flight), [5]);
        flight.end(5);
        assert!(flight.is_empty());
    }

    #[test]
    fn those_that_have_not_begun_are_given_up() {
        let mut flight = Flight::default();
        for number in 0..4 {
            flight.arrive(number, Does::Write, 0..1);
        }
        assert_eq!(all_next(&mut flight), [0]);
        assert_eq!(flight.give_up(), [1, 2, 3]);
        assert_eq!((flight.waiting(), flight.is_empty()), (0, false));
        flight.end(0);
        assert!(flight.is_empty());
    }

    const BLOCKS: usize = 8;

    /// A disk whose bytes change at some time while a write is under way: in pieces, in the order that chance says. A change moves what lies in a block to
    /// another place, and whoever is under way with the old one reads or writes what is no longer there.
    #[derive(Debug, Default)]
    struct Model {
        blocks: [u64; BLOCKS],
        places: [u64; BLOCKS],
        durable: [u64; BLOCKS],
    }

    fn requests() -> impl Strategy<Value = Vec<(u8, usize, usize)>> {
        proptest::collection::vec((0..10_u8, 0..BLOCKS, 1..4_usize), 1..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() })]
        /// Whatever comes, and in whatever order it is carried out: reads see what they would if all were done one by one, flushes cover the writes before
        /// them, nobody uses a place that a change has taken away, and all come to an end.
        #[test]
        fn all_is_as_if_done_one_by_one(requests in requests(), chances in proptest::collection::vec(any::<u16>(), 4000)) {
            let mut chances = chances.into_iter().map(usize::from);
            let (mut flight, mut model) = (Flight::default(), Model::default());
            // What each should see, and what each has of it.
            let (mut one_by_one, mut expected) = ([0_u64; BLOCKS], vec![]);
            let (mut arrived, mut under_way, mut ended) = (0, vec![], 0);
            while ended < requests.len() {
                let chance = chances.next().unwrap_or_default();
                if arrived < requests.len() && (chance % 3 == 0 || under_way.is_empty() && flight.is_empty()) {
                    let (kind, at, length) = requests[arrived];
                    let range = at..(at + length).min(BLOCKS);
                    let does = match kind { 0..4 => Does::Read, 4..8 => Does::Write, 8 => Does::Change, _ => Does::Flush };
                    expected.push(one_by_one);
                    match does {
                        Does::Write => one_by_one[range.clone()].fill(arrived as u64 + 1),
                        Does::Change => one_by_one[range.clone()].fill(0),
                        Does::Read | Does::Flush => {}
                    }
                    flight.arrive(arrived, does, range.start as u64..range.end as u64);
                    arrived += 1;
                }
                while chance % 2 == 0 || under_way.is_empty() {
                    let Some(number) = flight.next() else { break };
                    let (kind, at, length) = requests[number];
                    let range = at..(at + length).min(BLOCKS);
                    under_way.push((number, kind, range.clone(), range.start, model.places));
                }
                if under_way.is_empty() {
                    continue;
                }
                // One piece of one of them.
                let chosen = (chance / 7) % under_way.len();
                let (number, kind, range, at, places) = &mut under_way[chosen];
                let is_last = match *kind {
                    0..8 => {
                        prop_assert_eq!(places[*at], model.places[*at], "request {} uses a place that is gone", number);
                        if *kind < 4 {
                            prop_assert_eq!(model.blocks[*at], expected[*number][*at], "request {} reads block {}", number, at);
                        } else {
                            model.blocks[*at] = *number as u64 + 1;
                        }
                        *at += 1;
                        *at == range.end
                    }
                    8 => {
                        model.blocks[range.clone()].fill(0);
                        model.places[range.clone()].iter_mut().for_each(|place| *place += 1);
                        true
                    }
                    _ => {
                        model.durable = model.blocks;
                        // Later writes to a block may be there already; none before it may be missing.
                        for (block, wanted) in expected[*number].iter().enumerate() {
                            let is_covered = model.durable[block] == *wanted || model.durable[block] > *number as u64;
                            prop_assert!(is_covered, "flush {} without the write {} of block {}", number, wanted, block);
                        }
                        true
                    }
                };
                if is_last {
                    let number = under_way.swap_remove(chosen).0;
                    flight.end(number);
                    ended += 1;
                }
            }
            prop_assert!(flight.is_empty());
            prop_assert_eq!(model.blocks, one_by_one);
        }
    }
}
