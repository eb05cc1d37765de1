//! Signed commands (`rebec_book::warrant`): read where they come in, and signed where this host sends one on for root at its socket or for
//! who showed it a token.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderValue, Method, header},
};
use http_body_util::{BodyExt as _, Limited};
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Warrant,
    authority::{Asker, Command},
    key::{Id, Name},
    record::Kind,
    warrant::{self, BadWarrant, Proven, TokenBound},
};

use super::{BODY_BYTES_MAX, tls::TokenName};
use crate::{
    agent::Agent,
    chance::{now_s, random},
};

/// How long a client may take for the body of a signed request.
const BODY_TIME: Duration = Duration::from_secs(10);

/// A bad warrant as the API says it.
fn refused(bad: &BadWarrant) -> ApiError {
    ApiError::new(ErrorCode::Forbidden, bad.to_string())
}

/// The warrant that a request carries, and who gives the command by it: what the listener knows of the connection says where it must have
/// been given.
pub fn read(agent: &Agent, caller: Asker, request: &Request) -> Result<Option<(Proven, Asker)>, ApiError> {
    let Some(text) = request.headers().get(warrant::HEADER) else { return Ok(None) };
    let from = match caller {
        Asker::Host(host) => host,
        Asker::Signer(_) | Asker::Nobody => agent.knowledge.key(),
    };
    let proven = text.to_str().map_err(|_| BadWarrant::Malformed).and_then(Proven::open).map_err(|bad| refused(&bad))?;
    // What this host signed itself went to others: one of them brings it back.
    if proven.is_of_asked() && from == agent.knowledge.key() {
        return Err(refused(&BadWarrant::Place));
    }
    let signer = proven.signer(from, now_s()).map_err(|bad| refused(&bad))?;
    Ok(Some((proven, Asker::Signer(signer))))
}

/// The token that a host signed for, if it did.
pub fn token_of(proven: &Proven) -> Option<TokenName> {
    proven.warrant().token.as_ref().map(|token| TokenName(token.name.as_str().into()))
}

/// The request, if it is the one that was signed, and for the first time.
pub async fn hold(
    agent: &Agent,
    proven: &Proven,
    command: Command,
    about: Option<(Kind, Id)>,
    request: Request,
) -> Result<Request, ApiError> {
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    let covers = agent.knowledge.pool(|book| proven.covers(book, request.method().as_str(), path, about))?;
    covers.map_err(|bad| refused(&bad))?;
    let request = if command == Command::PartPut {
        proven.covers_body(None).map_err(|bad| refused(&bad))?;
        request
    } else {
        let (request, bytes) = whole(request).await?;
        proven.covers_body(Some(&bytes)).map_err(|bad| refused(&bad))?;
        request
    };
    agent.warrants.once(proven).map_err(|bad| refused(&bad))?;
    Ok(request)
}

/// Signs a request that goes on to another host, unless who gave it has signed it: for root here, or for the token that was shown.
pub async fn sign(agent: &Agent, request: Request) -> Result<Request, ApiError> {
    if request.headers().contains_key(warrant::HEADER) {
        return Ok(request);
    }
    let by = request.extensions().get::<Asker>().copied();
    let token = request.extensions().get::<TokenName>().cloned();
    let at_most = match by {
        Some(Asker::Signer(signer)) if signer.key() == agent.knowledge.key() => signer.at_most(),
        _ => return Err(ApiError::new(ErrorCode::Forbidden, "a command goes on to another host with the signature of who gave it")),
    };
    let token = match (token, at_most) {
        (Some(name), Some(role)) => Some(TokenBound { name: name.0.to_string(), role }),
        (None, None) => None,
        _ => return Err(ApiError::new(ErrorCode::Failed, "a token without its name")),
    };
    let (mut request, bytes) = whole(request).await?;
    let warrant = Warrant {
        signer: agent.knowledge.key(),
        at: agent.knowledge.key(),
        method: request.method().to_string(),
        path: request.uri().path_and_query().map_or_else(String::new, ToString::to_string),
        body: Some(warrant::body_digest(&bytes)),
        until: now_s() + warrant::LIFE_S,
        nonce: Name(random()),
        token,
    };
    let text = warrant.sign(agent.identity.host().as_signing_key());
    let text = text.ok().and_then(|text| HeaderValue::try_from(text).ok());
    let text = text.ok_or_else(|| ApiError::new(ErrorCode::BadRequest, "a path that is too long to be sent on"))?;
    request.headers_mut().insert(warrant::HEADER, text);
    Ok(request)
}

/// A request with its whole body, and that body.
async fn whole(request: Request) -> Result<(Request, Bytes), ApiError> {
    let upgrades = request.method() == Method::GET && request.headers().contains_key(header::UPGRADE);
    let (parts, body) = request.into_parts();
    // What upgrades has no body but the stream that follows.
    if upgrades {
        return Ok((Request::from_parts(parts, body), Bytes::new()));
    }
    let collected = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let late = |_| ApiError::new(ErrorCode::BadRequest, format!("the body of the request did not come within {} s", BODY_TIME.as_secs()));
    let bytes = match collected.map_err(late)? {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let message = format!("the body of the request is longer than {} MiB", BODY_BYTES_MAX >> 20);
            return Err(ApiError::new(ErrorCode::TooLarge, message));
        }
        Err(error) => return Err(ApiError::new(ErrorCode::BadRequest, format!("the body of the request: {error}"))),
    };
    Ok((Request::from_parts(parts, Body::from(bytes.clone())), bytes))
}
