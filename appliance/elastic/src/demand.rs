//! What is told of a queue, and when: an engine between a source of demand and the broker.
//!
//! A rise is told when it has lasted, a fall when it has lasted longer, so that a queue that breathes does not borrow and give back with each breath. How
//! many must be lacking before anything is borrowed is the domain's policy, at its broker. What was told holds for a bounded time and is said again before
//! that is over; of a source that fails the last word therefore holds so long and is then withdrawn by the agent, even if this program is gone too.

use std::{collections::VecDeque, time::Duration};

use rebec_pool::trade::demand::Demand;

/// Looks that are remembered; with the shortest period an hour of them.
const LOOKS_MAX: usize = 4096;

/// How it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// So long a rise must have lasted.
    pub rise: Duration,
    /// So long a fall must have lasted.
    pub fall: Duration,
    /// So long what was told holds.
    pub keep: Duration,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// The broker is told.
    Tell(Demand),
    /// A person is told.
    Say(String),
}

/// The engine.
#[derive(Debug)]
pub struct Watch {
    terms: Terms,
    /// What the source said: when, and how many machines.
    looks: VecDeque<(Duration, u32)>,
    told: Option<(Demand, Duration)>,
    /// Since when the source fails, and what was said of it.
    fails: Option<(Duration, String)>,
    is_withdrawn: bool,
    outputs: VecDeque<Output>,
}

impl Watch {
    /// Nothing is known.
    pub fn new(terms: Terms) -> Self {
        Self { terms, looks: VecDeque::new(), told: None, fails: None, is_withdrawn: false, outputs: VecDeque::new() }
    }

    /// What the source answered; machines of the scheduler that are none of the pool's are taken off.
    pub fn handle(&mut self, now: Duration, answer: Result<Demand, String>, others: u32) {
        let demand = match answer {
            Ok(demand) => demand,
            Err(why) => return self.fail(now, why),
        };
        if self.fails.take().is_some() {
            self.say("the queue is told again".into());
        }
        self.is_withdrawn = false;
        let total = demand.queued.saturating_add(demand.running).saturating_sub(others);
        self.looks.push_back((now, total));
        // One that is older than both spans still says what was so when they began.
        let span = self.terms.rise.max(self.terms.fall);
        while self.looks.len() > LOOKS_MAX || self.looks.get(1).is_some_and(|(at, _)| *at + span <= now) {
            self.looks.pop_front();
        }
        let lasting = self.lasting(now);
        let queued = demand.queued.max(lasting.saturating_sub(demand.running)).min(lasting);
        let demand = Demand { queued, running: lasting - queued, widest: demand.widest.min(queued) };
        let is_due = self.told.is_none_or(|(told, at)| told != demand || now.saturating_sub(at) >= self.terms.keep / 4);
        if is_due {
            self.outputs.push_back(Output::Tell(demand));
        }
    }

    /// The broker has heard it.
    pub fn told(&mut self, now: Duration, demand: Demand) {
        if self.told.is_none_or(|(told, _)| told != demand) {
            self.say(format!("the queue wants {} machines for what waits and {} for what runs", demand.queued, demand.running));
        }
        self.told = Some((demand, now));
    }

    /// What holds now; none where nothing was told, or too long ago.
    pub fn held(&self, now: Duration) -> Option<Demand> {
        self.told.filter(|(_, at)| now.saturating_sub(*at) < self.terms.keep).map(|(demand, _)| demand)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        if let (Some((_, why)), Some(_), None, false) = (&self.fails, self.told, self.held(now), self.is_withdrawn) {
            let words = format!("{why}; the last demand is withdrawn, nothing is borrowed and no node goes until the queue is told again");
            self.is_withdrawn = true;
            self.looks.clear();
            self.say(words);
        }
    }

