//! A part of a request on its way to or from a file, and what comes of each answer of the host. Pure.

use std::io;

/// A part under way: these bytes of the request's data, at this place of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) file: u32,
    /// In the file.
    pub(super) offset: u64,
    /// In the request's data.
    pub(super) at: u64,
    pub(super) bytes: u64,
    pub(super) reads: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It is done.
    Done,
    /// The rest is to be asked for.
    Rest,
    /// The file ends here: the rest reads as zeros.
    Zeros,
    /// The host could not take it just now: all of the request once more, by hand.
    ByHand,
    /// It cannot be done, with this error's number.
    Failed(i32),
}

impl Transfer {
    /// What comes of an answer: bytes carried, or an error's number.
    pub(super) fn answered(&mut self, result: Result<u32, i32>) -> Next {
        let carried = match result {
            Ok(carried) => u64::from(carried).min(self.bytes),
            Err(number) if is_passing(number) => return Next::ByHand,
            Err(number) => return Next::Failed(number),
        };
        self.offset += carried;
        self.at += carried;
        self.bytes -= carried;
        match (self.bytes, carried) {
            (0, _) => Next::Done,
            (_, 0) if self.reads => Next::Zeros,
            // A file that takes nothing and says nothing: by hand it says what is wrong.
            (_, 0) => Next::ByHand,
            _ => Next::Rest,
        }
    }
}

/// What comes of the answer to a sync.
pub(super) fn synced(result: Result<u32, i32>) -> Next {
    match result {
        Ok(_) => Next::Done,
        Err(number) if is_passing(number) => Next::ByHand,
        Err(number) => Next::Failed(number),
    }
}

/// Errors of the way and not of the disk: no memory or no thread to carry it out, or a signal.
fn is_passing(number: i32) -> bool {
    use rustix::io::Errno;
    [Errno::AGAIN, Errno::INTR, Errno::CANCELED, Errno::NOMEM, Errno::OPNOTSUPP].iter().any(|errno| errno.raw_os_error() == number)
}

/// The error of a number.
pub(super) fn error_of(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const READ: Transfer = Transfer { file: 1, offset: 1000, at: 512, bytes: 4096, reads: true };

    #[test]
    fn each_answer_has_its_consequence() {
        for (result, reads, next) in [
            (Ok(4096), true, Next::Done),
            (Ok(u32::MAX), true, Next::Done),
            (Ok(1), true, Next::Rest),
            (Ok(4095), false, Next::Rest),
            (Ok(0), true, Next::Zeros),
            (Ok(0), false, Next::ByHand),
            (Err(5), true, Next::Failed(5)),
            (Err(28), false, Next::Failed(28)),
            (Err(11), false, Next::ByHand),
            (Err(4), true, Next::ByHand),
            (Err(125), true, Next::ByHand),
        ] {
            assert_eq!(Transfer { reads, ..READ }.answered(result), next, "{result:?}");
        }
        assert_eq!([Ok(0), Err(5), Err(125)].map(synced), [Next::Done, Next::Failed(5), Next::ByHand]);
        assert!(error_of(28).to_string().contains("No space left"));
    }

    proptest! {
        /// However short the answers are, all bytes are asked for once, in their places, and it ends.
        #[test]
        fn short_answers_add_up(answers in proptest::collection::vec(1_u32..2000, 1..4096)) {
            let mut transfer = READ;
            let mut next = 512;
            for answer in answers {
                prop_assert_eq!((transfer.at, transfer.offset), (next, next + 488));
                next += u64::from(answer).min(transfer.bytes);
                if transfer.answered(Ok(answer)) == Next::Done {
                    prop_assert_eq!(next, 512 + 4096);
                    break;
                }
            }
        }
    }
}
