//! A clock that only remembers what it was told, kept by time servers that are good, bad, slow or somebody else.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use rebec_links::time::{
    TimeState,
    clock::Clock,
    discipline::Correction,
    keep_time,
    message::{Nanos, nanos},
};
use tokio::{net::UdpSocket, sync::watch};

/// Five times what the longest of these takes on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(45);
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Default)]
struct Remembers(RefCell<Vec<Correction>>);

impl Clock for &Remembers {
    fn now(&self) -> Nanos {
        nanos(SystemTime::UNIX_EPOCH.elapsed().unwrap())
    }

    fn correct(&self, correction: &Correction) -> io::Result<()> {
        self.0.borrow_mut().push(*correction);
        Ok(())
    }

    fn vouch(&self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// A server, and how often it was asked.
struct Server {
    address: SocketAddr,
    asked: Arc<AtomicU32>,
}

/// A server whose clock is ahead, and which changes its answers or delays them; with `other`, it answers from another port.
async fn server(ahead: Duration, delay: Duration, other: bool, change: impl Fn(&mut [u8; 48]) + Send + 'static) -> Server {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (socket.local_addr().unwrap(), Arc::new(AtomicU32::new(0)));
    let count = asked.clone();
    tokio::spawn(async move {
        let mut question = [0; 64];
        loop {
            let (length, from) = socket.recv_from(&mut question).await.unwrap();
            assert_eq!((length, question[0]), (48, 4 << 3 | 3));
            count.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(delay).await;
            let mut answer = [0; 48];
            answer[..2].copy_from_slice(&[4 << 3 | 4, 1]);
            answer[24..32].copy_from_slice(&question[40..48]);
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap() + ahead;
            let seconds = (now.as_secs() + 2_208_988_800) as u32;
            let fraction = ((u64::from(now.subsec_nanos()) << 32) / 1_000_000_000) as u32;
            for at in [32, 40] {
                answer[at..at + 4].copy_from_slice(&seconds.to_be_bytes());
                answer[at + 4..at + 8].copy_from_slice(&fraction.to_be_bytes());
            }
            change(&mut answer);
            let speaks = if other { &elsewhere } else { &socket };
            speaks.send_to(&answer, from).await.unwrap();
        }
    });
    Server { address, asked }
}

async fn good(ahead: Duration) -> Server {
    server(ahead, Duration::ZERO, false, |_| ()).await
}

/// Keeps the clock until `enough` says so; returns what was told.
async fn kept(clock: &Remembers, servers: watch::Receiver<Vec<SocketAddr>>, enough: impl Fn(&[TimeState]) -> bool) -> Vec<TimeState> {
    let (done, seen) = (tokio::sync::Notify::new(), RefCell::new(Vec::new()));
    let tell = |state| {
        seen.borrow_mut().push(state);
        if enough(&seen.borrow()) {
            done.notify_one();
        }
    };
    tokio::select! {
        () = keep_time(clock, servers, tell) => unreachable!("it never ends"),
        () = done.notified() => {}
        () = tokio::time::sleep(PATIENCE) => panic!("not within {PATIENCE:?}: {:?}", seen.borrow()),
    }
    seen.into_inner()
}

/// Keeps the clock by servers that do not change until it was told something twice.
async fn kept_by(clock: &Remembers, servers: &[&Server]) -> Vec<TimeState> {
    let (_sender, servers) = watch::channel(servers.iter().map(|server| server.address).collect());
    kept(clock, servers, |seen| seen.len() == 2 || matches!(seen, [TimeState::Synchronised { .. }])).await
}

fn is_refused(states: &[TimeState], why: &str) -> bool {
    states.len() == 2 && states.iter().all(|state| matches!(state, TimeState::Failed(text) if text.contains(why)))
}

fn about(step: Option<Nanos>, wanted: Duration) -> bool {
    step.is_some_and(|step| (step - nanos(wanted)).abs() < nanos(Duration::from_secs(1)))
}

#[tokio::test]
async fn the_first_good_answer_sets_a_clock_and_later_ones_only_have_it_run_faster() {
    let (clock, wrong, right) = (Remembers::default(), good(HOUR).await, good(Duration::from_millis(20)).await);
    let (sender, servers) = watch::channel(vec![]);
    let states = kept(&clock, servers, |seen| {
        // Whoever names servers names others each time.
        sender.send_replace(if seen.len() == 1 { vec![wrong.address] } else { vec![right.address] });
        seen.len() == 3
    });
    let states = states.await;
    assert_eq!(states[0], TimeState::NoServer);
    assert!(matches!(states[1], TimeState::Synchronised { server, off } if server == wrong.address && off.as_secs().abs_diff(3600) <= 1));
    assert!(matches!(states[2], TimeState::Synchronised { server, off } if server == right.address && off.as_millis() < 500), "{states:?}");
    assert_eq!((wrong.asked.load(Ordering::Relaxed), right.asked.load(Ordering::Relaxed)), (1, 4));
    let [first, second] = clock.0.borrow()[..] else { panic!("{:?}", clock.0) };
    assert!(about(first.step, HOUR) && first.rate_ppm == 0.0, "{first:?}");
    assert!(second.step.is_none() && second.rate_ppm > 0.0, "{second:?}");
}

#[tokio::test]
async fn of_several_servers_the_nearest_counts() {
    let clock = Remembers::default();
    let (near, far) = (good(HOUR).await, server(2 * HOUR, Duration::from_millis(300), false, |_| ()).await);
    let states = kept_by(&clock, &[&far, &near]).await;
    assert!(matches!(states[..], [TimeState::Synchronised { server, .. }] if server == near.address), "{states:?}");
    assert!(about(clock.0.borrow()[0].step, HOUR));
}

#[tokio::test]
async fn answers_that_must_not_be_believed_leave_the_clock_as_it_is() {
    type Change = fn(&mut [u8; 48]);
    let unsynchronised: Change = |answer| answer[0] |= 3 << 6;
    let unknown: Change = |answer| answer[1] = 16;
    let unasked: Change = |answer| answer[24] ^= 1;
    for (change, other, why) in [
        (unsynchronised, false, "does not know the time itself"),
        (unknown, false, "does not know the time itself"),
        (unasked, false, "does not answer"),
        (|_: &mut [u8; 48]| (), true, "does not answer"),
    ] {
        let clock = Remembers::default();
        let server = server(HOUR, Duration::ZERO, other, change).await;
        let states = kept_by(&clock, &[&server]).await;
        assert!(is_refused(&states, why), "{states:?}");
        assert!(clock.0.borrow().is_empty() && server.asked.load(Ordering::Relaxed) == 2);
    }
}

#[tokio::test]
async fn a_server_that_wants_to_be_left_alone_is() {
    for kiss in [b"DENY", b"RSTR", b"RATE"] {
        let clock = Remembers::default();
        let server = server(HOUR, Duration::ZERO, false, move |answer| {
            answer[1] = 0;
            answer[12..16].copy_from_slice(kiss);
        });
        let server = server.await;
        let states = kept_by(&clock, &[&server]).await;
        assert!(matches!(&states[1], TimeState::Failed(why) if why.contains("wants to be left alone")), "{states:?}");
        assert!(clock.0.borrow().is_empty() && server.asked.load(Ordering::Relaxed) == 1);
    }
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_told_with_what_to_do() {
    let clock = Remembers::default();
    let (_sender, servers) = watch::channel(vec!["127.0.0.1:1".parse().unwrap()]);
    let states = kept(&clock, servers, |seen| seen.len() == 1).await;
    let TimeState::Failed(why) = &states[0] else { panic!("{states:?}") };
    assert!(why.starts_with("127.0.0.1 cannot be asked: ") && why.ends_with("name another by rebec.ntp= or --ntp"), "{why}");
}