    /// When the last word ends.
    pub fn next_deadline(&self) -> Option<Duration> {
        let (_, at) = self.told.filter(|_| !self.is_withdrawn)?;
        Some(at + self.terms.keep)
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn fail(&mut self, now: Duration, why: String) {
        let (since, known) = self.fails.clone().unwrap_or_else(|| (now, String::new()));
        if known != why {
            let left = self.told.map(|(_, at)| (at + self.terms.keep).saturating_sub(now)).filter(|left| !left.is_zero());
            let holds = left.map_or_else(String::new, |left| format!("; the last demand holds for {} s more", left.as_secs()));
            self.say(format!("{why}{holds}"));
        }
        self.fails = Some((since, why));
        self.tick(now);
    }

    /// The most, during the time of a fall, of what had lasted for the time of a rise.
    fn lasting(&self, now: Duration) -> u32 {
        let began = |at: Duration| {
            let from = at.saturating_sub(self.terms.rise);
            // What was so at its beginning counts; who was not there yet has not lasted, but for the first word of all.
            let first = self.looks.iter().rposition(|(time, _)| *time <= from).unwrap_or(0);
            self.looks.iter().skip(first).take_while(|(time, _)| *time <= at).map(|(_, total)| *total).min().unwrap_or(0)
        };
        let recent = self.looks.iter().filter(|(at, _)| now.saturating_sub(*at) < self.terms.fall || *at == now);
        recent.map(|(at, _)| began(*at)).max().unwrap_or(0)
    }

    fn say(&mut self, words: String) {
        self.outputs.push_back(Output::Say(words));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn watch(rise: u64, fall: u64) -> Watch {
        Watch::new(Terms { rise: s(rise), fall: s(fall), keep: s(100) })
    }

    /// What the broker hears of a queue that is this long at these seconds.
    fn totals(watch: &mut Watch, looks: &[(u64, u32)]) -> Vec<u32> {
        let mut totals = vec![];
        for (at, queued) in looks {
            watch.handle(s(*at), Ok(Demand { queued: *queued, running: 0, widest: 0 }), 0);
            while let Some(output) = watch.poll_output() {
                if let Output::Tell(demand) = output {
                    watch.told(s(*at), demand);
                }
            }
            totals.push(watch.held(s(*at)).map_or(0, |demand| demand.queued + demand.running));
        }
        totals
    }

    #[test]
    fn a_rise_and_a_fall_are_told_when_they_have_lasted() {
        assert_eq!(totals(&mut watch(0, 0), &[(0, 1), (1, 4), (2, 0)]), [1, 4, 0]);
        assert_eq!(totals(&mut watch(0, 10), &[(0, 1), (1, 4), (2, 0), (5, 2), (10, 2), (11, 2), (15, 2)]), [1, 4, 4, 4, 4, 2, 2]);
        assert_eq!(totals(&mut watch(10, 0), &[(0, 1), (5, 4), (9, 4), (15, 4), (16, 4)]), [1, 1, 1, 4, 4]);
        // A peak that is shorter than the rise was never there.
        assert_eq!(totals(&mut watch(10, 20), &[(0, 1), (5, 9), (9, 1), (16, 1), (40, 1)]), [1; 5]);
    }

    #[test]
    fn a_job_that_begins_changes_no_total_and_what_others_carry_is_taken_off() {
        let mut watch = watch(0, 60);
        for (at, queued, running) in [(0, 2, 0), (1, 1, 1), (2, 0, 2)] {
            watch.handle(s(at), Ok(Demand { queued, running, widest: queued }), 1);
            while let Some(output) = watch.poll_output() {
                if let Output::Tell(demand) = output {
                    watch.told(s(at), demand);
                }
            }
            let held = watch.held(s(at)).unwrap();
            assert_eq!((held.queued + held.running, held.running), (1, u32::from(at == 2)), "{held:?}");
        }
    }

    #[test]
    fn a_source_that_fails_is_told_once_and_its_word_is_withdrawn() {
        let mut watch = watch(0, 0);
        totals(&mut watch, &[(0, 3)]);
        let mut said = vec![];
        for at in (10..200).step_by(10) {
            watch.handle(s(at), Err("squeue: no answer in 60 s".into()), 0);
            watch.tick(s(at));
            while let Some(Output::Say(words)) = watch.poll_output() {
                said.push((at, words));
            }
            assert_eq!(watch.held(s(at)).is_some(), at < 100, "{at}");
        }
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].0 == 10 && said[0].1.ends_with("holds for 90 s more"), "{said:?}");
        assert!(said[1].0 == 100 && said[1].1.contains("withdrawn") && watch.next_deadline().is_none(), "{said:?}");
        // It is back, and begins with what it says.
        assert_eq!(totals(&mut watch, &[(300, 1)]), [1]);
        // What does not change is said again before it ends.
        assert_eq!(totals(&mut watch, &[(310, 1), (324, 1), (399, 1), (450, 1)]), [1; 4]);
    }

    proptest! {
        /// Nothing is told that was not there within the last fall, and nothing grows.
        #[test]
        fn what_is_told_was_so_lately(rise in 0u64..20, fall in 0u64..40, steps in prop::collection::vec((0u64..15, 0u32..9), 1..60)) {
            let mut watch = watch(rise, fall);
            let (mut now, mut seen) = (0, vec![]);
            for (step, queued) in steps {
                now += step;
                seen.push((now, queued));
                let told = totals(&mut watch, &[(now, queued)])[0];
                let lately = seen.iter().filter(|(at, _)| now - at <= rise + fall).map(|(_, queued)| *queued);
                prop_assert!(told <= lately.max().unwrap_or(0).max(seen[0].1), "{told} of {seen:?}");
                prop_assert!(watch.looks.len() <= 64);
            }
        }
    }
}
