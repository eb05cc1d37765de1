//! Two domains lend each other machines: by contract alone, and a machine that is called back comes back with its VM moved home, or ended by the clause
//! that both signed.

use anyhow::{Context as _, Result, ensure};
use rebec_lab::{
    demo::trade::{self, set_policy},
    netlab::{
        NetLab,
        agents::{Agents, Host, SOON, Seat, eventually, plain, same},
    },
};
use serde_json::Value;

/// The first address of the LAN that its home host gives out.
const WEB_IP: &str = "10.7.0.8";

/// A refusal, in these words.
fn refuses(host: &Host, words: &[&str], says: &str) -> Result<()> {
    let (code, said) = host.refused(words)?;
    ensure!(code == 1 && said.contains(says), "{words:?} ended with {code}, not `{says}`: {said}");
    Ok(())
}

/// The contract of that id as a host shows it.
fn contract(host: &Host, id: &str) -> Result<Value> {
    host.must(&["contract", "show", id])
}

/// The one contract that there is in a state, once there is one at every host.
fn contract_in(agents: &Agents, state: &str) -> Result<String> {
    let of = |host: &Host| -> Result<Vec<String>> {
        let all = host.must(&["contract", "ls"])?;
        let all = all.as_array().context("contract ls prints a list")?;
        Ok(all.iter().filter(|one| one["state"] == state).filter_map(|one| one["id"].as_str().map(str::to_owned)).collect())
    };
    agents.everywhere(&format!("a contract is {state}"), |host| Ok(of(host)?.len() == 1))?;
    of(&agents.hosts[0])?.pop().context("there was one")
}

/// Accounts of both sides say the same, but for who lent.
fn accounts_agree(agents: &Agents, id: &str) -> Result<Value> {
    let of = |host: &Host| -> Result<Vec<Value>> {
        let lines = host.must(&["account"])?;
        let lines = lines.as_array().context("account prints a list")?;
        Ok(lines.iter().filter(|line| line["contract"] == id).cloned().collect())
    };
    let [a1, b1] = &agents.hosts[..] else { unreachable!("two hosts were asked for") };
    let facts = |lines: &[Value]| -> Vec<Value> {
        lines
            .iter()
            .map(|line| serde_json::json!([line["month"], line["seconds"], line["cost_milli"], line["wasted_s"], line["settled"]]))
            .collect()
    };
    eventually("both accounts are settled and agree", SOON, || {
        let (borrowed, lent) = (of(a1)?, of(b1)?);
        let kinds = borrowed.iter().all(|line| line["kind"] == "borrowed") && lent.iter().all(|line| line["kind"] == "lent");
        Ok(!lent.is_empty() && kinds && facts(&borrowed) == facts(&lent) && lent.iter().all(|line| line["settled"] == true))
    })?;
    of(b1)?.pop().context("there was a line")
}

/// What a queue borrows is lent by contract, and comes back while its job runs: the demo's story, each of its verdicts.
#[test]
fn a_queue_borrows_machines_and_gives_them_back_without_losing_a_job() {
    let report = trade::tell().unwrap_or_else(|error| panic!("{error:#}"));
    println!("{report}");
    assert!(report.is_right(), "{report}");
}

