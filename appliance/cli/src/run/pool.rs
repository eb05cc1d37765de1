//! `rebec pool`, `rebec domain` and `rebec invitation`.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::OpenOptionsExt,
};

use rebec_api::{
    host::HostRole,
    pool::{DomainInfo, DomainKey, InitPool, Invitation, Invite, Invited, JoinPool, PoolStatus},
};

use super::session::{Session, now, parse};
use crate::{
    args::{DomainCommand, InvitationCommand, InviteOptions, KeyCommand, PoolCommand},
    client::path,
    failure::Failure,
    text::{count, lists, printable, shows, until},
};

/// `rebec pool ...`
pub async fn pool(session: &Session, command: PoolCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        PoolCommand::Init { name, domain } => {
            let done = format!("pool {name} is founded, with domain {domain}; `rebec host invite` prints a ticket for the next host");
            session.finish(client.post(&path(&["pool"]), &InitPool { name, domain }).await?, &done).await
        }
        PoolCommand::Join { ticket } => {
            let ticket = ticket.read("ticket").map_err(Failure::Usage)?;
            let value = session.settle(client.post(&path(&["pool", "join"]), &JoinPool { ticket }).await?).await?;
            if session.json {
                return session.show(&value, |_| String::new());
            }
            let status: PoolStatus = client.get(&path(&["pool"])).await?;
            session.say(&match (&status.pool, &status.domain) {
                (Some(pool), Some(domain)) => format!("host {} belongs to pool {pool}, domain {domain}", status.host),
                _ => status.join.clone(),
            });
            Ok(())
        }
        PoolCommand::Status => session.show(&client.get::<PoolStatus>(&path(&["pool"])).await?, shows::pool),
        PoolCommand::Leave => session.finish(client.post_empty(&path(&["pool", "leave"])).await?, "this host has left its pool").await,
    }
}

/// `rebec domain ...`
pub async fn domain(session: &Session, command: DomainCommand) -> Result<(), Failure> {
    match command {
        DomainCommand::Invite { name, terms } => invite(session, Some(name), terms, HostRole::default()).await,
        DomainCommand::Ls => {
            let domains: Vec<DomainInfo> = session.client.get(&path(&["domains"])).await?;
            session.list(&domains, "no domains: this host belongs to no pool; `rebec pool init` founds one", lists::domains)
        }
        DomainCommand::Key(command) => key(session, command).await,
    }
}

/// The domain's root key: to a file that only its owner reads, and from there.
async fn key(session: &Session, command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Export { file } => {
            let failed = |error: std::io::Error| Failure::Usage(format!("{}: {error}", file.display()));
            // Made before the key is asked for: once it was exported, its host may be left.
            let mut to = File::options().write(true).create_new(true).mode(0o600).open(&file).map_err(failed)?;
            let key: DomainKey = match session.client.post_empty(&path(&["domain-key", "export"])).await {
                Ok(answer) => parse(session.settle(answer).await?)?,
                Err(error) => {
                    fs::remove_file(&file).map_err(failed)?;
                    return Err(error.into());
                }
            };
            to.write_all(format!("{}\n", key.key).as_bytes()).and_then(|()| to.sync_all()).map_err(failed)?;
            session.say(&format!("the domain's root key is in {}; who has it can be the domain", file.display()));
            Ok(())
        }
        KeyCommand::Import { file } => {
            let text = fs::read_to_string(&file).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
            let key = DomainKey { key: text.trim().to_owned() };
            let done = "this host holds the domain's root key; `rebec host invite` prints tickets here too";
            session.finish(session.client.post(&path(&["domain-key", "import"]), &key).await?, done).await
        }
    }
}

/// Prints a ticket. The ticket alone goes to standard output, for a file or a pipe.
pub async fn invite(session: &Session, domain: Option<String>, terms: InviteOptions, role: HostRole) -> Result<(), Failure> {
    let noun = if domain.is_some() { "domains" } else { "hosts" };
    let request = Invite { domain, uses: terms.uses, valid_s: terms.valid.0, role };
    let invited: Invited = parse(session.settle(session.client.post(&path(&[noun, "invite"]), &request).await?).await?)?;
    session.show(&invited, |invited| printable(&invited.ticket) + "\n")?;
    if !session.json {
        let Invited { id, expires, uses, .. } = &invited;
        let ends = until(*expires, now());
        let uses = count(u64::from(*uses), "host");
        session.say(&format!("invitation {id}: for {uses}, ends {ends}; type there: rebec pool join TICKET"));
    }
    Ok(())
}

/// `rebec invitation ...`
pub async fn invitation(session: &Session, command: InvitationCommand) -> Result<(), Failure> {
    match command {
        InvitationCommand::Ls => {
            let open: Vec<Invitation> = session.client.get(&path(&["invitations"])).await?;
            session.list(&open, "no invitations are open; `rebec host invite` makes one", |open| lists::invitations(open, now()))
        }
        InvitationCommand::Revoke { id } => {
            let done = format!("invitation {id} is revoked; its ticket admits nobody any more");
            session.finish(session.client.delete(&path(&["invitations", &id])).await?, &done).await
        }
    }
}
