//! Lending contents: `serve` answers for a VM that runs here; `DonorHandle` asks a VM elsewhere on this host. Copies only,
//! in bounded batches; the protocol is `rebec_migrate::donor`.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::mpsc::{SyncSender, sync_channel},
    time::Duration,
};

use anyhow::{Context, Result};
use rebec_devices::Threads;
use rebec_kvm::Ram;
use rebec_migrate::{
    UNIT_BYTES,
    donor::{DIGESTS_MAX, DonorError, Parsed, Request, Response},
    page::{self, Key, Verdict},
};

/// A donor that is silent for so long counts as gone: it costs bytes, not the move.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Pages that are copied and hashed at a time: together they take half as long as one by one.
const JUDGED_TOGETHER: usize = 64;
/// Requests that wait for one donor: one a stream.
const REQUESTS_MAX: usize = rebec_migrate::STREAMS_MAX;

/// Answers requests about this VM's memory until the asker leaves. The VM runs on meanwhile.
pub fn serve(ram: &Ram, mut stream: UnixStream) -> Result<()> {
    loop {
        let Some(request) = receive(&mut stream, Request::parse)? else { return Ok(()) };
        let response = answer(ram, &request)?;
        stream.write_all(&response.to_bytes()).context("answer who asked for contents")?;
    }
}

fn answer(ram: &Ram, request: &Request) -> Result<Response> {
    let mut unit = [0; UNIT_BYTES];
    match request {
        Request::Digests { key, first, count } => {
            let end = first.saturating_add(u64::from((*count).min(DIGESTS_MAX))).min(ram.pages());
            // Looking at a page that was never populated would populate it.
            let populated = ram.populated()?.into_iter().flat_map(|range| range.start.max(*first)..range.end.min(end));
            let numbers: Vec<u64> = populated.collect();
            let (mut found, mut copy) = (vec![], vec![]);
            for batch in numbers.chunks(JUDGED_TOGETHER) {
                copy.resize(batch.len() * UNIT_BYTES, 0);
                for (&number, unit) in batch.iter().zip(copy.as_chunks_mut().0) {
                    ram.read_page(number, unit)?;
                }
                let judged = batch.iter().zip(page::judge(key, &copy));
                found.extend(judged.filter_map(|(number, verdict)| match verdict {
                    Verdict::Content(digest) => Some(((number - first) as u16, digest)),
                    _ => None,
                }));
            }
            Ok(Response::Digests { next: Some(end).filter(|end| *end < ram.pages() && end > first), found })
        }
        Request::Pages(numbers) => {
            let mut units = Vec::with_capacity(numbers.len() * UNIT_BYTES);
            for &number in numbers {
                unit.fill(0);
                if number < ram.pages() {
                    ram.read_page(number, &mut unit)?;
                }
                units.extend_from_slice(&unit);
            }
            Ok(Response::Pages(units))
        }
    }
}

/// Reads one message; `None` if the peer left before it began.
fn receive<T>(stream: &mut UnixStream, parse: impl Fn(&[u8]) -> Result<Parsed<T>, DonorError>) -> Result<Option<T>> {
    let mut bytes = vec![];
    loop {
        match parse(&bytes)? {
            Parsed::Whole(message) => return Ok(Some(message)),
            Parsed::Needs(count) => {
                let have = bytes.len();
                bytes.resize(count, 0);
                match stream.read_exact(&mut bytes[have..]) {
                    Err(error) if have == 0 && error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                    read => read.context("read from a donor connection")?,
                }
            }
        }
    }
}

struct Question {
    request: Request,
    answer: SyncSender<Option<Response>>,
}

/// One donor, asked by any thread: its own thread owns the connection. The connection ends when the last handle is dropped.
#[derive(Clone)]
pub struct DonorHandle {
    questions: SyncSender<Question>,
}

impl DonorHandle {
    /// Starts the thread that asks.
    pub fn start(threads: &dyn Threads, mut stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        stream.set_write_timeout(Some(ANSWER_TIME))?;
        let (questions, asked) = sync_channel::<Question>(REQUESTS_MAX);
        let body = move || {
            let mut alive = true;
            while let Ok(Question { request, answer }) = asked.recv() {
                let response = if alive { ask(&mut stream, &request) } else { Ok(None) };
                let response = response.unwrap_or_else(|error| {
                    log::warn!("donor: {error:#}; the move goes on without it");
                    None
                });
                alive &= response.is_some();
                answer.send(response).unwrap_or_default();
            }
        };
        threads.spawn("move-donor", Box::new(body)).context("start a donor's thread")?;
        Ok(Self { questions })
    }

    /// Digests from a page on; `None` when the donor is gone.
    pub fn digests(&self, key: Key, first: u64, count: u32) -> Option<Response> {
        self.ask(Request::Digests { key, first, count })
    }

    /// Copies of pages; `None` when the donor is gone.
    pub fn pages(&self, numbers: Vec<u64>) -> Option<Vec<u8>> {
        match self.ask(Request::Pages(numbers))? {
            Response::Pages(units) => Some(units),
            Response::Digests { .. } => None,
        }
    }

    fn ask(&self, request: Request) -> Option<Response> {
        let (answer, answered) = sync_channel(1);
        self.questions.send(Question { request, answer }).ok()?;
        answered.recv().ok()?
    }
}

fn ask(stream: &mut UnixStream, request: &Request) -> Result<Option<Response>> {
    stream.write_all(&request.to_bytes()).context("ask a donor")?;
    receive(stream, |bytes| Response::parse(bytes, request))
}
