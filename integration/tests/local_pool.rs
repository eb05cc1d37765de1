//! A pool of agents on real VMs, driven as its users drive it: from spare machines to a VM that moves between domains, and agents that die under
//! their VMs.

use std::{
    fs,
    io::{Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rebec_lab::{
    command::Program,
    netlab::{
        LoopDevice,
        agents::{Agents, Beats, Host, SOON, Seat, eventually, plain, same},
        vmm,
    },
    paths,
    provision::promtool,
    standin::{self, Installed},
};

/// The first addresses of the LAN that its home host gives out.
const WEB_IP: &str = "10.7.0.8";
const CLIENT_IP: &str = "10.7.0.9";

/// Files of a depot, each with its inode: a part that is fetched again has another.
fn depot(state: &Path) -> Result<Vec<(String, u64)>> {
    let mut parts = vec![];
    for entry in fs::read_dir(state.join("parts"))? {
        let entry = entry?;
        parts.push((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.ino()));
    }
    parts.sort();
    Ok(parts)
}

/// The stream's bytes at `web` so far: none of them wrong, all of one connection.
fn stream(web: &Seat) -> Result<u64> {
    let net = web.net()?;
    let wrong = [net.number("bad")?, net.number("csum_bad")?, net.number("accepted")? - 1];
    ensure!(wrong == [0, 0, 0], "the stream: {}", net.text);
    net.number("received")
}

/// A distribution's disk image needs no kernel beside it, and each start asks the VM's own disk.
#[test]
fn a_cloud_image_starts_by_itself_and_then_what_was_installed_in_it() -> Result<()> {
    let mut agents = Agents::start("local-pool-cloud", &["a1"])?;
    agents.found(&["alpha"])?;
    let a1 = agents.host("a1");
    let bench = rebec_lab::netlab::guest::build()?;
    let path = |name: &str| agents.lab.evidence().join(name);
    let text = |name: &str| path(name).display().to_string();
    let kernel = |version, cmdline| Installed { version, kernel: &bench, initramfs: None, cmdline };
    let (old, new) = (kernel("6.12.6", "stats_ms=0"), kernel("6.12.9", "stats_ms=0 rng=1"));
    standin::debian(&path("debian.raw"), None, 16 << 20, &[old], "")?;
    standin::debian(&path("next.raw"), None, 16 << 20, &[new, old], "")?;

    // Packed as it may come from a mirror; what is empty in it stays so.
    Program::new("xz").args(["-1", "-k", &text("debian.raw")]).quiet()?;
    a1.must(&["image", "import", "debian", &text("debian.raw.xz")])?;
    let shown = a1.must(&["image", "show", "debian"])?;
    same("what starts", &shown["starts"], "`Debian GNU/Linux` of /boot/grub/grub.cfg on partition 1 (ext4)")?;
    let part = a1.state().join("parts").join(shown["disk"]["digest"].as_str().context("the image has a disk")?);
    let (stored, raw) = (fs::metadata(&part)?, fs::metadata(path("debian.raw"))?);
    ensure!(stored.len() == raw.len() && stored.blocks() <= 2 * raw.blocks(), "{} blocks of {}", stored.blocks(), raw.blocks());

    let vm = a1.must(&["vm", "run", "web", "--image", "debian", "--memory", "64M", "--cmdline", "vm=3 button=off"])?;
    let console = a1.state().join("vms").join(vm["id"].as_str().context("the VM has an id")?).join("console.log");
    let said = || Ok::<_, anyhow::Error>(String::from_utf8_lossy(&fs::read(&console)?).into_owned());
    eventually("it beats", SOON, || Ok(said()?.contains("hb 5 ")))?;
    ensure!(part.with_extension("starts").exists(), "the kernel of the image is not kept unpacked");
    ensure!(!said()?.contains("rng ["), "{}", said()?);
    a1.must(&["vm", "stop", "web"])?;

    // What a guest that installs a kernel leaves in its layer.
    let layer = console.with_file_name("disk.qcow2");
    let convert = ["convert", "-O", "qcow2", "-F", "raw", "-B", &part.display().to_string(), &text("next.raw"), &text("layer.qcow2")];
    Program::new("qemu-img").args(convert).quiet()?;
    fs::copy(path("layer.qcow2"), &layer)?;
    a1.must(&["vm", "start", "web"])?;
    eventually("the kernel that was installed meanwhile starts", SOON, || Ok(said()?.contains("rng [")))?;
    a1.must(&["vm", "stop", "web"])?;

    a1.must(&["vm", "rm", "web"])?;

    disks_and_seed_of_a_cloud_image(a1, &agents.lab.evidence().join("user-data"))?;

    // What cannot start, or is no disk, is said at its import, with what helps.
    let mut locked = fs::read(path("debian.raw"))?;
    let ext4 =
        (0..locked.len()).step_by(512).find(|at| locked.get(at + 0x438..at + 0x43a) == Some(&[0x53, 0xef])).context("there is an ext4")?;
    locked[ext4 + 0x438] = 0;
    locked[ext4..ext4 + 6].copy_from_slice(b"LUKS\xba\xbe");
    fs::write(path("locked.raw"), locked)?;
    Program::new("qemu-img").args(["convert", "-O", "vdi", &text("debian.raw"), &text("debian.vdi")]).quiet()?;
    Program::new("qemu-img")
        .args(["convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", &text("debian.raw"), &text("zstd.qcow2")])
        .quiet()?;
    // Packed inside, it is unpacked on its way, and then the same part.
    a1.must(&["image", "import", "zstd", &text("zstd.qcow2")])?;
    same("what was packed", &a1.must(&["image", "show", "zstd"])?["disk"]["digest"], shown["disk"]["digest"].clone())?;
    // From a block device too.
    let device = LoopDevice::of(&path("debian.raw"))?;
    a1.must(&["image", "import", "device", device.node()])?;
    same("what was on a device", &a1.must(&["image", "show", "device"])?["disk"]["digest"], shown["disk"]["digest"].clone())?;
    drop(device);
    let external = format!("data_file={}", text("external.raw"));
    Program::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-o", &external, &text("external.qcow2"), "8M"]).quiet()?;
    for (file, words) in [
        ("locked.raw", ["partition 1 holds a LUKS volume, which is not read", "give --kernel"]),
        ("debian.vdi", ["it is a VDI image", "qemu-img convert -O qcow2"]),
        ("external.qcow2", ["its qcow2 has an external data file", "qemu-img convert"]),
    ] {
        let (code, said) = a1.refused(&["image", "import", "x", &text(file)])?;
        ensure!(code == 1 && words.iter().all(|words| said.contains(words)) && !said.contains("/parts/"), "{file}: {code} {said}");
    }
    agents.succeeded();
    Ok(())
}

/// How large its disk is, which further ones it has, and what its guest is told, as whoever runs a cloud image says.
fn disks_and_seed_of_a_cloud_image(host: &Host, user_data: &Path) -> Result<()> {
    const GIB: u64 = 1 << 30;
    for lan in ["left", "right"] {
        host.must(&["lan", "create", lan, "--range", "10.5.0.0/24"])?;
    }
    fs::write(user_data, "#cloud-config\npackages: [vim]\n")?;
    let key = "ssh-ed25519 AAAA me@here";
    let run = ["vm", "run", "db_1", "--image", "debian", "--memory", "64M", "--cmdline", "vm=3 button=off", "--disk-size"];
    let (code, said) = host.refused(&[&run[..], &["8M"]].concat())?;
    ensure!(code == 1 && said.contains("a disk does not shrink"), "{code} {said}");
    let words = ["1G", "--lan", "left", "--lan", "right", "--ssh-key", key, "--user-data", &user_data.display().to_string()];
    let vm = host.must(&[&run[..], &words].concat())?;
    let folder = host.state().join("vms").join(vm["id"].as_str().context("the VM has an id")?);

    // Read as a guest does: by other people's programs.
    let seed = folder.join("seed.img").display().to_string();
    let label =
        Program::new("blkid").args(["-p", "-o", "value", "-s", "LABEL", &seed]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output()?;
    same("the seed's label", &label.trim().into(), "CIDATA")?;
    let told = |name: &str| Program::new("mtype").args(["-i", &seed, &format!("::{name}")]).output();
    ensure!(told("user-data")? == fs::read_to_string(user_data)?, "{}", told("user-data")?);
    let meta: serde_json::Value = serde_json::from_str(&told("meta-data")?)?;
    same("the guest's name", &meta["local-hostname"], "db-1")?;
    same("the guest's key", &meta["public-keys"][0], key)?;
    let macs: Vec<_> = (0..2).map(|nic| vm["nics"][nic]["mac"].clone()).collect();
    ensure!(vm["nics"][0]["address"] == vm["nics"][1]["address"] && macs[0] != macs[1], "NICs of two LANs of one range: {vm}");
    let network: serde_json::Value = serde_json::from_str(&told("network-config")?)?;
    let wired: Vec<_> = (0..2).map(|nic| network["ethernets"][format!("nic{nic}")]["match"]["macaddress"].clone()).collect();
    ensure!(wired == macs, "{network}, of {macs:?}");

    // Sizes as the VMM says them: disk, seed, further ones.
    let control = folder.join("control.sock").display().to_string();
    let sizes = || -> Result<Vec<u64>> {
        let status = Program::new(&vmm::program()?.display().to_string()).args(["ctl", &control, "status", "--json"]).output()?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        Ok(status["disk_bytes"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_u64).collect())
    };
    let seed_bytes = fs::metadata(&seed)?.len();
    ensure!(sizes()? == [GIB, seed_bytes], "{:?}", sizes()?);
    host.must(&["vm", "resize-disk", "db_1", "3G"])?;
    ensure!(sizes()? == [3 * GIB, seed_bytes], "{:?}", sizes()?);
    for (words, reason) in [
        (&["vm", "resize-disk", "db_1", "2G"][..], "a disk does not shrink"),
        (&["vm", "resize-disk", "db_1", "9G", "--disk", "data"], "has no disk `data`; it has the disks root"),
        (&["vm", "disk", "add", "db_1", "data", "1G"], "`rebec vm stop db_1` first"),
    ] {
        let (code, said) = host.refused(words)?;
        ensure!(code == 1 && said.contains(reason), "{words:?}: {code} {said}");
    }
    host.must(&["vm", "stop", "db_1"])?;
    host.must(&["vm", "disk", "add", "db_1", "data", "1G"])?;
    host.must(&["vm", "start", "db_1"])?;
    ensure!(sizes()? == [3 * GIB, seed_bytes, GIB], "{:?}", sizes()?);
    host.must(&["vm", "resize-disk", "db_1", "2G", "--disk", "data"])?;
    ensure!(sizes()? == [3 * GIB, seed_bytes, 2 * GIB], "{:?}", sizes()?);
    host.must(&["vm", "stop", "db_1"])?;
    // What was asked while it stood still counts at its start.
    host.must(&["vm", "resize-disk", "db_1", "4G"])?;
    ensure!(folder.join("disk-data.qcow2").exists(), "the further disk has no file");
    host.must(&["vm", "disk", "rm", "db_1", "data"])?;
    ensure!(!folder.join("disk-data.qcow2").exists(), "what was taken away is there");
    host.must(&["vm", "start", "db_1"])?;
    ensure!(sizes()? == [4 * GIB, seed_bytes], "{:?}", sizes()?);
    let shown = host.must(&["vm", "show", "db_1"])?;
    ensure!(shown["disks"] == serde_json::json!([{"name": "root", "bytes": 4 * GIB}]), "{shown}");
    host.must(&["vm", "stop", "db_1"])?;
    host.must(&["vm", "rm", "db_1"])?;
    Ok(())
}

#[test]
fn spare_machines_become_a_pool_whose_vms_move_between_domains() -> Result<()> {
    let mut agents = Agents::start("local-pool-spare", &["a1", "a2", "b1"])?;
    agents.found(&["alpha", "alpha", "beta"])?;
    agents.furnish()?;
    agents.lab.shape_one(&agents.lab.machines[2], Some(100))?;
    agents.lab.capture()?;
    let [a1, a2, b1] = &agents.hosts[..] else { unreachable!("three hosts were asked for") };

    let disk = agents.lab.evidence().join("data.raw");
    fs::write(&disk, (0..16_u32 << 20).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect::<Vec<_>>())?;
    let kernel = rebec_lab::netlab::guest::build()?.display().to_string();
    a1.must(&["image", "import", "data", "--kernel", &kernel, "--cmdline", "stats_ms=0", "--disk", &disk.display().to_string()])?;
    let load = format!("vm=1 net0=ip={WEB_IP} blk0=load,size=4M,rate=200 fill=text:3:30%,random:5:20%,zero dirty=0:lines:500");
    let web = ["vm", "run", "web", "--image", "data", "--memory", "64M", "--lan", "office", "--host", "a1", "--cmdline", &load];
    // Its disk is larger than its image's, and grows again before its first move.
    let web = a1.must(&[&web[..], &["--disk-size", "64M"]].concat())?;
    a2.must(&["vm", "resize-disk", "web", "100M"])?;
    same("web's address", &web["nics"][0]["address"], WEB_IP)?;
    let load = format!("vm=2 net0=ip={CLIENT_IP},peer={WEB_IP},load=tso+ping,mbit=20");
    let client = ["vm", "run", "client", "--image", "bench", "--memory", "64M", "--lan", "office", "--domain", "beta", "--cmdline", &load];
    let client = a1.must(&client)?;
    same("client's address", &client["nics"][0]["address"], CLIENT_IP)?;
    same("client's host", &client["host"], "beta/b1")?;

    // `client` is at b1 and on a LAN with `web`: beta hears of that too.
    eventually("beta knows web", SOON, || b1.knows("vm", "web"))?;
    let (code, said) = b1.refused(&["vm", "stop", "web"])?;
    ensure!(code == 1 && said.contains("domain alpha gave none to beta/root@b1"), "beta stops a VM of alpha: {code} {said}");
    let (web, client) = (Seat::take(a2, "web")?, Seat::take(a1, "client")?);
    let mut received = 0;
    let (mut parts_of_beta, mut near) = (vec![], None);
    for (step, (asked, place, lands)) in
        [(a1, ["--to", "a2"], "a2"), (a2, ["--domain", "beta"], "b1"), (a2, ["--to", "a1"], "a1"), (a1, ["--to", "b1"], "b1")]
            .into_iter()
            .enumerate()
    {
        client.console.send(b"z")?;
        let before = client.net()?;
        let report = asked.must(&["vm", "move", "web", place[0], place[1]])?;
        same("the move's outcome", &report["outcome"], "moved")?;
        ensure!(report["clusters"]["on_base"].as_u64() > Some(0), "nothing of the disk was left to its image: {report}");
        agents.everywhere("web is where it went", |host| {
            let vm = host.vm("web")?;
            Ok(vm["state"] == "running" && plain(&vm["host"]) == lands && vm["epoch"] == step as u64 + 2)
        })?;
        web.check_memory()?;
        let blocks = web.ask(b"c", "blk 0 check")?;
        ensure!(blocks.text.contains(" ok ") && blocks.number("written")? > 0, "{}", blocks.text);
        let now = stream(&web)?;
        ensure!(now > received, "the stream stands still at {now} bytes");
        received = now;
        let net = client.net()?;
        let answered = net.number("ping_received")? - before.number("ping_received")?;
        ensure!(answered > 0 && net.number("ping_gap_us_max")? < 3_000_000, "pings: {}", net.text);
        // Where both are, frames between them cross no network; the road ends with the VM's stay.
        let client_id = host_id(b1, "client")?;
        eventually("client's port has roads to the ports of its host", SOON, || {
            let client = port(b1, &client_id)?;
            Ok(client["roads"].as_u64().unwrap_or_default() == u64::from(lands == "b1")
                && (lands != "b1" || client["near_frames"].as_u64() > near))
        })?;
        near = port(b1, &client_id)?["near_frames"].as_u64();
        match (lands, parts_of_beta.is_empty()) {
            ("b1", true) => parts_of_beta = depot(b1.state())?,
            ("b1", false) => ensure!(depot(b1.state())? == parts_of_beta, "a part was fetched twice"),
            _ => {}
        }
    }
    // Frames of the LAN were many, and none of them could be read: not even who speaks.
    let lan = a1.must(&["lan", "show", "office"])?;
    ensure!(lan["sealed"] == true, "{lan}");
    for port in lan["ports"].as_array().into_iter().flatten() {
        let mac: rebec_vmm_api::MacAddr = port["mac"].as_str().unwrap_or_default().parse()?;
        ensure!(!agents.lab.crossed(&mac.0)?, "frames of {} crossed the wire as they are", port["vm"]);
    }
    // Asked of another domain's host, and told whichever way the VMs went: who sends, and to whom.
    eventually("the matrix shows the stream", SOON, || {
        let matrix = a1.must(&["lan", "show", "office", "--matrix"])?;
        let place = |name: &str| matrix["vms"].as_array().into_iter().flatten().position(|vm| vm == name);
        let (web, client) = (place("web").context("a row for web")?, place("client").context("a row for client")?);
        let rate = |from: usize, to: usize| matrix["bytes_per_s"][from][to].as_u64();
        // 20 Mbit/s, and its acknowledgements.
        Ok(rate(client, web) > Some(500_000) && rate(web, client) > Some(0) && rate(web, client) < rate(client, web))
    })?;
    capture(a1, agents.lab.evidence())?;
    // The LAN's home says what its ports may pass: the VMs are at another domain's host, and go on.
    a1.must(&["lan", "set", "office", "--rate", "2M"])?;
    eventually("20 Mbit/s become 2", SOON, || {
        let (before, began) = (stream(&web)?, std::time::Instant::now());
        std::thread::sleep(std::time::Duration::from_secs(1));
        let rate = (stream(&web)? - before) as f64 * 8.0 / began.elapsed().as_secs_f64();
        Ok(rate > 0.0 && rate < 4e6)
    })?;
    same("the rate", &a1.must(&["lan", "show", "office"])?["port_bits"], 2_000_000)?;
    a1.must(&["lan", "set", "office", "--rate", "none"])?;
    // Nobody was taken for somebody else, on the way or at the old places.
    for vm in ["web", "client"] {
        let drops = drops(b1, &host_id(b1, vm)?)?;
        ensure!(["wire_source", "wire_address", "guest_address"].iter().all(|reason| drops[*reason].is_null()), "{vm}: {drops}");
    }
    ensure!(parts_of_beta.len() == 3, "kernel, disk and its digests: {parts_of_beta:?}");
    let lists = agents.hosts.iter().map(|host| host.must(&["vm", "ls"])).collect::<Result<Vec<_>>>()?;
    // Names are each domain's own; all else is the same everywhere.
    let facts = |list: &serde_json::Value| -> Vec<serde_json::Value> {
        let list = list.as_array().into_iter().flatten();
        let mut facts: Vec<_> =
            list.map(|vm| serde_json::json!([vm["id"], vm["state"], vm["epoch"], vm["domain"], plain(&vm["host"])])).collect();
        facts.sort_by_key(ToString::to_string);
        facts
    };
    ensure!(lists.iter().all(|list| facts(list) == facts(&lists[0])), "{lists:?}");
    agents.succeeded();
    Ok(())
}

fn host_id(host: &Host, vm: &str) -> Result<String> {
    let vms = host.must(&["vm", "ls"])?;
    let vms = vms.as_array().into_iter().flatten();
    let mut ids = vms.filter(|found| plain(&found["name"]) == vm).filter_map(|found| found["id"].as_str());
    ids.next().map(str::to_owned).with_context(|| format!("host {} lists no {vm}", host.name()))
}

/// What the port of a VM's first NIC dropped, by reason.
fn drops(host: &Host, id: &str) -> Result<serde_json::Value> {
    Ok(port(host, id)?["drops"].clone())
}

/// How the port of a VM's first NIC is.
fn port(host: &Host, id: &str) -> Result<serde_json::Value> {
    let control = host.state().join("vms").join(id).join("control.sock").display().to_string();
    let status = Program::new(&vmm::program()?.display().to_string()).args(["ctl", &control, "status", "--json"]).output()?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    Ok(status["nets"][0].clone())
}

/// What passes the ports of a LAN, as a dissector sees it, and with a row of the audit log.
fn capture(host: &Host, evidence: &Path) -> Result<()> {
    let file = evidence.join("office.pcapng");
    let name = file.display().to_string();
    let asked = host.ask(&["lan", "capture", "office", "--out", &name, "--seconds", "2", "--filter", "tcp and host 10.7.0.8"])?;
    ensure!(asked.is_done() && asked.stderr.contains("captures at 2 ports"), "{}", asked.stderr);
    ensure!(asked.stderr.matches(" frames, 0 of them not in the file").count() == 2, "{}", asked.stderr);
    let shown = Program::new("tcpdump").args(["-n", "-e", "-r", &name]).output().context("read the capture")?;
    let (lines, of_stream) = (shown.lines().count(), shown.lines().filter(|line| line.contains(".5001: Flags")).count());
    ensure!(
        lines > 10 && of_stream > 5,
        "{lines} frames, {of_stream} of the stream:\n{}",
        shown.lines().take(5).collect::<Vec<_>>().join("\n")
    );
    let (code, said) = host.refused(&["lan", "capture", "office", "--out", &name, "--filter", "tcpp"])?;
    ensure!(code == 1 && said.contains("expected words joined by `and`"), "{code} {said}");
    let audit = host.must(&["audit", "--tail", "200"])?;
    ensure!(audit.to_string().contains("VmCapture"), "the audit log has no capture: {audit}");
    Ok(())
}

/// How much longer than before their agent was killed the silence of VMs may be: eleven share this machine's cores. A VM that stood still
/// while no agent ran would be silent for longer.
const SLACK: Duration = Duration::from_secs(1);
/// Beats that an agent may have in its hands when it is killed; what comes after waits in the VMM.
const UNREAD_MAX: u64 = 30;
const VMS: usize = 10;
/// How long all numbers of a host take where a VMM hangs, which is waited for two seconds: with room for a slow machine.
const NUMBERS_MAX: Duration = Duration::from_secs(10);
/// A new agent serves within this time, whatever its VMMs do. One that hangs was given 10 s.
const ADOPTED_MAX: Duration = Duration::from_secs(7);
/// How long an agent may take to end; it gives what it does 2 s.
const END_MAX: Duration = Duration::from_secs(10);

/// The VMs' processes as a host lists them, all of them running.
fn processes(host: &Host) -> Result<Vec<(String, u64)>> {
    let list = host.must(&["vm", "ls"])?;
    let list = list.as_array().context("vm ls prints a list")?;
    ensure!(list.iter().all(|vm| vm["state"] == "running"), "{list:?}");
    Ok(list.iter().map(|vm| (vm["name"].to_string(), vm["pid"].as_u64().unwrap_or_default())).collect())
}

#[test]
fn an_agent_that_was_killed_adopts_its_ten_vms() -> Result<()> {
    let mut agents = Agents::start("local-pool-adopt", &["a1", "a2"])?;
    agents.found(&["alpha", "alpha"])?;
    agents.furnish()?;
    let names: Vec<String> = (0..VMS).map(|number| format!("vm{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        agents.run(name, "a1", "16M", &[], &format!("vm={number} heartbeat_ms=50 fill=text:3:20%,zero"))?;
    }
    // One whose VMM hangs holds up neither the new agent nor the others.
    let hung = agents.run("hung", "a1", "16M", &[], "vm=98 heartbeat_ms=50 fill=zero")?;
    agents.run("still", "a2", "16M", &[], "vm=99 heartbeat_ms=50 fill=text:3:20%,zero")?;
    agents.everywhere("all run", |host| Ok(processes(host)?.len() == VMS + 2))?;
    for name in &names {
        eventually("it beats", SOON, || Ok(Beats::of(&agents.hosts[0], name)?.last() > 60))?;
    }
    let gaps = names.iter().map(|name| Beats::of(&agents.hosts[0], name).map(|beats| beats.longest_gap(0))).collect::<Result<Vec<_>>>()?;
    let before = processes(&agents.hosts[0])?;
    let from = |host: &Host, vm: &str| Beats::of(host, vm).map(|beats| beats.last());
    let since = names.iter().map(|name| from(&agents.hosts[0], name)).collect::<Result<Vec<_>>>()?;
    let still_since = from(&agents.hosts[1], "still")?;

    agents.hosts[0].kill()?;
    let hung = agents.hosts[0].vmm(hung["id"].as_str().context("the VM has an id")?);
    hung.stand_still()?;
    std::thread::sleep(Duration::from_secs(2));
    let began = Instant::now();
    agents.restart(0)?;
    ensure!(began.elapsed() < ADOPTED_MAX, "a VMM that hangs held its agent's start up for {:?}", began.elapsed());
    let a1 = &agents.hosts[0];
    eventually("all are adopted, each by its process", SOON, || Ok(processes(a1)? == before))?;
    for (name, since) in names.iter().zip(&since) {
        eventually("it beats on", SOON, || Ok(Beats::of(a1, name)?.last() > since + 60))?;
    }
    let stopped_at = from(a1, "hung")?;
    hung.go_on()?;
    eventually("what hung beats on, in the same process", SOON, || Ok(from(a1, "hung")? > stopped_at + 60 && processes(a1)? == before))?;
    let still = Beats::of(&agents.hosts[1], "still")?.longest_gap(still_since);
    let baseline = gaps.into_iter().fold(still, Duration::max);
    for (name, since) in names.iter().zip(since) {
        let beats = Beats::of(a1, name)?;
        let gap = beats.longest_gap(since);
        ensure!(beats.last() > since + 20, "{name}: {} beats, the last {}, before it {since}", beats.count(), beats.last());
        ensure!(beats.lost().is_some_and(|lost| lost <= UNREAD_MAX), "{name}: lost beats: {:?}", beats.lost());
        ensure!(gap <= baseline * 2 + SLACK, "{name} was silent for {gap:?}, before that and elsewhere VMs for {baseline:?}");
    }
    // Only now: a guest that checks its memory does not beat.
    for name in &names {
        Seat::take(a1, name)?.check_memory()?;
    }

    hung.stand_still()?;
    let numbers = numbers(a1);
    hung.go_on()?;
    numbers?;

    let stopped = a1.must(&["vm", "stop", "vm0"])?;
    same("vm0's state", &stopped["state"], "stopped")?;
    // A guest that ends by itself is not taken for one that crashed, although its agent is not its VMM's parent.
    let seat = Seat::take(a1, "vm1")?;
    seat.console.send(b"q")?;
    eventually("vm1 has powered itself off", SOON, || Ok(a1.vm("vm1")?["state"] == "stopped"))?;
    let report = a1.must(&["vm", "move", "vm2", "--to", "a2"])?;
    same("the move's outcome", &report["outcome"], "moved")?;
    agents.everywhere("vm2 runs at a2", |host| Ok(host.vm("vm2")?["host"] == "a2"))?;
    Seat::take(&agents.hosts[1], "vm2")?.check_memory()?;
    agents.succeeded();
    Ok(())
}

/// Prometheus reads what is counted, a page says what each number is, and a VMM that hangs keeps back nothing but its own.
fn numbers(host: &Host) -> Result<()> {
    let began = Instant::now();
    let text = host.ask(&["host", "metrics"])?.stdout;
    ensure!(began.elapsed() < NUMBERS_MAX, "a VMM that hangs held up the numbers for {:?}", began.elapsed());
    let mut file = tempfile::tempfile()?;
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    let reader = promtool::ensure()?.display().to_string();
    Program::new(&reader).args(["check", "metrics"]).stdin(file).quiet().context("what Prometheus' reader says of it")?;

    let lines = |wanted: &[&str]| text.lines().filter(|line| wanted.iter().all(|part| line.contains(part))).count();
    ensure!(lines(&["rebec_vm_state{", "state=\"running\""]) == VMS, "the state of VMs: {text}");
    ensure!(lines(&["rebec_vm_cpu_seconds_total{"]) == VMS + 1, "time of VMs' processes: {text}");
    ensure!(lines(&["rebec_vm_vcpu_exits_total{vm=\"vm3\"", "reason=\"port\""]) == 1, "exits of vm3: {text}");
    ensure!(lines(&["rebec_pool_hosts{state=\"answering\"} 1"]) == 1, "hosts: {text}");
    let page = fs::read_to_string(paths::workspace().join("docs/monitoring.md"))?;
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let untold: Vec<&str> = families.filter(|family| !page.contains(&format!("`{family}`"))).collect();
    ensure!(untold.is_empty(), "docs/monitoring.md says nothing of {untold:?}");
    Ok(())
}

#[test]
fn an_agent_that_ends_during_a_move_stops_no_vm() -> Result<()> {
    let mut agents = Agents::start("local-pool-killed", &["a1", "a2"])?;
    agents.found(&["alpha", "alpha"])?;
    agents.furnish()?;
    agents.run("web", "a1", "64M", &[], "vm=1 fill=random:5:60%,zero dirty=0:words:500")?;
    // Killed, and told to end as by a service manager: which takes no longer for a VM that leaves or arrives.
    // A log ends where its VM moved: the source's agent comes last.
    for (victim, end) in [1, 0].into_iter().flat_map(|victim| [Host::kill, Host::stop].map(|end| (victim, end))) {
        agents.lab.shape(Some(50))?;
        let epoch = agents.hosts[0].vm("web")?["epoch"].clone();
        let since = if victim == 1 { Beats::of(&agents.hosts[0], "web")?.last() } else { 0 };
        let mut moving = agents.hosts[0].begin(&["vm", "move", "web", "--to", "a2"])?;
        eventually("the move is under way", SOON, || Ok(agents.hosts[0].vm("web")?["state"] == "moving"))?;
        std::thread::sleep(Duration::from_secs(1));
        ensure!(moving.runs(), "the move was over before it was disturbed");
        let told = Instant::now();
        end(&mut agents.hosts[victim])?;
        ensure!(told.elapsed() < END_MAX, "the agent took {:?} to end", told.elapsed());
        agents.restart(victim)?;
        let ended = moving.end()?;
        let runs_at = |place: &'static str| {
            agents.everywhere("web runs on", |host| Ok(host.vm("web")?["state"] == "running" && host.vm("web")?["host"] == place))
        };
        if victim == 0 {
            // The order is given again, which the agent that ended had taken, and is carried out by the next one.
            ensure!(ended.code == 0, "{ended:?}");
            agents.lab.shape(None)?;
            runs_at("a2")?;
            Seat::take(&agents.hosts[1], "web")?.check_memory()?;
            agents.hosts[0].must(&["vm", "move", "web", "--to", "a1"])?;
            runs_at("a1")?;
            continue;
        }
        ensure!(ended.code == 1, "{ended:?}");
        runs_at("a1")?;
        same("web's epoch", &agents.hosts[0].vm("web")?["epoch"], epoch)?;
        let beats = Beats::of(&agents.hosts[0], "web")?;
        let gap = beats.longest_gap(since);
        ensure!(gap < Duration::from_secs(1), "web was silent for {gap:?}");
        ensure!(beats.lost().is_some_and(|lost| lost <= 2 * UNREAD_MAX), "lost beats: {:?}", beats.lost());
    }
    agents.lab.shape(None)?;
    // What was left of the failed move goes by itself.
    eventually("a later move succeeds", SOON, || Ok(agents.hosts[0].must(&["vm", "move", "web", "--to", "a2"])?["outcome"] == "moved"))?;
    Seat::take(&agents.hosts[1], "web")?.check_memory()?;
    agents.succeeded();
    Ok(())
}

#[test]
fn a_guest_is_asked_to_power_itself_off_before_its_power_is_cut() -> Result<()> {
    let mut agents = Agents::start("local-pool-stop", &["a1"])?;
    agents.found(&["alpha"])?;
    agents.furnish()?;
    for (name, button) in [("obeys", "button=off"), ("ignores", "button=ignore"), ("deaf", "")] {
        agents.run(name, "a1", "16M", &[], &format!("heartbeat_ms=50 fill=zero {button}"))?;
        eventually("it beats", SOON, || Ok(Beats::of(agents.host("a1"), name)?.last() > 1))?;
    }
    let is_stopped = |vm: &serde_json::Value, why: &str| {
        same("its state", &vm["state"], "stopped")?;
        same("its reason", &vm["reason"], why)
    };
    let a1 = agents.host("a1");
    is_stopped(&a1.must(&["vm", "stop", "obeys"])?, "its guest powered itself off, as was asked for")?;
    let said = a1.ask(&["vm", "logs", "obeys", "--tail", "1K"])?.stdout;
    ensure!(said.contains("bye power-button"), "{said}");
    is_stopped(&a1.must(&["vm", "stop", "deaf"])?, "its power was cut: its guest does not listen to its power button")?;
    let late = a1.must(&["vm", "stop", "ignores", "--timeout", "1"])?;
    is_stopped(&late, "its power was cut: its guest did not power itself off within 1 s")?;

    // A new agent goes on asking, and whoever has less patience is not kept waiting.
    let before = Beats::of(a1, "ignores")?.count();
    a1.must(&["vm", "start", "ignores"])?;
    eventually("it beats anew, and listens", SOON, || Ok(Beats::of(a1, "ignores")?.count() > before + 1))?;
    a1.ask(&["vm", "stop", "ignores", "--detach"])?;
    let asked = |host: &Host| Ok(host.vm("ignores")?["reason"] == "its guest was asked to power itself off, and has 60 s for that");
    eventually("its guest is asked", SOON, || asked(a1))?;
    for (verb, word) in [("rm", "runs"), ("move", "does not run")] {
        let (code, said) = a1.refused(&["vm", verb, "ignores"])?;
        ensure!(code == 1 && said.contains(word), "{verb}: {said}");
    }
    agents.hosts[0].kill()?;
    agents.restart(0)?;
    let a1 = agents.host("a1");
    eventually("its guest is asked again", SOON, || asked(a1))?;
    is_stopped(&a1.must(&["vm", "stop", "ignores", "--timeout", "0"])?, "its power was cut, as was asked for")?;
    agents.succeeded();
    Ok(())
}
