//! Two VMs on one LAN, of which one moves while it works: what the local demo shows and the local tests vary.
//!
//! `web` dirties memory, writes checked blocks to its disk and receives a checked stream; `client` never moves, sends the stream and a ping every
//! 10 ms. After each move `web` checks every byte of its memory and every acknowledged block, and the stream must still be the first connection's.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use rebec_vmm_api::MoveReport;

use super::{
    NetLab, Vmm, VmmConfig,
    console::Line,
    guest,
    lab::expect,
    vmm::{LONG, Moved, SHORT},
};

const VNI: u32 = 7;
const WEB_MAC: &str = "52:54:00:00:07:01";
const WEB_IP: &str = "10.7.0.1";
const WEB_PORT: u16 = 4790;
const CLIENT_MAC: &str = "52:54:00:00:07:02";
const CLIENT_IP: &str = "10.7.0.2";
const CLIENT_PORT: u16 = 4791;
/// Where moves arrive; each takes the next.
const MOVE_PORT: u16 = 7000;

/// What a story is made of.
pub struct Plan<'a> {
    /// Names the folder of evidence.
    pub name: &'a str,
    /// `web`'s memory, as in `256M`.
    pub memory: &'a str,
    /// What fills and dirties it.
    pub load: &'a str,
    /// Size of its disk; 0 is none.
    pub disk_bytes: u64,
    /// The stream's rate; 0 is no stream.
    pub stream_mbit: u32,
    /// Rate of the machines' links; none is as fast as they go.
    pub link_mbit: Option<u32>,
}

/// The two VMs.
pub struct Story {
    /// Machine 0 and 1; `client` lives on 1, `web` begins on 0.
    pub lab: NetLab,
    /// The VM that moves.
    pub web: Vmm,
    /// The VM that stays.
    pub client: Vmm,
    /// Where `web` is now.
    pub at: usize,
    config: VmmConfig,
    has_disk: bool,
    has_stream: bool,
    moves: u16,
}

/// One move as it was seen, from inside and outside.
#[derive(Debug)]
pub struct Seen {
    /// What the source said.
    pub report: MoveReport,
    /// From the last heartbeat at the source to the first at the target.
    pub beat_gap: Duration,
    /// Longest time between two echo replies at `client`.
    pub ping_gap: Duration,
    /// Echo requests sent and replies missing since the move began.
    pub pings: (u64, u64),
    /// Longest stall of `client`, which did not move, in the same time.
    pub control_stall: Duration,
    /// Bytes of the stream received and checked so far.
    pub stream_bytes: u64,
    /// Blocks written and acknowledged so far.
    pub blocks_written: u64,
}

impl Story {
    /// Boots both VMs and waits until the load runs.
    pub fn start(plan: &Plan<'_>) -> Result<Self> {
        let lab = NetLab::start(plan.name, &["a", "b"])?;
        lab.shape(plan.link_mbit)?;
        let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
        let disk = if plan.disk_bytes > 0 { "blk0=load,rate=500,depth=32,queues=2" } else { "" };
        let mut config = guest::config(plan.memory, &format!("vm=1 net0=ip={WEB_IP} {disk} stats_ms=0 {}", plan.load))?;
        config.nets =
            vec![format!("vni={VNI},mac={WEB_MAC},local={}:{WEB_PORT},peer={CLIENT_MAC}@{}:{CLIENT_PORT}", a.address(), b.address())];
        if plan.disk_bytes > 0 {
            let path = lab.evidence().join("web-0.disk");
            fs::File::create(&path)?.set_len(plan.disk_bytes).with_context(|| format!("make {}", path.display()))?;
            config.disks = vec![format!("{},queues=2", path.display())];
        }
        config.ledger = Some(lab.evidence().join("web-0.ledger"));
        let web = Vmm::run(a, "web-0", &config)?;
        web.console.wait("ready", LONG)?;

        let tso = if plan.stream_mbit > 0 { "tso+" } else { "" };
        let load = format!("vm=2 stats_ms=0 net0=ip={CLIENT_IP},peer={WEB_IP},load={tso}ping,mbit={}", plan.stream_mbit);
        let mut client = guest::config("64M", &load)?;
        client.nets =
            vec![format!("vni={VNI},mac={CLIENT_MAC},local={}:{CLIENT_PORT},peer={WEB_MAC}@{}:{WEB_PORT}", b.address(), a.address())];
        let client = Vmm::run(b, "client", &client)?;
        client.console.wait("hb 20 ", SHORT)?;
        let story = Self { lab, web, client, at: 0, config, has_disk: plan.disk_bytes > 0, has_stream: plan.stream_mbit > 0, moves: 0 };
        let answered = ask(&story.client, "net 0")?.number("ping_received")?;
        expect(answered > 0, || "client's pings are not answered".into())?;
        Ok(story)
    }

