//! The guest memory that a kernel and what it is told are put into.

use vm_memory::{GuestMemoryMmap, bitmap::AtomicBitmap};

/// Guest memory as every crate of the machine shares it.
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;
