//! The donor protocol: a VM on the target's host lends contents of its memory, as copies. Spoken over the connection that
//! the control command `donate` turned. Bytes in, checked values out; no I/O.
//!
//! ```text
//! request   1:u8 key:[32] first:u64 count:u32                 digests of pages first..first+count (count <= 4096)
//!           2:u8 count:u16 number:u64*                        copies of pages (count <= 256)
//! response  1:u8 next:u64 count:u32 (offset:u16 digest:[16])* pages that are populated and not zero; next page to ask, 2^64-1 at the end
//!           2:u8 count:u16 bytes:[4096]*                      in the order asked; a page that does not exist reads as zeros
//! ```
//! All little endian. The donor's VM runs on: a page may have changed since its digest was taken, so who asks verifies the copy.

use crate::{
    bytes::array,
    page::{Digest, Key},
    unit::UNIT_BYTES,
};

/// Most pages of one request for digests: 16 MiB of memory, about 10 ms of a donor's time.
pub const DIGESTS_MAX: u32 = 4096;
/// Most pages of one request for copies: 1 MiB.
pub const PAGES_MAX: usize = 256;
/// `next` of the last response.
const END: u64 = u64::MAX;
/// Bytes of an entry of a response with digests.
const DIGEST_ENTRY_BYTES: usize = 18;

/// What a target asks a donor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Digests of a range of pages.
    Digests {
        /// Key of the asker's move.
        key: Key,
        /// First page.
        first: u64,
        /// How many.
        count: u32,
    },
    /// Copies of pages.
    Pages(Vec<u64>),
}

/// What a donor answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// To [`Request::Digests`].
    Digests {
        /// First page not looked at; `None` at the end of memory.
        next: Option<u64>,
        /// Offset from the first page asked, and digest.
        found: Vec<(u16, Digest)>,
    },
    /// To [`Request::Pages`]: whole units.
    Pages(Vec<u8>),
}

/// Why bytes were refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("donor connection: {0}")]
pub struct DonorError(&'static str);

/// How much of a message is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed<T> {
    /// Read this many bytes in all, then ask again. Never more than one message needs.
    Needs(usize),
    /// A whole message.
    Whole(T),
}

impl Request {
    /// The bytes that travel.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Digests { key, first, count } => {
                let mut bytes = vec![1];
                bytes.extend_from_slice(&key.0);
                bytes.extend_from_slice(&first.to_le_bytes());
                bytes.extend_from_slice(&count.to_le_bytes());
                bytes
            }
            Self::Pages(numbers) => {
                let mut bytes = vec![2];
                bytes.extend_from_slice(&(numbers.len() as u16).to_le_bytes());
                numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
                bytes
            }
        }
    }

    /// Reads a request from its first bytes.
    ///
    /// # Errors
    /// When it asks for more than a donor gives.
    pub fn parse(bytes: &[u8]) -> Result<Parsed<Self>, DonorError> {
        match bytes.first() {
            None => Ok(Parsed::Needs(1)),
            Some(1) if bytes.len() < 45 => Ok(Parsed::Needs(45)),
            Some(1) => {
                let count = u32::from_le_bytes(array(bytes, 41));
                if count == 0 || count > DIGESTS_MAX {
                    return Err(DonorError("asks for too many digests"));
                }
                Ok(Parsed::Whole(Self::Digests { key: Key(array(bytes, 1)), first: u64::from_le_bytes(array(bytes, 33)), count }))
            }
            Some(2) if bytes.len() < 3 => Ok(Parsed::Needs(3)),
            Some(2) => {
                let count = usize::from(u16::from_le_bytes(array(bytes, 1)));
                if count == 0 || count > PAGES_MAX {
                    return Err(DonorError("asks for too many pages"));
                }
                let whole = 3 + count * 8;
                if bytes.len() < whole {
                    return Ok(Parsed::Needs(whole));
                }
                Ok(Parsed::Whole(Self::Pages(bytes[3..whole].chunks_exact(8).map(|number| u64::from_le_bytes(array(number, 0))).collect())))
            }
            Some(_) => Err(DonorError("unknown request")),
        }
    }
}

