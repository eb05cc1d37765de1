//! What the fuzz targets feed to the code that reads bytes from outside: one module each, with the inputs it begins from.
//!
//! The binaries in `src/bin` put libFuzzer in front; `cargo lab fuzz` builds and runs them (`docs/notes/fuzzing.md`). Here is nothing of the
//! fuzzer itself, so `cargo test` runs every seed through its target without it. A target may panic only when a promise is broken: besides
//! the code's own panics these are the assertions here, about round trips and limits.
//!
//! ```text
//! wire      rebec-migrate   frames of the streams, preambles, control messages
//! records   rebec-migrate   ledger files, donor requests and answers
//! saved     rebec-vmm-saved, rebec-kvm, rebec-devices   saved machines and every part of them
//! rings     rebec-devices   a driver that writes anything to registers, rings and buffers
//! frames    rebec-overlay   frames of a guest, datagrams of the network, the relay
//! kernel    rebec-boot      kernel files, loaded into a small machine
//! disk      rebec-devices   disk images
//! bootable  rebec-bootable  what starts from a disk: partitions, file systems, words of boot loaders
//! pool      rebec-book      tickets, records of a pool and how books take them in
//! texts     rebec-vmm-api   lines of the control socket, values of options
//! ```

pub mod bootable;
pub mod disk;
pub mod frames;
pub mod input;
pub mod kernel;
pub mod pool;
pub mod records;
pub mod rings;
pub mod saved;
pub mod seeds;
pub mod texts;
pub mod wire;
