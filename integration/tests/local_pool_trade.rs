//! Two domains lend each other machines: by contract alone, and a machine that is called back comes back with its VM moved home, or ended by the clause
//! that both signed.

use anyhow::{Context as _, Result, ensure};
use rebec_lab::{
    demo::trade::{self, set_policy},
    netlab::agents::{Agents, Host, SOON, eventually, plain, same},
};
use serde_json::Value;

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
