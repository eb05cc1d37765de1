//! Requests to an agent: HTTP/1.1 on its Unix socket, or on TCP with TLS 1.3 pinned to the key of its host.
//!
//! ```text
//! Target (which agent) -> connect (socket, TLS) -> signed, if a user signs -> one HTTP connection per request -> JSON, a stream, or raw bytes both ways
//! ```
//!
//! Every answer has a limit, and every failure a place: which agent, and whether it was reached at all ([`ClientError`]).

mod connect;
mod error;
mod qcow2;
pub mod sse;
mod target;
mod upload;

#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use ed25519_dalek::SigningKey;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rebec_api::{
    ApiError, ErrorCode,
    job::{Job, ORDER},
    pool::PoolStatus,
    vm::STREAM_UPGRADE,
};
use rebec_book::{
    Key, Warrant,
    key::{Name, public},
    warrant,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{sleep, timeout};

pub use self::{
    error::ClientError,
    target::{Remote, Target},
    upload::Upload,
};
use crate::chance::random;

/// Largest answer that is read whole: ten thousand VMs, and then some.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Longest wait for an answer; what takes longer is a job.
const ANSWER_TIME: Duration = Duration::from_secs(120);

/// So often an order is given whose answer is lost: an agent that restarts is back in seconds.
const ATTEMPTS_MAX: u32 = 20;
/// Between two attempts.
const ATTEMPT_PERIOD: Duration = Duration::from_millis(500);

/// A request's body: nothing, JSON, or a file.
type Body = UnsyncBoxBody<Bytes, io::Error>;
/// A connection whose bytes belong to the caller.
pub type Raw = TokioIo<hyper::upgrade::Upgraded>;

/// One agent that can be asked.
#[derive(Clone)]
pub struct Client {
    target: Target,
    signer: Option<Arc<Signer>>,
    /// What was ordered last: a command orders one thing at a time.
    last: Arc<Mutex<Option<Order>>>,
}

/// Who signs what is asked, and for which host.
struct Signer {
    secret: SigningKey,
    at: Key,
}

/// The key stays out of messages.
impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("target", &self.target).finish_non_exhaustive()
    }
}

/// A change that was asked for.
#[derive(Debug, Clone)]
struct Order {
    name: HeaderValue,
    method: Method,
    path: String,
    body: Bytes,
}

/// What an agent answers to a request that changes something.
#[derive(Debug)]
pub enum Answer {
    /// It is done; null where there is nothing to say.
    Done(serde_json::Value),
    /// It has begun.
    Job(Job),
}

impl Client {
    /// A client of this agent. Nothing is connected yet.
    pub fn new(target: Target) -> Self {
        Self { target, signer: None, last: Arc::default() }
    }

    /// The same, whose requests a user signs.
    pub async fn signed_by(self, secret: SigningKey) -> Result<Self, ClientError> {
        let at = match &self.target {
            Target::Remote(remote) => Name(remote.key.0),
            Target::Socket(_) => {
                let path = path(&["pool"]);
                let status: PoolStatus = self.get(&path).await?;
                status.host_key.parse().map_err(|_| self.strange(&path, "no key of its host"))?
            }
        };
        Ok(Self { signer: Some(Arc::new(Signer { secret, at })), ..self })
    }

