//! The kernel modules of the image: all that the kernel package ships, but for a deny list.
//!
//! A deny list can only make the image too large; an allow list would lose the one driver that a machine needs.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    command::Program,
    kernel::{self, Kernel},
};

/// Folders below `lib/modules/<release>/` that a host without a desktop never needs: sound, cameras, radio, large display adapters,
/// file systems of clusters and of flash chips, servers inside the kernel. Simple framebuffers and the display adapters of virtual
/// machines and of servers' management controllers stay.
const DENIED: &[&str] = &[
    "kernel/sound/",
    "kernel/drivers/media/",
    "kernel/drivers/net/wireless/",
    "kernel/net/wireless/",
    "kernel/net/mac80211/",
    "kernel/drivers/net/wwan/",
    "kernel/drivers/gpu/drm/amd/",
    "kernel/drivers/gpu/drm/i915/",
    "kernel/drivers/gpu/drm/xe/",
    "kernel/drivers/gpu/drm/nouveau/",
    "kernel/drivers/gpu/drm/radeon/",
    "kernel/drivers/gpu/drm/gma500/",
    "kernel/drivers/iio/",
    "kernel/drivers/staging/",
    "kernel/drivers/comedi/",
    "kernel/drivers/bluetooth/",
    "kernel/net/bluetooth/",
    "kernel/drivers/soundwire/",
    "kernel/drivers/isdn/",
    "kernel/drivers/accel/",
    "kernel/drivers/mtd/",
    "kernel/drivers/net/can/",
    "kernel/net/can/",
    "kernel/drivers/net/hamradio/",
    "kernel/drivers/net/arcnet/",
    "kernel/net/ax25/",
    "kernel/net/netrom/",
    "kernel/net/rose/",
    "kernel/drivers/atm/",
    "kernel/net/atm/",
    "kernel/drivers/net/ieee802154/",
    "kernel/net/mac802154/",
    "kernel/net/ieee802154/",
    "kernel/net/6lowpan/",
    "kernel/net/nfc/",
    "kernel/drivers/nfc/",
    "kernel/drivers/accessibility/",
    "kernel/drivers/input/touchscreen/",
    "kernel/drivers/usb/gadget/",
    "kernel/drivers/usb/serial/",
    "kernel/drivers/target/",
    "kernel/drivers/nvme/target/",
    "kernel/drivers/infiniband/",
    "kernel/drivers/block/drbd/",
    "kernel/drivers/block/rnbd/",
    "kernel/net/tipc/",
    "kernel/net/sctp/",
    "kernel/net/dccp/",
    "kernel/net/rds/",
    "kernel/net/smc/",
    "kernel/net/rxrpc/",
    "kernel/net/batman-adv/",
    "kernel/net/ceph/",
    "kernel/net/netfilter/ipvs/",
    "kernel/net/netfilter/ipset/",
    "kernel/fs/afs/",
    "kernel/fs/bcachefs/",
    "kernel/fs/ceph/",
    "kernel/fs/dlm/",
    "kernel/fs/f2fs/",
    "kernel/fs/gfs2/",
    "kernel/fs/jffs2/",
    "kernel/fs/jfs/",
    "kernel/fs/nfsd/",
    "kernel/fs/ocfs2/",
    "kernel/fs/orangefs/",
    "kernel/fs/reiserfs/",
    "kernel/fs/smb/",
    "kernel/fs/ubifs/",
    // Drivers of old display adapters: the text console and the firmware's framebuffer need none of them.
    "kernel/drivers/video/fbdev/",
    // It writes every key pressed into the kernel's log.
    "kernel/drivers/input/evbug",
];

/// Kept all the same: others need them.
const KEPT: &[&str] = &["kernel/drivers/video/fbdev/core/"];
/// Modules that nearly every machine loads at boot are shipped unpacked, inside the compressed archive: the kernel unpacks xz slowly,
/// which took seconds of an emulated machine's boot.
const UNPACKED: &[&str] = &[
    "kvm",
    "kvm-amd",
    "kvm-intel",
    "irqbypass",
    "ccp",
    "ext4",
    "jbd2",
    "mbcache",
    "crc16",
    "scsi_mod",
    "scsi_common",
    "sd_mod",
    "libata",
    "libahci",
    "ahci",
    "virtio_net",
    "virtio_blk",
    "net_failover",
    "failover",
    "evdev",
    "psmouse",
    "tun",
    "vxlan",
    "udp_tunnel",
    "ip6_udp_tunnel",
    "fuse",
    "loop",
    "i2c-i801",
    "usbcore",
    "usb-common",
    "xhci-hcd",
    "xhci-pci",
    "nvme",
    "nvme-core",
    "button",
    "qemu_fw_cfg",
    "lpc_ich",
    "i2c-smbus",
    "pcspkr",
    "serio_raw",
    "virtio-rng",
    "watchdog",
    "iTCO_vendor_support",
    "intel_pmc_bxt",
    "iTCO_wdt",
    "vsock",
    "vhost_iotlb",
    "vhost",
    "vmw_vsock_virtio_transport_common",
    "vhost_vsock",
];

