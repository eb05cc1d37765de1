//! Chance, which the kernel gives.

use std::io;

/// Random bits for keys and nonces.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // Up to 256 bytes come whole once the kernel is seeded (getrandom(2)).
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if filled == N { Ok(bytes) } else { Err(io::Error::other("the kernel gave too few random bytes")) }
}
