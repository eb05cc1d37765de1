//! A pool whose links are cut and whose hosts die: what runs goes on, what is known is true, and everything is mended by itself.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rebec_lab::netlab::{
    NetLab,
    agents::{Agents, Asked, Beats, SOON, Seat, Vmm, eventually, plain, same},
};

/// Four times as long as connections live without a sign of life.
const CUT: Duration = Duration::from_secs(60);
/// Within this time a host that died is known to be silent.
const NOTICED: Duration = Duration::from_secs(10);

#[test]
fn a_link_between_domains_that_is_cut_during_a_move_stops_nothing() -> Result<()> {
    let mut agents = Agents::start("local-pool-cut", &["a1", "a2", "b1"])?;
    agents.found(&["alpha", "alpha", "beta"])?;
    agents.furnish()?;
    agents.run("web", "a1", "64M", &[], "vm=1 fill=random:5:60%,zero dirty=0:words:500")?;
    let kernel = rebec_lab::netlab::guest::build()?.display().to_string();
    let import = ["image", "import", "ours", "--kernel", &kernel, "--cmdline", "stats_ms=0", "--domain", "beta"];
    agents.host("a1").must(&import)?;
    // Beta has the image before it is cut off, and a part of the addresses of a LAN that alpha shares with it.
    agents.host("a1").must(&["lan", "create", "shared", "--domain", "beta"])?;
    agents.everywhere("both are known", |host| Ok(host.knows("lan", "shared")? && host.knows("image", "ours")?))?;
    let first = |lan| ["vm", "run", "first", "--image", "ours", "--memory", "16M", "--host", "b1", "--lan", lan];
    let (code, said) = agents.host("b1").refused(&first("office"))?;
    ensure!(code == 1 && said.contains("office") && !agents.host("b1").knows("lan", "office")?, "beta puts a VM on a LAN of alpha: {said}");
    agents.host("b1").must(&first("shared"))?;
    // A part of the range at a2 is used, and then by nobody.
    let brief = ["vm", "run", "brief", "--image", "bench", "--memory", "16M", "--host", "a2", "--lan", "shared"];
    let given = agents.host("a2").must(&brief)?["nics"][0]["address"].clone();
    agents.host("a2").must(&["vm", "stop", "brief", "--timeout", "0"])?;
    let parts = |host: &str| -> Result<Vec<(String, u64)>> {
        let lan = agents.host(host).must(&["lan", "show", "shared"])?;
        let parts = lan["parts"].as_array().context("parts of the range")?.iter();
        Ok(parts.map(|part| (plain(&part["host"]).to_owned(), part["used"].as_u64().unwrap_or_default())).collect())
    };
    let named = |named: &[(&str, u64)]| named.iter().map(|(host, used)| ((*host).to_owned(), *used)).collect::<Vec<_>>();
    eventually("whose the range is", SOON, || Ok(parts("a1")? == named(&[("a1", 0), ("b1", 1), ("a2", 1)])))?;
    agents.host("a2").must(&["vm", "rm", "brief"])?;
    let since = Beats::of(agents.host("a1"), "web")?.last();

    agents.lab.shape(Some(50))?;
    let mut moving = agents.host("a2").begin(&["vm", "move", "web", "--domain", "beta"])?;
    eventually("the move is under way", SOON, || Ok(agents.host("a1").vm("web")?["state"] == "moving"))?;
    thread::sleep(Duration::from_secs(1));
    ensure!(moving.runs(), "the move was over before it was disturbed");
    let began = Instant::now();
    agents.lab.cut(&agents.lab.machines[2])?;

    let [a1, b1] = [agents.host("a1"), agents.host("b1")];
    let state = |host: &str| Ok::<_, anyhow::Error>(a1.must(&["host", "show", host])?["state"].clone());
    eventually("alpha knows that beta is silent", NOTICED + Duration::from_secs(2), || Ok(state("b1")? == "silent"))?;
    same("alpha's own host", &state("a2")?, "ready")?;
    a1.must(&["lan", "create", "left", "--domain", "beta"])?;
    b1.must(&["lan", "create", "right", "--domain", "alpha"])?;
    agents.run("left", "a2", "16M", &["--lan", "left"], "vm=3")?;
    agents.run("private", "a2", "16M", &[], "vm=5")?;
    b1.must(&["vm", "run", "right", "--image", "ours", "--memory", "16M", "--lan", "shared", "--cmdline", "vm=4"])?;
    let ended = moving.end()?;
    ensure!([1, 4].contains(&ended.code), "{ended:?}");
    thread::sleep(CUT.saturating_sub(began.elapsed()));
    let web = a1.vm("web")?;
    ensure!(web["host"] == "a1" && (web["state"] == "running" || web["state"] == "waiting"), "{web}");

    // What nobody of alpha used is the home's again; beta's part is in use, and was while it was cut off.
    eventually("addresses have gone back", GIVEN_BACK, || Ok(parts("a1")? == named(&[("b1", 1)])))?;
    let brief = agents.host("a2").must(&brief)?;
    ensure!(given != brief["nics"][0]["address"], "the first gap is the first part's: {brief}");
    eventually("the gap is used", SOON, || Ok(parts("a1")? == named(&[("a2", 1), ("b1", 1)])))?;

    agents.lab.shape(None)?;
    agents.everywhere("what was made during the cut is known", |host| {
        let lans = host.knows("lan", "left")? && host.knows("lan", "right")?;
        Ok(lans && host.vm("left")?["state"] == "running" && host.vm("right")?["state"] == "running")
    })?;
    let heard = [b1.knows("vm", "private")?, b1.knows("lan", "office")?, b1.knows("image", "bench")?];
    ensure!(heard == [false; 3], "beta knows of alpha what is not shared: {heard:?}");
    eventually("web runs", SOON, || Ok(a1.vm("web")?["state"] == "running"))?;
    if a1.vm("web")?["host"] == "a1" {
        let beats = Beats::of(a1, "web")?;
        let gap = beats.longest_gap(since);
        ensure!(beats.lost() == Some(0) && gap < Duration::from_secs(2), "web was silent for {gap:?}, {:?} beats are lost", beats.lost());
        eventually("a later move succeeds", SOON, || Ok(a1.must(&["vm", "move", "web", "--domain", "beta"])?["outcome"] == "moved"))?;
    }
    agents.everywhere("web runs in beta", |host| Ok(host.vm("web")?["domain"] == "beta" && host.vm("web")?["state"] == "running"))?;
    Seat::take(b1, "web")?.check_memory()?;
    agents.succeeded();
    Ok(())
}

