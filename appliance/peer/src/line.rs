//! The connection that a question goes over. One that was kept may be lost without a word: an agent that was killed and is back knows nothing of
//! it, and its host has no way to say so. What acknowledges the question comes within a round trip, so that silence tells of it long before
//! the connection ends by itself; a dial then says whether the host is there.

use std::time::Duration;

use iroh::endpoint::{Connection, RecvStream, SendStream};

/// What was just sent is acknowledged within this time.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// Longer than between two pings and their answers.
const LOOK: Duration = Duration::from_secs(3);

/// One stream of a connection.
pub type Stream = tokio::io::Join<RecvStream, SendStream>;

/// A connection, for one question.
pub struct Line {
    connection: Connection,
    /// Whether it was there before the question.
    is_kept: bool,
    /// Datagrams that had come before the question.
    before: u64,
}

impl Line {
    /// Over a connection that was kept, or dialled for the question.
    pub fn new(connection: Connection, is_kept: bool) -> Self {
        let before = heard(&connection);
        Self { connection, is_kept, before }
    }

    /// A stream of it.
    pub async fn stream(&self) -> anyhow::Result<Stream> {
        let (send, receive) = self.connection.open_bi().await?;
        Ok(tokio::io::join(receive, send))
    }

    /// Whether it was there before the question, so that it may have been lost before.
    pub fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Whether it has ended.
    pub fn is_lost(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Whether nothing has come over it since the question: whoever is there now has not taken the question.
    pub fn is_unheard(&self) -> bool {
        heard(&self.connection) == self.before
    }

    /// Whether it is this connection.
    pub fn is_over(&self, connection: &Connection) -> bool {
        self.connection.stable_id() == connection.stable_id()
    }

    /// Waits until nothing has come over it for a while; `is_there` then says whether its host answers otherwise. Where it does, and still
    /// nothing came, this ends.
    pub async fn deaf<F: Future<Output = bool>>(&self, is_there: impl Fn() -> F) {
        let mut look = FIRST_LOOK;
        loop {
            let before = heard(&self.connection);
            tokio::time::sleep(look).await;
            look = LOOK;
            if heard(&self.connection) == before && is_there().await && heard(&self.connection) == before {
                return;
            }
        }
    }
}

fn heard(connection: &Connection) -> u64 {
    connection.stats().udp_rx.datagrams
}
