//! Jobs that wait, in order of submission, and the question that backfilling asks: who is next after this one that fits?
//!
//! A tree over all jobs of the trace holds the least width and the least time asked for among those that wait below each of its nodes. What cannot fit there
//! is passed over at once, so that a queue of many thousand costs little more than one of ten.

/// Nobody waits here.
const NOBODY: Below = Below { width: u32::MAX, asked_s: u64::MAX, widest: 0 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Below {
    /// The least.
    width: u32,
    /// The least.
    asked_s: u64,
    /// The greatest width.
    widest: u32,
}

/// The queue of one domain.
#[derive(Debug)]
pub struct Queue {
    leaves: usize,
    tree: Vec<Below>,
}

impl Queue {
    /// An empty one for jobs numbered from 0.
    pub fn new(jobs: usize) -> Self {
        // A tree of one leaf would have its root for a leaf.
        let leaves = jobs.next_power_of_two().max(2);
        Self { leaves, tree: vec![NOBODY; 2 * leaves] }
    }

    /// A job waits, at its place by number.
    pub fn insert(&mut self, job: usize, width: u32, asked_s: u64) {
        self.set(job, Below { width, asked_s, widest: width });
    }

    /// A job waits no longer.
    pub fn remove(&mut self, job: usize) {
        self.set(job, NOBODY);
    }

    /// The first that waits.
    pub fn first(&self) -> Option<usize> {
        self.next(0, |width, _| width != u32::MAX)
    }

    /// The first from `from` on that fits. Who is narrower and asks for less than one who fits must fit too.
    pub fn next(&self, from: usize, fits: impl Fn(u32, u64) -> bool) -> Option<usize> {
        if from >= self.leaves {
            return None;
        }
        let mut node = start_of_largest(self.leaves + from);
        loop {
            let below = self.tree[node];
            if below != NOBODY && fits(below.width, below.asked_s) {
                if node >= self.leaves {
                    return Some(node - self.leaves);
                }
                node *= 2;
                continue;
            }
            node += 1;
            // Past the last of a row.
            if node.is_power_of_two() {
                return None;
            }
            node = start_of_largest(node);
        }
    }

    /// The width of the widest that waits; 0 if nobody does.
    pub fn widest(&self) -> u32 {
        self.tree[1].widest
    }

    fn set(&mut self, job: usize, leaf: Below) {
        let mut node = self.leaves + job;
        self.tree[node] = leaf;
        while node > 1 {
            node /= 2;
            let (left, right) = (self.tree[2 * node], self.tree[2 * node + 1]);
            self.tree[node] = Below {
                width: left.width.min(right.width),
                asked_s: left.asked_s.min(right.asked_s),
                widest: left.widest.max(right.widest),
            };
        }
    }
}

/// The highest node whose leaves begin where this one's do.
fn start_of_largest(mut node: usize) -> usize {
    while node > 1 && node.is_multiple_of(2) {
        node /= 2;
    }
    node
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_finds_what_a_search_through_all_finds(
            jobs in proptest::collection::vec((1..9_u32, 1..9_u64, any::<bool>()), 0..40), from in 0..45_usize, width in 0..9_u32, asked in 0..9_u64, extra in 0..9_u32,
        ) {
            let mut queue = Queue::new(jobs.len());
            for (number, (width, asked_s, _)) in jobs.iter().enumerate() {
                queue.insert(number, *width, *asked_s);
            }
            for (number, _) in jobs.iter().enumerate().filter(|(_, job)| job.2) {
                queue.remove(number);
            }
            let fits = |w: u32, a: u64| w <= width && (a <= asked || w <= extra);
            let expected = jobs.iter().enumerate().skip(from).find(|(_, job)| !job.2 && fits(job.0, job.1)).map(|(number, _)| number);
            prop_assert_eq!(queue.next(from, fits), expected);
            prop_assert_eq!(queue.first(), jobs.iter().position(|job| !job.2));
            prop_assert_eq!(queue.widest(), jobs.iter().filter(|job| !job.2).map(|job| job.0).max().unwrap_or_default());
        }
    }
}
