//! `rebec host`.

use std::io::{self, Write as _};

use rebec_api::{
    host::{DeclareDead, DrainHost, HostInfo, RoadInfo, SetHost, SetRole},
    pool::PoolStatus,
};

use super::{
    pool,
    session::{Session, parse},
};
use crate::{
    args::HostCommand,
    client::path,
    failure::Failure,
    text::{lists, shows, word},
};

/// `rebec host ...`
pub async fn run(session: &Session, command: HostCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        HostCommand::Ls => {
            let hosts: Vec<HostInfo> = client.get(&path(&["hosts"])).await?;
            session.list(
                &hosts,
                "no hosts: this one belongs to no pool; `rebec pool init` founds one, `rebec pool join` enters one",
                lists::hosts,
            )
        }
        HostCommand::Show { name } => session.show(&client.get::<HostInfo>(&path(&["hosts", &name])).await?, shows::host),
        HostCommand::Invite { terms, role } => pool::invite(session, None, terms, role.into()).await,
        HostCommand::SetRole { name, role } => {
            let wish = SetRole { role: role.into() };
            let done = format!("root at host {name} has the role {} in the domain", word(&wish.role));
            session.finish(client.post(&path(&["hosts", &name, "role"]), &wish).await?, &done).await
        }
        HostCommand::Roads { name } => {
            let name = match name {
                Some(name) => name,
                None => client.get::<PoolStatus>(&path(&["pool"])).await?.host,
            };
            let roads: Vec<RoadInfo> = client.get(&path(&["hosts", &name, "roads"])).await?;
            session.list(&roads, &format!("{name} knows no other host"), lists::roads)
        }
        HostCommand::Metrics => metrics(session).await,
        HostCommand::Drain { name, undo } => {
            let done = match undo {
                true => format!("host {name} takes VMs again"),
                false => format!("host {name} runs no VMs any more and gets no new ones"),
            };
            session.finish(client.post(&path(&["hosts", &name, "drain"]), &DrainHost { undo }).await?, &done).await
        }
        HostCommand::Set { name, labels, no_labels } => {
            let wish = SetHost { labels, no_labels };
            let host: HostInfo = parse(session.settle(client.post(&path(&["hosts", &name, "set"]), &wish).await?).await?)?;
            session.tell(&host, |host| match &host.labels[..] {
                [] => format!("host {} has no labels", host.name),
                labels => format!("host {} has the labels {}", host.name, labels.join(", ")),
            })
        }
        HostCommand::DeclareDead { name, reason } => {
            let done = format!("host {name} is declared dead; its VMs may be started elsewhere with `rebec vm start`");
            session.finish(client.post(&path(&["hosts", &name, "declare-dead"]), &DeclareDead { reason }).await?, &done).await
        }
    }
}

/// What the agent answers, as it is.
async fn metrics(session: &Session) -> Result<(), Failure> {
    let mut body = session.client.open(&path(&["metrics"])).await?;
    let mut out = io::stdout().lock();
    while let Some(bytes) = session.client.next(&mut body).await? {
        out.write_all(&bytes)?;
    }
    Ok(out.flush()?)
}