/// Files beside the modules that depmod reads.
const READ_BY_DEPMOD: [&str; 3] = ["modules.order", "modules.builtin", "modules.builtin.modinfo"];
/// Files that the loader in `rebec init` reads.
const READ_BY_LOADER: [&str; 4] = ["modules.alias", "modules.dep", "modules.softdep", "modules.builtin"];

/// Files of the image, by path below its root.
pub type Files = BTreeMap<String, PathBuf>;

/// Gathers the modules in `stage`, writes `modules.dep` and `modules.alias` for just them, and returns what goes in.
pub fn stage(kernel: &Kernel, stage: &Path) -> Result<Files> {
    let home = format!("lib/modules/{}", kernel.release);
    let folder = stage.join(&home);
    let mut modules = Vec::new();
    walk(&kernel.modules, &mut modules)?;
    let mut files = Files::new();
    for path in &modules {
        let name = path.strip_prefix(&kernel.modules).unwrap_or(path).to_string_lossy().into_owned();
        let wanted = name.contains(".ko") && !denied(&name);
        if wanted || READ_BY_DEPMOD.contains(&name.as_str()) {
            let target = folder.join(&name);
            fs::create_dir_all(target.parent().unwrap_or(&folder)).with_context(|| format!("create {}", folder.display()))?;
            match name.strip_suffix(".xz").filter(|name| unpacked(name)) {
                Some(name) => {
                    let target = folder.join(name);
                    unpack(path, &target)?;
                    files.insert(format!("{home}/{name}"), target);
                }
                None => {
                    fs::copy(path, &target).with_context(|| format!("copy {}", path.display()))?;
                    if wanted {
                        files.insert(format!("{home}/{name}"), target);
                    }
                }
            }
        }
    }
    kernel::depmod(stage, &kernel.release)?;
    for name in READ_BY_LOADER {
        files.insert(format!("{home}/{name}"), folder.join(name));
    }
    Ok(files)
}

fn denied(name: &str) -> bool {
    let below = |folders: &[&str]| folders.iter().any(|folder| name.starts_with(folder));
    below(DENIED) && !below(KEPT)
}

fn unpacked(name: &str) -> bool {
    let module = name.rsplit('/').next().and_then(|file| file.strip_suffix(".ko"));
    module.is_some_and(|module| UNPACKED.contains(&module))
}

fn unpack(packed: &Path, target: &Path) -> Result<()> {
    let output = fs::File::create(target).with_context(|| format!("create {}", target.display()))?;
    Program::new("xz").arg("-dc").arg(packed).stdout(output).into_file()
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry.with_context(|| format!("read {}", folder.display()))?;
        // Packages hold `build` and `source` as links that lead outside.
        let kind = entry.file_type().with_context(|| format!("look at {}", entry.path().display()))?;
        if kind.is_dir() {
            walk(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_folder_denies_what_is_below_it_and_nothing_beside_it() {
        assert!(denied("kernel/drivers/net/wireless/ath/ath9k/ath9k.ko.xz"));
        assert!(denied("kernel/sound/soundcore.ko.xz"));
        for kept in ["kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko.xz", "kernel/drivers/gpu/drm/virtio/virtio-gpu.ko.xz"] {
            assert!(!denied(kept), "{kept}");
        }
        assert!(denied("kernel/drivers/video/fbdev/cirrusfb.ko.xz") && !denied("kernel/drivers/video/fbdev/core/fb_sys_fops.ko.xz"));
        assert!(DENIED.iter().all(|folder| folder.starts_with("kernel/")));
        assert!(unpacked("kernel/arch/x86/kvm/kvm.ko") && !unpacked("kernel/drivers/net/dummy.ko"));
    }
}
