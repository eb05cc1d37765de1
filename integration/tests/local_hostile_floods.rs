//! Too much of everything: silent hosts, addresses, records, connections, bodies without an end. Agents stay as large as they were, and go on. The same
//! pool shows what a host may ask of others of its own domain, and what a founder hears that asks twice.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use rebec_lab::netlab::{
    Machine, NetLab,
    agents::{Agents, Host, SOON, eventually, same},
    hostile::{Connection, Findings, Hostile, Question, Vm, Writer, speech},
};

/// Longer than a host is silent before it counts as such, and than the turns of all silent hosts take.
const WATCHED: Duration = Duration::from_secs(25);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// More than the hosts that an agent asks at a time.
const SILENT_HOSTS: u8 = 24;
/// The most addresses a host has that others try.
const ADDRESSES_TRIED_MAX: usize = 16;
/// How many she says to have.
const ADDRESSES: u16 = 96;
/// The first port of those.
const FIRST_PORT: u16 = 20_000;
/// What an agent may grow by, whoever sends it what.
const GROWTH_BYTES_MAX: u64 = 24 << 20;
/// Descriptors that an agent has in a lab that is short of them.
const DESCRIPTORS: &str = "160";
/// More connections than those, and fewer than a listener takes.
const CONNECTIONS: usize = 220;
/// Records that one writer tells, and how many at a time.
const RECORDS: u64 = 20_000;
const BATCH: u64 = 1000;
/// Bodies without an end, and how long each is without it.
const BODIES: usize = 10;
const BODY_BYTES: usize = 15 << 20;

fn founder(agents: &Agents, machine: &Machine, name: &str) -> Result<Hostile> {
    let ticket = agents.hosts[0].ticket(&["domain", "invite", name])?;
    let mut eve = Hostile::new(machine)?;
    eve.joins(&ticket, "eve")?;
    Ok(eve)
}

/// How many of the addresses that she says to have are tried.
fn tried(ears: &[UdpSocket]) -> usize {
    ears.iter().filter(|ear| ear.recv(&mut [0; 2048]).is_ok()).count()
}

#[test]
fn silent_hosts_and_their_addresses_cost_nobody_else_a_turn() -> Result<()> {
    let lab = NetLab::start("local-hostile-silent", &["m1", "m2", "eve"])?;
    let mut agents = Agents::start_on(lab, 2, |_| ())?;
    agents.found(&["alpha", "alpha"])?;
    let eve = founder(&agents, &agents.lab.machines[2], "evil")?;
    eve.tells(&["m1"], &[eve.is_at(vec![SocketAddr::from((eve.address, FIRST_PORT))])?])?;
    let mut findings = Findings::default();

    // As many as are asked at a time, and more; by their names they come before the others.
    let mut records = vec![];
    for (number, address) in speech::nobody(SILENT_HOSTS).into_iter().enumerate() {
        let host = Writer::new()?;
        records.push(eve.domain.member(host.key(), &format!("a{number:02}"), None)?);
        records.push(host.host(eve.domain.key(), vec![address])?);
    }
    let ears = (0..ADDRESSES).map(|number| eve.udp(FIRST_PORT + number)).collect::<Result<Vec<_>>>()?;
    ears.iter().try_for_each(|ear| ear.set_nonblocking(true))?;
    let addresses = (0..ADDRESSES).map(|number| SocketAddr::from((eve.address, FIRST_PORT + number))).collect();
    records.push(eve.is_at(addresses)?);
    eve.tells(&["m1", "m2"], &records)?;

    let mut silent = BTreeSet::new();
    let until = Instant::now() + WATCHED;
    while Instant::now() < until {
        for (asked, other) in [(0, "m2"), (1, "m1")] {
            if agents.hosts[asked].must(&["host", "show", other])?["state"] == "silent" {
                silent.insert(other);
            }
        }
        thread::sleep(LOOK);
    }
    let heard = if silent.is_empty() { Ok(()) } else { Err(anyhow!("{silent:?} counted as silent and were not")) };
    findings.of("hosts that answer are not asked, because others do not", heard);
    let tried = tried(&ears);
    let few = if tried <= ADDRESSES_TRIED_MAX { Ok(()) } else { Err(anyhow!("{tried} addresses of one host were tried")) };
    findings.of("a host has others try all addresses that it names", few);
    findings.are_none()?;
    agents.succeeded();
    Ok(())
}

/// What an agent grows by while something is done to it.
fn growth(host: &Host, done: impl FnOnce() -> Result<()>) -> Result<u64> {
    let before = host.resident_bytes()?;
    done()?;
    Ok(host.resident_bytes()?.saturating_sub(before))
}

