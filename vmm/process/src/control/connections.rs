//! Who is connected to the control socket, and who has to leave when it is full.
//!
//! ```text
//! admitted -> idle <-> busy (a request is under way) -> gone
//!               \-> evicted: a newcomer needs the seat, and this one has been idle longest
//! ```

use std::{
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rebec_vmm_api::control::{ControlError, ErrorCode, Response, ResponseBody};

use super::{CONNECTIONS_MAX, wire::send_line};

/// How long a client may leave a line of the server unread before it is cut off.
const WRITE_TIME: Duration = Duration::from_secs(5);

/// All connections of one control socket.
#[derive(Default)]
pub struct Connections {
    open: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    next: u64,
    seats: Vec<Occupied>,
}

struct Occupied {
    number: u64,
    stream: Arc<UnixStream>,
    /// None while a request is under way.
    idle_since: Option<Instant>,
}

/// A place among the connections, left when dropped.
pub struct Seat {
    number: u64,
    stream: Arc<UnixStream>,
    connections: Arc<Connections>,
}

impl Connections {
    /// Gives a newcomer a seat, if need be that of the connection that has been idle longest. `None`: all are busy, and
    /// the newcomer has been told so.
    pub fn admit(self: &Arc<Self>, stream: UnixStream) -> io::Result<Option<Seat>> {
        stream.set_write_timeout(Some(WRITE_TIME))?;
        let stream = Arc::new(stream);
        let Some((number, evicted)) = self.take_seat(&stream) else {
            refuse(&stream);
            return Ok(None);
        };
        let seat = Seat { number, stream, connections: self.clone() };
        if let Some(evicted) = evicted {
            // Its thread waits for a line and now reads the end; if it has gone already, so much the better.
            evicted.shutdown(Shutdown::Both).ok();
        }
        Ok(Some(seat))
    }

    fn take_seat(&self, stream: &Arc<UnixStream>) -> Option<(u64, Option<Arc<UnixStream>>)> {
        let mut table = self.lock();
        let mut evicted = None;
        if table.seats.len() >= CONNECTIONS_MAX {
            let idle = table.seats.iter().enumerate().filter(|(_, seat)| seat.idle_since.is_some());
            let (longest, _) = idle.min_by_key(|(_, seat)| seat.idle_since)?;
            evicted = Some(table.seats.swap_remove(longest).stream);
        }
        let number = table.next;
        table.next += 1;
        table.seats.push(Occupied { number, stream: stream.clone(), idle_since: Some(Instant::now()) });
        Some((number, evicted))
    }

    /// Waits until no request is under way, or the time is over; true if none is.
    pub fn wait_until_idle(&self, time: Duration) -> bool {
        let busy = |table: &mut Table| table.seats.iter().any(|seat| seat.idle_since.is_none());
        let waited = self.changed.wait_timeout_while(self.lock(), time, busy).unwrap_or_else(PoisonError::into_inner);
        !waited.1.timed_out()
    }

    /// The table is consistent after every statement: a thread that panicked while it held the lock did no harm.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// The connection.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Marks a request as under way. False: the seat was given away, and the connection is over.
    pub fn begin(&self) -> bool {
        self.set_idle(None)
    }

    /// Marks the request as answered, the answer as written. False as for [`Seat::begin`].
    pub fn end(&self) -> bool {
        self.set_idle(Some(Instant::now()))
    }

    fn set_idle(&self, idle_since: Option<Instant>) -> bool {
        let mut table = self.connections.lock();
        let seat = table.seats.iter_mut().find(|seat| seat.number == self.number);
        let found = seat.map(|seat| seat.idle_since = idle_since).is_some();
        drop(table);
        self.connections.changed.notify_all();
        found
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.lock().seats.retain(|seat| seat.number != self.number);
        self.connections.changed.notify_all();
    }
}

/// A fresh socket has room for one line, so this does not wait.
fn refuse(stream: &UnixStream) {
    let message = format!("{CONNECTIONS_MAX} connections are busy with requests; try again when one is done");
    let body = ResponseBody::Error(ControlError { code: ErrorCode::Busy, message });
    if let Err(error) = send_line(stream, &Response { id: 0, body }, &[]) {
        log::debug!("control: refuse a connection: {error}");
    }
}