    /// Asks for something.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let (_, bytes) = self.whole(Method::GET, path, Bytes::new()).await?;
        self.parse(path, &bytes)
    }

    /// Asks for a change, described by `body`.
    pub async fn post(&self, path: &str, body: &impl Serialize) -> Result<Answer, ClientError> {
        let text = serde_json::to_vec(body).expect("invariant: the API's types have string keys only");
        self.change(Method::POST, path, text.into()).await
    }

    /// Asks for a change that its path says all about.
    pub async fn post_empty(&self, path: &str) -> Result<Answer, ClientError> {
        self.change(Method::POST, path, Bytes::new()).await
    }

    /// Asks to remove something.
    pub async fn delete(&self, path: &str) -> Result<Answer, ClientError> {
        self.change(Method::DELETE, path, Bytes::new()).await
    }

    /// Opens a body that is read as it comes.
    pub async fn open(&self, path: &str) -> Result<Incoming, ClientError> {
        let request = self.request(Method::GET, path, empty(), Some(&[]))?;
        Ok(self.refuse(self.in_time(self.send(request)).await?).await?.into_body())
    }

    /// Turns a request into a connection of raw bytes.
    pub async fn upgrade(&self, path: &str) -> Result<Raw, ClientError> {
        let mut request = self.request(Method::GET, path, empty(), Some(&[]))?;
        request.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
        request.headers_mut().insert(header::UPGRADE, header::HeaderValue::from_static(STREAM_UPGRADE));
        let response = self.refuse(self.in_time(self.send(request)).await?).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.strange(path, "it did not open a stream"));
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await.map_err(|error| self.cut(&error))?))
    }

    /// Puts a file; `watch` hears now and then how many bytes have left.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, upload: Upload, watch: impl FnMut(u64)) -> Result<T, ClientError> {
        let sent = upload.sent();
        let request = self.request(Method::PUT, path, upload.boxed_unsync(), None)?;
        let work = async {
            let response = self.refuse(self.send(request).await?).await?;
            self.collect(path, response.into_body()).await
        };
        let bytes = sent.watch(work, watch).await.unwrap_or_else(|| Err(self.late()))?;
        self.parse(path, &bytes)
    }

    /// Reads the next piece of an opened body; none at its end.
    pub async fn next(&self, body: &mut Incoming) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(|error| self.cut(&error))?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// Gives the last order again, which is the same: the agent that was at it ended. None where it has none that agents know again.
    pub async fn again(&self) -> Option<Result<Answer, ClientError>> {
        let order = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(Order::is_known_again)?;
        Some(self.give(&order).await)
    }

    async fn change(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, ClientError> {
        let order = Order { name: random_order()?, method, path: path.to_owned(), body };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(order.clone());
        self.give(&order).await
    }

    /// An answer that is lost says nothing about an order: it is given again.
    async fn give(&self, order: &Order) -> Result<Answer, ClientError> {
        let (path, removes) = (order.path.as_str(), order.method == Method::DELETE);
        let attempts = if removes || order.is_known_again() { ATTEMPTS_MAX } else { 1 };
        let began = Instant::now();
        let mut attempt = 1;
        let mut is_lost = false;
        loop {
            let mut request = self.request(order.method.clone(), path, full(order.body.clone()), Some(&order.body))?;
            request.headers_mut().insert(ORDER, order.name.clone());
            match self.whole_of(path, request).await {
                Ok((StatusCode::ACCEPTED, bytes)) => return Ok(Answer::Job(self.parse(path, &bytes)?)),
                Ok((_, bytes)) if bytes.is_empty() => return Ok(Answer::Done(serde_json::Value::Null)),
                Ok((_, bytes)) => return Ok(Answer::Done(self.parse(path, &bytes)?)),
                // What was to go had gone when the answer was lost.
                Err(ClientError::Refused(why)) if is_lost && removes && why.code == ErrorCode::NotFound => {
                    return Ok(Answer::Done(serde_json::Value::Null));
                }
                Err(error) => {
                    is_lost |= matches!(error, ClientError::Cut { .. });
                    if !(is_lost && error.unreachable()) || attempt == attempts || began.elapsed() >= ANSWER_TIME {
                        return Err(error);
                    }
                }
            }
            attempt += 1;
            sleep(ATTEMPT_PERIOD).await;
        }
    }

    async fn whole(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), ClientError> {
        self.whole_of(path, self.request(method, path, full(body.clone()), Some(&body))?).await
    }

    async fn whole_of(&self, path: &str, request: Request<Body>) -> Result<(StatusCode, Bytes), ClientError> {
        self.in_time(async {
            let response = self.refuse(self.send(request).await?).await?;
            Ok((response.status(), self.collect(path, response.into_body()).await?))
        })
        .await
    }

    /// `signed` is the whole body, where it is known before it is sent.
    fn request(&self, method: Method, path: &str, body: Body, signed: Option<&[u8]>) -> Result<Request<Body>, ClientError> {
        let warrant = self.signer.as_ref().map(|signer| signer.warrant(&method, path, signed)).transpose()?;
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, self.target.authority());
        if let Some(warrant) = warrant {
            request = request.header(warrant::HEADER, warrant);
        }
        if let Some(token) = self.target.token() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| self.strange(path, &format!("the request cannot be written: {error}")))
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let stream = connect::connect(&self.target).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.cut(&error))?;
        // The connection ends with its request; how it ended is told by the request.
        tokio::spawn(async move { drop(connection.with_upgrades().await) });
        sender.send_request(request).await.map_err(|error| self.cut(&error))
    }

    /// Lets through what is not a refusal.
    async fn refuse(&self, response: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let bytes = self.collect("", response.into_body()).await.unwrap_or_default();
        Err(serde_json::from_slice::<ApiError>(&bytes)
            .map_or_else(|_| ClientError::Unsaid { place: self.target.to_string(), status: status.as_u16() }, ClientError::Refused))
    }

    async fn collect(&self, path: &str, body: Incoming) -> Result<Bytes, ClientError> {
        match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(self.strange(path, &format!("its answer is longer than {} MiB", ANSWER_BYTES_MAX >> 20)))
            }
            Err(error) => Err(self.cut(&*error)),
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        timeout(ANSWER_TIME, work).await.unwrap_or_else(|_| Err(self.late()))
    }

    /// Reads part of an answer to `path`.
    pub fn parse<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(bytes).map_err(|error| self.strange(path, &error.to_string()))
    }

    /// An answer to `path` that is none of this API.
    pub fn strange(&self, path: &str, why: &str) -> ClientError {
        ClientError::Strange { place: self.target.to_string(), path: path.to_owned(), why: why.to_owned() }
    }

    fn late(&self) -> ClientError {
        ClientError::Cut { place: self.target.to_string(), why: format!("no answer for {} s", ANSWER_TIME.as_secs()) }
    }

    fn cut(&self, error: &(dyn std::error::Error + 'static)) -> ClientError {
        ClientError::Cut { place: self.target.to_string(), why: root_cause(error) }
    }
}

