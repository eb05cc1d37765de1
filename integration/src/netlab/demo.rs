//! `cargo lab demo --local`: the demo's story with bench guests in network namespaces, in seconds.

use std::time::Duration;

use anyhow::Result;

use super::story::{Plan, Seen, Story};
use crate::progress::say;

/// 100 Mbit/s would take as long as the QEMU demo; this is an ordinary network of a laboratory.
const LINK_MBIT: u32 = 1000;

/// Moves `web` away and back, and prints what was seen.
pub fn run() -> Result<()> {
    let plan = Plan {
        name: "demo-local",
        memory: "512M",
        load: "fill=shared:7:30%,text:3:20%,random:5:10%,zero dirty=1:words:2000",
        disk_bytes: 256 << 20,
        stream_mbit: 100,
        link_mbit: Some(LINK_MBIT),
    };
    say("demo", format_args!("two machines, linked at {LINK_MBIT} Mbit/s: booting web on a, client on b"));
    let mut story = Story::start(&plan)?;
    let mut seen = Vec::new();
    for (from, to) in [("a", "b"), ("b", "a")] {
        say("demo", format_args!("web moves from {from} to {to}, its memory, its disk and its connection with it"));
        seen.push((format!("{from} to {to}"), story.move_web(&["--streams", "2"], &[])?));
    }
    story.end()?;
    print!("{}", table(&seen));
    Ok(())
}

fn table(seen: &[(String, Seen)]) -> String {
    let mut rows: Vec<(&str, Vec<String>)> = Vec::new();
    let mut row = |name, cell: &dyn Fn(&Seen) -> String| rows.push((name, seen.iter().map(|(_, seen)| cell(seen)).collect()));
    let ms = |time: Duration| format!("{:.0} ms", time.as_secs_f64() * 1000.0);
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    row("total time", &|seen| format!("{} ms", seen.report.total_ms));
    row("downtime, as the VMMs measured it", &|seen| format!("{} ms", seen.report.downtime_ms));
    row("gap in the heartbeats", &|seen| ms(seen.beat_gap));
    row("gap in the pings, from outside", &|seen| ms(seen.ping_gap));
    row("  as a multiple of the control VM's longest stall", &|seen| {
        format!("{:.1}", seen.ping_gap.as_secs_f64() / seen.control_stall.as_secs_f64().max(1e-6))
    });
    row("pings lost", &|seen| format!("{} of {}", seen.pings.1, seen.pings.0));
    row("on the wire", &|seen| mib(seen.report.wire_bytes));
    row("of memory", &|seen| mib(seen.report.memory_bytes));
    row("and disk", &|seen| mib(seen.report.disk_bytes));
    row("rounds, streams", &|seen| format!("{}, {}", seen.report.rounds, seen.report.streams));
    for (name, pages) in [("pages", true), ("disk clusters", false)] {
        row(name, &|seen| {
            let units = if pages { seen.report.pages } else { seen.report.clusters };
            let [unchanged, zero, digest] = [units.unchanged, units.zero, units.digest];
            format!("unchanged {unchanged}, zero {zero}, digest {digest}, compressed {}, raw {}", units.compressed, units.raw)
        });
    }
    row("memory", &|_| "every page checked".into());
    row("disk", &|seen| format!("every block of {} writes checked", seen.blocks_written));
    row("connection", &|seen| format!("the same; {} checked", mib(seen.stream_bytes)));

    let mut text = String::new();
    for (number, (title, _)) in seen.iter().enumerate() {
        text += &format!("move {title}\n");
        for (name, cells) in &rows {
            text += &format!("  {name:<50} {}\n", cells[number]);
        }
    }
    text
}
