//! The door of a host: who is a member, who answers, and what those may take who are none.

use std::{sync::Arc, time::Duration};

use axum::{Router, http::Extensions};
use rebec_book::Key;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{
    serve::{LIMITS, Rules, exchanges},
    shares::{Share, Shares},
};

/// Strangers connected at a time, by whatever road: all that a stranger wants is to join, and that takes milliseconds.
pub const STRANGERS_MAX: usize = 16;
/// How long a stranger's connection, and the answer to its request, may take.
pub const STRANGER_TIME: Duration = Duration::from_secs(20);
/// Streams that a member may have open, over all its connections: a part on its way or a console is one.
pub const STREAMS_PER_MEMBER: u32 = 256;
/// Connections over TCP of one member: a move has some streams, and several VMs may move at once.
const TCP_PER_MEMBER: usize = 64;

type Mark = dyn Fn(Key, &mut Extensions) + Send + Sync;
type IsMember = dyn Fn(&Key) -> bool + Send + Sync;

/// The door; clones are the same one.
#[derive(Clone)]
pub struct Door {
    router: Router,
    mark: Arc<Mark>,
    is_member: Arc<IsMember>,
    strangers: Arc<Semaphore>,
    streams: Shares<Key>,
    by_tcp: Shares<Key>,
}

/// The place of a stranger.
#[derive(Debug)]
pub struct StrangerPlace {
    _place: OwnedSemaphorePermit,
}

impl Door {
    /// `router` answers, and gets what `caller` makes of the asker's key as an extension of each request. `is_member` is asked whenever
    /// somebody asks something: a stranger becomes a member by what it asks.
    pub fn new<C: Clone + Send + Sync + 'static>(
        router: Router,
        caller: impl Fn(Key) -> C + Send + Sync + 'static,
        is_member: impl Fn(&Key) -> bool + Send + Sync + 'static,
    ) -> Self {
        let mark = move |key, extensions: &mut Extensions| {
            extensions.insert(caller(key));
        };
        Self {
            router,
            mark: Arc::new(mark),
            is_member: Arc::new(is_member),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            streams: Shares::new(STREAMS_PER_MEMBER as usize),
            by_tcp: Shares::new(TCP_PER_MEMBER),
        }
    }

    /// Whether somebody is a member.
    pub fn is_member(&self, key: &Key) -> bool {
        (self.is_member)(key)
    }

    /// A place for one more stranger.
    pub fn stranger(&self) -> Option<StrangerPlace> {
        self.strangers.clone().try_acquire_owned().ok().map(|place| StrangerPlace { _place: place })
    }

    /// A place for one more stream of a member.
    pub fn stream(&self, key: Key) -> Option<Share<Key>> {
        self.streams.take(key)
    }

    /// A place for one more connection of a member over TCP.
    pub fn by_tcp(&self, key: Key) -> Option<Share<Key>> {
        self.by_tcp.take(key)
    }

    /// Answers what a member asks over a connection or stream, to its end.
    pub async fn answer(&self, key: Key, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        self.exchanges(key, io, false).await;
    }

    /// Answers the one thing that a stranger may ask over a connection or stream.
    pub async fn answer_stranger(&self, key: Key, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        if timeout(STRANGER_TIME, self.exchanges(key, io, true)).await.is_err() {
            log::debug!("host {}, which is no member, took too long", key.short());
        }
    }

    async fn exchanges(&self, key: Key, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, stranger: bool) {
        let mark = self.mark.clone();
        let mark = move |extensions: &mut Extensions| mark(key, extensions);
        exchanges(io, self.router.clone(), mark, Rules { head_time: LIMITS.head, stranger }).await;
    }
}
