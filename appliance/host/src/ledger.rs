//! The ledger of a VM that no VMM has open: who may run it, by the last record. While a VMM runs, the file is that VMM's alone.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use rebec_book::key::Id;
use rebec_migrate::ledger::{self, MoveId, Record, Right, VmId};
use rustix::fs::{FallocateFlags, fallocate};

use crate::{durable, reserve::Reserve};

/// Room that a ledger has from its beginning, so that a full disk does not keep a VMM from writing: as many records as many moves make.
const ROOM_BYTES: u64 = 64 << 10;

/// What the last record says, and of which epoch; none where nothing was ever written.
pub fn last(folder: &Path) -> Result<Option<(Right, u64)>> {
    Ok(last_record(folder)?.map(|record| (record.right, record.epoch)))
}

fn last_record(folder: &Path) -> Result<Option<Record>> {
    let path = folder.join("ledger");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let read = ledger::read(&bytes).with_context(|| format!("ledger {}", path.display()))?;
    Ok(read.last)
}

/// Opens the ledger for a VMM; that of a VM that arrives is made, empty.
pub fn open(folder: &Path) -> Result<fs::File> {
    let path = folder.join("ledger");
    let open = || {
        let is_new = !path.exists();
        let file = fs::File::options().read(true).append(true).create(true).open(&path)?;
        if is_new {
            durable::created(&path);
        }
        // Where the file system cannot, its records take what room they find.
        fallocate(&file, FallocateFlags::KEEP_SIZE, 0, ROOM_BYTES).unwrap_or_default();
        // The name must be as durable as the records that will follow.
        durable::sync_folder(folder)?;
        Ok::<_, std::io::Error>(file)
    };
    let opened = Reserve::of_vm(folder).write(|| Ok(open()?));
    opened.with_context(|| format!("open {}", path.display()))
}

/// Begins the ledger of a VM that starts here for the first time, under the name that the pool knows it by. [`open`], before anyone acts on it, makes
/// the file's name durable.
pub fn begin(folder: &Path, id: &Id, epoch: u64) -> Result<()> {
    let path = folder.join("ledger");
    if path.exists() {
        return Ok(());
    }
    let first = Record { right: Right::Holding, vm: VmId(id.0), epoch: epoch.max(1), move_id: MoveId::NONE };
    let write = || durable::replace(&path, &first.to_bytes());
    Reserve::of_vm(folder).write(write).with_context(|| format!("write {}", path.display()))
}