#[test]
fn a_machine_is_lent_by_contract_alone() -> Result<()> {
    let mut agents = Agents::start("local-pool-trade", &["a1", "b1"])?;
    agents.found(&["alpha", "beta"])?;
    agents.furnish()?;
    let [a1, b1] = &agents.hosts[..] else { unreachable!("two hosts were asked for") };

    // From the moment that beta has a policy nobody comes without a contract.
    refuses(a1, &["contract", "propose", "beta"], "domain alpha has no policy")?;
    set_policy(&agents, b1, "[lending]\nshare = \"100%\"\nto = [\"alpha\"]\nprice = 20\nnotice = \"60s\"\n")?;
    let run = |lan| ["vm", "run", "x", "--image", "bench", "--memory", "16M", "--lan", lan, "--domain", "beta"];
    eventually("alpha knows that beta lends by contract", SOON, || {
        let (code, said) = a1.ask(&run("office")).map(|answer| (answer.code, answer.stderr))?;
        Ok(code == 1 && said.contains("domain beta lends by contract alone, and domain alpha has none for it"))
    })?;
    set_policy(&agents, a1, "[borrowing]\nprice = 10\n")?;
    refuses(a1, &["contract", "propose", "beta"], "wants 20 for an hour (line 2: borrowing.price = 10)")?;
    refuses(b1, &["contract", "propose", "alpha", "--machines", "9"], "asks for 9, at least 9, of the 0 that are left")?;
    set_policy(&agents, a1, "[borrowing]\nprice = 20\n")?;
    let made = a1.must(&["contract", "propose", "beta", "--lan", "office"])?;
    let id = made["contracts"][0]["id"].as_str().context("a contract was made")?.to_owned();
    same("its state", &made["contracts"][0]["state"], "active")?;
    agents.everywhere("both have it", |host| Ok(contract(host, &id)?["state"] == "active"))?;
    refuses(a1, &["contract", "propose", "beta"], "asks for 1, at least 1, of the 0 that are left")?;
    // Another LAN than the contract names.
    a1.must(&["lan", "create", "other"])?;
    refuses(a1, &run("other"), "it names the LANs that may come")?;

    // Called back by hand, with nothing on it.
    b1.must(&["contract", "recall", &id, "--reason", "maintenance"])?;
    agents.everywhere("it is over at both", |host| Ok(contract(host, &id)?["state"] == "ended"))?;
    let said = || Ok::<_, anyhow::Error>(contract(b1, &id)?["words"].clone());
    eventually("both have said that it is over", SOON, || Ok(said()?.as_array().is_some_and(|words| words.len() == 3)))?;
    ensure!(said()?.to_string().contains("maintenance"), "{}", said()?);
    refuses(a1, &run("office"), "lends by contract alone")?;
    agents.succeeded();
    Ok(())
}