impl Signer {
    fn warrant(&self, method: &Method, path: &str, body: Option<&[u8]>) -> Result<String, ClientError> {
        let nonce = random().map_err(|error| ClientError::File(format!("random bytes: {error}")))?;
        let warrant = Warrant {
            signer: public(&self.secret),
            at: self.at,
            method: method.to_string(),
            path: path.to_owned(),
            body: body.map(warrant::body_digest),
            until: now() + warrant::LIFE_S,
            nonce: Name(nonce),
            token: None,
        };
        warrant.sign(&self.secret).map_err(|_| ClientError::File("what is asked is too long to be signed".to_owned()))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// hyper wraps what matters in several layers.
fn root_cause(mut error: &(dyn std::error::Error + 'static)) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn empty() -> Body {
    full(Bytes::new())
}

fn full(bytes: Bytes) -> Body {
    Full::from(bytes).map_err(|never| match never {}).boxed_unsync()
}

impl Order {
    /// Whether agents know it again by its name: those that begin jobs.
    fn is_known_again(&self) -> bool {
        self.method == Method::POST && (self.path.starts_with("/v1/vms") || self.path.ends_with("/drain"))
    }
}

/// The name of an order.
fn random_order() -> Result<HeaderValue, ClientError> {
    let bytes = random().map_err(|error| ClientError::File(format!("random bytes: {error}")))?;
    Ok(HeaderValue::from_str(&Name::<16>(bytes).to_string()).expect("invariant: digits are a header's value"))
}

/// A path below `/v1`; names may hold anything.
pub fn path(segments: &[&str]) -> String {
    segments.iter().fold("/v1".to_owned(), |path, segment| path + "/" + &escaped(segment))
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_~.".contains(&byte);
    // A segment of dots alone would name the folder above.
    let dots = !text.is_empty() && text.bytes().all(|byte| byte == b'.');
    text.bytes().map(|byte| if plain(byte) && !dots { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
