//! Connections as they come to a listener: so many at a time, so many from one address, and no end where one cannot be taken.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};

use crate::shares::{Share, Shares, sender};

/// Rest after an accept that failed: no descriptors are left, and some will be again. Whoever connects waits meanwhile.
const REST: Duration = Duration::from_millis(100);
/// Without trouble for so long, trouble is news again.
const CALM: Duration = Duration::from_secs(60);

/// What others connect to.
pub trait Listener: Send {
    /// A connection.
    type Stream: Send;

    /// The next connection, and where it comes from if it comes from another machine.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, Option<IpAddr>)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, Option<IpAddr>)> {
        Self::accept(self).await.map(|(stream, from)| (stream, Some(from.ip())))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<(UnixStream, Option<IpAddr>)> {
        Self::accept(self).await.map(|(stream, _)| (stream, None))
    }
}

/// A connection's place at its listener.
#[derive(Debug)]
pub struct Place {
    /// In all.
    _of_all: OwnedSemaphorePermit,
    /// Of the address.
    of_address: Option<Share<IpAddr>>,
}

impl Place {
    /// Who is known is counted by name and not by address any more.
    pub fn known(&mut self) {
        self.of_address = None;
    }
}

/// Takes connections until the task is dropped, `in_all` at a time and `per_address` from one; those that have no place in all wait, and
/// those of an address that has too many are ended. What is `taken` counts until its place is dropped.
pub async fn each<L: Listener>(
    what: &'static str,
    (in_all, per_address): (usize, usize),
    mut listener: L,
    mut taken: impl FnMut(L::Stream, Place) + Send,
) {
    let (places, shares, mut trouble) = (Arc::new(Semaphore::new(in_all)), Shares::new(per_address), Trouble::default());
    while let Ok(of_all) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, from)) => match from.map(sender).map(|from| shares.take(from).ok_or(from)).transpose() {
                Ok(of_address) => taken(stream, Place { _of_all: of_all, of_address }),
                Err(from) => log::debug!("{what}: {from} has {per_address} connections already"),
            },
            // Whoever connected has left already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => log::debug!("{what}: accept: {error}"),
            Err(error) => {
                if trouble.is_news(Instant::now()) {
                    log::error!("{what}: accept: {error}; connections wait until it is over");
                }
                sleep(REST).await;
            }
        }
    }
}

/// Trouble that comes again and again is told once.
#[derive(Debug, Default)]
struct Trouble {
    last: Option<Instant>,
}

impl Trouble {
    fn is_news(&mut self, now: Instant) -> bool {
        self.last.replace(now).is_none_or(|last| now - last > CALM)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::sync::mpsc;

    use super::*;

    fn no_descriptors() -> io::Error {
        rustix::io::Errno::MFILE.into()
    }

    /// What its script says; then nobody comes any more.
    struct Script(VecDeque<io::Result<(u32, Option<IpAddr>)>>);

    impl Listener for Script {
        type Stream = u32;

        async fn accept(&mut self) -> io::Result<(u32, Option<IpAddr>)> {
            match self.0.pop_front() {
                Some(next) => next,
                None => std::future::pending().await,
            }
        }
    }

    async fn listen(
        script: impl IntoIterator<Item = io::Result<(u32, Option<IpAddr>)>>,
        limits: (usize, usize),
    ) -> Vec<(u32, Place, Instant)> {
        let (script, (send, mut receive)) = (Script(script.into_iter().collect()), mpsc::unbounded_channel());
        let listening = each("test", limits, script, |number, place| send.send((number, place, Instant::now())).unwrap());
        assert!(tokio::time::timeout(Duration::from_secs(600), listening).await.is_err(), "it ended");
        let mut all = vec![];
        while let Ok(one) = receive.try_recv() {
            all.push(one);
        }
        all
    }

    fn numbers(all: &[(u32, Place, Instant)]) -> Vec<u32> {
        all.iter().map(|(number, ..)| *number).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_without_descriptors_rests_and_goes_on() {
        let (since, failures) = (Instant::now(), 50);
        let script = (0..failures).map(|_| Err(no_descriptors())).chain([Ok((7, None))]);
        let all = listen(script, (8, 8)).await;
        assert_eq!(numbers(&all), [7]);
        // It did not spin meanwhile.
        assert!(all[0].2 - since >= REST * failures);
    }

    #[test]
    fn trouble_is_told_once() {
        let (mut trouble, start) = (Trouble::default(), Instant::now());
        let told: Vec<_> = (0..100).filter(|tenth| trouble.is_news(start + REST * *tenth)).collect();
        assert_eq!(told, [0]);
        assert!(trouble.is_news(start + REST * 100 + CALM));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_its_places_and_no_others() {
        let (one, other): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let script = [(1, one), (2, one), (3, one), (4, other)].map(|(number, from)| Ok((number, Some(from))));
        let all = listen(script, (8, 2)).await;
        assert_eq!(numbers(&all), [1, 2, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_place_in_all_others_wait() {
        let script = (0..9).map(|number| Ok((number, None)));
        assert_eq!(listen(script, (3, 1)).await.len(), 3);
    }
}
