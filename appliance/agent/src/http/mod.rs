//! The API: one router for the Unix socket, TLS and the mesh. Who asks is an extension of the request that only the listener
//! sets. `/v1` is for users, `/internal` for agents.

pub mod answer;
pub mod forward;
pub mod hosts;
pub mod images;
pub mod internal;
pub mod jobs;
pub mod lans;
pub mod names;
pub mod pools;
pub mod rights;
pub mod serve;
pub mod shown;
pub mod streams;
pub mod tls;
pub mod tokens;
pub mod vms;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use rebec_pool::Key;

use self::answer::{Failure, no_method, no_route};
use crate::agent::Agent;

/// Longest body of a request that is not a file.
const BODY_BYTES_MAX: usize = 16 << 20;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Somebody who may open the Unix socket, or has a token.
    User,
    /// The agent with this key; whether it is a member is for the book to say.
    Agent(Key),
    /// Somebody over TCP who has shown no token yet.
    Stranger,
}

/// All routes.
pub fn router(agent: Arc<Agent>) -> Router {
    let users = Router::new()
        .route("/v1/pool", get(pools::status).post(pools::init))
        .route("/v1/pool/join", post(pools::join))
        .route("/v1/pool/leave", post(pools::leave))
        .route("/v1/domains", get(pools::domains))
        .route("/v1/domains/invite", post(pools::invite_domain))
        .route("/v1/invitations", get(pools::invitations))
        .route("/v1/invitations/{id}", delete(pools::revoke))
        .route("/v1/hosts", get(hosts::list))
        .route("/v1/hosts/invite", post(pools::invite_host))
        .route("/v1/hosts/{name}", get(hosts::show))
        .route("/v1/hosts/{name}/drain", post(hosts::drain))
        .route("/v1/hosts/{name}/declare-dead", post(hosts::declare_dead))
        .route("/v1/parts", put(images::put_part).layer(DefaultBodyLimit::disable()))
        .route("/v1/images", get(images::list).post(images::create))
        .route("/v1/images/{name}", delete(images::remove))
        .route("/v1/lans", get(lans::list).post(lans::create))
        .route("/v1/lans/{name}", get(lans::show).delete(lans::remove))
        .route("/v1/vms", get(vms::list).post(vms::create))
        .route("/v1/vms/{name}", get(vms::show).delete(vms::remove))
        .route("/v1/vms/{name}/start", post(vms::start))
        .route("/v1/vms/{name}/stop", post(vms::stop))
        .route("/v1/vms/{name}/move", post(vms::depart))
        .route("/v1/vms/{name}/logs", get(streams::logs))
        .route("/v1/vms/{name}/console", get(streams::console))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{name}", delete(tokens::remove))
        .route("/v1/jobs", get(jobs::list))
        .route("/v1/jobs/{id}", get(jobs::show))
        .route("/v1/jobs/{id}/events", get(jobs::events));
    let agents = Router::new()
        .route("/internal/exchange", post(internal::exchange))
        .route("/internal/records", post(internal::records))
        .route("/internal/leave", post(internal::leave))
        .route("/internal/leases", post(internal::leases))
        .route("/internal/starts", post(internal::starts))
        .route("/internal/removals", post(internal::removals))
        .route("/internal/arrivals", post(internal::arrivals))
        .route("/internal/arrivals/{id}/stream", get(streams::arrival))
        .route("/internal/jobs/wait", post(internal::wait_job))
        .route("/internal/parts/{digest}", get(internal::part));
    users
        .merge(agents)
        .layer(middleware::from_fn_with_state(agent.clone(), members_only))
        // The one question of a stranger.
        .route("/internal/join", post(internal::join))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(agent)
}

/// What the caller has no right to is not looked at further.
async fn members_only(State(agent): State<Arc<Agent>>, request: Request, next: Next) -> Response {
    match rights::check(&agent, request.extensions().get::<Caller>(), request.uri()) {
        Ok(()) => next.run(request).await,
        Err(error) => Failure(error).into_response(),
    }
}
