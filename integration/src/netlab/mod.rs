//! The namespace lab: several machines on one host, each a network namespace, with bench guests at native speed on the local KVM.
//!
//! It speaks the vocabulary of the QEMU lab (`qemu`): a lab of machines, links with a shape, faults (a cut link, a killed process), and a folder
//! of evidence that stays when something failed. What it cannot show is another kernel: machines share the host's.
//!
//! ```text
//! lab ── machine a (namespace) ── rebec-vmm run ── bench guest ── console (stdio), control socket
//!   │        └ veth, shaped ┐
//!   ├── switch (namespace, bridge)
//!   │        ┌ veth, shaped ┘
//!   └── machine b (namespace) ── rebec-vmm receive
//! ```
//! Machines may also run agents of a pool (`agents`), and a member that means no good (`hostile`).
//!
//! Needs root, `ip` and `tc`. Everything ends with its owner's `Drop`; what a killed run left is removed by `clean`.

pub mod agents;
pub mod console;
pub mod debian;
pub mod demo;
pub mod device;
pub mod examples;
pub mod guest;
pub mod hostile;
pub mod lab;
pub mod meddler;
pub mod peer;
pub mod processor;
pub mod slurm;
pub mod story;
pub mod vmm;

pub use console::Console;
pub use device::LoopDevice;
pub use lab::{Machine, NetLab, clean};
pub use meddler::{Meddler, Order, Point};
pub use vmm::{Ctl, Moved, Vmm, VmmConfig};

/// What bytes the bench guest writes and sends, to check them on the host.
#[path = "../../guest/src/pattern.rs"]
pub mod pattern;

/// The bench guest's other pure parts: compiled here so that their tests run with the workspace's.
#[cfg(test)]
#[expect(dead_code, reason = "the guest's files, of which only the tests are wanted here")]
#[path = "../../guest/src"]
mod guest_parts {
    mod options;
    use super::pattern;
    mod tcp;
    mod wire;
}
