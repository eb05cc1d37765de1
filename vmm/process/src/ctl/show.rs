//! What people read: the table of `status` and the progress line of `migrate`. Pure text; programs read the JSON.

use std::fmt::Write;

use rebec_layout::PAGE_BYTES;
use rebec_vmm_api::{
    MacAddr,
    control::{DeviceLimits, MemoryStatus, NetStatus, NetTalk, Progress, StationTalk, Status, VmState},
};

/// `status` as lines of a name and a value.
pub fn table(status: &Status) -> String {
    let mut rows = vec![
        ("state".to_owned(), state(status.state).to_owned()),
        ("vm".to_owned(), status.vm.clone()),
        ("epoch".to_owned(), status.epoch.to_string()),
        ("memory".to_owned(), status.memory.as_deref().map_or_else(|| size(status.memory_bytes), memory)),
        ("vcpus".to_owned(), status.vcpus.to_string()),
    ];
    rows.extend(status.cpu.as_ref().map(|cpu| ("cpu".to_owned(), model(&cpu.model).to_owned())));
    rows.extend(status.limits.map(|limits| ("limits".to_owned(), limited(limits))));
    rows.extend(status.lease_ms.map(|left| ("lease".to_owned(), lease(left))));
    rows.extend(status.disk_bytes.iter().enumerate().map(|(index, bytes)| (format!("disk {index}"), size(*bytes))));
    rows.extend(status.nets.iter().enumerate().map(|(index, net)| (format!("net {index}"), counters(net))));
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        writeln!(text, "{name:<8} {}", printable(value)).expect("invariant: a String takes any text");
        text
    })
}

fn limited(limits: DeviceLimits) -> String {
    let DeviceLimits { net_bits, disk_requests, disk_bytes } = limits;
    let words = [
        net_bits.map(|bits| format!("{} kbit/s a NIC and way", bits / 1000)),
        disk_requests.map(|requests| format!("{requests} requests/s a disk")),
        disk_bytes.map(|bytes| format!("{} kB/s a disk", bytes / 1000)),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What the guest has not done of what it was asked for is said by both numbers.
fn memory(memory: &MemoryStatus) -> String {
    let MemoryStatus { max_bytes, asked_bytes, taken_bytes, held_bytes, refused, guest_available_bytes, .. } = *memory;
    let mut words = vec![format!("{} taken of {} asked", size(taken_bytes), size(asked_bytes)), format!("at most {}", size(max_bytes))];
    words.push(format!("{} held of the host", size(held_bytes)));
    words.extend(guest_available_bytes.map(|bytes| format!("{} available, says the guest", size(bytes))));
    words.extend(Some(refused).filter(|refused| *refused > 0).map(|refused| format!("{refused} requests refused")));
    words.join(", ")
}

/// A set is for programs.
fn model(model: &str) -> &str {
    if model.starts_with("only:") { "a set of features of its own" } else { model }
}

fn counters(net: &NetStatus) -> String {
    let NetStatus { mac, vni, tx_frames, rx_frames, dropped, drops, key, roads, near_frames, spared } = net;
    let key = key.map_or_else(String::new, |key| format!(", key {key}"));
    let reasons: Vec<_> = drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    let near = if *roads > 0 || *near_frames > 0 { format!(", {near_frames} by {roads} roads within this host") } else { String::new() };
    let spared = if *spared > 0 { format!(", {spared} copies of multicasts spared") } else { String::new() };
    format!("{mac} on LAN {vni}: {tx_frames} frames out, {rx_frames} in, {dropped} dropped{reasons}{near}{spared}{key}")
}

/// Who talked to whom, a line for each pair, the busiest first.
pub fn talk(talk: &[NetTalk]) -> String {
    let mut text =
        format!("{:<18} {:<18} {:>14} {:>12} {:>14} {:>12}\n", "net", "station", "bytes out", "frames out", "bytes in", "frames in");
    for (net, row) in talk.iter().flat_map(|net| net.stations.iter().map(move |row| (net.mac, row))) {
        let station = if row.mac == MacAddr::BROADCAST { "all and others".to_owned() } else { row.mac.to_string() };
        let StationTalk { tx_bytes, tx_packets, rx_bytes, rx_packets, .. } = row;
        writeln!(text, "{:<18} {station:<18} {tx_bytes:>14} {tx_packets:>12} {rx_bytes:>14} {rx_packets:>12}", net.to_string())
            .expect("invariant: a String takes any text");
    }
    text
}

fn state(state: VmState) -> &'static str {
    match state {
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Incoming => "incoming: memory and disks are arriving, it has not run here",
        VmState::Moving => "moving: it still runs here",
        VmState::Waiting => "waiting: the right to run it was granted away and not yet confirmed",
        VmState::Moved => "moved: it runs elsewhere",
        VmState::Other => "in a state that this program does not know: use the ctl of the VMM's version",
    }
}

fn lease(left_ms: u64) -> String {
    if left_ms == 0 { "ended: no vCPU runs until it is extended".into() } else { format!("{left_ms} ms left") }
}

/// One line that says how far a move is.
pub fn progress(progress: &Progress) -> String {
    let Progress { phase, round, remaining_units, wire_bytes, applied_mbit, predicted_ms, .. } = progress;
    let left = size(remaining_units.saturating_mul(PAGE_BYTES));
    let sent = size(*wire_bytes);
    format!("{}, round {round}: {left} left, {sent} sent, {applied_mbit} Mbit/s, predicted pause {predicted_ms} ms", printable(phase))
}

/// Sizes as people say them; below ten with one digit after the point.
fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| bytes >= *unit) else { return format!("{bytes} B") };
    let (whole, tenth) = (bytes / unit, bytes % unit * 10 / unit);
    if whole < 10 && tenth > 0 { format!("{whole}.{tenth} {name}") } else { format!("{whole} {name}") }
}

