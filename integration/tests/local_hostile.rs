//! A member of the pool that means no good, against agents that run VMs: what it may not do, and what it must not be able to bring about. It founds a
//! domain of its own, so that it is a stranger to alpha, whose hosts and VMs it attacks, and yet of the pool.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rebec_lab::netlab::{
    NetLab,
    agents::{Agents, Host, SOON, Seat, eventually, same},
    hostile::{
        Findings, Hostile, Question, Vm,
        deals::{self, Said},
        speech,
    },
};

/// A host obeys, or looks again, within this time.
const SETTLES: Duration = Duration::from_secs(6);
/// Frames of a guest that pings every 10 ms would have come within this time.
const LISTENS: Duration = Duration::from_secs(2);
/// For so long a VM is offered that another host is about to send.
const OFFERS: Duration = Duration::from_secs(3);
/// Rate of a link over which an image of some MB takes seconds.
const SLOW_MBIT: u32 = 20;
/// The image that takes them.
const LARGE_BYTES: u32 = 6 << 20;
/// Names a VM of alpha in its command line and nowhere else.
const SECRET: &str = "fill=text:271828:9%";

/// Hosts of alpha with what they run VMs from, and the hostile member, which is the last machine and founds domain `evil`.
fn pool(story: &str, hosts: &[&str]) -> Result<(Agents, Hostile)> {
    let machines: Vec<&str> = hosts.iter().copied().chain(["eve"]).collect();
    let agents = Agents::start_on(NetLab::start(story, &machines)?, hosts.len(), |_| ())?;
    agents.found(&vec!["alpha"; hosts.len()])?;
    agents.furnish()?;
    let ticket = agents.hosts[0].ticket(&["domain", "invite", "evil"])?;
    let mut eve = Hostile::new(&agents.lab.machines[hosts.len()])?;
    let founds = eve.joins(&ticket, "eve")?;
    ensure!(founds.as_deref() == Some("evil"), "eve founds {founds:?}");
    eve.says_where(hosts)?;
    eve.reads("a1")?;
    Ok((agents, eve))
}

/// Tells eve what a host of alpha is told that is on her side: names and ids that alpha tells no other domain.
fn is_told(eve: &mut Hostile, agents: &Agents) -> Result<Hostile> {
    let machine = &agents.lab.machines[agents.hosts.len()];
    let mut mole = Hostile::new(machine)?;
    mole.joins(&agents.hosts[0].ticket(&["host", "invite"])?, "mole")?;
    mole.tells(&["a1"], &[mole.is_at(vec![])?])?;
    mole.reads("a1")?;
    eve.learns_from(&mole)?;
    Ok(mole)
}

/// An image that takes seconds over a slow link.
fn import_large(agents: &Agents, name: &str, seed: u32) -> Result<()> {
    let disk = agents.lab.evidence().join(name);
    fs::write(&disk, (0..LARGE_BYTES).map(|at| ((at ^ seed).wrapping_mul(0x9e37_79b1) >> 13) as u8).collect::<Vec<_>>())?;
    let kernel = rebec_lab::netlab::guest::build()?.display().to_string();
    let words = ["image", "import", name, "--kernel", &kernel, "--cmdline", "stats_ms=0", "--disk", &disk.display().to_string()];
    agents.hosts[0].must(&words).map(drop)
}

/// Whether a guest beats on a host now.
fn beats(host: &Host, id: &str) -> Result<bool> {
    let console = host.state().join("vms").join(id).join("console.log");
    let length = || fs::metadata(&console).map_or(0, |file| file.len());
    let before = length();
    std::thread::sleep(Duration::from_millis(500));
    Ok(length() > before)
}

fn runs_at(asked: &Host, vm: &str, host: &str) -> Result<()> {
    let seen = asked.vm(vm)?;
    ensure!(seen["host"] == host && seen["state"] == "running", "{vm} is {} on {}, as {} knows", seen["state"], seen["host"], asked.name());
    Ok(())
}

