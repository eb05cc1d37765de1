//! `rebec token`.

use rebec_api::token::{CreatedToken, NewToken, Token};

use super::session::{Session, now, parse};
use crate::{
    args::TokenCommand,
    client::path,
    failure::Failure,
    text::{lists, printable},
};

/// `rebec token ...`
pub async fn run(session: &Session, command: TokenCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        TokenCommand::Create { name, role, valid } => {
            let wish = NewToken { name, role: role.into(), valid_s: valid.map(|valid| valid.0) };
            let made: CreatedToken = parse(session.settle(client.post(&path(&["tokens"]), &wish).await?).await?)?;
            session.show(&made, |made| printable(&made.token) + "\n")?;
            if !session.json {
                session.say(&format!("token {} is not shown again; put it into a file for --token-file", made.name));
            }
            Ok(())
        }
        TokenCommand::Ls => {
            let tokens: Vec<Token> = client.get(&path(&["tokens"])).await?;
            session.list(&tokens, "no tokens: nobody is let in over TCP; `rebec token create NAME` makes one", |tokens| {
                lists::tokens(tokens, now())
            })
        }
        TokenCommand::Rm { name } => {
            session.finish(client.delete(&path(&["tokens", &name])).await?, &format!("token {name} is removed")).await
        }
    }
}
