//! The ledger file: the durable record of who may run this VM. Records are appended and synced before anyone acts on them;
//! what they mean is `rebec_migrate::ledger`'s.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
};

use anyhow::{Context, Result};
use rebec_migrate::ledger::{self, LEDGER_BYTES_MAX, Record};

/// The last record, and the file behind it if the user gave one.
pub struct LedgerFile {
    file: Option<File>,
    last: Option<Record>,
    append_at: u64,
}

impl LedgerFile {
    /// Reads the file, or begins without one: then nothing survives this process.
    pub fn open(file: Option<File>) -> Result<Self> {
        let Some(mut file) = file else { return Ok(Self { file: None, last: None, append_at: 0 }) };
        let mut bytes = Vec::new();
        (&mut file).take(LEDGER_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).context("ledger: read")?;
        let ledger::Ledger { last, append_at } = ledger::read(&bytes).context("ledger")?;
        Ok(Self { file: Some(file), last, append_at })
    }

    /// Whether records survive this process.
    pub fn is_durable(&self) -> bool {
        self.file.is_some()
    }

    /// The record that counts.
    pub fn last(&self) -> Option<&Record> {
        self.last.as_ref()
    }

    /// Makes a record durable. After an error the record before still counts: the file is cut back to it. Should even that fail,
    /// the record may count for whoever reads the file next, which then asks the other side before anyone runs the VM.
    pub fn write(&mut self, record: Record) -> io::Result<()> {
        if !record.may_follow(self.last.as_ref()) {
            let what = format!("{:?} at epoch {} does not follow from {:?}", record.right, record.epoch, self.last);
            return Err(io::Error::other(what));
        }
        if let Some(file) = &mut self.file
            && let Err(error) = append(file, self.append_at, &record)
        {
            if let Err(again) = file.set_len(self.append_at).and_then(|()| file.sync_all()) {
                log::error!("ledger: cut back a record that was not written: {again}");
            }
            return Err(error);
        }
        self.append_at += ledger::RECORD_BYTES as u64;
        self.last = Some(record);
        Ok(())
    }
}

/// Appends behind the last whole record: a torn tail is overwritten, never left between records.
fn append(file: &mut File, at: u64, record: &Record) -> io::Result<()> {
    file.set_len(at)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&record.to_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use rebec_migrate::ledger::{MoveId, Right, VmId};

    use super::*;

    fn record(right: Right, epoch: u64) -> Record {
        Record { right, vm: VmId([3; 16]), epoch, move_id: MoveId::NONE }
    }

    #[test]
    fn records_survive_and_a_torn_tail_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let open = || LedgerFile::open(Some(OpenOptions::new().read(true).append(true).create(true).open(&path).unwrap())).unwrap();
        let mut ledger = open();
        assert_eq!(ledger.last(), None);
        ledger.write(record(Right::Holding, 1)).unwrap();
        assert!(ledger.write(record(Right::Holding, 1)).is_err(), "a record must follow from the last");
        drop(ledger);

        OpenOptions::new().append(true).open(&path).unwrap().write_all(&record(Right::Granted, 2).to_bytes()[..20]).unwrap();
        let mut ledger = open();
        assert_eq!(ledger.last(), Some(&record(Right::Holding, 1)));
        ledger.write(record(Right::Granted, 2)).unwrap();
        drop(ledger);
        assert_eq!(open().last(), Some(&record(Right::Granted, 2)));
    }
}
