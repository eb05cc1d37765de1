//! Tells whoever asks the time of this machine (SNTP, RFC 4330): a time server for machines whose clock is wrong.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    time::{SystemTime, UNIX_EPOCH},
};

const PORT: u16 = 123;
const MESSAGE_BYTES: usize = 48;
/// From 1900, where the protocol's era begins, to 1970.
const ERA_S: u64 = 2_208_988_800;
/// A server of version 4 without leap second, and its stratum: 1.
const SERVER: [u8; 2] = [0x24, 1];

/// Answers for as long as the machine runs.
pub fn serve() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    let mut question = [0; MESSAGE_BYTES];
    loop {
        let (length, from) = socket.recv_from(&mut question)?;
        if length == MESSAGE_BYTES {
            socket.send_to(&answer(&question)?, from)?;
        }
    }
}

fn answer(question: &[u8; MESSAGE_BYTES]) -> io::Result<[u8; MESSAGE_BYTES]> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    let fraction = (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
    let now = ((since.as_secs() + ERA_S) << 32 | fraction).to_be_bytes();
    let mut answer = [0; MESSAGE_BYTES];
    answer[..2].copy_from_slice(&SERVER);
    answer[12..16].copy_from_slice(b"LOCL");
    // When it was set last, when it was asked, when it heard that, when it answers.
    answer[16..24].copy_from_slice(&now);
    answer[24..32].copy_from_slice(&question[40..]);
    answer[32..40].copy_from_slice(&now);
    answer[40..].copy_from_slice(&now);
    Ok(answer)
}
