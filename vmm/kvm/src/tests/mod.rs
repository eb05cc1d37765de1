//! Tests that run machine code on the local `/dev/kvm`, started directly at CPL 3 where every KVM here runs it natively.

mod dirty;
pub(crate) mod guest;
mod models;
mod moving;
mod populate;
mod running;
