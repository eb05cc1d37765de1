//! Keeps a host's clock right by asking time servers (SNTP, RFC 4330).
//!
//! ```text
//! message      questions and answers, pure
//! discipline   what is done to a clock that was found wrong, pure
//! clock        the machine's clock
//! ```
//! All servers are asked; the answer that was under way for the shortest time counts. The first good one sets the clock. Answers are taken from
//! the address that was asked and to the question that was asked, nothing else proves them: whoever is on the way can change the time.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    net::UdpSocket,
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

pub mod message;

pub mod discipline;

pub mod clock;

use clock::Clock;
use discipline::Discipline;
use message::{Asked, Refusal, Sample};

/// Where time servers listen.
pub const PORT: u16 = 123;
/// Servers that are asked.
pub const SERVERS_MAX: usize = 8;
/// How long a server may take to answer. A later answer might be wrong by more than what has a clock set at once.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// Questions of a measurement, once the clock is set.
const QUESTIONS: u32 = 4;
/// Between two questions to one server; more often is rude (RFC 4330 §10).
const SPACING: Duration = Duration::from_secs(2);
/// Between two tries while the clock was never set.
const RETRY_MIN: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(64);
/// How long a server that wants fewer questions is left alone.
const REST: Duration = Duration::from_secs(3600);
const DATAGRAM_BYTES_MAX: usize = 512;

/// How a clock is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeState {
    /// Nobody is known who could be asked; the clock is as it was.
    NoServer,
    /// It is kept right.
    Synchronised {
        /// By whom.
        server: SocketAddr,
        /// How far it was off, before it was corrected.
        off: Duration,
    },
    /// It is not, or no more; the text says why and what to do.
    Failed(String),
}

