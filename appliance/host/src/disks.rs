//! The disks of a VM, in its folder.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rebec_book::record::ImageBody;
use rebec_devices::disk::{BackingName, Disk, ImageFormat};

use crate::{depot::Depot, durable, kept::Kept, seed};

/// Disks of VMs may be so many times as large, all together, as the room that there is for them: most guests never fill theirs. Those that do
/// stand still before their host is short of room itself ([`crate::growth`]).
const OVERCOMMIT: u64 = 4;

/// What a VM is promised on the host's disk beside its image.
pub fn promised_bytes(image: &ImageBody) -> u64 {
    image.disk.map_or(0, |disk| disk.virtual_bytes / OVERCOMMIT)
}

/// What the copy-on-write layer in a VM's folder takes; none where there is none.
pub fn taken_bytes(folder: &Path) -> Option<u64> {
    fs::metadata(folder.join("disk.qcow2")).ok().map(|layer| layer.blocks() * 512)
}

/// The copy-on-write layer and the seed disk of a VM that has none yet.
pub fn make(depot: &Depot, folder: &Path, kept: &Kept) -> Result<()> {
    let path = folder.join("disk.qcow2");
    if let Some(disk) = &kept.body.image.disk
        && !path.exists()
    {
        let base: PathBuf = depot.path(&disk.part.digest);
        let format = if disk.qcow2 { ImageFormat::Qcow2 } else { ImageFormat::Raw };
        let backing = BackingName { name: base.display().to_string(), format: Some(format) };
        // Under another name until it is whole.
        let new = folder.join(".disk.qcow2");
        let file = fs::File::options().create(true).truncate(true).read(true).write(true).open(&new).context("create disk.qcow2")?;
        Disk::create_qcow2("disk.qcow2", &file, disk.virtual_bytes, Some(&backing))?;
        durable::sync_whole(&file, &new)?;
        durable::rename(&new, &path).context("create disk.qcow2")?;
    }
    if let Some(texts) = &kept.private.seed
        && !folder.join("seed.img").exists()
    {
        seed::write(&folder.join("seed.img"), texts)?;
    }
    Ok(())
}
