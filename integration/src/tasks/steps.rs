//! Steps of a task, and the table of what each took: where the minutes of `cargo lab check` and `cargo lab test` go.
//!
//! A step has the seconds on the clock and those that processors worked for its programs. What ran beside another step is marked: the
//! clock's seconds of such steps overlap, those of the processors do not. Processes that outlive their parents (VMs of killed agents) are
//! in nobody's account.

use std::{
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{command::Program, paths, progress::say};

/// How long one step may take on two slow cores, from nothing.
const DEADLINE: Duration = Duration::from_secs(2400);

/// One that has ended.
struct Step {
    name: String,
    took: Duration,
    worked: Duration,
    beside: bool,
}

/// All of a task, from its start.
pub struct Steps {
    area: &'static str,
    start: Instant,
    begun: AtomicUsize,
    running: AtomicUsize,
    ended: Mutex<Vec<Step>>,
}

impl Steps {
    /// `area` is the task's name, as in [`say`].
    pub fn begin(area: &'static str) -> Self {
        Self { area, start: Instant::now(), begun: AtomicUsize::new(0), running: AtomicUsize::new(0), ended: Mutex::new(Vec::new()) }
    }

    /// Runs a program as one step.
    pub fn run(&self, name: &str, program: Program) -> Result<()> {
        self.one(name, || program.deadline(DEADLINE).measured())
    }

    /// Does something else as one step. Its programs' work is not known.
    pub fn take<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        self.one(name, || (work(), Duration::ZERO))
    }

    fn one<T>(&self, name: &str, work: impl FnOnce() -> (T, Duration)) -> T {
        say(self.area, name);
        let (number, start) = (self.begun.fetch_add(1, Ordering::SeqCst) + 1, Instant::now());
        let others = self.running.fetch_add(1, Ordering::SeqCst);
        let (done, worked) = work();
        self.running.fetch_sub(1, Ordering::SeqCst);
        let beside = others > 0 || self.begun.load(Ordering::SeqCst) > number;
        self.keep(Step { name: name.to_owned(), took: start.elapsed(), worked, beside });
        done
    }

    fn keep(&self, step: Step) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }

    /// Prints the table, the longest step first.
    pub fn tell(&self) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.sort_by_key(|step| std::cmp::Reverse(step.took));
        eprint!("{}", table(&ended, self.start.elapsed()));
    }
}

fn table(steps: &[Step], total: Duration) -> String {
    let mut text = format!("{:>9} {:>9}\n", "seconds", "worked");
    let mut line = |took: Duration, worked: Duration, name: &str| {
        let worked = if worked.is_zero() { String::new() } else { format!("{:.1}", worked.as_secs_f64()) };
        writeln!(text, "{:>9.1} {worked:>9}  {name}", took.as_secs_f64()).expect("invariant: a string takes every text");
    };
    for step in steps {
        line(step.took, step.worked, &format!("{}{}", step.name, if step.beside { " (beside others)" } else { "" }));
    }
    line(total, steps.iter().map(|step| step.worked).sum(), "in all");
    text
}

/// Cargo in the workspace, as a shell starts it: with the lab's own package in its environment, build scripts that look at that (ring's)
/// would run anew, and half of all crates be built again after them.
pub fn cargo() -> Program {
    of_a_shell(Program::new("cargo"))
}

/// The same for what is only waited for: it gets what of the processors nobody else wants (sched(7), SCHED_IDLE).
pub fn idle_cargo() -> Program {
    of_a_shell(Program::new("chrt").args(["--idle", "0", "cargo"]))
}

fn of_a_shell(program: Program) -> Program {
    program.without_env("CARGO_PKG_").without_env("CARGO_MANIFEST_").folder(paths::workspace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_longest_first_and_the_sum_of_the_work() {
        let steps = Steps::begin("test");
        steps.keep(Step { name: "short".to_owned(), took: Duration::from_secs(2), worked: Duration::from_millis(1500), beside: true });
        steps.keep(Step { name: "long".to_owned(), took: Duration::from_secs(70), worked: Duration::from_secs(3), beside: false });
        steps.run("nothing", Program::new("true")).unwrap();
        assert!(steps.run("wrong", Program::new("false")).is_err());
        steps.take("outer", || steps.take("inner", || ()));
        steps.tell();
        let mut ended = steps.ended.into_inner().unwrap();
        assert_eq!(ended.iter().take(2).map(|step| &step.name[..]).collect::<Vec<_>>(), ["long", "short"]);
        let beside: Vec<&str> = ended.iter().filter(|step| step.beside).map(|step| &step.name[..]).collect();
        assert!(beside.len() == 3 && beside.contains(&"outer") && beside.contains(&"inner"), "{beside:?}");
        ended.truncate(2);
        let told = table(&ended, Duration::from_secs(71));
        let expected =
            "  seconds    worked\n     70.0       3.0  long\n      2.0       1.5  short (beside others)\n     71.0       4.5  in all\n";
        assert_eq!(told, expected);
    }
}