/// Home has no room: the VM goes to a third domain whose contract lets it come, and a guest that talks to it all the while never notices.
#[test]
fn a_machine_that_is_called_back_sends_its_vm_to_a_third_domain() -> Result<()> {
    let lab = NetLab::start("local-pool-third", &["a1", "b1", "c1"])?;
    let mut agents = Agents::start_on(lab, 3, |host| {
        if host.name() == "a1" {
            host.memory = "80M".into();
        }
    })?;
    agents.found(&["alpha", "beta", "gamma"])?;
    agents.furnish()?;
    let [a1, b1, c1] = &agents.hosts[..] else { unreachable!("three hosts were asked for") };
    for host in [b1, c1] {
        set_policy(&agents, host, "[lending]\nshare = \"100%\"\nto = [\"alpha\"]\nnotice = \"60s\"\n")?;
    }
    set_policy(&agents, a1, "")?;
    let propose = |lender: &str| -> Result<String> {
        let made = a1.must(&["contract", "propose", lender, "--lan", "office"])?;
        Ok(made["contracts"][0]["id"].as_str().context("a contract was made")?.to_owned())
    };
    let of_beta = propose("beta")?;
    let office = ["--lan", "office"];
    let load = format!("vm=1 net0=ip={WEB_IP} fill=text:3:30%,random:5:20%,zero dirty=0:lines:500");
    let web = ["vm", "run", "web", "--image", "bench", "--memory", "64M", "--lan", "office", "--domain", "beta", "--cmdline", &load];
    a1.must(&web)?;
    agents.run("client", "a1", "32M", &office, "vm=2 net0=ip=10.7.0.9,peer=10.7.0.8,load=ping")?;
    // Where one more would go, and what each host says; nothing is started.
    let explained = a1.must(&["vm", "run", "more", "--image", "bench", "--memory", "64M", "--lan", "office", "--explain"])?;
    let says = |host: &str| -> Result<&Value> {
        let all = explained.as_array().context("a list of hosts")?;
        all.iter().find(|one| plain(&one["host"]) == host).with_context(|| format!("{host} says nothing: {explained}"))
    };
    ensure!(says("a1")?["why"].to_string().contains("64 MiB wanted"), "{explained}");
    ensure!(says("b1")?["chosen"] == true && says("c1")?["why"].to_string().contains("domain alpha has none for it"), "{explained}");
    ensure!(a1.must(&["vm", "ls"])?.as_array().is_some_and(|vms| vms.len() == 2), "explaining started something");
    let web = Seat::take(a1, "web")?;
    let client = Seat::take(a1, "client")?;
    eventually("pings are answered", SOON, || Ok(client.net()?.number("ping_received")? > 0))?;
    let of_gamma = propose("gamma")?;
    let before = a1.vm("web")?["epoch"].as_u64();

    b1.must(&["contract", "recall", &of_beta, "--reason", "own work"])?;
    eventually("web is at c1", SOON, || {
        let vm = a1.vm("web")?;
        Ok(plain(&vm["host"]) == "c1" && vm["state"] == "running" && vm["epoch"].as_u64() > before)
    })?;
    web.check_memory()?;
    let heard = client.net()?.number("ping_received")?;
    eventually("pings are answered from there", SOON, || Ok(client.net()?.number("ping_received")? > heard + 20))?;
    agents.hosts[..2].iter().try_for_each(|host| eventually("it is over", SOON, || Ok(contract(host, &of_beta)?["state"] == "ended")))?;
    let words = contract(a1, &of_beta)?["words"].clone();
    let none_lost = words.as_array().is_some_and(|words| words.iter().all(|word| word["wasted_s"] == 0));
    ensure!(words.to_string().contains("own work") && none_lost, "{words}");
    let why = a1.must(&["why", "web"])?.to_string();
    ensure!(why.contains(&format!("it is there by contract {}, which is active", &of_gamma[..8])), "{why}");
    ensure!(a1.said().contains("it goes to a third domain gamma"), "the broker did not say why");
    agents.succeeded();
    Ok(())
}

#[test]
fn demand_borrows_and_a_borrower_that_is_gone_loses_the_machine_at_the_deadline() -> Result<()> {
    let mut agents = Agents::start("local-pool-reclaim", &["a1", "b1"])?;
    agents.found(&["alpha", "beta"])?;
    agents.furnish()?;
    set_policy(&agents, &agents.hosts[1], "[lending]\nshare = \"100%\"\nnotice = \"4s\"\n")?;
    set_policy(&agents, &agents.hosts[0], "")?;
    let squeue = r#"{"jobs": [{"job_state": ["PENDING"], "node_count": {"set": true, "infinite": false, "number": 2}}]}"#;
    agents.hosts[0].must(&["demand", "follow", "--times", "1", "--", "echo", squeue])?;
    let id = contract_in(&agents, "active")?;
    let plan = agents.hosts[0].must(&["plan"])?;
    ensure!(plan["steps"] == serde_json::json!([]), "one machine is lacking and one is borrowed: {plan}");
    agents.run("web", "b1", "32M", &[], "vm=1 heartbeat_ms=100 fill=zero")?;
    agents.everywhere("web is at b1", |host| Ok(plain(&host.vm("web")?["host"]) == "b1"))?;

    agents.hosts[0].kill()?;
    agents.hosts[1].must(&["contract", "recall", &id])?;
    let b1 = &agents.hosts[1];
    eventually("web is ended", SOON, || Ok(b1.vm("alpha/web")?["state"] == "stopped"))?;
    eventually("beta has its machine", SOON, || Ok(contract(b1, &id)?["words"].as_array().is_some_and(|words| words.len() == 2)))?;
    // Its borrower hears of it when it is back, and owns it.
    agents.restart(0)?;
    let line = accounts_agree(&agents, &id)?;
    ensure!(line["wasted_s"].as_u64() > Some(0), "{line}");
    agents.succeeded();
    Ok(())
}
