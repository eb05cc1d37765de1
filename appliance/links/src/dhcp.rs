//! Getting and keeping a lease on one interface: DISCOVER, OFFER, REQUEST, ACK; then renewed at half its time, by any server towards
//! its end, and given up when it has ended.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsRawFd as _,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket,
    sockopt::{BindToDevice, Broadcast, ReuseAddr},
};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    kernel::{Interface, Kernel},
    lease::{Answer, Client, Lease, Question},
    wiring::Wiring,
};

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// Waits between questions (RFC 2131 §4.1, but sooner at first: a switch port may just have come up).
const WAITS_SECONDS: [u64; 5] = [1, 2, 4, 8, 16];
/// How long a server has to say whether the lease of before the link was gone still holds.
const AGAIN_TIME: Duration = Duration::from_secs(2);
/// Pause between two tries to renew.
const RENEW_PAUSE: Duration = Duration::from_secs(15);
const DATAGRAM_BYTES_MAX: usize = 1500;

/// One interface that asks.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    /// Where addresses go.
    pub kernel: &'a Kernel,
    /// Which interface.
    pub interface: &'a Interface,
    /// How much its routes count.
    pub metric: u32,
    /// The name that servers are told.
    pub hostname: Option<&'a str>,
}

/// What an interface was given last: it stays there while its link is gone for a moment.
#[derive(Debug, Clone)]
pub struct Held {
    lease: Lease,
    start: Instant,
}

impl Held {
    /// What the interface has of it.
    pub fn wiring(&self) -> Wiring {
        Wiring::of_lease(&self.lease)
    }

    fn is_over(&self) -> bool {
        self.start.elapsed() >= self.lease.times[2]
    }
}

impl Host<'_> {
    /// Gets a lease and keeps it until it is lost; `tell` hears of it and, with none, of its end. An error says what to do. `held` is what the
    /// interface has: whether that is still good is asked first.
    pub async fn keep_lease(self, held: &mut Option<Held>, tell: impl Fn(Option<&Lease>)) -> Result<(), String> {
        let socket =
            open(&self.interface.name).map_err(|error| format!("port {CLIENT_PORT} for DHCP: {error}; is another DHCP client running?"))?;
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(|error| format!("random number: {error}"))?;
        let client = Client { mac: self.interface.mac, transaction: u32::from_ne_bytes(bytes), hostname: self.hostname };
        let (mut lease, mut start) = match self.first(&socket, &client, held, &tell).await {
            Some(given) => given,
            None => return Err("no DHCP server answers, so there is no IPv4; check the cable, or give an address by --ip".to_owned()),
        };
        loop {
            let now = Wiring::of_lease(&lease);
            let before = held.as_ref().map(Held::wiring);
            let set = self.kernel.set(self.interface.index, before.as_ref(), &now, self.metric).await;
            set.map_err(|error| format!("set {}/{}: {error}", lease.address, lease.length))?;
            *held = Some(Held { lease: lease.clone(), start });
            tell(Some(&lease));
            match renew(&socket, &client, &lease, start).await {
                Renewed::Given(next, asked) => (lease, start) = (next, asked),
                ended => {
                    self.give_up(held, &tell).await;
                    // Who refuses it is there and may give another at once.
                    return if let Renewed::Refused = ended { Ok(()) } else { Err(format!("the lease of {} ended", lease.address)) };
                }
            }
        }
    }

    /// The lease to begin with: the one that is held if its server still says so, else a new one, else the one that is held as long as it lasts.
    async fn first(
        &self,
        socket: &UdpSocket,
        client: &Client<'_>,
        held: &mut Option<Held>,
        tell: &impl Fn(Option<&Lease>),
    ) -> Option<(Lease, Instant)> {
        if held.as_ref().is_some_and(Held::is_over) {
            self.give_up(held, tell).await;
        }
        if let Some(known) = held.clone() {
            let asked = Instant::now();
            match exchange(socket, client, Question::Again(&known.lease), Ipv4Addr::BROADCAST, asked + AGAIN_TIME).await {
                Some(Answer::Given(lease)) => return Some((lease, asked)),
                // It is another network.
                Some(_) => self.give_up(held, tell).await,
                None => {}
            }
        }
        match acquire(socket, client).await {
            Some(given) => Some(given),
            None => held.clone().filter(|held| !held.is_over()).map(|held| (held.lease, held.start)),
        }
    }

    async fn give_up(&self, held: &mut Option<Held>, tell: &impl Fn(Option<&Lease>)) {
        if let Some(held) = held.take() {
            self.kernel.remove(self.interface.index, &held.wiring()).await;
            tell(None);
        }
    }
}

async fn acquire(socket: &UdpSocket, client: &Client<'_>) -> Option<(Lease, Instant)> {
    for seconds in WAITS_SECONDS {
        let start = Instant::now();
        let end = start + Duration::from_secs(seconds);
        let Some(Answer::Offer(offer)) = exchange(socket, client, Question::Discover, Ipv4Addr::BROADCAST, end).await else { continue };
        if let Some(Answer::Given(lease)) = exchange(socket, client, Question::Request(&offer), Ipv4Addr::BROADCAST, end).await {
            return Some((lease, start));
        }
        // An answer that came at once must not make a loop without pause.
        sleep_until(end).await;
    }
    None
}

/// What came of the wish to keep a lease.
enum Renewed {
    /// It is kept, since it was asked for; its address and roads may be others.
    Given(Lease, Instant),
    /// It is not.
    Refused,
    /// Nobody answered until its end.
    Ended,
}

/// Waits for the time to renew, and does.
async fn renew(socket: &UdpSocket, client: &Client<'_>, lease: &Lease, start: Instant) -> Renewed {
    let [first, any, end] = lease.times.map(|time| start + time);
    sleep_until(first).await;
    while Instant::now() < end {
        let asked = Instant::now();
        let server = if asked < any { lease.server } else { Ipv4Addr::BROADCAST };
        let until = (asked + RENEW_PAUSE).min(end);
        match exchange(socket, client, Question::Renew(lease), server, until).await {
            Some(Answer::Given(lease)) => return Renewed::Given(lease, asked),
            Some(Answer::Refused) => return Renewed::Refused,
            _ => sleep_until(until).await,
        }
    }
    Renewed::Ended
}

/// Asks and waits for the answer that fits.
async fn exchange(socket: &UdpSocket, client: &Client<'_>, question: Question<'_>, server: Ipv4Addr, end: Instant) -> Option<Answer> {
    // What cannot be sent is not answered.
    socket.send_to(&client.ask(question), SocketAddr::from((server, SERVER_PORT))).await.ok();
    let mut bytes = [0; DATAGRAM_BYTES_MAX];
    loop {
        match timeout_at(end, socket.recv_from(&mut bytes)).await {
            Err(_) => return None,
            // An ICMP error of an earlier datagram; the deadline bounds how many there can be.
            Ok(Err(_)) => tokio::task::yield_now().await,
            Ok(Ok((length, _))) => {
                let fits = |answer: &Answer| {
                    matches!((question, answer), (Question::Discover, Answer::Offer(_)))
                        || !matches!(question, Question::Discover) && !matches!(answer, Answer::Offer(_))
                };
                if let Some(answer) = client.hear(&bytes[..length]).filter(fits) {
                    return Some(answer);
                }
            }
        }
    }
}

/// A socket on the client's port that hears and speaks on one interface alone.
fn open(interface: &str) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    setsockopt(&socket, Broadcast, &true)?;
    setsockopt(&socket, BindToDevice, &interface.into())?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, CLIENT_PORT))?;
    UdpSocket::from_std(socket.into())
}