/// Within this time what was granted to a host that was declared dead runs at its source: an attempt to reach that host has to end first.
const GIVEN_BACK: Duration = Duration::from_secs(75);
/// How often a move may be over before it was disturbed.
const ATTEMPTS: usize = 8;
/// What was said reaches a VMM that stands still.
const SAID: Duration = Duration::from_millis(300);

/// Moves `other` from a1 to a2, and leaves it where the target is prepared and the source, whose VMM stands still, has not sent the grant.
fn prepare_at_a2(agents: &Agents) -> Result<(Asked, Vmm)> {
    let [a1, a2] = [agents.host("a1"), agents.host("a2")];
    let id = a1.vm("other")?["id"].as_str().context("no id")?.to_owned();
    let ledger = a2.state().join("vms").join(&id).join("ledger");
    let records = || std::fs::metadata(&ledger).map_or(0, |file| file.len() / 64);
    for _ in 0..ATTEMPTS {
        let vmm = a1.vmm(&id);
        let moving = a1.begin(&["vm", "move", "other", "--to", "a2"])?;
        let began = Instant::now();
        while records() == 0 {
            ensure!(began.elapsed() < SOON, "other is not prepared at a2");
        }
        vmm.stand_still()?;
        thread::sleep(SAID);
        if records() == 1 {
            return Ok((moving, vmm));
        }
        vmm.go_on()?;
        // It may have to be told again that its right was taken.
        moving.end()?;
        eventually("other is there", SOON, || Ok(a1.vm("other")?["host"] == "a2" && a1.vm("other")?["state"] == "running"))?;
        a1.must(&["vm", "move", "other", "--to", "a1"])?;
        eventually("other is back", SOON, || {
            Ok(a1.vm("other")?["host"] == "a1" && a1.vm("other")?["state"] == "running" && !ledger.exists())
        })?;
    }
    anyhow::bail!("{ATTEMPTS} moves were over before the source's VMM stood still")
}