    /// Starts the process that will receive `web` on the machine where it is not; returns it and its port.
    pub fn receiver(&mut self, donors: &[PathBuf]) -> Result<(Vmm, u16)> {
        self.moves += 1;
        let there = &self.lab.machines[1 - self.at];
        let client = self.lab.machines[1].address();
        let name = format!("web-{}", self.moves);
        let mut config = self.config.clone();
        config.nets =
            vec![format!("vni={VNI},mac={WEB_MAC},local={}:{WEB_PORT},peer={CLIENT_MAC}@{client}:{CLIENT_PORT}", there.address())];
        config.disks.iter_mut().for_each(|disk| *disk = format!("{},queues=2", self.lab.evidence().join(format!("{name}.disk")).display()));
        config.ledger = Some(self.lab.evidence().join(format!("{name}.ledger")));
        config.donors = donors.to_vec();
        let port = MOVE_PORT + self.moves;
        Ok((Vmm::receive(there, &name, port, &config)?, port))
    }

    /// Moves `web` to the other machine and checks all that can be checked.
    pub fn move_web(&mut self, options: &[&str], donors: &[PathBuf]) -> Result<Seen> {
        let (target, port) = self.receiver(donors)?;
        let before = ask(&self.client, "net 0")?;
        self.client.console.send(b"z")?;
        let moved = self.web.migrate(&self.lab.machines[self.at], &self.lab.machines[1 - self.at], port, options)?;
        self.arrived(target, &moved, &before)
    }

    /// Takes `target` as the place where `web` now is.
    fn arrived(&mut self, target: Vmm, moved: &Moved, before: &Line) -> Result<Seen> {
        let report = moved.check()?.clone();
        let mut source = std::mem::replace(&mut self.web, target);
        self.at = 1 - self.at;
        // What a control plane does: tell the others where the VM is now. Until then its old place forwards.
        let endpoint = format!("{}:{WEB_PORT}", self.lab.machines[self.at].address());
        self.client.must(&self.lab.machines[1], &["fdb-add", WEB_MAC, &endpoint])?;
        self.web.console.wait("hb ", SHORT).context("web at the target")?;
        let beat_gap = self.beat_gap(&source)?;
        let ended = source.wait(SHORT).context("the source, after it has forwarded late frames")?;
        expect(ended.success(), || format!("the source ended with {ended}: {}", source.said()))?;

        self.check_web()?;
        let net = ask(&self.client, "net 0")?;
        let sent = net.number("ping_sent")? - before.number("ping_sent")?;
        let received = net.number("ping_received")? - before.number("ping_received")?;
        let stall = self.client.console.last("stat ").context("client printed no counters")?.number("stall_us_max")?;
        Ok(Seen {
            report,
            beat_gap,
            ping_gap: Duration::from_micros(net.number("ping_gap_us_max")?),
            pings: (sent, sent.saturating_sub(received)),
            control_stall: Duration::from_micros(stall),
            stream_bytes: if self.has_stream { self.check_stream()? } else { 0 },
            blocks_written: if self.has_disk { ask(&self.web, "blk 0 written")?.number("written")? } else { 0 },
        })
    }

    fn beat_gap(&self, source: &Vmm) -> Result<Duration> {
        let last = source.console.beats().last().copied().context("the source never beat")?;
        let first = self.web.console.beats().first().copied().context("the target never beat")?;
        // The line that was being written when the VM paused is in two halves, on both sides.
        let step = first.number.wrapping_sub(last.number);
        expect((1..=3).contains(&step), || format!("beat {} at the source, then {} at the target", last.number, first.number))?;
        expect(first.tsc > last.tsc, || "the time stamp counter went back".into())?;
        Ok(first.at.saturating_duration_since(last.at))
    }

    /// Lets `web` check its memory and its disk.
    pub fn check_web(&self) -> Result<()> {
        let mark = self.web.console.mark();
        self.web.console.send(b"c")?;
        let memory = self.web.console.wait_after(mark, "check ", LONG)?;
        expect(memory.text.contains(" ok "), || format!("memory: {}", memory.text))?;
        if self.has_disk {
            let disk = self.web.console.wait_after(mark, "blk 0 check", LONG)?;
            expect(disk.text.contains(" ok "), || format!("disk: {}", disk.text))?;
        }
        Ok(())
    }

    /// Makes sure that the stream goes on, without a wrong byte, on its first connection; returns the bytes so far.
    pub fn check_stream(&self) -> Result<u64> {
        let before = ask(&self.web, "net 0")?.number("received")?;
        for _ in 0..100 {
            let net = ask(&self.web, "net 0")?;
            let wrong = [net.number("bad")?, net.number("csum_bad")?];
            expect(wrong == [0, 0], || format!("the stream: {}", net.text))?;
            expect(net.number("accepted")? == 1, || format!("another connection: {}", net.text))?;
            if net.number("received")? > before {
                return net.number("received");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("the stream stands still at {before} bytes")
    }

    /// Ends both VMs by their own power switch.
    pub fn end(mut self) -> Result<()> {
        for vmm in [&mut self.web, &mut self.client] {
            vmm.console.send(b"q")?;
            let status = vmm.wait(SHORT)?;
            expect(status.success(), || format!("a VM ended with {status}: {}", vmm.said()))?;
        }
        self.lab.succeeded();
        Ok(())
    }
}

/// Asks a guest for its counters and returns the line of them that begins so.
pub fn ask(vmm: &Vmm, line: &str) -> Result<Line> {
    let mark = vmm.console.mark();
    vmm.console.send(b"s")?;
    vmm.console.wait_after(mark, line, SHORT)
}
