//! One connection of QUIC and the streams that its other side opens. A member's are answered side by side; a stranger has one at a time,
//! a small window and an end. Who is which is looked up with every stream, for strangers become members and members leave.

use iroh::endpoint::{Connection, VarInt};
use rebec_book::Key;
use tokio::time::{Instant, timeout_at};

use crate::{
    door::{Door, STRANGER_TIME, STREAMS_PER_MEMBER, StrangerPlace},
    kept::{PER_KEY, PER_STRANGER},
};

/// Unread data on the connection of a member, and of whoever this host has dialled.
const WINDOW_BYTES: u32 = 8 << 20;
/// A stranger's stream: there is one. Every connection begins so.
pub const STRANGER_STREAMS_MAX: u32 = 1;
/// Unread data of a stranger: the longest head and the longest body.
pub const STRANGER_WINDOW_BYTES: u32 = 128 << 10;

/// Why this side ends a connection, for whoever was connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Goodbye {
    /// Of the key, or where all places are taken of whoever has most.
    #[error("newer connections take its place")]
    Replaced,
    /// No place for a stranger.
    #[error("too many hosts that are no members are connected; try again")]
    Strangers,
    /// No place in all.
    #[error("too many hosts are connected; try again")]
    Full,
    /// A stranger has had its time.
    #[error("a host that is no member may stay for some seconds only")]
    Stayed,
    /// What it begins at is not this host's any more.
    #[error("this host has left the address that it was at")]
    Moved,
}

impl Goodbye {
    /// Ends a connection.
    pub fn say(self, connection: &Connection) {
        connection.close(VarInt::from_u32(self as u32 + 1), self.to_string().as_bytes());
    }
}

/// Who the other side of a connection is to this one.
enum Standing {
    Member,
    /// Of whom nothing is known but that this host has dialled it.
    Dialled,
    Stranger {
        _place: StrangerPlace,
        until: Instant,
    },
}

/// The other side of a connection.
pub struct Visitor {
    door: Door,
    key: Key,
    connection: Connection,
    dialled: bool,
    standing: Standing,
}

impl Visitor {
    /// Gives the other side of a new connection what it may have.
    ///
    /// # Errors
    /// For a stranger, where there is no place for one.
    pub fn enter(door: Door, key: Key, connection: Connection, dialled: bool) -> Result<Self, Goodbye> {
        let standing = standing(&door, &key, dialled)?;
        let visitor = Self { door, key, connection, dialled, standing };
        visitor.grant();
        Ok(visitor)
    }

    /// Connections that its key may have.
    pub fn connections_max(&self) -> usize {
        if matches!(self.standing, Standing::Member) { PER_KEY } else { PER_STRANGER }
    }

    /// Answers until the connection ends.
    pub async fn run(mut self) {
        if let Err(goodbye) = self.answer_all().await {
            log::debug!("host {}: {goodbye}", self.key.short());
            goodbye.say(&self.connection);
        }
    }

    async fn answer_all(&mut self) -> Result<(), Goodbye> {
        loop {
            let next = self.connection.accept_bi();
            let next = match self.standing {
                Standing::Stranger { until, .. } => timeout_at(until, next).await,
                Standing::Member | Standing::Dialled => Ok(next.await),
            };
            self.look()?;
            let stream = match next {
                // One that always has a next stream has its end too.
                _ if self.has_stayed() => return Err(Goodbye::Stayed),
                Ok(Ok((send, receive))) => tokio::io::join(receive, send),
                Ok(Err(_)) => return Ok(()),
                // It has become a member meanwhile.
                Err(_) => continue,
            };
            match self.standing {
                Standing::Member => {
                    let (door, key) = (self.door.clone(), self.key);
                    let Some(share) = door.stream(key) else {
                        log::info!("host {} has too many streams open", key.short());
                        continue;
                    };
                    tokio::spawn(async move {
                        door.answer(key, stream).await;
                        drop(share);
                    });
                }
                Standing::Dialled | Standing::Stranger { .. } => self.door.answer_stranger(self.key, stream).await,
            }
        }
    }

    fn has_stayed(&self) -> bool {
        matches!(self.standing, Standing::Stranger { until, .. } if Instant::now() >= until)
    }

    /// Looks who the other side is by now.
    fn look(&mut self) -> Result<(), Goodbye> {
        if self.door.is_member(&self.key) != matches!(self.standing, Standing::Member) {
            self.standing = standing(&self.door, &self.key, self.dialled)?;
            self.grant();
        }
        Ok(())
    }

    fn grant(&self) {
        let (streams, window) = match self.standing {
            Standing::Member => (STREAMS_PER_MEMBER, WINDOW_BYTES),
            Standing::Dialled => (STRANGER_STREAMS_MAX, WINDOW_BYTES),
            Standing::Stranger { .. } => (STRANGER_STREAMS_MAX, STRANGER_WINDOW_BYTES),
        };
        self.connection.set_max_concurrent_bi_streams(streams.into());
        self.connection.set_receive_window(window.into());
    }
}

fn standing(door: &Door, key: &Key, dialled: bool) -> Result<Standing, Goodbye> {
    if door.is_member(key) {
        return Ok(Standing::Member);
    }
    if dialled {
        return Ok(Standing::Dialled);
    }
    let place = door.stranger().ok_or(Goodbye::Strangers)?;
    Ok(Standing::Stranger { _place: place, until: Instant::now() + STRANGER_TIME })
}
