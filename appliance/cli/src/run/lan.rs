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
        LanCommand::Create { name, range } => {
            let made: LanInfo = parse(session.settle(client.post(&path(&["lans"]), &NewLan { name, range }).await?).await?)?;
            if session.json {
                return session.show(&made, shows::lan);
            }
            session.say(&format!(
                "lan {} has the range {}; `rebec vm run NAME --image IMAGE --lan {}` puts a VM on it",
                made.name, made.range, made.name
            ));
            Ok(())
        }
        LanCommand::Ls => {
            let lans: Vec<LanInfo> = client.get(&path(&["lans"])).await?;
            session.list(&lans, "no LANs; `rebec lan create NAME` makes one", lists::lans)
        }
        LanCommand::Show { name } => session.show(&client.get::<LanInfo>(&path(&["lans", &name])).await?, shows::lan),
        LanCommand::Rm { name } => session.finish(client.delete(&path(&["lans", &name])).await?, &format!("lan {name} is removed")).await,
    }
}
