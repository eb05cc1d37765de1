//! The lab: machines that stand in for spare hardware, and the tasks that use them.
//!
//! `provision` brings what a bare Debian machine lacks and the kernels that run in the lab; `artifacts` builds our own
//! programs; `appliance` makes the image of them; `qemu` boots machines, joins them by shaped links and speaks to the agent in each over `channel`; `guest`
//! makes what the VMs inside those machines boot, `standin` disks as distributions publish them, `cloud` a system on them; `demo` tells the story with them. The binary `lab` is the door to all of
//! it, and the tests in `integration/tests` use the same parts. Nothing here is linked into what users run.

pub mod appliance;
pub mod artifacts;
pub mod bench;
pub mod channel;
pub mod cloud;
pub mod demo;
pub mod figure;
pub mod guest;
pub mod initramfs;
pub mod made;
pub mod modules;
pub mod netlab;
pub mod paths;
pub mod provision;
pub mod qemu;
pub mod sim;
pub mod standin;
pub mod tasks;

pub use rebec_image_build::{command, progress};
