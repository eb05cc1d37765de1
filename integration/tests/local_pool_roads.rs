//! Hosts whose addresses are not what they were: LANs are where the peers are, follow an address that changes and a cable that is moved, VMs wait for an
//! address that comes late, and a path that takes less than what it is given, without a word, is none the less a path.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rebec_lab::netlab::{
    Machine, NetLab,
    agents::{Agents, Host, SOON, Seat, eventually, same},
};

const WEB_IP: &str = "10.7.0.8";
const CLIENT_IP: &str = "10.7.0.9";
/// What every host with containers has, and none is reached by.
const CONTAINERS: &str = "172.17.0.1/16";
/// Five times what it takes until what was said of a host has come to all.
const HEALS: Duration = Duration::from_secs(40);
/// Ten times what that takes where connections are made anew, and half of what it takes where they are not.
const ANEW: Duration = Duration::from_secs(6);
/// What the narrow path carries: less than a LAN's packets, and than TCP's.
const NARROW_BYTES: u32 = 1300;

/// A machine whose first address is of no use to others, and whose link to them is its last.
fn furnish(lab: &NetLab, machine: &Machine) -> Result<()> {
    machine.ip(&["addr", "flush", "dev", "eth0"])?;
    machine.ip(&["link", "add", "docker0", "type", "bridge"])?;
    machine.ip(&["link", "add", "inside", "type", "veth", "peer", "name", "container"])?;
    for end in [&["inside", "master", "docker0", "up"][..], &["container", "up"]] {
        machine.ip(&[&["link", "set"], end].concat())?;
    }
    machine.ip(&["addr", "add", CONTAINERS, "dev", "docker0"])?;
    machine.ip(&["link", "set", "docker0", "up"])?;
    lab.plug(machine, "eth1")?;
    machine.ip(&["addr", "add", &format!("{}/24", machine.address()), "dev", "eth1"])?;
    Ok(())
}

/// Makes a machine a router whose links take less than others', and which says nothing to those whose packets it drops.
fn route(router: &Machine, to: &[&str]) -> Result<()> {
    let switches = [("ip_forward", "1"), ("conf/all/send_redirects", "0"), ("conf/eth0/send_redirects", "0")];
    router.within(move || switches.iter().try_for_each(|(name, value)| fs::write(format!("/proc/sys/net/ipv4/{name}"), value)))??;
    // What it has to say itself finds no road.
    router.ip(&["rule", "add", "pref", "1", "iif", "lo", "blackhole"])?;
    for address in to {
        router.ip(&["route", "replace", &format!("{address}/32"), "dev", "eth0", "mtu", "lock", &NARROW_BYTES.to_string()])?;
    }
    Ok(())
}

