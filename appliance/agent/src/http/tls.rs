//! Requests of users over TCP: TLS 1.3 under the host's Ed25519 key. Clients pin that key, whose digits
//! are on the status screen; no name, date or authority counts. Who shows a token gives commands in the token's role, which the host signs
//! for; a user signs them itself (`warrants`). Who does neither is told so and hears no more.

use std::sync::Arc;

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use rebec_api::{ApiError, ErrorCode};
use rebec_book::warrant::{self, Signer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{
    Caller,
    answer::Failure,
    serve::{self, Limits},
    warrants,
};
use crate::{
    agent::Agent,
    audit::Entry,
    chance::now_s,
    mesh::listen,
    tokens::{self, Holder},
};

/// Listens on all addresses.
pub fn listen(port: u16) -> Result<TcpListener> {
    listen::everywhere(port)
        .with_context(|| format!("API: listen on TCP port {port}; is another agent running? --api-port chooses another port"))
}

/// What ends TLS under the host's key.
pub fn acceptor(agent: &Agent) -> Result<TlsAcceptor> {
    let holder = rebec_tls::Holder::new(&agent.identity.host().to_bytes())?;
    Ok(TlsAcceptor::from(Arc::new(holder.server()?)))
}

/// Takes requests until the task is dropped.
pub async fn run(agent: Arc<Agent>, listener: TcpListener, acceptor: TlsAcceptor, router: Router, limits: Limits) {
    let router = router.layer(middleware::from_fn_with_state(agent, who_asks));
    serve::tls(listener, acceptor, limits, move |stream, place| {
        let router = router.clone();
        async move {
            serve::connection(stream, router, Caller::Nobody, limits.head).await;
            drop(place);
        }
    })
    .await;
}

/// The token that a user showed, by its name.
#[derive(Debug, Clone)]
pub struct TokenName(pub Arc<str>);

/// Lets through what is signed, makes a signer of who shows a token, and takes the token away: requests that are forwarded do not carry it to other hosts.
async fn who_asks(State(agent): State<Arc<Agent>>, mut request: Request, next: Next) -> Response {
    // A signature opens no other door than that of commands; what it is worth is judged there.
    let is_signed = request.uri().path().starts_with("/v1/") && matches!(warrants::read(&agent, Caller::Nobody, &request), Ok(Some(_)));
    let known = match bearer(request.headers()) {
        None if is_signed => return next.run(request).await,
        None => Err(refused("no token and no signature: send `Authorization: Bearer TOKEN`")),
        Some(text) => match tokens::holder(&agent.store, text, now_s()) {
            Ok(Holder::Of(name, role)) => Ok((name, role)),
            Ok(Holder::Expired(name)) => Err(shut_out(&agent, Some(&name), &format!("the token `{name}` has expired"))),
            Ok(Holder::Unknown) => Err(shut_out(&agent, None, "this token is not known here")),
            Err(error) => Err(rebec_host::failed(&error)),
        },
    };
    let (name, role) = match known {
        Ok(holder) => holder,
        Err(error) => {
            let headers =
                [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")), (header::CONNECTION, HeaderValue::from_static("close"))];
            return (headers, Failure(error)).into_response();
        }
    };
    request.headers_mut().remove(header::AUTHORIZATION);
    request.headers_mut().remove(warrant::HEADER);
    request.extensions_mut().insert(Caller::Signer(Signer::token(agent.knowledge.key(), role)));
    request.extensions_mut().insert(TokenName(name.into()));
    next.run(request).await
}

/// Whoever shows a token that is not good is worth a row; who shows none may have come by chance.
fn shut_out(agent: &Agent, token: Option<&str>, why: &str) -> ApiError {
    agent.audit.try_note(Entry::shut_out(token, why));
    refused(why)
}

fn refused(what: &str) -> ApiError {
    ApiError::new(ErrorCode::Unauthorized, format!("{what}; `rebec token create NAME` on this host makes one"))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, text) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| text.trim())
}
