//! `rebec user`.

use rebec_api::user::{NewUser, User};
use rebec_book::key::Name;

use super::session::{Session, now, parse};
use crate::{
    args::UserCommand,
    client::path,
    failure::Failure,
    text::{lists, until},
};

/// `rebec user ...`
pub async fn run(session: &Session, command: UserCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        // It asks nobody; the caller has carried it out.
        UserCommand::Key => Ok(()),
        UserCommand::Add { name, key, role, valid } => {
            let wish = NewUser { name, key: Name(key.0).to_string(), role: role.into(), valid_s: valid.map(|valid| valid.0) };
            let made: User = parse(session.settle(client.post(&path(&["users"]), &wish).await?).await?)?;
            session.tell(&made, |made| {
                let ends = made.expires.map_or_else(String::new, |expires| format!("; that ends {}", until(expires, now())));
                let role = crate::text::word(&made.role);
                format!("user {} has the role {role} at all hosts of this domain{ends}", made.name)
            })
        }
        UserCommand::Ls => {
            let users: Vec<User> = client.get(&path(&["users"])).await?;
            session.list(&users, "no users: `rebec user key` prints a user's key, `rebec user add` gives it a role", |users| {
                lists::users(users, now())
            })
        }
        UserCommand::Rm { name } => {
            session.finish(client.delete(&path(&["users", &name])).await?, &format!("user {name} has no role any more")).await
        }
    }
}
