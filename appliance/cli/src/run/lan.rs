//! `rebec lan`.

use rebec_api::lan::{LanInfo, NewLan};

use super::session::{Session, parse};
use crate::{
    args::LanCommand,
    client::path,
    failure::Failure,
    text::{lists, shows},
};

/// `rebec lan ...`
pub async fn run(session: &Session, command: LanCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        LanCommand::Create { name, range, domains, unsealed } => {
            let made: LanInfo =
                parse(session.settle(client.post(&path(&["lans"]), &NewLan { name, range, domains, unsealed }).await?).await?)?;
            session.tell(&made, |LanInfo { name, range, .. }| {
                format!("lan {name} has the range {range}; `rebec vm run NAME --image IMAGE --lan {name}` puts a VM on it")
            })
        }
        LanCommand::Ls => {
            let lans: Vec<LanInfo> = client.get(&path(&["lans"])).await?;
            session.list(&lans, "no LANs; `rebec lan create NAME` makes one", lists::lans)
        }
        LanCommand::Show { name } => session.show(&client.get::<LanInfo>(&path(&["lans", &name])).await?, shows::lan),
        LanCommand::Rm { name } => session.finish(client.delete(&path(&["lans", &name])).await?, &format!("lan {name} is removed")).await,
    }
}
