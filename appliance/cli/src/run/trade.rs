//! `rebec policy show` and `set`, `contract`, `demand`, `plan`, `why`, `account`.

use std::{path::Path, process::Stdio, time::Duration};

use rebec_api::trade::{AccountLine, ContractInfo, Demand, NewContract, PlanInfo, PolicyInfo, Proposed, RecallContract, SetPolicy, VmWhy};
use rebec_pool::trade::queue;
use rebec_vmm_api::MemorySize;
use tokio::io::AsyncReadExt as _;

use super::{
    policy,
    session::{Session, parse},
};
use crate::{
    args::{ContractCommand, DemandCommand, PolicyCommand, ProposeOptions},
    client::path,
    failure::Failure,
    text::{printable, trade},
};

/// A program that says nothing for so long is ended: a scheduler hangs.
const PROGRAM_TIME: Duration = Duration::from_secs(60);

/// `rebec policy show`, `rebec policy set`
pub async fn policy(session: &Session, command: PolicyCommand) -> Result<(), Failure> {
    match command {
        // It asks nobody; the caller has carried it out.
        PolicyCommand::Check { .. } => Ok(()),
        PolicyCommand::Show => session.show(&session.client.get::<PolicyInfo>(&path(&["policy"])).await?, trade::policy),
        PolicyCommand::Set { file } => set(session, &file).await,
    }
}

async fn set(session: &Session, file: &Path) -> Result<(), Failure> {
    // Mistakes are told here, with the file's name.
    policy::read(file)?;
    let text = policy::text(file).map_err(Failure::Here)?;
    let set: PolicyInfo = parse(session.settle(session.client.post(&path(&["policy"]), &SetPolicy { text }).await?).await?)?;
    session.tell(&set, |set| {
        let broker = set.broker.as_deref().unwrap_or("?");
        format!("domain {} has this policy; its broker is host {broker}, and VMs of other domains come by contract alone", set.domain)
    })
}

/// `rebec contract ...`
pub async fn contract(session: &Session, command: ContractCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        ContractCommand::Ls => {
            let all: Vec<ContractInfo> = client.get(&path(&["contracts"])).await?;
            session.list(&all, "no contracts; `rebec contract propose DOMAIN` asks for machines", |all| {
                trade::contracts(all, super::session::now())
            })
        }
        ContractCommand::Show { id } => session.show(&client.get::<ContractInfo>(&path(&["contracts", &id])).await?, trade::contract),
        ContractCommand::Propose(ProposeOptions { lender, machines, memory, vcpus, lans, vms }) => {
            let memory_bytes = memory.map_or(0, MemorySize::bytes);
            let new = NewContract { lender, machines, memory_bytes, vcpus, lans, vms };
            let made: Proposed = parse(session.settle(client.post(&path(&["contracts"]), &new).await?).await?)?;
            if !session.json {
                made.refusals.iter().for_each(|no| session.say(&printable(&format!("{}: {}", no.what, no.reason))));
            }
            session.show(&made, |made| trade::contracts(&made.contracts, super::session::now()))
        }
        ContractCommand::Accept { id } => {
            let made: ContractInfo = parse(session.settle(client.post_empty(&path(&["contracts", &id, "accept"])).await?).await?)?;
            session.tell(&made, |made| format!("contract {} is {}", made.id, made.state))
        }
        ContractCommand::Recall { id, reason } => {
            let wish = RecallContract { reason };
            let made: ContractInfo = parse(session.settle(client.post(&path(&["contracts", &id, "recall"]), &wish).await?).await?)?;
            session.tell(&made, |made| format!("contract {} is {}", made.id, made.state))
        }
    }
}

/// `rebec demand ...`
pub async fn demand(session: &Session, command: DemandCommand) -> Result<(), Failure> {
    match command {
        DemandCommand::Set(wish) => {
            let demand = Demand { queued: wish.queued, running: wish.running, widest: wish.widest, valid_s: None };
            tell(session, demand).await?;
            session.tell(&demand, said)
        }
        DemandCommand::Follow { every, times, program } => {
            let mut runs = 0;
            loop {
                // One answer that makes no sense says nothing; the next may.
                match ask(&program).await {
                    Ok(demand) => match tell(session, demand).await {
                        Ok(()) => session.say(&said(&demand)),
                        Err(failure) if times.is_some() => return Err(failure),
                        Err(failure) => session.say(&failure.to_string()),
                    },
                    Err(why) if times.is_some() => return Err(Failure::Here(why)),
                    Err(why) => session.say(&why),
                }
                runs += 1;
                if times.is_some_and(|times| runs >= times) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_secs(every.0)).await;
            }
        }
    }
}

async fn tell(session: &Session, demand: Demand) -> Result<(), Failure> {
    session.settle(session.client.post(&path(&["demand"]), &demand).await?).await.map(drop)
}

fn said(demand: &Demand) -> String {
    format!("the domain's work wants {} machines for what waits and {} for what runs", demand.queued, demand.running)
}

/// What a program says of its queue.
async fn ask(words: &[String]) -> Result<Demand, String> {
    let (name, arguments) = words.split_first().ok_or("no program")?;
    let mut command = tokio::process::Command::new(name);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
    let stdout = child.stdout.take().ok_or_else(|| format!("{name}: it has no standard output"))?;
    let mut text = String::new();
    let run = async {
        stdout.take(queue::BYTES_MAX as u64 + 1).read_to_string(&mut text).await?;
        child.wait().await
    };
    let ended = tokio::time::timeout(PROGRAM_TIME, run).await.map_err(|_| format!("{name}: no answer in {} s", PROGRAM_TIME.as_secs()))?;
    let status = ended.map_err(|error| format!("{name}: {error}"))?;
    if !status.success() {
        return Err(format!("{name}: it ended with {status}"));
    }
    let found = queue::read(&text).map_err(|why| format!("{name}: {why}"))?;
    Ok(Demand { queued: found.queued, running: found.running, widest: found.widest, valid_s: None })
}

/// `rebec plan`
pub async fn plan(session: &Session) -> Result<(), Failure> {
    session.show(&session.client.get::<PlanInfo>(&path(&["plan"])).await?, trade::plan)
}

/// `rebec why`
pub async fn why(session: &Session, vm: &str) -> Result<(), Failure> {
    session.show(&session.client.get::<VmWhy>(&path(&["vms", vm, "why"])).await?, trade::why)
}

/// `rebec account`
pub async fn account(session: &Session) -> Result<(), Failure> {
    let lines: Vec<AccountLine> = session.client.get(&path(&["account"])).await?;
    session.list(&lines, "nothing was lent or borrowed", trade::account)
}
