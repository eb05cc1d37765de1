//! The appliance boots as spare hardware boots it: by BIOS and UEFI, from a CD, a USB disk and the network; and it drives the cards and disks
//! that spare machines have.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rebec_lab::{
    appliance::Appliance,
    progress::say,
    provision,
    qemu::{
        Lab, LabConfig, Shape, System,
        firmware::{Firmware, Medium, Spare},
        image::Share,
    },
};

/// Five times what the slowest of them needed on two busy cores.
const DEADLINE: Duration = Duration::from_secs(400);

#[test]
fn firmware_boots_the_image_from_every_medium() -> Result<()> {
    let provisions = provision::provision()?;
    let appliance = Appliance::build()?;
    let folder = tempfile::tempdir()?;
    for (firmware, medium) in [
        (Firmware::Bios, Medium::Cd),
        (Firmware::Bios, Medium::Usb),
        (Firmware::Uefi, Medium::Cd),
        (Firmware::Uefi, Medium::Usb),
        // Firmware of 32 bits finds its loader on a stick as another would.
        (Firmware::Uefi32, Medium::Copied),
        (Firmware::Bios, Medium::Network),
    ] {
        let began = Instant::now();
        let mut spare = Spare::start(&provisions, &appliance, firmware, medium, folder.path())?;
        let said = spare.wait_host(DEADLINE)?;
        ensure!(said.contains("\nstate      in RAM"), "it does not say where its state is: {said}");
        say("boot", format_args!("{firmware:?} from {medium:?}: a host after {:.1} s", began.elapsed().as_secs_f64()));
    }
    Ok(())
}

/// Cards and disks, as QEMU names them, and the kernel's driver of each.
const CARDS: [(&str, &str); 8] = [
    ("e1000", "e1000"),
    ("e1000e", "e1000e"),
    ("igb", "igb"),
    ("rtl8139", "8139cp"),
    ("vmxnet3", "vmxnet3"),
    ("pcnet", "pcnet32"),
    ("virtio-net-pci", "virtio_net"),
    ("usb-net", "cdc_ether"),
];
const DISKS: [(&str, &str); 7] = [
    ("nvme,serial=1", "nvme"),
    ("ide-hd,bus=ide.0", "ahci"),
    ("usb-storage", "usb-storage"),
    ("usb-uas,id=uas -device scsi-hd,bus=uas.0", "uas"),
    ("virtio-scsi-pci,id=vscsi -device scsi-hd,bus=vscsi.0", "virtio_scsi"),
    ("megasas,id=megasas -device scsi-hd,bus=megasas.0", "megaraid_sas"),
    ("pvscsi,id=pvscsi -device scsi-hd,bus=pvscsi.0", "vmw_pvscsi"),
];
const DISK_BYTES: u64 = 64 << 20;
/// Looks at the drivers, two seconds apart.
const LOOKS: u32 = 20;

#[test]
fn the_image_drives_the_cards_and_disks_of_spare_machines() -> Result<()> {
    let provisions = provision::provision()?;
    let appliance = Appliance::build()?;
    let mut words = vec!["-device qemu-xhci".to_owned()];
    for (number, (card, _)) in CARDS.iter().enumerate() {
        let rom = if card.starts_with("usb") { "" } else { ",romfile=" };
        words.push(format!("-netdev user,id=card{number},restrict=on -device {card},netdev=card{number}{rom}"));
    }
    for (number, (disk, _)) in DISKS.iter().enumerate() {
        words.push(format!(
            "-blockdev driver=null-co,node-name=disk{number},size={DISK_BYTES},read-zeroes=on -device {disk},drive=disk{number}"
        ));
    }
    let words = words.join(" ");
    let devices: Vec<&str> = words.split(' ').collect();
    let share = Share::default();
    let config =
        LabConfig { name: "devices", machines: &["a"], accel: None, memory_mib: 1024, share, link: Shape::default(), devices: &devices };
    let mut lab = Lab::start_with(&provisions, &config, System::Appliance(&appliance))?;
    let machine = &lab.machines[0];
    let expected: Vec<&str> = CARDS.iter().chain(&DISKS).map(|(_, driver)| *driver).collect();
    // Drivers find their devices in their own time.
    let look = format!(
        "sleep 2; for d in /sys/bus/*/devices/*/driver; do basename $(readlink $d); done | sort -u; \
         echo cards $(ls -d /sys/class/net/*/device | wc -l); echo disks $(cat /sys/block/*/size | grep -cx {})",
        DISK_BYTES / 512
    );
    // The lab's own card is one more.
    let counts = [format!("cards {}", CARDS.len() + 1), format!("disks {}", DISKS.len())];
    let expected: Vec<&str> = expected.into_iter().chain(counts.iter().map(String::as_str)).collect();
    for left in (0..LOOKS).rev() {
        let found = machine.shell(&look)?;
        let absent: Vec<_> = expected.iter().filter(|wanted| !found.lines().any(|line| line == **wanted)).collect();
        if absent.is_empty() {
            break;
        }
        ensure!(left > 0, "absent: {absent:?}; there: {}", found.replace('\n', " "));
    }
    lab.succeeded();
    Ok(())
}