/// Why a server told nothing.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error("does not answer")]
    Silent,
    #[error("cannot be asked: {0}")]
    Unreached(#[from] io::Error),
    #[error("is of no use: {0}")]
    Refused(#[from] Refusal),
}

/// Keeps a clock right for as long as it is polled, by the servers that are known at the time; `tell` hears how it is after each measurement.
pub async fn keep_time(clock: impl Clock, mut servers: watch::Receiver<Vec<SocketAddr>>, tell: impl Fn(TimeState)) {
    let (mut discipline, mut retry) = (Discipline::default(), RETRY_MIN);
    // Until when a server is left alone; none for good.
    let mut resting: BTreeMap<SocketAddr, Option<Instant>> = BTreeMap::new();
    loop {
        let mut known = servers.borrow_and_update().clone();
        known.truncate(SERVERS_MAX);
        resting.retain(|server, until| known.contains(server) && until.is_none_or(|until| Instant::now() < until));
        if known.is_empty() {
            tell(TimeState::NoServer);
            changed(&mut servers).await;
            continue;
        }
        let questions = if discipline.is_set() { QUESTIONS } else { 1 };
        let asked: Vec<_> = known.into_iter().filter(|server| !resting.contains_key(server)).collect();
        let answers = join_all(asked.iter().map(|server| async { (*server, measure(&clock, *server, questions).await) })).await;
        for (server, answer) in &answers {
            match answer {
                Err(Silence::Refused(Refusal::Denied)) => resting.insert(*server, None),
                Err(Silence::Refused(Refusal::TooOften)) => resting.insert(*server, Some(Instant::now() + REST)),
                _ => None,
            };
        }
        let good = answers.iter().filter_map(|(server, answer)| answer.as_ref().ok().map(|sample| (*server, *sample)));
        let state = match good.min_by_key(|(_, sample)| sample.delay) {
            Some((server, sample)) => {
                let correction = discipline.handle(Instant::now().into_std(), sample.offset);
                match clock.correct(&correction).and_then(|()| clock.vouch(sample.delay / 2)) {
                    Ok(()) => TimeState::Synchronised { server, off: message::length(sample.offset) },
                    Err(error) => TimeState::Failed(format!("the clock cannot be set: {error}; run the agent as root")),
                }
            }
            None => {
                if discipline.is_set() {
                    // Where this fails, setting it has failed before and was told.
                    clock.correct(&discipline.unmeasured()).ok();
                }
                TimeState::Failed(format!("{}; name another by rebec.ntp= or --ntp", why(&answers)))
            }
        };
        tell(state);
        let pause = if discipline.is_set() { discipline.period() } else { retry };
        retry = (retry * 2).min(RETRY_MAX);
        tokio::select! {
            () = sleep(pause) => {}
            () = changed(&mut servers) => retry = RETRY_MIN,
        }
    }
}

/// Waits for other servers; where nobody can name any, for ever.
async fn changed(servers: &mut watch::Receiver<Vec<SocketAddr>>) {
    if servers.changed().await.is_err() {
        std::future::pending().await
    }
}

fn why(answers: &[(SocketAddr, Result<Sample, Silence>)]) -> String {
    let reasons = answers.iter().filter_map(|(server, answer)| answer.as_ref().err().map(|silence| format!("{} {silence}", server.ip())));
    let reasons: Vec<_> = reasons.collect();
    if reasons.is_empty() { "every time server wants to be left alone".to_owned() } else { reasons.join(", ") }
}

/// The best of some answers of one server.
async fn measure(clock: &impl Clock, server: SocketAddr, questions: u32) -> Result<Sample, Silence> {
    let mut best: Result<Sample, Silence> = Err(Silence::Silent);
    for number in 0..questions {
        if number > 0 {
            sleep(SPACING).await;
        }
        match ask(clock, server).await {
            Ok(sample) if best.as_ref().is_ok_and(|best| best.delay <= sample.delay) => {}
            Ok(sample) => best = Ok(sample),
            // Who wants no more questions gets none.
            Err(Silence::Refused(refusal @ (Refusal::Denied | Refusal::TooOften))) => return Err(refusal.into()),
            Err(silence) if best.is_err() => best = Err(silence),
            Err(_) => {}
        }
    }
    best
}

/// Asks once.
async fn ask(clock: &impl Clock, server: SocketAddr) -> Result<Sample, Silence> {
    let own = if server.is_ipv4() { SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)) } else { SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)) };
    // A port of its own, and the kernel passes on nothing but what comes from the server's.
    let socket = UdpSocket::bind(own).await?;
    socket.connect(server).await?;
    let mut cookie = [0; 8];
    rustix::rand::getrandom(&mut cookie, rustix::rand::GetRandomFlags::empty()).map_err(io::Error::from)?;
    let (sent, start) = (clock.now(), Instant::now());
    socket.send(&message::question(cookie)).await?;
    let mut bytes = [0; DATAGRAM_BYTES_MAX];
    loop {
        let length = timeout_at(start + ANSWER_TIME, socket.recv(&mut bytes)).await.map_err(|_| Silence::Silent)??;
        match message::hear(&bytes[..length], &Asked { cookie, sent, took: start.elapsed() }) {
            // Somebody guesses: the answer may still come.
            Err(Refusal::NotOurs) => tokio::task::yield_now().await,
            heard => return Ok(heard?),
        }
    }
}

impl fmt::Display for TimeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoServer => f.write_str("as it was set: no time server is known; name one by rebec.ntp= or --ntp"),
            Self::Synchronised { server, off } => {
                let steps = [1, 10, 100, 1000, 10_000].map(Duration::from_millis);
                // In steps, so that each measurement does not make news.
                match steps.into_iter().find(|step| off < step) {
                    Some(step) => write!(f, "by {}, was off by less than {step:?}", server.ip()),
                    None => write!(f, "by {}, was off by {} s", server.ip(), off.as_secs()),
                }
            }
            Self::Failed(why) => write!(f, "not kept: {why}"),
        }
    }
}
