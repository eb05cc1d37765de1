//! The API: one router for the Unix socket, TLS and the mesh. Who asks is an extension of the request that only the listener
//! sets. `/v1` is for users, `/internal` for agents.

pub mod answer;
pub mod audit;
pub mod bundle;
pub mod capture;
pub mod disks;
pub mod forward;
pub mod hosts;
pub mod images;
pub mod internal;
pub mod jobs;
pub mod lans;
pub mod metrics;
pub mod openapi;
mod placing;
pub mod pools;
pub mod rights;
pub mod roads;
pub mod serve;
mod set;
pub mod shown;
pub mod streams;
pub mod table;
pub mod tls;
pub mod tokens;
pub mod trade;
pub mod traffic;
pub mod users;
pub mod vms;
pub mod warrants;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::answer::{no_method, no_route};
pub use self::rights::Caller;
use crate::{agent::Agent, peers};
use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{get, post},
};

/// Longest body of a request that is not a file: a message has 1 MiB of records, which JSON makes four of.
const BODY_BYTES_MAX: usize = 4 << 20;

/// All routes: those for users are in `table`.
pub fn router(agent: Arc<Agent>) -> Router {
    let users = table::rows().into_iter().fold(Router::new(), |router, row| {
        let right = middleware::from_fn_with_state((agent.clone(), row.command, row.about), rights::commands);
        router.route(row.path, row.handler.route_layer(right))
    });
    let agents = Router::new()
        .route(peers::PATH, post(internal::exchange))
        .route("/internal/records", post(internal::records))
        .route("/internal/leave", post(internal::leave))
        .route("/internal/leases", post(internal::leases))
        .route("/internal/returns", post(internal::returns))
        .route("/internal/promises", post(internal::promises))
        .route("/internal/restarts", post(internal::restarts))
        .route("/internal/starts", post(internal::starts))
        .route("/internal/removals", post(internal::removals))
        .route("/internal/disks", post(disks::take_over))
        .route("/internal/arrivals", post(internal::arrivals))
        .route("/internal/arrivals/{id}/stream", get(streams::arrival))
        .route("/internal/jobs/wait", post(internal::wait_job))
        .route("/internal/parts/{digest}", get(internal::part))
        .route("/internal/offers", post(trade::offers))
        .route("/internal/contracts", post(trade::sign))
        .layer(middleware::from_fn_with_state(agent.clone(), rights::agents));
    users
        .merge(agents)
        .route("/internal/join", post(internal::join))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(agent)
}
