//! A state disk that comes after the machine has begun with its state in RAM: it takes RAM's place as soon as nothing would be lost by that. Pure.

use std::time::{Duration, Instant};

/// How long an agent may take to end.
const END_TIME: Duration = Duration::from_secs(30);

/// What is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Whether the state that is in RAM knows of VMs, that run or not.
    pub has_vms: bool,
    /// Whether the only key of a pool or of a domain is in RAM.
    pub has_keys: bool,
    /// Whether an agent runs.
    pub has_agent: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Nothing yet: VMs, or what others need of this machine, would be lost.
    Wait,
    /// The agent is to end.
    EndAgent,
    /// It has been told, and is waited for.
    AwaitEnd,
    /// The disk is to be mounted in RAM's place, and an agent started on it.
    Take,
    /// The agent does not end: it is told again.
    EndAgain,
}

/// How far the change is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    told: Option<Instant>,
}

impl Change {
    /// What is to be done now.
    pub fn step(&mut self, now: Instant, look: Look) -> Act {
        let loses = look.has_vms || look.has_keys;
        match self.told {
            // Told once, it is seen through: the agent makes no VM while it ends.
            None if loses => Act::Wait,
            None if look.has_agent => {
                self.told = Some(now);
                Act::EndAgent
            }
            _ if !look.has_agent && !loses => Act::Take,
            // One that ran on for a moment was given a VM.
            _ if !look.has_agent => {
                self.told = None;
                Act::Wait
            }
            Some(told) if now.duration_since(told) >= END_TIME => {
                self.told = Some(now);
                Act::EndAgain
            }
            _ => Act::AwaitEnd,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_comes_late_takes_rams_place_when_nothing_is_lost_by_that() {
        let (mut change, now) = (Change::default(), Instant::now());
        let look = |has_vms, has_agent| Look { has_vms, has_keys: false, has_agent };
        assert_eq!(change.step(now, look(true, true)), Act::Wait);
        assert_eq!(change.step(now, look(true, false)), Act::Wait, "an agent that has just ended");
        assert_eq!(change.step(now, look(false, true)), Act::EndAgent);
        assert_eq!(change.step(now, look(false, true)), Act::AwaitEnd);
        assert_eq!(change.step(now + END_TIME, look(false, true)), Act::EndAgain);
        assert_eq!(change.step(now + END_TIME, look(true, true)), Act::AwaitEnd);
        assert_eq!(change.step(now + END_TIME, look(true, false)), Act::Wait, "it was given a VM before it ended");
        assert_eq!(change.step(now + END_TIME, look(false, true)), Act::EndAgent);
        assert_eq!(change.step(now + END_TIME, look(false, false)), Act::Take);
        assert_eq!(Change::default().step(now, look(false, false)), Act::Take);
        // Who founded a pool or a domain has what nobody else has.
        let founder = Look { has_keys: true, ..look(false, true) };
        assert_eq!(Change::default().step(now, founder), Act::Wait);
        assert_eq!(Change::default().step(now, Look { has_agent: false, ..founder }), Act::Wait);
    }
}
