//! The way back of one request: from the thread that owns the VM to the connection that asked.
//!
//! ```text
//! owner ----send(Progress)*, send(Ok | Error)----> [slot: newest progress, final answer] ----> connection thread ----> client
//! ```
//!
//! The slot keeps only the newest progress, so a client that reads slowly sees fewer reports and never holds anybody up:
//! sending neither blocks nor allocates without limit. The lock is held for a move of values, never across I/O.

use std::{
    io,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use rebec_vmm_api::control::{Answer, ControlError, ErrorCode, Progress, Response, ResponseBody};
use rustix::net::{SendFlags, send};

use super::wire::encode_line;

/// Where the owner of the VM puts what the client shall hear. Dropped without a final answer, it tells the client so.
pub struct Reply {
    slot: Arc<Slot>,
    donation: Option<Donation>,
}

/// Where the connection thread waits for it.
pub struct Answers {
    slot: Arc<Slot>,
}

/// What became of a request.
pub enum Heard {
    /// Send this to the client and listen on.
    Progress(Progress),
    /// Send this to the client: the request is over.
    Final(ResponseBody),
    /// The connection belongs to somebody else now: do not touch it again.
    HandedOver,
}

/// A connection that may become a donor connection, and the id its last answer must bear.
pub struct Donation {
    /// The whole connection, nothing unread on it.
    pub stream: UnixStream,
    /// Of the request.
    pub id: u64,
}

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    progress: Option<Progress>,
    end: Option<End>,
}

enum End {
    Answer(Box<ResponseBody>),
    HandedOver,
}

/// The two ends of one request's way back.
pub fn reply(donation: Option<Donation>) -> (Reply, Answers) {
    let slot = Arc::new(Slot::default());
    (Reply { slot: slot.clone(), donation }, Answers { slot })
}

impl Reply {
    /// Tells the client how far the request is, or how it ended. After the end nothing more is heard.
    pub fn send(&self, body: ResponseBody) {
        match body {
            ResponseBody::Progress(progress) => self.slot.lock().progress = Some(progress),
            ResponseBody::Ok(_) | ResponseBody::Error(_) => self.end(End::Answer(Box::new(body))),
        }
        self.slot.changed.notify_one();
    }

    /// Answers `donate` with ok and takes the connection: from here on it speaks the donor protocol.
    ///
    /// Never waits: a client that has left no room for one short line loses its connection.
    pub fn hand_over(mut self) -> io::Result<UnixStream> {
        let missing = || io::Error::new(io::ErrorKind::InvalidInput, "only a donate request hands its connection over");
        let Donation { stream, id } = self.donation.take().ok_or_else(missing)?;
        self.end(End::HandedOver);
        self.slot.changed.notify_one();
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        let line = encode_line(&Response { id, body: ResponseBody::Ok(Answer::Done) }).map_err(io::Error::other)?;
        let sent = send(&stream, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        if sent < line.len() {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "the donor client does not read"));
        }
        Ok(stream)
    }

    fn end(&self, end: End) {
        self.slot.lock().end.get_or_insert(end);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let message = "the VM ended before it answered; see its messages on standard error".into();
        self.end(End::Answer(Box::new(ResponseBody::Error(ControlError { code: ErrorCode::Failed, message }))));
        self.slot.changed.notify_one();
    }
}

impl Answers {
    /// Waits for the next thing to do. Progress that the end has overtaken is not reported any more.
    pub fn next(&self) -> Heard {
        let state = self.slot.lock();
        let nothing = |state: &mut State| state.progress.is_none() && state.end.is_none();
        let mut state = self.slot.changed.wait_while(state, nothing).unwrap_or_else(PoisonError::into_inner);
        match state.end.take() {
            Some(End::Answer(body)) => Heard::Final(*body),
            Some(End::HandedOver) => Heard::HandedOver,
            None => Heard::Progress(state.progress.take().expect("invariant: the wait ends with progress or an end")),
        }
    }
}

impl Slot {
    /// The state is two plain values: a thread that panicked while it held the lock left them usable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(round: u32) -> Progress {
        Progress { phase: "rounds".into(), round, remaining_units: 0, total_units: 0, wire_bytes: 0, applied_mbit: 0, predicted_ms: 0 }
    }

    #[test]
    fn a_slow_listener_hears_the_newest_progress_and_the_first_end() {
        let (reply, answers) = reply(None);
        for round in 1..=1000 {
            reply.send(ResponseBody::Progress(progress(round)));
        }
        assert!(matches!(answers.next(), Heard::Progress(progress) if progress.round == 1000));
        reply.send(ResponseBody::Progress(progress(1001)));
        reply.send(ResponseBody::Ok(Answer::Done));
        drop(reply);
        assert!(matches!(answers.next(), Heard::Final(ResponseBody::Ok(Answer::Done))));
    }

    #[test]
    fn an_owner_that_forgets_to_answer_is_an_error_to_the_client() {
        let (reply, answers) = reply(None);
        let waiting = std::thread::spawn(move || answers.next());
        drop(reply);
        assert!(matches!(waiting.join().unwrap(), Heard::Final(ResponseBody::Error(_))));
    }

    #[test]
    fn only_a_donation_can_be_handed_over() {
        let (reply, answers) = reply(None);
        assert!(reply.hand_over().is_err());
        assert!(matches!(answers.next(), Heard::Final(ResponseBody::Error(_))));
    }
}