#[test]
fn a_host_that_dies_is_known_and_comes_back() -> Result<()> {
    let mut agents = Agents::start("local-pool-dies", &["a1", "a2", "b1"])?;
    agents.found(&["alpha", "alpha", "beta"])?;
    agents.furnish()?;
    let disk = agents.lab.evidence().join("data.raw");
    std::fs::File::create(&disk)?.set_len(16 << 20)?;
    let kernel = rebec_lab::netlab::guest::build()?.display().to_string();
    let a1 = agents.host("a1");
    a1.must(&[
        "image",
        "import",
        "data",
        "--kernel",
        &kernel,
        "--cmdline",
        "stats_ms=0 blk0=load,rate=200",
        "--disk",
        &disk.display().to_string(),
    ])?;
    a1.must(&["vm", "run", "db", "--image", "data", "--memory", "16M", "--host", "a2", "--cmdline", "vm=1"])?;
    agents.run("other", "a1", "16M", &[], "vm=2")?;
    let seat = Seat::take(a1, "db")?;
    eventually("db writes", SOON, || Ok(seat.ask(b"s", "blk 0 written=")?.number("flushed")? > 0))?;
    drop(seat);
    let (code, said) = a1.refused(&["host", "declare-dead", "a2", "--reason", "a whim"])?;
    ensure!(code == 1 && said.contains("answers"), "{said}");

    let died = Instant::now();
    agents.hosts[1].lose_power()?;
    let [a1, b1] = [agents.host("a1"), agents.host("b1")];
    for (host, is_home) in [(a1, true), (b1, false)] {
        let is_lost = || -> Result<bool> { if is_home { Ok(host.vm("db")?["state"] == "lost") } else { Ok(!host.knows("vm", "db")?) } };
        let lost = || Ok(host.must(&["host", "show", "a2"])?["state"] == "silent" && is_lost()?);
        eventually("a2 is silent and db lost", NOTICED.saturating_sub(died.elapsed()), lost)?;
    }
    // The others hear each other all the time.
    for _ in 0..20 {
        same("b1", &a1.must(&["host", "show", "b1"])?["state"], "ready")?;
        same("a1", &b1.must(&["host", "show", "a1"])?["state"], "ready")?;
        thread::sleep(Duration::from_millis(500));
    }
    same("other", &a1.vm("other")?["state"], "running")?;
    for words in [["vm", "start", "db"], ["vm", "rm", "db"], ["vm", "stop", "db"]] {
        let (code, said) = a1.refused(&words)?;
        ensure!(code == 1 && said.contains("a2") && said.lines().count() == 1, "{words:?}: {said}");
    }
    let (code, said) = b1.refused(&["host", "declare-dead", "a2", "--reason", "burnt"])?;
    ensure!(code == 1 && said.contains("another domain"), "{said}");

    agents.restart(1)?;
    agents.everywhere("a2 is back", |host| Ok(host.must(&["host", "show", "a2"])?["state"] == "ready"))?;
    agents.at_home("db is back", |host| Ok(host.vm("db")?["state"] == "running"))?;
    let reason = agents.host("a1").vm("db")?["reason"].as_str().context("db says why it began anew")?.to_owned();
    ensure!(reason.contains("started again from its disk"), "{reason}");
    let line = Seat::take(agents.host("a1"), "db")?.ask(b"c", "blk 0 check")?;
    ensure!(line.text.contains(" ok "), "{}", line.text);

    // The second time it takes the right to run a VM with it that it was granted.
    let (moving, vmm) = prepare_at_a2(&agents)?;
    agents.hosts[1].lose_power()?;
    let a1 = agents.host("a1");
    vmm.go_on()?;
    eventually("other waits", SOON, || Ok(a1.vm("other")?["state"] == "waiting"))?;
    let reason = a1.vm("other")?["reason"].as_str().context("other says for whom it waits")?.to_owned();
    ensure!(reason.contains("waits for host a2"), "{reason}");
    ensure!(moving.end()?.code != 0, "the move succeeded");
    let (_, said) = a1.refused(&["vm", "stop", "other"])?;
    ensure!(said.contains("waits for host a2") && said.lines().count() == 1, "{said}");
    eventually("a2 is silent again", NOTICED, || Ok(a1.must(&["host", "show", "a2"])?["state"] == "silent"))?;
    a1.must(&["host", "declare-dead", "a2", "--reason", "it burnt"])?;
    let b1 = agents.host("b1");
    eventually("beta knows", SOON, || Ok(b1.must(&["host", "show", "a2"])?["state"] == "dead"))?;
    eventually("other is back at its source", GIVEN_BACK, || Ok(a1.vm("other")?["host"] == "a1" && a1.vm("other")?["state"] == "running"))?;
    ensure!(!b1.knows("vm", "other")?, "beta was told of a VM that is alpha's alone");
    // It may have moved there and back before: its log begins then without the guest's first line, and a start from its disk would not.
    ensure!(Beats::of(a1, "other").map_or(Some(0), |beats| beats.lost()) == Some(0), "other goes on anew");
    a1.must(&["vm", "stop", "other", "--timeout", "0"])?;
    a1.must(&["vm", "rm", "other"])?;
    agents.succeeded();
    Ok(())
}

