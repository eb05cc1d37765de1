//! Tests that run machine code on the local `/dev/kvm`, started directly at CPL 3 where every KVM here runs it natively.

mod guest;
mod running;
