//! The disks of a VM, in its folder.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rebec_book::record::VmBody;
use rebec_devices::disk::{BackingName, Disk, ImageFormat};

use crate::{depot::Depot, durable, kept::Kept, seed};

/// A disk that is made here begins so small: whoever runs the VM first grows it to what it is to be, or was where the VM comes from.
const FIRST_BYTES: u64 = 1 << 20;

/// Disks of VMs may be so many times as large, all together, as the room that there is for them: most guests never fill theirs. Those that do
/// stand still before their host is short of room itself ([`crate::growth`]).
const OVERCOMMIT: u64 = 4;

/// What a VM is promised on the host's disk beside its image.
pub fn promised_bytes(body: &VmBody) -> u64 {
    let further = body.further_disks().map(|disk| disk.bytes);
    further.chain(body.root_bytes()).fold(0, u64::saturating_add) / OVERCOMMIT
}

/// What the disks in a VM's folder take, its copy-on-write layer and further ones; none where there is none.
pub fn taken_bytes(folder: &Path, body: &VmBody) -> Option<u64> {
    let paths = body.further_disks().map(|disk| further(folder, &disk.name)).chain([folder.join("disk.qcow2")]);
    paths.filter_map(|path| fs::metadata(path).ok()).map(|disk| disk.blocks() * 512).reduce(u64::saturating_add)
}

/// Where a further disk of a VM is, in its folder.
pub fn further(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("disk-{name}.qcow2"))
}

/// The copy-on-write layer, the further disks and the seed disk of a VM, as far as it has none yet.
pub fn make(depot: &Depot, folder: &Path, kept: &Kept) -> Result<()> {
    if let Some(disk) = &kept.body.image.disk {
        let base: PathBuf = depot.path(&disk.part.digest);
        let format = if disk.qcow2 { ImageFormat::Qcow2 } else { ImageFormat::Raw };
        let backing = BackingName { name: base.display().to_string(), format: Some(format) };
        create(folder, &folder.join("disk.qcow2"), disk.virtual_bytes, Some(&backing))?;
    }
    for disk in kept.body.further_disks() {
        create(folder, &further(folder, &disk.name), FIRST_BYTES, None)?;
    }
    let seed_path = folder.join("seed.img");
    if let Some((meta, user)) = kept.private.seed.clone()
        && !seed_path.exists()
    {
        seed::write(&seed_path, &seed::Texts { meta, user, network: kept.private.network.clone() })?;
    }
    Ok(())
}

/// Makes a disk that is not there, under another name until it is whole.
fn create(folder: &Path, path: &Path, bytes: u64, backing: Option<&BackingName>) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let made = || -> Result<()> {
        let new = folder.join(".disk.qcow2");
        let file = fs::File::options().create(true).truncate(true).read(true).write(true).open(&new)?;
        Disk::create_qcow2(&path.display().to_string(), &file, bytes, backing)?;
        durable::sync_whole(&file, &new)?;
        Ok(durable::rename(&new, path)?)
    };
    made().with_context(|| format!("create {}", path.display()))
}

/// Removes the further disks in the folder of a VM that its record does not name. It does not run.
pub fn sweep(folder: &Path, body: &VmBody) -> Result<()> {
    let named: Vec<_> = body.further_disks().map(|disk| further(folder, &disk.name)).collect();
    let mark = further(folder, "");
    let (start, end) = (mark.file_stem().unwrap_or_default().to_string_lossy().into_owned(), ".qcow2");
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&start) && name.ends_with(end) && !named.contains(&path) {
            log::info!("vm {}: {name} is removed: its record has no such disk", body.name);
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}