#[test]
fn a_stranger_commands_no_vm_of_another_domain() -> Result<()> {
    let (mut agents, mut eve) = pool("local-hostile-commands", &["a1", "a2"])?;
    let [a1, a2] = &agents.hosts[..] else { unreachable!("two hosts were asked for") };
    let both = ["a1", "a2"];
    for name in ["web", "named", "doubled", "claimed", "steady"] {
        agents.run(name, "a2", "16M", &[], SECRET)?;
    }
    agents.run("idle", "a2", "16M", &["--on-host-loss", "restart"], "vm=2")?;
    a1.must(&["vm", "stop", "idle", "--timeout", "0"])?;
    is_told(&mut eve, &agents)?;
    let victim = |name: &str| eve.vm("a1", name);
    let mut findings = Findings::default();

    // A record of her own about somebody else's VM, under a name of her own.
    let web = victim("web")?;
    eve.claims_vm(&both, &web, "aaa")?;
    findings.of("a console is entered under a second name", eve.is_refused("a2", &Question::Console("aaa".into())));
    findings.of("a VM is stopped under a second name", eve.is_refused("a2", &Question::stop("aaa")));
    findings.of("a VM is removed under a second name", eve.is_refused("a2", &Question::Remove(web.id)));
    findings.of("a VM is gone that a stranger claimed", runs_at(a1, "web", "a2"));

    // What a name looks like in a path, and what it becomes.
    let own = Vm::new(&eve.host, 1, "%6eamed", web.kernel());
    eve.tells(&both, &[eve.host.vm(&own)?])?;
    findings.of("a console is read by a name with a percent sign", eve.is_refused("a2", &Question::logs("%6eamed")));
    findings.of("a VM is stopped by a name with a percent sign", eve.is_refused("a2", &Question::stop("%6eamed")));

    let doubled = victim("doubled")?;
    findings.of("a VM is started a second time", eve.is_refused("a1", &Question::Start(doubled.id, 9)));
    let [here, there] = [a1, a2].map(|host| beats(host, &doubled.id.to_string()));
    let once = match (here?, there?) {
        (false, true) => Ok(()),
        (here, there) => Err(anyhow!("it beats on a1: {here}, on a2: {there}")),
    };
    findings.of("a VM runs on two hosts", once);

    let claimed = victim("claimed")?;
    eve.tells(&both, &[eve.host.runs(claimed.id, u64::MAX, vec![])?])?;
    findings.of("a VM is said to run elsewhere at the last epoch", runs_at(a1, "claimed", "a2"));
    let stopped = a1.must(&["vm", "stop", "claimed", "--timeout", "0"]).and_then(|vm| same("its state", &vm["state"], "stopped"));
    findings.of("its owner cannot stop it any more", stopped);

    findings.of("a keeper is told to start what was stopped", eve.is_refused("a1", &Question::Restart(victim("idle")?.id)));

    let kept = Vm::new(&eve.host, 3, "kept", web.kernel()).kept_by(eve.known()?.host("a1")?.0);
    eve.tells(&both, &[eve.host.vm(&kept)?])?;
    findings.of("a host keeps a VM of another domain because its record says so", eve.is_refused("a1", &Question::Promise(kept.id, 1)));
    findings.of("a domain signs that a host of another domain has left", eve.is_refused("a1", &Question::Leave));

    // Names belong to domains.
    let own = Vm::new(&eve.host, 2, "steady", web.kernel());
    eve.tells(&both, &[eve.host.vm(&own)?])?;
    findings.of("a VM loses its name to somebody else's", runs_at(a1, "steady", "a2"));

    // Whose host it is, is for the host to say. This comes last: a host that is taken takes orders.
    eve.claims_host(&both, "a2", None)?;
    let domain = a1.must(&["host", "show", "a2"]).and_then(|host| same("a2's domain", &host["domain"], "alpha"));
    findings.of("a host is taken by another domain", domain);
    findings.of("a host of another domain tells what it knows", eve.is_refused("a2", &Question::bundle()));
    eve.claims_host(&both, "a2", Some("she says so"))?;
    let cut = Instant::now();
    let mut beating = true;
    while beating && cut.elapsed() < SETTLES {
        beating = beats(a2, &victim("steady")?.id.to_string())?;
    }
    findings.of("a host is declared dead by another domain", if beating { Ok(()) } else { Err(anyhow!("its VMs were ended")) });
    findings.are_none()?;
    agents.succeeded();
    Ok(())
}

