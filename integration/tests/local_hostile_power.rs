//! What must not be lost when something else is: an order and its answer when agents are killed, a host's own writes when a guest fills its disk, a
//! stop when a VMM hangs.

use std::{
    fs::{self, File},
    io::Write as _,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rebec_lab::{
    command::Program,
    netlab::{
        NetLab,
        agents::{Agents, SOON, Seat, eventually, same},
    },
};

/// Rate of a link over which an image takes seconds.
const SLOW_MBIT: u32 = 20;
const DISK_BYTES: u32 = 6 << 20;
/// When agents are killed after an order was given: before and after its record, while parts come, while a VMM starts.
const KILLED_AFTER_MS: [u64; 5] = [15, 60, 250, 900, 1800];
/// Of the host whose disk is filled.
const SMALL: &str = "160M";
/// So much of it is taken by something else for a while: more than the room in which guests go on, and what the host takes back for records first; and
/// so little that an image still comes.
const BALLAST_BYTES: u64 = 76 << 20;
/// Larger than that host's disk.
const GREEDY: &str = "200M";

fn image(agents: &Agents, name: &str, disk: &str, load: &str) -> Result<()> {
    let kernel = rebec_lab::netlab::guest::build()?.display().to_string();
    let cmdline = format!("stats_ms=0 {load}");
    agents.hosts[0].must(&["image", "import", name, "--kernel", &kernel, "--cmdline", &cmdline, "--disk", disk])?;
    agents.at_home("the image is known", |host| host.knows("image", name))
}

/// Each is taken on again or told as it is, whichever agent is killed meanwhile: the one at home that is asked, or the one that has the VM. A command
/// that only went through the other agent may have to be given again.
fn stop_and_remove(agents: &mut Agents, name: &str, killed: usize, after: Duration) -> Result<()> {
    for words in [&["vm", "stop", name, "--timeout", "0"][..], &["vm", "rm", name]] {
        let asked = agents.hosts[0].begin(words)?;
        thread::sleep(after);
        agents.hosts[killed].kill()?;
        agents.restart(killed)?;
        let first = asked.end()?;
        let a1 = &agents.hosts[0];
        if !first.is_done() {
            ensure!(killed == 1, "{words:?}, when the agent that was asked was killed: {first:?}");
            // The connection to the agent of before is found out to be lost.
            let again = a1.ask(words)?;
            ensure!(again.is_done() || again.stderr.contains("no VM"), "{words:?} again, after {first:?}: {again:?}");
        }
    }
    ensure!(!agents.hosts[0].knows("vm", name)?, "{name} is still listed");
    let left = || Ok(fs::read_dir(agents.hosts[1].state().join("vms"))?.count() == 0);
    eventually("nothing of it is left at a2", SOON, left)
}

/// Each time another moment, the agent that orders and the one that obeys in turn.
#[test]
fn an_order_is_carried_out_whichever_agent_is_killed_meanwhile() -> Result<()> {
    let mut agents = Agents::start("local-hostile-power", &["a1", "a2"])?;
    agents.found(&["alpha", "alpha"])?;
    for (round, after_ms) in KILLED_AFTER_MS.into_iter().enumerate() {
        let name = format!("vm{round}");
        let disk = agents.lab.evidence().join(&name);
        let noise = |at: u32| (at.wrapping_add(round as u32 * DISK_BYTES).wrapping_mul(0x9e37_79b1) >> 13) as u8;
        fs::write(&disk, (0..DISK_BYTES).map(noise).collect::<Vec<_>>())?;
        image(&agents, &name, &disk.display().to_string(), "")?;
        agents.lab.shape_one(&agents.lab.machines[1], Some(SLOW_MBIT))?;
        let run = ["vm", "run", &name, "--image", &name, "--host", "a2", "--memory", "16M"];
        let running = agents.hosts[0].begin(&run)?;
        thread::sleep(Duration::from_millis(after_ms));
        let killed = round % 2;
        agents.hosts[killed].kill()?;
        agents.restart(killed)?;
        agents.lab.shape_one(&agents.lab.machines[1], None)?;
        let ran = running.end()?.value().with_context(|| format!("{name}: host {killed} was killed after {after_ms} ms"))?;
        same("where it is", &ran["host"], "a2")?;
        let a1 = &agents.hosts[0];
        eventually("it runs", SOON, || Ok(a1.vm(&name)?["state"] == "running"))?;
        let folders = fs::read_dir(agents.hosts[1].state().join("vms"))?.count();
        ensure!(folders == 1, "{folders} VMs are on a2");
        stop_and_remove(&mut agents, &name, 1 - killed, Duration::from_millis(after_ms / 8))?;
    }
    agents.succeeded();
    Ok(())
}

#[test]
fn a_guest_that_fills_its_hosts_disk_stands_still_and_the_host_goes_on() -> Result<()> {
    let lab = NetLab::start("local-hostile-full", &["a1", "a2"])?;
    let mut agents = Agents::start_on(lab, 2, |host| {
        if host.name() == "a2" {
            let mount = format!("mkdir -p {0} && mount -t tmpfs -o size={SMALL} none {0} && exec \"$0\" \"$@\"", host.state().display());
            host.wrapper = ["unshare", "--mount", "sh", "-c", &mount].map(String::from).to_vec();
        }
    })?;
    agents.found(&["alpha", "alpha"])?;
    agents.furnish()?;
    let disk = agents.lab.evidence().join("greedy.qcow2").display().to_string();
    Program::new("qemu-img").args(["create", "-q", "-f", "qcow2", &disk, GREEDY]).run()?;
    image(&agents, "greedy", &disk, "blk0=load")?;
    let kernel = rebec_lab::netlab::guest::build()?.display().to_string();
    agents.hosts[1].must(&["image", "import", "small", "--kernel", &kernel, "--cmdline", "stats_ms=0"])?;
    let [a1, a2] = &agents.hosts[..] else { unreachable!("two hosts were asked for") };
    agents.run("modest", "a2", "16M", &[], "vm=1")?;
    // A VMM that hangs is killed at last; that takes its time.
    let hung = agents.run("hung", "a2", "16M", &[], "vm=2")?;
    let process = nix::unistd::Pid::from_raw(hung["pid"].as_i64().context("its pid")?.try_into()?);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGSTOP)?;
    let stopping = a1.begin(&["vm", "stop", "hung", "--timeout", "0"])?;

    let greedy = ["vm", "run", "greedy", "--image", "greedy", "--host", "a2", "--memory", "16M"];
    let stands_still = || {
        let vm = a1.vm("greedy")?;
        Ok(vm["state"] == "paused" && vm["reason"].as_str().is_some_and(|reason| reason.contains("stands still")))
    };
    // Its guest is quick: what takes the room must be there before it.
    let ballast = a2.inside()?.join("ballast");
    Program::new("fallocate").args(["--length", &BALLAST_BYTES.to_string(), &ballast.display().to_string()]).run()?;
    let id = a1.must(&greedy)?["id"].as_str().context("the VM has an id")?.to_owned();
    eventually("greedy stands still", SOON, stands_still)?;
    // It goes on by itself when there is room again, until that is taken too.
    let layer = a2.inside()?.join("vms").join(&id).join("disk.qcow2");
    let before = fs::metadata(&layer)?.len();
    fs::remove_file(&ballast)?;
    eventually("greedy goes on", SOON, || Ok(a2.said().contains("vm greedy: goes on: there is room again")))?;
    eventually("greedy has taken what was given back, and stands still", SOON, || {
        Ok(fs::metadata(&layer)?.len() > before + BALLAST_BYTES / 4 && stands_still()?)
    })?;
    same("modest", &a1.vm("modest")?["state"], "running")?;
    Seat::take(a1, "modest")?.beats()?;
    let (code, said) = a1.refused(&["vm", "run", "more", "--image", "greedy", "--host", "a2", "--memory", "16M"])?;
    ensure!(code == 1 && said.contains("disk: "), "{said}");

    // Not a byte is left: what the host itself must write finds room.
    let fill = a2.inside()?.join("fill");
    let full = |file: &mut File| while file.write_all(&[1; 4096]).is_ok() {};
    let mut file = File::create(&fill)?;
    full(&mut file);
    a2.must(&["image", "rm", "small"])?;
    full(&mut file);
    let moved = a1.must(&["vm", "move", "greedy", "--to", "a1"])?;
    same("the move's outcome", &moved["outcome"], "moved")?;
    eventually("greedy runs on", SOON, || Ok(a1.vm("greedy")?["state"] == "running"))?;
    a1.must(&["vm", "stop", "greedy", "--timeout", "0"])?;
    full(&mut file);
    // What is said there cannot be kept, and is heard all the same; what is typed is answered.
    let seat = Seat::take(a1, "modest")?;
    seat.check_memory()?;
    seat.beats()?;
    drop(seat);
    a1.must(&["vm", "stop", "modest", "--timeout", "0"])?;
    full(&mut file);
    a1.must(&["vm", "rm", "modest"])?;
    let ended = stopping.end()?.value()?;
    ensure!(ended["reason"].as_str().is_some_and(|reason| reason.contains("did not answer and was killed")), "{ended}");
    a1.must(&["vm", "rm", "hung"])?;
    a1.must(&["vm", "rm", "greedy"])?;
    agents.succeeded();
    Ok(())
}
