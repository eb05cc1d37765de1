//! `rebec-vmm`.
fn main() {}
