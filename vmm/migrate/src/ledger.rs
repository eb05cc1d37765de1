//! The right to run a VM: its durable records, how a file of them is read, and what may follow. Pure: the file itself is
//! the driver's, which appends a record and syncs it *before* the engine acts on it.
//!
//! ```text
//! ledger = record*                                   the last one counts
//! record = "RBL" kind:u8 vm:[16] epoch:u64 move:[16] zero:[16] crc32:u32       64 bytes, little endian, CRC over the 60 before it
//! kind   = 1 holding   2 granted   3 prepared   4 running   5 released
//! ```
//! Records never straddle a disk sector, so a crash while one is written leaves a short tail or zeros: that record was never
//! acted on and is forgotten. Any other damage is refused: guessing an older state could make a VM run twice.

use crate::bytes::array;

/// Bytes of one record.
pub const RECORD_BYTES: usize = 64;
/// Longest ledger that is read: ten thousand moves of five records, with a margin.
pub const LEDGER_BYTES_MAX: usize = 4 << 20;

const MAGIC: [u8; 3] = *b"RBL";
const CRC_AT: usize = RECORD_BYTES - 4;

/// Identity of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct VmId(pub [u8; 16]);

/// Identity of one move: a grant names it, so no target of another move can take it for its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct MoveId(pub [u8; 16]);

impl MoveId {
    /// Where no move is meant: in the record of a VM that has not moved.
    pub const NONE: Self = Self([0; 16]);
}

impl std::fmt::Display for MoveId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Display for VmId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Right {
    /// This side runs the VM.
    Holding,
    /// The move's target may run it: the source's point of no return.
    Granted,
    /// Memory and disk are complete and verified here; it waits for the grant.
    Prepared,
    /// This side runs the VM, granted by a move.
    Running,
    /// It was prepared here, has not run one instruction, and never will under this move.
    Released,
}

/// One durable record: who may run a VM at an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// What it says.
    pub right: Right,
    /// About which VM.
    pub vm: VmId,
    /// At which epoch.
    pub epoch: u64,
    /// In which move.
    pub move_id: MoveId,
}

/// Why a ledger was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LedgerError {
    /// A record is not one, or its checksum is wrong.
    #[error("record {0} of the ledger is damaged: restore the file from a copy, or find out by hand who may run the VM")]
    Damaged(usize),
    /// A record does not follow from the one before it.
    #[error("record {0} of the ledger does not follow from the one before it: the file was mixed up")]
    Illegal(usize),
    /// A file that is no ledger.
    #[error("the ledger is longer than {LEDGER_BYTES_MAX} bytes")]
    TooLong,
}

impl Record {
    /// The bytes that are appended.
    pub fn to_bytes(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..3].copy_from_slice(&MAGIC);
        bytes[3] = match self.right {
            Right::Holding => 1,
            Right::Granted => 2,
            Right::Prepared => 3,
            Right::Running => 4,
            Right::Released => 5,
        };
        bytes[4..20].copy_from_slice(&self.vm.0);
        bytes[20..28].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[28..44].copy_from_slice(&self.move_id.0);
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != RECORD_BYTES
            || bytes[..3] != MAGIC
            || crc32fast::hash(&bytes[..CRC_AT]) != u32::from_le_bytes(array(bytes, CRC_AT))
        {
            return None;
        }
        let right = match bytes[3] {
            1 => Right::Holding,
            2 => Right::Granted,
            3 => Right::Prepared,
            4 => Right::Running,
            5 => Right::Released,
            _ => return None,
        };
        Some(Self { right, vm: VmId(array(bytes, 4)), epoch: u64::from_le_bytes(array(bytes, 20)), move_id: MoveId(array(bytes, 28)) })
    }

    /// Whether this record may stand after `before` (or first, after nothing).
    pub fn may_follow(&self, before: Option<&Self>) -> bool {
        let Some(before) = before else {
            return matches!(self.right, Right::Holding | Right::Prepared);
        };
        let next = before.epoch.checked_add(1) == Some(self.epoch);
        let same = before.epoch == self.epoch && before.move_id == self.move_id;
        self.vm == before.vm
            && match (before.right, self.right) {
                (Right::Holding | Right::Running, Right::Granted) => next,
                // The target released the grant, so the source goes on one epoch later.
                (Right::Granted, Right::Holding) => next,
                // The VM comes back by another move.
                (Right::Granted, Right::Prepared) => self.epoch > before.epoch,
                (Right::Prepared, Right::Running | Right::Released) => same,
                // The source never granted that epoch, so another move may prepare it again.
                (Right::Released, Right::Prepared) => self.epoch >= before.epoch && self.move_id != before.move_id,
                _ => false,
            }
    }
}

/// What a ledger file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ledger {
    /// The record that counts.
    pub last: Option<Record>,
    /// Where the next record is written: behind the last whole one.
    pub append_at: u64,
}

