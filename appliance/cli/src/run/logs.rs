//! `rebec vm logs`: what a VM wrote to its console. With --follow it goes on, at its new host too after a move.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use rebec_api::vm::VmState;
use tokio::time::sleep;

use super::{session::Session, vm::get};
use crate::{args::values::Bytes, client::path, failure::Failure};

/// Between two attempts to find a VM that has left its host.
const ATTEMPT_PERIOD: Duration = Duration::from_millis(300);

/// Prints the log of a VM.
pub async fn run(session: &Session, name: &str, follow: bool, tail: Option<Bytes>) -> Result<(), Failure> {
    let mut tail = tail.map(|tail| tail.0);
    loop {
        let ended = once(session, name, follow, tail).await;
        if !follow {
            return ended;
        }
        match ended {
            Err(Failure::Client(error)) if error.unreachable() => {}
            Err(failure) => return Err(failure),
            Ok(()) => {}
        }
        if !matches!(
            get(session, name).await?.state,
            VmState::Running | VmState::Moving | VmState::Starting | VmState::Paused | VmState::Waiting
        ) {
            return Ok(());
        }
        tail = Some(0);
        sleep(ATTEMPT_PERIOD).await;
    }
}

async fn once(session: &Session, name: &str, follow: bool, tail: Option<u64>) -> Result<(), Failure> {
    let tail = tail.map(|tail| format!("tail={tail}"));
    let query: Vec<String> = tail.into_iter().chain(follow.then(|| "follow=true".to_owned())).collect();
    let at = path(&["vms", name, "logs"]);
    let at = if query.is_empty() { at } else { format!("{at}?{}", query.join("&")) };
    let mut body = session.client.open(&at).await?;
    while let Some(bytes) = session.client.next(&mut body).await? {
        let mut out = io::stdout().lock();
        out.write_all(&bytes)?;
        out.flush()?;
    }
    Ok(())
}