#[test]
fn a_stranger_reads_and_hears_nothing_of_another_domain() -> Result<()> {
    let (mut agents, mut eve) = pool("local-hostile-hears", &["a1", "a2"])?;
    let both = ["a1", "a2"];
    let mut findings = Findings::default();
    let web = ["--lan", "office"];
    agents.run("web", "a1", "32M", &web, &format!("{SECRET} net0=ip=10.7.0.8"))?;
    agents.run("client", "a2", "32M", &web, "vm=2 net0=ip=10.7.0.9,peer=10.7.0.8,load=ping")?;
    let client = Seat::take(&agents.hosts[0], "client")?;
    eventually("pings are answered", SOON, || Ok(client.net()?.number("ping_received")? > 0))?;
    let mut mole = is_told(&mut eve, &agents)?;
    let web = eve.vm("a1", "web")?;

    // Her own VM, with a NIC of alpha's LAN that has the address of a VM of alpha.
    let ear = eve.udp(4789)?;
    ear.set_read_timeout(Some(LISTENS))?;
    let own = Vm::new(&eve.host, 1, "zzz", web.kernel()).with_nic_of(&web);
    let endpoint = std::net::SocketAddrV4::new(eve.address, 4789);
    eve.tells(&both, &[eve.host.vm(&own)?, eve.host.runs(own.id, 1, vec![endpoint])?])?;
    let heard = match ear.recv(&mut [0; 2048]) {
        Ok(bytes) => Err(anyhow!("a frame of {bytes} bytes for a VM of alpha came to eve")),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(()),
        Err(error) => Err(error.into()),
    };
    findings.of("frames of another domain's LAN are drawn to a NIC of one's own", heard);
    let before = client.net()?.number("ping_received")?;
    let goes_on = eventually("pings are answered", SETTLES, || Ok(client.net()?.number("ping_received")? > before + 10));
    findings.of("guests do not reach each other any more when a stranger claims an address of theirs", goes_on);

    let told = eve.book("a1")?;
    let secret = speech::tells(&told, SECRET);
    findings.of("command lines are told to strangers", if secret { Err(anyhow!("eve read `{SECRET}`")) } else { Ok(()) });
    let things = speech::things_of_others(&told, eve.host.key());
    let none = if things == 0 { Ok(()) } else { Err(anyhow!("eve read {things} records of things of alpha")) };
    findings.of("strangers are told of VMs, images and LANs that are not shared with them", none);
    findings.of("parts are given to strangers", eve.is_refused("a1", &Question::Part(web.kernel().0)));

    // Asked before the host that is to run it, while that host still fetches the image.
    import_large(&agents, "large", 1)?;
    agents.everywhere("the image is known", |host| host.knows("image", "large"))?;
    agents.lab.shape_one(&agents.lab.machines[1], Some(SLOW_MBIT))?;
    let run = ["vm", "run", "kept", "--image", "large", "--host", "a2", "--memory", "16M", "--on-host-loss", "restart"];
    let running = agents.hosts[0].begin(&run)?;
    let mut asked = Err(anyhow!("the VM was not in the book"));
    let until = Instant::now() + SETTLES;
    while asked.is_err() && Instant::now() < until {
        mole.reads("a1")?;
        eve.learns_from(&mole)?;
        asked = eve.vm("a1", "kept");
    }
    let promise = asked.and_then(|vm| eve.is_refused("a1", &Question::Promise(vm.id, 1)));
    findings.of("a keeper promises a VM to a stranger", promise);
    findings.of("a VM does not start because a stranger asked its keeper first", running.end()?.value().map(drop));
    findings.are_none()?;
    agents.succeeded();
    Ok(())
}