impl Response {
    /// The bytes that travel.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Digests { next, found } => {
                let mut bytes = vec![1];
                bytes.extend_from_slice(&next.unwrap_or(END).to_le_bytes());
                bytes.extend_from_slice(&(found.len() as u32).to_le_bytes());
                for (offset, digest) in found {
                    bytes.extend_from_slice(&offset.to_le_bytes());
                    bytes.extend_from_slice(&digest.0);
                }
                bytes
            }
            Self::Pages(units) => {
                let mut bytes = vec![2];
                bytes.extend_from_slice(&((units.len() / UNIT_BYTES) as u16).to_le_bytes());
                bytes.extend_from_slice(units);
                bytes
            }
        }
    }

    /// Reads the response to `request` from its first bytes.
    ///
    /// # Errors
    /// When it does not answer the request.
    pub fn parse(bytes: &[u8], request: &Request) -> Result<Parsed<Self>, DonorError> {
        match (bytes.first(), request) {
            (None, _) => Ok(Parsed::Needs(1)),
            (Some(1), Request::Digests { first, count, .. }) => parse_digests(bytes, *first, *count),
            (Some(2), Request::Pages(numbers)) => {
                let whole = 3 + numbers.len() * UNIT_BYTES;
                if bytes.len() < 3 {
                    return Ok(Parsed::Needs(3));
                }
                if usize::from(u16::from_le_bytes(array(bytes, 1))) != numbers.len() {
                    return Err(DonorError("another number of pages than was asked"));
                }
                if bytes.len() < whole {
                    return Ok(Parsed::Needs(whole));
                }
                Ok(Parsed::Whole(Self::Pages(bytes[3..whole].to_vec())))
            }
            (Some(_), _) => Err(DonorError("answers something else")),
        }
    }
}

fn parse_digests(bytes: &[u8], first: u64, asked: u32) -> Result<Parsed<Response>, DonorError> {
    if bytes.len() < 13 {
        return Ok(Parsed::Needs(13));
    }
    let count = u32::from_le_bytes(array(bytes, 9));
    if count > asked {
        return Err(DonorError("more digests than were asked"));
    }
    let whole = 13 + count as usize * DIGEST_ENTRY_BYTES;
    if bytes.len() < whole {
        return Ok(Parsed::Needs(whole));
    }
    let next = Some(u64::from_le_bytes(array(bytes, 1))).filter(|&next| next != END);
    // A donor that does not advance would keep the target asking for ever.
    if next.is_some_and(|next| next <= first) {
        return Err(DonorError("does not advance"));
    }
    let read = |entry: &[u8]| (u16::from_le_bytes(array(entry, 0)), Digest(array(entry, 2)));
    let found: Vec<_> = bytes[13..whole].chunks_exact(DIGEST_ENTRY_BYTES).map(read).collect();
    if found.iter().any(|&(offset, _)| u32::from(offset) >= asked) {
        return Err(DonorError("a digest outside the range asked"));
    }
    Ok(Parsed::Whole(Response::Digests { next, found }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole<T>(parsed: Result<Parsed<T>, DonorError>) -> T {
        match parsed.unwrap() {
            Parsed::Whole(value) => value,
            Parsed::Needs(bytes) => panic!("needs {bytes}"),
        }
    }

    #[test]
    fn golden_bytes() {
        let digests = Request::Digests { key: Key([5; 32]), first: 7, count: 4096 };
        let expected = [&[1][..], &[5; 32], &[7, 0, 0, 0, 0, 0, 0, 0], &[0, 16, 0, 0]].concat();
        assert_eq!(digests.to_bytes(), expected);
        assert_eq!(Request::Pages(vec![3]).to_bytes(), [2, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        let response = Response::Digests { next: None, found: vec![(2, Digest([6; 16]))] };
        let expected = [&[1][..], &[255; 8], &[1, 0, 0, 0], &[2, 0], &[6; 16]].concat();
        assert_eq!(response.to_bytes(), expected);
        assert_eq!(whole(Response::parse(&expected, &digests)), response);
        let pages = Response::Pages(vec![9; UNIT_BYTES]);
        assert_eq!(pages.to_bytes()[..4], [2, 1, 0, 9]);
        assert_eq!(whole(Response::parse(&pages.to_bytes(), &Request::Pages(vec![3]))), pages);
    }

    #[test]
    fn a_donor_cannot_lead_the_target_astray() {
        let asked = Request::Digests { key: Key([5; 32]), first: 7, count: 2 };
        let answer = |next, found| Response::parse(&Response::Digests { next, found }.to_bytes(), &asked);
        assert!(answer(Some(9), vec![(1, Digest([0; 16]))]).is_ok());
        assert!(answer(Some(7), vec![]).is_err());
        assert!(answer(Some(9), vec![(2, Digest([0; 16]))]).is_err());
        assert!(answer(None, vec![(0, Digest([0; 16])); 3]).is_err());
        assert!(Response::parse(&[2, 1, 0], &asked).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic_and_never_need_much(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Parsed::Needs(count)) = Request::parse(&bytes) {
                prop_assert!(count <= 3 + PAGES_MAX * 8);
            }
            for request in [Request::Digests { key: Key([0; 32]), first: 0, count: 4096 }, Request::Pages(vec![0; 256])] {
                if let Ok(Parsed::Needs(count)) = Response::parse(&bytes, &request) {
                    prop_assert!(count <= 3 + PAGES_MAX * UNIT_BYTES);
                }
            }
        }

        #[test]
        fn requests_round_trip(numbers in proptest::collection::vec(any::<u64>(), 1..256)) {
            let request = Request::Pages(numbers);
            prop_assert_eq!(whole(Request::parse(&request.to_bytes())), request);
        }
    }
}
