//! Who may ask what. A host's own users may ask everything; agents of its domain too, for their users. An agent of another
//! domain may ask what agents ask each other, and about VMs that are at home in its domain, wherever they run.

use axum::http::Uri;
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{Key, view};

use super::Caller;
use crate::agent::Agent;

/// Refuses what the caller has no right to.
pub fn check(agent: &Agent, caller: Option<&Caller>, uri: &Uri) -> Result<(), ApiError> {
    let refuse = |why: String| Err(ApiError::new(ErrorCode::Forbidden, why));
    let internal = uri.path().starts_with("/internal/");
    match caller {
        Some(Caller::Stranger) | None => refuse("nobody asks".into()),
        Some(Caller::User) if internal => refuse("/internal is for agents".into()),
        Some(Caller::User) => Ok(()),
        Some(Caller::Agent(key)) => {
            let Some(domain) = living_member(agent, key) else {
                return refuse("the asking host is no member of this host's pool".into());
            };
            if internal || living_member(agent, &agent.key()) == Some(domain) || asks_about_own(agent, domain, uri.path()) {
                return Ok(());
            }
            refuse(format!("host {} belongs to another domain: it may ask about its own VMs only", agent.name_of(key)))
        }
    }
}

/// The domain of a host that is a member and was not declared dead.
fn living_member(agent: &Agent, host: &Key) -> Option<Key> {
    agent.book(|book| book.membership(host).filter(|(_, member)| member.dead.is_none()).map(|(domain, _)| domain)).flatten()
}

/// Whether a path is about a VM that is at home in a domain, or about a job, which is named by chance alone.
fn asks_about_own(agent: &Agent, domain: Key, path: &str) -> bool {
    if path.starts_with("/v1/jobs/") {
        return true;
    }
    let Some(name) = path.strip_prefix("/v1/vms/").and_then(|rest| rest.split('/').next()) else { return false };
    let home = agent.book(|book| view::vms(book).into_iter().find(|vm| vm.name == name).map(|vm| vm.home)).flatten();
    home.and_then(|home| living_member(agent, &home)) == Some(domain)
}