#[test]
fn what_a_stranger_offers_harms_neither_parts_nor_moves_nor_room() -> Result<()> {
    let (mut agents, mut eve) = pool("local-hostile-offers", &["a1", "a2"])?;
    let mut findings = Findings::default();
    import_large(&agents, "large", 1)?;
    agents.everywhere("the image is known", |host| host.knows("image", "large"))?;
    let [a1, a2] = &agents.hosts[..] else { unreachable!("two hosts were asked for") };
    let run = |name: &str, host: &str| a1.must(&["vm", "run", name, "--image", "large", "--host", host, "--memory", "16M"]);
    run("first", "a1")?;
    agents.run("web", "a1", "32M", &[], "vm=1 fill=random:5:60%")?;
    is_told(&mut eve, &agents)?;
    let large = eve.vm("a1", "first")?.disk().context("an image with a disk")?;

    // A part is fetched from whoever offers a VM that needs it; she promises all of it and sends nothing until another holder has sent it.
    let trap = eve.listens()?;
    let bait = Vm::new(&eve.host, 1, "bait", large);
    eve.tells(&["a2"], &[eve.host.vm(&bait)?])?;
    let offered = eve.asks("a2", &Question::Arrival(bait.id, 1))?;
    if offered.is_granted()
        && let Ok(mut caught) = trap.catches(SETTLES)
    {
        caught.promise(large.1)?;
        std::thread::sleep(Duration::from_millis(500));
        findings.of("a part is not had because a stranger promised it and sends nothing", run("second", "a2").map(drop));
        let all_but_four = usize::try_from(large.1)? - 4;
        // Refused bytes are as good as none.
        drop(caught.send(&b"EVIL".repeat(all_but_four / 4)));
        std::thread::sleep(Duration::from_millis(500));
    } else {
        run("second", "a2")?;
    }
    let part = |host: &Host| fs::read(host.state().join("parts").join(large.0.to_string())).context("the part");
    let differs = part(a1)? != part(a2)?;
    let whole = if differs { Err(anyhow!("a2 has {:?} at its beginning", String::from_utf8_lossy(&part(a2)?[..8]))) } else { Ok(()) };
    findings.of("a part is overwritten under its name", whole);

    // A VM of alpha comes from the host that runs it, and from nobody else.
    let web = eve.vm("a1", "web")?;
    agents.lab.shape_one(&agents.lab.machines[1], Some(SLOW_MBIT))?;
    let mut moving = a1.begin(&["vm", "move", "web", "--to", "a2"])?;
    let mut offers = Ok(());
    let until = Instant::now() + OFFERS;
    while offers.is_ok() && moving.runs() && Instant::now() < until {
        let answer = eve.asks("a2", &Question::Arrival(web.id, 1 << 40))?;
        offers = eve.comes_to_nothing("a2", "an offer of web", &answer);
    }
    // Whoever takes one takes the next, also between what the true source does.
    while offers.is_err() && moving.runs() && Instant::now() < until {
        eve.asks("a2", &Question::Arrival(web.id, 1 << 40))?;
    }
    findings.of("a VM that another host sends is offered", offers);
    let moved = moving.end()?.value().and_then(|report| same("its outcome", &report["outcome"], "moved"));
    findings.of("a move fails because a stranger offers the same VM", moved);
    agents.lab.shape_one(&agents.lab.machines[1], None)?;

    // Offers take room as long as they may be taken up, and no longer.
    for nonce in 2..4 {
        let own = Vm::new(&eve.host, nonce, &format!("own-{nonce}"), web.kernel()).with_memory(400 << 20);
        eve.tells(&["a2"], &[eve.host.vm(&own)?])?;
        let answer = eve.asks("a2", &Question::Arrival(own.id, 1))?;
        ensure!(answer.status < 500, "{} {}", answer.status, answer.text());
    }
    std::thread::sleep(Duration::from_secs(2));
    let run = ["vm", "run", "roomy", "--image", "bench", "--host", "a2", "--memory", "600M"];
    let room = eventually("a2 has the room that nothing was ever sent for", SOON, || a1.must(&run).map(|_| true));
    findings.of("room is taken by offers of which nothing comes", room);
    findings.are_none()?;
    agents.succeeded();
    Ok(())
}

fn set_policy(agents: &Agents, text: &str) -> Result<()> {
    let file = agents.lab.evidence().join("policy.toml");
    fs::write(&file, text)?;
    agents.hosts[0].must(&["policy", "set", &file.display().to_string()]).map(drop)
}

