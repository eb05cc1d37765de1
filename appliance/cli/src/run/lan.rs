//! `rebec lan`.

use rebec_api::lan::{LanInfo, NewLan, SetLan, VmTraffic};

use super::{
    capture,
    session::{Session, parse},
};
use crate::{
    args::LanCommand,
    client::path,
    failure::Failure,
    text::{
        lists,
        matrix::{self, Matrix},
        shows,
    },
};

/// `rebec lan ...`
pub async fn run(session: &Session, command: LanCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        LanCommand::Create { name, range, domains, unsealed, mtu } => {
            let made: LanInfo =
                parse(session.settle(client.post(&path(&["lans"]), &NewLan { name, range, domains, unsealed, mtu }).await?).await?)?;
            session.tell(&made, |LanInfo { name, range, .. }| {
                format!("lan {name} has the range {range}; `rebec vm run NAME --image IMAGE --lan {name}` puts a VM on it")
            })
        }
        LanCommand::Ls => {
            let lans: Vec<LanInfo> = client.get(&path(&["lans"])).await?;
            session.list(&lans, "no LANs; `rebec lan create NAME` makes one", lists::lans)
        }
        LanCommand::Show { name, matrix: true, svg } => {
            let matrix = talk(session, &client.get::<LanInfo>(&path(&["lans", &name])).await?).await?;
            if let Some(file) = svg {
                std::fs::write(&file, matrix::svg(&matrix)).map_err(|error| Failure::Here(format!("write {}: {error}", file.display())))?;
            }
            session.show(&matrix, matrix::text)
        }
        LanCommand::Show { name, .. } => session.show(&client.get::<LanInfo>(&path(&["lans", &name])).await?, shows::lan),
        LanCommand::Set { name, rate } => {
            let wish = SetLan { port_bits: Some(rate.0) };
            let lan: LanInfo = parse(session.settle(client.post(&path(&["lans", &name, "set"]), &wish).await?).await?)?;
            session.tell(&lan, |lan| match lan.port_bits {
                Some(bits) => format!("lan {}: each port passes at most {} kbit/s each way", lan.name, bits / 1000),
                None => format!("lan {}: its ports pass as much as goes", lan.name),
            })
        }
        LanCommand::Capture(options) => capture::run(session, options).await,
        LanCommand::Rm { name } => session.finish(client.delete(&path(&["lans", &name])).await?, &format!("lan {name} is removed")).await,
    }
}

/// Asks for each VM of a LAN whom it talks to. One that may not be asked, or does not answer, is a row without numbers.
async fn talk(session: &Session, lan: &LanInfo) -> Result<Matrix, Failure> {
    let mut answers: Vec<(String, Option<VmTraffic>)> = vec![];
    for port in &lan.ports {
        if !answers.iter().any(|(vm, _)| *vm == port.vm) {
            let answer = session.client.get::<VmTraffic>(&path(&["vms", &port.vm, "traffic"])).await;
            answers.push((port.vm.clone(), answer.ok()));
        }
    }
    if !answers.is_empty() && answers.iter().all(|(_, answer)| answer.is_none()) {
        // What one says goes for all.
        session.client.get::<VmTraffic>(&path(&["vms", &answers[0].0, "traffic"])).await?;
    }
    Ok(Matrix::of(lan, &answers))
}