/// Reads a ledger file.
///
/// # Errors
/// When it is damaged anywhere but in a tail that was never acted on.
pub fn read(bytes: &[u8]) -> Result<Ledger, LedgerError> {
    if bytes.len() > LEDGER_BYTES_MAX {
        return Err(LedgerError::TooLong);
    }
    let mut ledger = Ledger { last: None, append_at: 0 };
    for (number, chunk) in bytes.chunks(RECORD_BYTES).enumerate() {
        let Some(record) = Record::from_bytes(chunk) else {
            let is_last = (number + 1) * RECORD_BYTES >= bytes.len();
            let cut_short = chunk.len() < RECORD_BYTES || chunk.iter().all(|&byte| byte == 0);
            return if is_last && cut_short { Ok(ledger) } else { Err(LedgerError::Damaged(number)) };
        };
        if !record.may_follow(ledger.last.as_ref()) {
            return Err(LedgerError::Illegal(number));
        }
        ledger = Ledger { last: Some(record), append_at: ledger.append_at + RECORD_BYTES as u64 };
    }
    Ok(ledger)
}

/// What a process that starts with a ledger may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Start the VM from its disk, and hold it at this epoch.
    Run {
        /// The epoch it holds.
        epoch: u64,
    },
    /// Nobody here may run it until the other side has spoken.
    Wait,
    /// A target that died before it ran: write `Released`, tell the source.
    Release(Record),
    /// It does not belong here.
    Nothing,
}

/// What follows from the last record when a process starts and its memory is gone, with the reason in words.
pub fn may_run(last: Option<&Record>) -> (Decision, String) {
    let Some(record) = last else {
        return (Decision::Nothing, "the ledger is empty: no VM has been held here".into());
    };
    let Record { vm, epoch, move_id, .. } = record;
    match record.right {
        Right::Holding | Right::Running => (Decision::Run { epoch: *epoch }, format!("VM {vm} is held here at epoch {epoch}")),
        Right::Granted => (
            Decision::Wait,
            format!(
                "epoch {epoch} of VM {vm} was granted to the target of move {move_id}: connect to that target again (`ctl migrate --to`), it runs the VM or releases it"
            ),
        ),
        Right::Prepared => (
            Decision::Release(Record { right: Right::Released, ..*record }),
            format!("VM {vm} was prepared here by move {move_id} and never ran: it is released, its source may go on"),
        ),
        Right::Released => (Decision::Nothing, format!("VM {vm} was released to its source at epoch {epoch}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(right: Right, epoch: u64, move_number: u8) -> Record {
        Record { right, vm: VmId([9; 16]), epoch, move_id: MoveId([move_number; 16]) }
    }

    fn file(records: &[Record]) -> Vec<u8> {
        records.iter().flat_map(Record::to_bytes).collect()
    }

    #[test]
    fn golden_bytes() {
        let bytes = record(Right::Granted, 0x0102, 7).to_bytes();
        assert_eq!(bytes[..4], *b"RBL\x02");
        assert_eq!(bytes[4..20], [9; 16]);
        assert_eq!(bytes[20..28], [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[28..44], [7; 16]);
        assert_eq!(u32::from_le_bytes(array(&bytes, CRC_AT)), 1_768_708_802);
    }

    #[test]
    fn a_torn_tail_is_forgotten_and_damage_is_refused() {
        let records = [record(Right::Holding, 1, 0), record(Right::Granted, 2, 1)];
        let whole = file(&records);
        assert_eq!(read(&whole), Ok(Ledger { last: Some(records[1]), append_at: 128 }));
        for cut in 64..128 {
            assert_eq!(read(&whole[..cut]), Ok(Ledger { last: Some(records[0]), append_at: 64 }), "cut at {cut}");
        }
        let mut zeroed = whole.clone();
        zeroed[64..].fill(0);
        assert_eq!(read(&zeroed).map(|ledger| ledger.append_at), Ok(64));
        for at in 0..128 {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            assert_eq!(read(&flipped), Err(LedgerError::Damaged(at / 64)), "flipped byte {at}");
        }
    }

    #[test]
    fn a_record_must_follow_from_the_one_before() {
        let there_and_back = [
            record(Right::Holding, 1, 0),
            record(Right::Granted, 2, 1),
            record(Right::Prepared, 3, 2),
            record(Right::Running, 3, 2),
            record(Right::Granted, 4, 3),
            record(Right::Holding, 5, 3),
        ];
        assert_eq!(read(&file(&there_and_back)).map(|ledger| ledger.last), Ok(Some(there_and_back[5])));
        let twice = [record(Right::Prepared, 2, 1), record(Right::Released, 2, 1), record(Right::Running, 2, 1)];
        assert_eq!(read(&file(&twice)), Err(LedgerError::Illegal(2)));
        let again = [record(Right::Granted, 2, 1)];
        assert_eq!(read(&file(&again)), Err(LedgerError::Illegal(0)));
        let other_move = [record(Right::Prepared, 2, 1), record(Right::Running, 2, 2)];
        assert_eq!(read(&file(&other_move)), Err(LedgerError::Illegal(1)));
    }

    #[test]
    fn only_who_holds_it_may_start_it() {
        let decide = |right| may_run(Some(&record(right, 4, 1))).0;
        assert_eq!(decide(Right::Holding), Decision::Run { epoch: 4 });
        assert_eq!(decide(Right::Running), Decision::Run { epoch: 4 });
        assert_eq!(decide(Right::Granted), Decision::Wait);
        assert_eq!(decide(Right::Prepared), Decision::Release(record(Right::Released, 4, 1)));
        assert_eq!(decide(Right::Released), Decision::Nothing);
        assert_eq!(may_run(None).0, Decision::Nothing);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(ledger) = read(&bytes) {
                prop_assert!(ledger.append_at <= bytes.len() as u64);
            }
        }
    }
}
