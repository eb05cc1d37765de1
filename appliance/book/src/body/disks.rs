//! Disks of a VM beside what its image gives (ADR 29).

use minicbor::{Decode, Encode};

use super::VmBody;
use crate::name::is_name;

/// Of [`VmBody::must`]: it has disks of its own ([`VmBody::disks`]).
pub const DISKS: &str = "disks";
/// Disks in one record.
pub const DISKS_MAX: usize = 8;
/// What the disk is called that stands on the image's.
pub const ROOT_DISK: &str = "root";
/// Largest disk that is believed in: no VMM has a larger one.
const DISK_BYTES_MAX: u64 = 8 << 40;

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DiskBody {
    /// What it is called.
    #[n(0)]
    pub name: String,
    /// What the guest sees, at least: a disk grows, and never shrinks.
    #[n(1)]
    pub bytes: u64,
}

impl VmBody {
    /// The virtual size of the disk that stands on the image's, if it has one.
    pub fn root_bytes(&self) -> Option<u64> {
        let image = self.image.disk?.virtual_bytes;
        Some(self.root_disk().map_or(image, |disk| disk.bytes.max(image)))
    }

    /// What was asked of the disk that stands on the image's.
    pub fn root_disk(&self) -> Option<&DiskBody> {
        self.disks.iter().flatten().find(|disk| disk.name == ROOT_DISK)
    }

    /// The disks that are no image's, in their order.
    pub fn further_disks(&self) -> impl Iterator<Item = &DiskBody> {
        self.disks.iter().flatten().filter(|disk| disk.name != ROOT_DISK)
    }

    /// Has it have these disks, which whoever runs it has to know.
    pub fn set_disks(&mut self, disks: Vec<DiskBody>) {
        let must = self.must.get_or_insert_default();
        must.retain(|word| word != DISKS);
        if !disks.is_empty() {
            must.push(DISKS.to_owned());
        }
        if must.is_empty() {
            self.must = None;
        }
        self.disks = (!disks.is_empty()).then_some(disks);
    }

    pub(super) fn has_sound_disks(&self) -> bool {
        let disks = self.disks.as_deref().unwrap_or_default();
        disks.len() <= DISKS_MAX && disks.iter().all(|disk| is_name(&disk.name) && disk.bytes <= DISK_BYTES_MAX)
    }
}
