//! A pool of hosts that reach each other by IPv6 alone, with the addresses that a router's advertisements (dnsmasq's) give them.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use rebec_lab::netlab::{
    Machine, NetLab,
    agents::{Agents, SOON, Seat, eventually, same},
};

const PREFIX: &str = "2001:db8:7:";

/// What advertises the prefix, for as long as the story needs it.
struct Router(Child);

impl Router {
    fn start(machine: &Machine) -> Result<Self> {
        take_ipv6(machine)?;
        machine.ip(&["addr", "add", &format!("{PREFIX}:1/64"), "dev", "eth0", "nodad"])?;
        let mut command = Command::new("dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=eth0", "--user=root", "--pid-file"]);
        command.args(["--dhcp-leasefile=/dev/null", "--enable-ra", &format!("--dhcp-range={PREFIX}:,ra-only,64,10m")]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(machine.spawn(command)?))
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The machine's link has IPv6 and nothing else.
fn take_ipv6(machine: &Machine) -> Result<()> {
    machine.within(|| fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "0"))??;
    machine.ip(&["-4", "addr", "flush", "dev", "eth0"])?;
    Ok(())
}

#[test]
fn hosts_that_have_only_ipv6_are_a_pool_and_move_a_vm() -> Result<()> {
    let lab = NetLab::start("local-pool-ipv6", &["a1", "b1", "router"])?;
    let _router = Router::start(&lab.machines[2])?;
    for machine in &lab.machines[..2] {
        take_ipv6(machine)?;
        let addressed = || Ok(machine.ip(&["-6", "addr", "show", "dev", "eth0", "scope", "global", "-tentative"])?.contains(PREFIX));
        eventually("the router's prefix makes an address", SOON, addressed)?;
    }
    let mut agents = Agents::start_on(lab, 2, |host| host.address = None)?;
    agents.found(&["alpha", "beta"])?;
    agents.furnish()?;
    let (a1, b1) = (agents.host("a1"), agents.host("b1"));
    let addresses = b1.must(&["host", "show", "b1"])?["addresses"].clone();
    let addresses = addresses.as_array().context("a list of addresses")?;
    ensure!(addresses.len() == 1 && addresses[0].as_str().is_some_and(|text| text.starts_with("[2001:db8:7:")), "{addresses:?}");

    agents.run("web", "a1", "64M", &[], "vm=1 fill=text:3:30%,random:5:20%,zero dirty=0:lines:500")?;
    let report = a1.must(&["vm", "move", "web", "--to", "b1"])?;
    same("the move's outcome", &report["outcome"], "moved")?;
    Seat::take(b1, "web")?.check_memory()?;
    for host in [a1, b1] {
        ensure!(!host.said().contains("bulk goes over the mesh"), "TCP did not reach the other host: {}", host.said());
    }

    let (code, said) = a1.refused(&["vm", "run", "lonely", "--image", "bench", "--memory", "64M", "--lan", "office"])?;
    let each = |name: &str| said.contains(&format!("{name}: has no IPv4 address, which LANs need"));
    ensure!(code == 1 && each("a1") && each("b1"), "{code}: {said}");
    agents.succeeded();
    Ok(())
}
