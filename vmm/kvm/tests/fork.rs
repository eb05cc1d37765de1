//! Forking needs a process with one thread, so this test does without the harness, whose tests run on threads of their own.
#![expect(clippy::unwrap_used, reason = "a test without the harness is a plain main, which clippy does not see as a test")]

use rebec_kvm::{ForkOutcome, fork_single_threaded};
use rustix::process::{WaitOptions, waitpid};

const CHILD_STATUS: i32 = 42;

fn main() {
    match fork_single_threaded().unwrap() {
        ForkOutcome::Child => std::process::exit(CHILD_STATUS),
        ForkOutcome::Parent { child } => {
            let (_, status) = waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap();
            assert_eq!(status.exit_status(), Some(CHILD_STATUS));
            println!("the child ran and ended");
        }
    }
}