/// Text from the other side of a socket reaches a terminal without its control characters.
fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use rebec_vmm_api::control::CpuStatus;

    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (512 << 20, "512 MiB"), (3 << 29, "1.5 GiB"), (1 << 40, "1 TiB"), (12_900_000, "12 MiB")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "16777215 TiB");
    }

    #[test]
    fn a_table_has_a_line_for_everything_and_no_control_characters() {
        let net = NetStatus {
            mac: "52:54:00:00:00:01".parse().unwrap(),
            vni: 7,
            tx_frames: 3,
            rx_frames: 4,
            dropped: 2,
            drops: [("no_peer".to_owned(), 2)].into(),
            key: None,
            roads: 0,
            near_frames: 0,
            spared: 0,
        };
        let status = Status {
            state: VmState::Running,
            epoch: 1,
            vm: "00\x1b[2J11".into(),
            memory_bytes: 512 << 20,
            vcpus: 2,
            disk_bytes: vec![2 << 30],
            nets: vec![net],
            ledger: true,
            lease_ms: Some(0),
            cpu: Some(CpuStatus { model: "x86-64-v2".into(), features: String::new() }),
            limits: Some(DeviceLimits { net_bits: Some(200_000_000), disk_requests: Some(5000), disk_bytes: None }),
            cgroup: None,
            memory: None,
        };
        let expected = "state    running\nvm       00[2J11\nepoch    1\nmemory   512 MiB\nvcpus    2\ncpu      x86-64-v2\nlimits   200000 kbit/s a NIC and way, 5000 requests/s a disk\nlease    ended: no vCPU runs until it is extended\ndisk 0   2 GiB\n\
                        net 0    52:54:00:00:00:01 on LAN 7: 3 frames out, 4 in, 2 dropped (no_peer 2)\n";
        assert_eq!(table(&status), expected);
        let grown = MemoryStatus {
            max_bytes: 4 << 30,
            asked_bytes: 2 << 30,
            taken_bytes: 3 << 29,
            held_bytes: 1 << 30,
            refused: 2,
            ..MemoryStatus::default()
        };
        let said = table(&Status { memory: Some(Box::new(grown)), ..status });
        let expected = "memory   1.5 GiB taken of 2 GiB asked, at most 4 GiB, 1 GiB held of the host, 2 requests refused\n";
        assert!(said.contains(expected), "{said}");
    }
}