/// A host that is silent for this long is replaced by the machine that says it was that host.
const REPLACED: Duration = Duration::from_secs(60);

#[test]
fn a_machine_without_a_state_disk_takes_the_place_of_its_former_self() -> Result<()> {
    let lab = NetLab::start("local-pool-volatile", &["a1", "a2"])?;
    let mut agents = Agents::start_on(lab, 2, |host| host.volatile = host.name() == "a2")?;
    agents.hosts[0].must(&["pool", "init", "lab", "--domain", "alpha"])?;
    // As on the command line of a kernel that many machines start.
    let ticket = agents.hosts[0].ticket(&["host", "invite", "--uses", "9"])?;
    agents.hosts[1].must(&["pool", "join", &ticket])?;
    agents.furnish()?;
    agents.run("web", "a2", "16M", &[], "vm=1")?;
    eventually("web runs", SOON, || Ok(agents.host("a1").vm("web")?["state"] == "running"))?;
    // Something of its own, which goes with it.
    agents.host("a2").must(&["lan", "create", "scratch"])?;

    agents.hosts[1].lose_state()?;
    agents.restart(1)?;
    let [a1, a2] = &agents.hosts[..] else { unreachable!("two hosts were asked for") };
    a2.must(&["pool", "join", &ticket])?;
    let hosts = || -> Result<Vec<(String, String)>> {
        let list = a1.must(&["host", "ls"])?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Ok(list.as_array().into_iter().flatten().map(|host| (text(&host["name"]), text(&host["state"]))).collect())
    };
    let former = |hosts: &[(String, String)]| hosts.iter().any(|(name, state)| name.starts_with("a2~") && state == "dead");
    // The one that answers is not yet taken for the other.
    ensure!(!former(&hosts()?), "a host was replaced before it was silent: {:?}", hosts()?);
    eventually("the former a2 is dead, and a2 has its name", REPLACED, || {
        let hosts = hosts()?;
        Ok(hosts.len() == 3 && former(&hosts) && hosts.contains(&("a2".to_owned(), "ready".to_owned())))
    })?;
    let web = a1.vm("web")?;
    ensure!(web["state"] == "lost" && web["reason"].as_str().is_some_and(|why| why.contains("started again without its state")), "{web}");
    let web = a1.must(&["vm", "start", "web"])?;
    ensure!(web["state"] == "running" && web["epoch"].as_u64() > Some(1), "{web}");
    a1.must(&["vm", "stop", "web", "--timeout", "0"])?;
    a1.must(&["vm", "rm", "web"])?;
    agents.run("anew", "a2", "16M", &[], "vm=2")?;
    agents.succeeded();
    Ok(())
}
