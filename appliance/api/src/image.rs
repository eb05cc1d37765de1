//! Images: what a VM starts from. `GET /v1/images`, `DELETE /v1/images/{name}`.
//!
//! An import puts each file with `PUT /v1/parts` (the body is the file; the answer a [`Part`]) and then names them with
//! `POST /v1/images`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A file in the depot, named by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Part {
    /// BLAKE3 of the content, 64 hexadecimal digits.
    pub digest: String,
    /// Its length.
    pub bytes: u64,
}

/// `POST /v1/images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewImage {
    /// Its name.
    pub name: String,
    /// Kernel: a bzImage, or an ELF with a PVH entry. Without one, what the boot loader on the disk says is started, read again at each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Part>,
    /// Initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<Part>,
    /// Kernel command line; without a kernel, what is added to the disk's own.
    #[serde(default)]
    pub cmdline: String,
    /// Disk, raw or qcow2 without a backing file: each VM gets a copy-on-write layer over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Part>,
    /// Other domains whose VMs may start from it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
}

/// An image of the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageInfo {
    /// Its name.
    pub name: String,
    /// Kernel; none, where the disk's own boot loader says what starts.
    #[serde(default)]
    pub kernel: Option<Part>,
    /// What would start from the disk, as it was imported.
    #[serde(default)]
    pub starts: Option<String>,
    /// Initial RAM disk.
    pub initramfs: Option<Part>,
    /// Kernel command line.
    pub cmdline: String,
    /// Disk.
    pub disk: Option<Part>,
    /// The disk's virtual size; 0 without one.
    pub disk_bytes: u64,
    /// Hosts whose depot holds all of it.
    pub held_by: Vec<String>,
    /// VMs that stand on it.
    pub vms: u32,
    /// Other domains whose VMs may start from it.
    #[serde(default)]
    pub domains: Vec<String>,
}