fn is_small(growth: Result<u64>) -> Result<()> {
    let growth = growth?;
    ensure!(growth <= GROWTH_BYTES_MAX, "the agent grew by {} MiB", growth >> 20);
    Ok(())
}

/// Bodies of strangers that lack their last bytes, all at a time.
fn unfinished_bodies(eve: &Hostile, host: &str) -> Result<Vec<Connection>> {
    let strangers = (0..BODIES).map(|_| eve.connects_as(&Writer::new()?, host)).collect::<Result<Vec<_>>>()?;
    let sending = strangers.into_iter().map(|mut connection| {
        thread::spawn(move || {
            let request = speech::Request { method: "POST", path: "/internal/join".into(), headers: vec![], body: vec![] };
            connection.head(&request, BODY_BYTES + 1)?;
            // Who refuses so much hangs up; that is as good.
            let piece = vec![b' '; 1 << 20];
            for _ in 0..BODY_BYTES / piece.len() {
                if connection.send(&piece).is_err() {
                    break;
                }
            }
            Ok(connection)
        })
    });
    let sending: Vec<_> = sending.collect();
    sending.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a sender panicked"))?).collect()
}

#[test]
fn an_agent_outlives_floods_and_keeps_its_pools_keys() -> Result<()> {
    let lab = NetLab::start("local-hostile-floods", &["a1", "eve", "a2"])?;
    let mut agents =
        Agents::start_on(lab, 1, |host| host.wrapper = vec!["prlimit".into(), format!("--nofile={DESCRIPTORS}"), "--".into()])?;
    agents.found(&["alpha"])?;
    let mut findings = Findings::default();

    // The answer to a founder may be lost: it asks again, and must not have lost its domain.
    let ticket = agents.hosts[0].ticket(&["domain", "invite", "evil"])?;
    let mut eve = Hostile::new(&agents.lab.machines[1])?;
    let [first, again] = [eve.joins(&ticket, "eve")?, eve.joins(&ticket, "eve")?];
    ensure!(first.as_deref() == Some("evil"), "eve founds {first:?}");
    let hears = if again == first { Ok(()) } else { Err(anyhow!("{first:?} at first, then {again:?}")) };
    findings.of("a founder that asks again hears that it founds nothing", hears);
    eve.says_where(&["a1"])?;
    eve.reads("a1")?;
    let a1 = &agents.hosts[0];

    // A host of one's own domain is no user.
    let mut insider = Hostile::new(&agents.lab.machines[2])?;
    insider.joins(&a1.ticket(&["host", "invite"])?, "mallory")?;
    insider.says_where(&["a1"])?;
    for (attack, question) in [
        ("a host has a ticket of the pool's key made", Question::invite_domain("more")),
        ("a host has a ticket of its domain's key made", Question::invite_host()),
    ] {
        findings.of(attack, insider.is_refused("a1", &question));
    }

    let many = growth(a1, || {
        for batch in 0..RECORDS / BATCH {
            let kernel = (speech::Name([7; 32]), 1);
            let names = (batch * BATCH..(batch + 1) * BATCH).map(|number| (number, format!("flood-{number}")));
            let vms = names.map(|(number, name)| eve.host.vm(&Vm::new(&eve.host, number, &name, kernel)));
            // Refusals are what should come.
            drop(eve.asks("a1", &Question::Records(vms.collect::<Result<_>>()?)));
        }
        Ok(())
    });
    findings.of("a host grows by the records of one writer without end", is_small(many));

    let small = growth(a1, || {
        let _held = unfinished_bodies(&eve, "a1")?;
        Ok(())
    });
    findings.of("a host grows by bodies of strangers that do not end", is_small(small));

    let held = eve.knocks("a1", CONNECTIONS)?;
    thread::sleep(LOOK);
    // Whether it is answered now or only later is not the question: what is short is made free again.
    drop(a1.ask(&["pool", "status"]));
    drop(held);
    let answers = eventually("it answers", SOON, || Ok(a1.ask(&["pool", "status"])?.is_done()));
    findings.of("an agent ends for want of descriptors", answers);
    if a1.resident_bytes().is_err() {
        agents.restart(0)?;
    }

    // This comes last: keys that are gone are gone.
    let a1 = &agents.hosts[0];
    findings.of("a host has another leave the pool", insider.is_refused("a1", &Question::leave_pool()));
    let stays = a1.must(&["pool", "status"]).and_then(|status| same("a1's pool", &status["pool"], "lab"));
    findings.of("a pool has lost its keys after that", stays);
    findings.are_none()?;
    agents.succeeded();
    Ok(())
}