/// How many packets a router has cut.
fn cut(router: &Machine) -> Result<u64> {
    let counted = router.within(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut rows = counted.lines().filter_map(|line| line.strip_prefix("Ip: ")).map(|row| row.split(' '));
    let (mut names, mut values) = (rows.next().context("no names")?, rows.next().context("no counts")?);
    let at = names.position(|name| name == "FragCreates").context("no FragCreates")?;
    Ok(values.nth(at).context("no count")?.parse()?)
}

/// The address of a VM's port, as a host tells it.
fn place(host: &Host, vm: &str) -> Result<String> {
    let lan = host.must(&["lan", "show", "office"])?;
    let port = lan["ports"].as_array().into_iter().flatten().find(|port| port["vm"] == vm);
    let endpoint = port.and_then(|port| port["endpoint"].as_str()).with_context(|| format!("no endpoint of {vm}: {lan}"))?;
    Ok(endpoint.split(':').next().unwrap_or_default().to_owned())
}

/// How long it takes until `client` hears answers of `web` again, and `web` bytes of `client`.
fn heals(web: &Seat, client: &Seat) -> Result<Duration> {
    let (begun, before) = (Instant::now(), (web.net()?.number("received")?, client.net()?.number("ping_received")?));
    eventually("both are heard", HEALS, || {
        Ok(web.net()?.number("received")? > before.0 + (64 << 10) && client.net()?.number("ping_received")? > before.1 + 3)
    })?;
    Ok(begun.elapsed())
}

#[test]
fn lans_are_where_the_peers_are_and_follow_their_hosts() -> Result<()> {
    let lab = NetLab::start("local-pool-roads", &["a1", "a2", "router"])?;
    lab.machines[..2].iter().try_for_each(|machine| furnish(&lab, machine))?;
    let mut agents = Agents::start_on(lab, 2, |host| host.address = None)?;
    agents.found(&["alpha", "alpha"])?;
    agents.furnish()?;
    let load = format!("vm=1 net0=ip={WEB_IP}");
    let web = agents.run("web", "a1", "64M", &["--lan", "office"], &load)?;
    let load = format!("vm=2 net0=ip={CLIENT_IP},peer={WEB_IP},load=tso+ping,mbit=20");
    let client = agents.run("client", "a2", "64M", &["--lan", "office"], &load)?;
    agents.run("alone", "a1", "16M", &[], "vm=3")?;
    agents.run("mover", "a2", "16M", &[], "vm=4")?;
    let pids = [web["pid"].clone(), client["pid"].clone()];

    let (a1, a2) = (agents.host("a1"), agents.host("a2"));
    for (vm, address) in [("web", "10.0.0.1"), ("client", "10.0.0.2")] {
        eventually("its port is on the road to the peers", SOON, || Ok(place(a1, vm)? == address && place(a2, vm)? == address))?;
    }
    let (sits_web, sits_client) = (Seat::take(a1, "web")?, Seat::take(a2, "client")?);
    heals(&sits_web, &sits_client)?;

    // Its address is another.
    let machine = &agents.lab.machines[0];
    machine.ip(&["addr", "del", "10.0.0.1/24", "dev", "eth1"])?;
    machine.ip(&["addr", "add", "10.0.0.51/24", "dev", "eth1"])?;
    println!("the address changed: {:?} until both are heard", heals(&sits_web, &sits_client)?);
    agents.everywhere("the port has moved", |host| Ok(place(host, "web")? == "10.0.0.51"))?;

    // Its cable is in another socket, where it is given another address.
    machine.ip(&["link", "set", "eth1", "down"])?;
    machine.ip(&["addr", "add", "10.0.0.61/24", "dev", "eth0"])?;
    println!("the cable was moved: {:?} until both are heard", heals(&sits_web, &sits_client)?);
    agents.everywhere("the port has moved", |host| Ok(place(host, "web")? == "10.0.0.61"))?;
    // And the other host's.
    let machine = &agents.lab.machines[1];
    machine.ip(&["addr", "del", "10.0.0.2/24", "dev", "eth1"])?;
    machine.ip(&["addr", "add", "10.0.0.52/24", "dev", "eth1"])?;
    let healed = heals(&sits_web, &sits_client)?;
    println!("the other host's address changed: {healed:?} until both are heard");
    ensure!(healed < ANEW, "what the other host says of itself went over lost connections: {healed:?}");
    let begun = Instant::now();
    agents.everywhere("the port has moved", |host| Ok(place(host, "client")? == "10.0.0.52"))?;
    println!("{:?} more until both agents know", begun.elapsed());

    // The road is another one: a router in between takes less, and is silent about it.
    let [one, two, router] = &agents.lab.machines[..] else { unreachable!("three machines were asked for") };
    route(router, &["10.0.0.61", "10.0.0.52", "10.0.0.71"])?;
    for (machine, to) in [(one, &["10.0.0.52"][..]), (two, &["10.0.0.61", "10.0.0.71"])] {
        to.iter().try_for_each(|to| machine.ip(&["route", "replace", to, "via", &router.address().to_string()]).map(drop))?;
    }
    println!("the path is narrow: {:?} until both are heard", heals(&sits_web, &sits_client)?);
    let by_lan = cut(router)?;
    ensure!(by_lan > 0, "nothing was cut: the path is as wide as ever");
    for (vm, pid) in ["web", "client"].into_iter().zip(&pids) {
        let shown = a1.vm(vm)?;
        ensure!(shown["pid"] == *pid && shown["state"] == "running", "{vm} did not run on: {shown}");
    }
    let net = sits_web.net()?;
    let wrong = [net.number("bad")?, net.number("csum_bad")?, net.number("accepted")? - 1];
    ensure!(wrong == [0, 0, 0], "the stream: {}", net.text);

    // What moves goes by TCP, to the address where the host itself answers.
    same("the move's outcome", &a1.must(&["vm", "move", "mover", "--to", "a1"])?["outcome"], "moved")?;
    same("the move's outcome", &a1.must(&["vm", "move", "mover", "--to", "a2"])?["outcome"], "moved")?;
    for host in [a1, a2] {
        ensure!(!host.said().contains("bulk goes over the mesh"), "TCP did not reach the other host: {}", host.said());
    }
    ensure!(cut(&agents.lab.machines[2])? > by_lan, "no move was cut: it took another path");

    // The power comes back before the address does.
    drop((sits_web, sits_client));
    agents.hosts[0].lose_power()?;
    let machine = &agents.lab.machines[0];
    machine.ip(&["link", "set", "docker0", "down"])?;
    machine.ip(&["addr", "flush", "dev", "eth0"])?;
    agents.restart(0)?;
    let a1 = agents.host("a1");
    let waits = || {
        let web = a1.vm("web")?;
        let why = web["reason"].as_str().unwrap_or_default();
        ensure!(why.contains("waits to be started: this host has no IPv4 address"), "{web}");
        Ok(true)
    };
    eventually("web waits for an address, and says so", SOON, waits)?;
    eventually("what needs no LAN starts", SOON, || Ok(a1.vm("alone")?["state"] == "running"))?;
    same("web", &a1.vm("web")?["state"], "starting")?;
    let (machine, router) = (&agents.lab.machines[0], agents.lab.machines[2].address().to_string());
    // It reaches nobody but by the narrow path.
    machine.ip(&["addr", "add", "10.0.0.71/32", "dev", "eth0"])?;
    machine.ip(&["route", "replace", &router, "dev", "eth0"])?;
    machine.ip(&["route", "replace", "10.0.0.52", "via", &router])?;
    eventually("web runs", SOON, || Ok(a1.vm("web")?["state"] == "running"))?;
    let (sits_web, sits_client) = (Seat::take(a1, "web")?, Seat::take(agents.host("a2"), "client")?);
    let before = sits_client.net()?.number("ping_received")?;
    eventually("client is answered", HEALS, || Ok(sits_client.net()?.number("ping_received")? > before + 3))?;
    drop((sits_web, sits_client));
    for (host, other) in [(a1, "a2"), (agents.host("a2"), "a1")] {
        eventually(&format!("{} says that the path to {other} is narrow", host.name()), SOON, || {
            let lan = host.must(&["lan", "show", "office"])?;
            let path = &lan["narrow"][0];
            let found = path["bytes"].as_u64().with_context(|| format!("no narrow path: {lan}"))?;
            Ok(path["host"] == other && found <= u64::from(NARROW_BYTES) && found + 8 >= u64::from(NARROW_BYTES))
        })?;
        // Asked of the other host, too: it alone knows.
        let roads = agents.host("a2").must(&["host", "roads", host.name()])?;
        let problem = roads[0]["problem"].as_str().unwrap_or_default();
        ensure!(roads[0]["host"] == other && problem.starts_with("carries 1") && roads[0]["rtt_us"].as_u64() > Some(0), "{roads}");
        eventually("its log does too", SOON, || Ok(host.said().contains(&format!("the path to {other} carries packets of"))))?;
    }
    agents.succeeded();
    Ok(())
}