/// What a contract is at its lender, and whether the lender has settled it.
fn standing(host: &Host, id: &str) -> Result<(String, bool)> {
    let contract = host.must(&["contract", "show", id])?;
    let words = contract["words"].as_array().context("words")?;
    let settled = words.iter().any(|word| word["by"] == "lender" && word["what"] == "ended");
    Ok((contract["state"].as_str().unwrap_or_default().to_owned(), settled))
}

#[test]
fn a_broker_that_means_no_good_gains_nothing() -> Result<()> {
    let (mut agents, mut eve) = pool("local-hostile-broker", &["a1", "a2"])?;
    // What her own VM would start from is at a2 already, as after any VM of hers.
    agents.run("first", "a2", "16M", &[], "vm=1")?;
    is_told(&mut eve, &agents)?;
    let kernel = eve.vm("a1", "first")?.kernel();
    let a1 = &agents.hosts[0];
    a1.must(&["vm", "stop", "first", "--timeout", "0"])?;
    a1.must(&["vm", "rm", "first"])?;
    const LENDS: &str = "[lending]\nshare = \"100%\"\nto = [\"evil\"]\nnotice = \"2s\"\nprice = 20\n";
    set_policy(&agents, LENDS)?;
    let mut findings = Findings::default();
    let (now, hours) = (deals::now_s()?, 2 * 3600);
    let of = |host: &str, nonce: u64| eve.terms(host, nonce);
    let mut no = |attack: &str, contract: Result<deals::Contract>, says: &str| {
        findings.of(attack, contract.and_then(|contract| eve.is_not_signed("a1", &contract, says)));
    };

    // What she did not sign, what is not alpha's, what alpha has not, what is too little, and clocks that are hours apart.
    no("a contract that its borrower has not signed", Ok(deals::Contract::draft(of("a2", 1)?)), "its borrower has not signed it");
    let mut forged = deals::Contract::draft(of("a2", 2)?);
    eve.host.signs_contract(&mut forged);
    no("a contract that another key signed", Ok(forged), "its borrower has not signed it");
    let (own, alpha) = (eve.domain.key(), of("a2", 3)?.lender);
    no(
        "her machine lent in alpha's name",
        of("a2", 3).map(|terms| eve.signed(deals::Terms { host: eve.host.key(), ..terms })),
        "none of this domain's",
    );
    let turned = of("a2", 4).map(|terms| eve.signed(deals::Terms { lender: own, borrower: alpha, ..terms }));
    no("alpha as a borrower that asked for nothing", turned, "this domain is not its lender");
    no("more than the machine has", of("a2", 5).map(|terms| eve.signed(deals::Terms { memory_bytes: 1 << 50, ..terms })), "MiB and");
    no("for less than the price", of("a2", 6).map(|terms| eve.signed(deals::Terms { price_milli: 1, ..terms })), "is too little");
    let late = of("a2", 7).map(|terms| eve.signed(deals::Terms { from: now - hours, answer_by: now - hours + 60, ..terms }));
    no("a clock that is hours behind", late, "is one of the two clocks wrong?");
    let early = of("a2", 8).map(|terms| eve.signed(deals::Terms { from: now + hours, answer_by: now + hours + 60, ..terms }));
    no("a clock that is hours ahead", early, "is one of the two clocks wrong?");

    // One machine, two contracts.
    let first = eve.signed(of("a2", 10)?);
    let id = first.id().to_string();
    ensure!(eve.proposes("a1", &first)? == Said::Signed, "an honest proposal is signed");
    ensure!(eve.proposes("a1", &first)? == Said::Signed, "the same again is the same");
    no("a machine promised twice", of("a2", 11).map(|terms| eve.signed(terms)), "is promised to");
    agents.everywhere("alpha knows the contract", |host| Ok(standing(host, &id)?.0 == "active"))?;

    // She denies that it was ever signed; and commands what is alpha's to say.
    eve.tells(&["a1", "a2"], &[eve.host.knows_contract(&first)?])?;
    let denied = standing(a1, &id).and_then(|(state, _)| if state == "active" { Ok(()) } else { Err(anyhow!("it is {state}")) });
    findings.of("a contract is gone because a side denies it", denied);
    let demand = Question::User("POST", "/v1/demand".to_owned(), serde_json::json!({"queued": 9}));
    let recall = Question::User("POST", format!("/v1/contracts/{id}/recall"), serde_json::json!({}));
    for (attack, question) in [("demand of alpha is forged", demand), ("alpha calls back what a stranger wants back", recall)] {
        findings.of(attack, eve.is_refused("a1", &question));
        let warrant = eve.host.signs(eve.known()?.host("a1")?.0, &question)?;
        findings.of(attack, eve.is_refused("a1", &question.with(&warrant)));
    }

    // A flood of proposals: none is kept, and those that an operator is to see are few.
    let began = Instant::now();
    let signed =
        (100..140).filter(|nonce| of("a2", *nonce).and_then(|terms| eve.proposes("a1", &eve.signed(terms))).ok() == Some(Said::Signed));
    let none = if signed.count() == 0 { Ok(()) } else { Err(anyhow!("some were signed")) };
    findings.of("a flood of proposals for a machine that is promised", none);
    set_policy(&agents, &format!("{LENDS}accept = \"operator\"\n"))?;
    let waits =
        (200..220).filter(|nonce| of("a1", *nonce).and_then(|terms| eve.proposes("a1", &eve.signed(terms))).ok() == Some(Said::Waits));
    let kept = waits.count();
    findings.of("proposals that wait are many", if (1..=8).contains(&kept) { Ok(()) } else { Err(anyhow!("{kept} wait")) });
    let listed = a1.must(&["contract", "ls"])?.as_array().map_or(0, Vec::len);
    findings.of("proposals fill the book", if listed <= 1 + kept { Ok(()) } else { Err(anyhow!("{listed} are listed")) });
    ensure!(began.elapsed() < SOON, "the flood took {:?}", began.elapsed());

    // A lease that runs out in silence.
    set_policy(&agents, LENDS)?;
    let short = eve.signed(deals::Terms { until: Some(deals::now_s()? + 4), ..of("a1", 12)? });
    ensure!(eve.proposes("a1", &short)? == Said::Signed, "a short lease is signed");
    // Meanwhile she sends a VM that the other contract lets come, and vanishes in mid-handover.
    let own = Vm::new(&eve.host, 1, "own", kernel).with_memory(48 << 20);
    eve.tells(&["a1", "a2"], &[eve.host.vm(&own)?])?;
    let offered = eve.asks("a2", &Question::Arrival(own.id, 1))?;
    ensure!(offered.is_granted(), "her contract lets her VM come: {} {}", offered.status, offered.text());
    let lease = eventually("the lease is settled", SOON, || Ok(standing(a1, &short.id().to_string())? == ("ended".to_owned(), true)));
    findings.of("a lease never ends because its borrower is silent", lease);
    a1.must(&["contract", "recall", &id])?;
    let settled = eventually("the contract is settled", SOON, || Ok(standing(a1, &id)? == ("ended".to_owned(), true)));
    findings.of("a machine is never had back because its borrower vanished", settled);
    let run = ["vm", "run", "roomy", "--image", "bench", "--host", "a2", "--memory", "900M"];
    findings.of("room is taken by a handover that never ends", eventually("a2 has its room", SOON, || a1.must(&run).map(|_| true)));

    // The audit log has the first refusals with their reasons and sums up a flood of them; the agent's own log has each.
    let (rows, said) = (a1.must(&["audit", "--tail", "400"])?.to_string(), a1.said());
    for words in ["its borrower has not signed it", "ContractSign", "ContractRecall", "ContractEnd"] {
        ensure!(rows.contains(words), "the audit log does not say `{words}`");
    }
    for words in ["is one of the two clocks wrong?", "is promised to evil", "is too little", "no more are kept"] {
        ensure!(said.contains(words), "the broker does not say `{words}`");
    }
    a1.must(&["audit", "verify"])?;
    findings.are_none()?;
    agents.succeeded();
    Ok(())
}
