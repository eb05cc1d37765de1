//! The API on TCP: TLS 1.3 under a certificate that is self-signed over the host's Ed25519 key. Clients pin that key, whose digits
//! are on the status screen; no name, date or authority counts. Who shows a token is a user, who does not is told so and hears no more.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use iroh::SecretKey;
use rebec_api::{ApiError, ErrorCode};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{
    Caller,
    answer::Failure,
    serve::{self, Limits},
};
use crate::{agent::Agent, tokens};

/// `OneAsymmetricKey` around the 32 bytes of an Ed25519 key (RFC 8410 §7), without those bytes.
const ED25519_PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// Rest after a failed accept: no descriptors are left, and some will be again.
const REST: Duration = Duration::from_millis(100);

/// Where others reach the API; none where it is off or the host has no address.
pub fn address(agent: &Agent) -> Option<SocketAddr> {
    let port = Some(agent.options.api_port).filter(|port| *port > 0)?;
    Some((agent.underlay()?, port).into())
}

/// Listens on all addresses: those of an appliance come later than its agent.
pub async fn listen(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await;
    listener.with_context(|| format!("API: listen on TCP port {port}; is another agent running? --api-port chooses another port"))
}

/// What ends TLS under the host's key.
pub fn acceptor(secret: &SecretKey) -> Result<TlsAcceptor> {
    let pkcs8 = [&ED25519_PKCS8[..], &secret.to_bytes()].concat();
    let pair = rcgen::KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8.as_slice())).context("API: the host's key")?;
    let certificate =
        rcgen::CertificateParams::new(vec!["rebec.invalid".to_owned()])?.self_signed(&pair).context("API: the certificate")?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(pkcs8.into()))?;
    // Every connection shows the key again.
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Takes requests until the task is dropped.
pub async fn run(agent: Arc<Agent>, listener: TcpListener, acceptor: TlsAcceptor, router: Router, limits: Limits) {
    let router = router.layer(middleware::from_fn_with_state(agent, token_holders_only));
    let places = Arc::new(Semaphore::new(limits.connections));
    while let Ok(place) = places.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("API: accept: {error}");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            if let Err(error) = stream.set_nodelay(true) {
                log::debug!("API: {error}");
            }
            match timeout(limits.handshake, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => serve::connection(stream, router, Caller::Stranger, limits.head).await,
                Ok(Err(error)) => log::debug!("API: TLS handshake: {error}"),
                Err(_) => log::debug!("API: a TLS handshake took too long"),
            }
            drop(place);
        });
    }
}

/// Makes a user of who shows a token, and takes the token away: requests that are forwarded do not carry it to other hosts.
async fn token_holders_only(State(agent): State<Arc<Agent>>, mut request: Request, next: Next) -> Response {
    let known = match bearer(request.headers()) {
        None => Err(refused("no token: send `Authorization: Bearer TOKEN`")),
        Some(text) => match tokens::is_known(&agent.store, text) {
            Ok(true) => Ok(()),
            Ok(false) => Err(refused("this token is not known here")),
            Err(error) => Err(crate::vm::failed(&error)),
        },
    };
    if let Err(error) = known {
        let headers =
            [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")), (header::CONNECTION, HeaderValue::from_static("close"))];
        return (headers, Failure(error)).into_response();
    }
    request.headers_mut().remove(header::AUTHORIZATION);
    request.extensions_mut().insert(Caller::User);
    next.run(request).await
}

fn refused(what: &str) -> ApiError {
    ApiError::new(ErrorCode::Unauthorized, format!("{what}; `rebec token create NAME` on this host makes one"))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, text) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| text.trim())
}
