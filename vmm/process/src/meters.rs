//! What a VMM counts, as families for monitoring.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rebec_devices::net::NetCounters;
use rebec_kvm::{ExitReason, Exits};
use rebec_overlay::Reason;
use rebec_vmm_api::{control::Status, metrics::Family};

use crate::lan::Lan;

/// Rows of one family that grows with what happens.
const ROWS_MAX: usize = 128;

/// Counters of a machine. They stay when it has gone.
#[derive(Debug, Clone, Default)]
pub struct Meters {
    /// Of its vCPUs.
    pub exits: Vec<Arc<Exits>>,
    /// Of its network cards.
    pub cards: Vec<Arc<NetCounters>>,
}

/// All of it, of a VM that stands so.
pub fn families(status: &Status, meters: &Meters, lans: &[Lan]) -> Vec<Family> {
    let mut families = of_status(status);
    families.push(vcpu_exits(&meters.exits));
    families.extend(of_cards(&meters.cards, lans));
    families.extend(of_ports(lans));
    families
}

fn of_status(status: &Status) -> Vec<Family> {
    let state = serde_json::to_value(status.state).unwrap_or_default();
    let mut disks = Family::gauge("rebec_vm_disk_size_bytes", "Virtual size of a disk.");
    for (index, bytes) in status.disk_bytes.iter().enumerate() {
        disks.add(&[("disk", &index.to_string())], *bytes as f64);
    }
    let mut families = vec![
        Family::gauge("rebec_vm_state", "1 for the state that the VM is in.").with(&[("state", state.as_str().unwrap_or("other"))], 1.0),
        Family::gauge("rebec_vm_epoch", "Ownership counter: grows with each move and each start elsewhere.").with(&[], status.epoch as f64),
        Family::gauge("rebec_vm_memory_bytes", "Memory of the guest.").with(&[], status.memory_bytes as f64),
        Family::gauge("rebec_vm_vcpus", "Virtual processors.").with(&[], f64::from(status.vcpus)),
        disks,
    ];
    if let Some(left) = status.lease_ms {
        let lease = Family::gauge("rebec_vm_lease_seconds", "Time for which the VM may still run without hearing from its keeper.");
        families.push(lease.with(&[], left as f64 / 1000.0));
    }
    families
}

fn vcpu_exits(exits: &[Arc<Exits>]) -> Family {
    let help = "Times that a vCPU left the guest for its process; what the kernel serves alone is not among them.";
    let mut family = Family::counter("rebec_vm_vcpu_exits_total", help);
    for (index, exits) in exits.iter().enumerate() {
        for reason in ExitReason::ALL {
            family.add(&[("vcpu", &index.to_string()), ("reason", reason.name())], exits.of(reason) as f64);
        }
    }
    family
}

/// The cards are in the order of their LANs. Sent and received are the guest's point of view.
fn of_cards(cards: &[Arc<NetCounters>], lans: &[Lan]) -> Vec<Family> {
    let mut frames = Family::counter("rebec_vm_nic_frames_total", "Frames that a NIC carried, large ones counted once.");
    let mut bytes = Family::counter("rebec_vm_nic_bytes_total", "Bytes of frames that a NIC carried.");
    let mut dropped =
        Family::counter("rebec_vm_nic_dropped_frames_total", "Frames that a NIC lost: malformed, refused or larger than its buffers.");
    let mut waits = Family::counter("rebec_vm_nic_rx_waits_total", "Times that a frame waited because the guest had too few buffers.");
    let mut errors = Family::counter("rebec_vm_nic_rx_errors_total", "Errors of a NIC's socket while it received.");
    for (card, lan) in cards.iter().zip(lans) {
        let nic = lan.mac().to_string();
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        for (way, [carried, carried_bytes, lost]) in
            [("tx", [&card.tx_frames, &card.tx_bytes, &card.tx_dropped]), ("rx", [&card.rx_frames, &card.rx_bytes, &card.rx_dropped])]
        {
            let of = [("nic", nic.as_str()), ("way", way)];
            frames.add(&of, value(carried));
            bytes.add(&of, value(carried_bytes));
            dropped.add(&of, value(lost));
        }
        waits.add(&[("nic", &nic)], value(&card.rx_waits));
        errors.add(&[("nic", &nic)], value(&card.rx_errors));
    }
    vec![frames, bytes, dropped, waits, errors]
}

fn of_ports(lans: &[Lan]) -> Vec<Family> {
    let mut frames = Family::counter("rebec_vm_port_frames_total", "Frames between a NIC's port and its LAN, large ones counted once.");
    let mut datagrams = Family::counter("rebec_vm_port_datagrams_total", "Datagrams of a port on the network of its host.");
    let mut answered = Family::counter("rebec_vm_port_answers_total", "Questions (ARP, ND, DHCP, DNS) that a port answered itself.");
    let mut flooded = Family::counter("rebec_vm_port_flooded_frames_total", "Frames that a port sent to all stations of its LAN.");
    let mut near = Family::counter("rebec_vm_port_near_frames_total", "Frames to and from ports of the same host that crossed no network.");
    let help = "Copies of multicasts that were not sent, as nobody there asked for the group.";
    let mut spared = Family::counter("rebec_vm_port_spared_copies_total", help);
    let mut relayed = Family::counter("rebec_vm_port_relayed_frames_total", "Late frames passed on to where the VM has moved.");
    let mut dropped =
        Family::counter("rebec_vm_port_dropped_frames_total", "Frames that a port dropped, by why; a reason not listed had none.");
    for lan in lans {
        let (nic, counters) = (lan.mac().to_string(), lan.counters());
        let of = [("nic", nic.as_str())];
        for (way, carried, sent) in [("tx", counters.tx_frames, counters.tx_datagrams), ("rx", counters.rx_frames, counters.rx_datagrams)] {
            let of = [("nic", nic.as_str()), ("way", way)];
            frames.add(&of, carried as f64);
            datagrams.add(&of, sent as f64);
        }
        answered.add(&of, counters.answered as f64);
        flooded.add(&of, counters.flooded as f64);
        near.add(&of, counters.near as f64);
        spared.add(&of, counters.spared as f64);
        relayed.add(&of, counters.relayed as f64);
        // Whoever answers has a line for all, and many NICs may lose frames in all ways.
        let mut others = 0;
        for reason in Reason::ALL.into_iter().filter(|reason| counters.of(*reason) > 0) {
            if dropped.samples.len() < ROWS_MAX {
                dropped.add(&[("nic", &nic), ("reason", reason.name())], counters.of(reason) as f64);
            } else {
                others += counters.of(reason);
            }
        }
        if others > 0 {
            dropped.add(&[("nic", &nic), ("reason", "others")], others as f64);
        }
    }
    vec![frames, datagrams, answered, flooded, near, spared, relayed, dropped]
}
