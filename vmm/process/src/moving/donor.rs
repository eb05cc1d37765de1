//! Lending contents: `serve` answers for a VM that runs here; `DonorHandle` asks a VM elsewhere on this host. Copies only,
//! in bounded batches; the protocol is `rebec_migrate::donor`.
//!
//! ```text
//! asker's engine --a range--> move-donor --request, the next one already behind it--> lender --pages--> its judges, a thread a processor
//! ```
//! Memory is walked once, upwards, and each page of it is hashed once.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use rebec_devices::Threads;
use rebec_kvm::{PopulatedWalk, Ram};
use rebec_migrate::{
    UNIT_BYTES,
    donor::{DIGESTS_MAX, DonorError, Parsed, Request, Response},
    page::{self, Digest, Key, Verdict},
};

/// A donor that is silent for so long counts as gone: it costs bytes, not the move.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Pages that are copied and hashed at a time: together they take half as long as one by one.
const JUDGED_TOGETHER: usize = 64;
/// Threads that hash for one asker: the processors of this host, but for very large ones.
const JUDGES_MAX: usize = 16;
/// Requests that wait for one donor: one a stream.
const REQUESTS_MAX: usize = rebec_migrate::STREAMS_MAX;

/// Answers requests about this VM's memory until the asker leaves. The VM runs on meanwhile.
pub fn serve(ram: &Ram, judges: &Judges, mut stream: UnixStream) -> Result<()> {
    let mut walk = ram.walk();
    loop {
        let Some(request) = receive(&mut stream, Request::parse)? else { return Ok(()) };
        let response = match &request {
            Request::Digests { key, first, count } => digests(ram, judges, &mut walk, *key, *first, *count)?,
            Request::Pages(numbers) => pages(ram, numbers)?,
        };
        stream.write_all(&response.to_bytes()).context("answer who asked for contents")?;
    }
}

fn digests(ram: &Ram, judges: &Judges, walk: &mut PopulatedWalk, key: Key, first: u64, count: u32) -> Result<Response> {
    let end = first.saturating_add(u64::from(count.min(DIGESTS_MAX))).min(ram.pages());
    // Looking at a page that was never populated would populate it.
    let populated = walk.within(first.min(end)..end)?;
    let found = judges.judge(key, first, populated.into_iter().flatten().collect())?;
    // What is not populated need not be asked about.
    let next = walk.next_from(end).unwrap_or(end);
    Ok(Response::Digests { next: Some(next).filter(|next| *next < ram.pages() && *next > first), found })
}

fn pages(ram: &Ram, numbers: &[u64]) -> Result<Response> {
    let mut unit = [0; UNIT_BYTES];
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

/// Threads that hash a VM's pages for one asker. They end with this.
pub struct Judges {
    ram: Ram,
    helpers: Vec<SyncSender<Arc<Heap>>>,
    done: Receiver<Result<Vec<(u16, Digest)>>>,
}

/// Pages to judge; whoever has time takes the next few.
struct Heap {
    key: Key,
    first: u64,
    pages: Vec<u64>,
    taken: AtomicUsize,
}

impl Judges {
    /// As many threads as this host has processors, less the one that asks.
    pub fn start(threads: &dyn Threads, ram: &Ram) -> Result<Self> {
        // Asked of the kernel: the standard library would look at files, which a sealed process does not have.
        let processors = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count() as usize);
        let count = processors.clamp(1, JUDGES_MAX) - 1;
        let (told, done) = sync_channel(count.max(1));
        let mut helpers = vec![];
        for _ in 0..count {
            let (give, take) = sync_channel::<Arc<Heap>>(1);
            let (ram, told) = (ram.clone(), told.clone());
            let body = move || {
                while let Ok(heap) = take.recv() {
                    if told.send(heap.work_on(&ram)).is_err() {
                        break;
                    }
                }
            };
            threads.spawn("lender", Box::new(body)).context("start a thread that hashes")?;
            helpers.push(give);
        }
        Ok(Self { ram: ram.clone(), helpers, done })
    }

    /// The digests of pages, by their distance from `first`; zeros have none.
    fn judge(&self, key: Key, first: u64, pages: Vec<u64>) -> Result<Vec<(u16, Digest)>> {
        let heap = Arc::new(Heap { key, first, pages, taken: AtomicUsize::new(0) });
        let helpers = if heap.pages.len() > JUDGED_TOGETHER { &self.helpers[..] } else { &[] };
        let asked = helpers.iter().filter(|helper| helper.send(heap.clone()).is_ok()).count();
        let own = heap.work_on(&self.ram);
        // Everyone is waited for, whatever came of it: the next question must not be answered by this one's answers.
        let others: Vec<_> = (0..asked).filter_map(|_| self.done.recv().ok()).collect();
        let mut found = own?;
        for other in others {
            found.extend(other?);
        }
        Ok(found)
    }
}

impl Heap {
    fn work_on(&self, ram: &Ram) -> Result<Vec<(u16, Digest)>> {
        let (mut found, mut copy) = (vec![], vec![]);
        loop {
            let at = self.taken.fetch_add(JUDGED_TOGETHER, Ordering::Relaxed);
            let Some(batch) = self.pages.get(at..).filter(|rest| !rest.is_empty()).map(|rest| &rest[..rest.len().min(JUDGED_TOGETHER)])
            else {
                return Ok(found);
            };
            copy.resize(batch.len() * UNIT_BYTES, 0);
            for (&number, unit) in batch.iter().zip(copy.as_chunks_mut().0) {
                ram.read_page(number, unit)?;
            }
            let judged = batch.iter().zip(page::judge(&self.key, &copy));
            found.extend(judged.filter_map(|(number, verdict)| match verdict {
                Verdict::Content(digest) => Some(((number - self.first) as u16, digest)),
                _ => None,
            }));
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
        let mut asking = Asking { ahead: None };
        let body = move || {
            let mut alive = true;
            while let Ok(Question { request, answer }) = asked.recv() {
                let response = if alive { asking.ask(&mut stream, &request) } else { Ok(None) };
                let response = response.unwrap_or_else(|error| {
                    log::warn!("donor: {error:#}; the move goes on without it");
                    None
                });
                alive &= response.is_some();
                answer.send(response).unwrap_or_default();
                if alive && let Err(error) = asking.follow(&mut stream) {
                    log::warn!("donor: {error:#}; the move goes on without it");
                    alive = false;
                }
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

/// What was asked on a donor's connection. While the engine takes in digests, the next ones are asked for already.
struct Asking {
    ahead: Option<Ahead>,
}

/// A question that nobody has asked yet: it follows from the answer before.
struct Ahead {
    request: Request,
    state: AheadState,
}

enum AheadState {
    /// It may be asked.
    Known,
    /// It was, and its answer is on its way.
    Asked,
    /// The answer was read because another question came first.
    Answered(Response),
}

impl Asking {
    fn ask(&mut self, stream: &mut UnixStream, request: &Request) -> Result<Option<Response>> {
        let response = match self.ahead.take() {
            Some(Ahead { request: ahead, state }) if ahead == *request => match state {
                AheadState::Answered(response) => Some(response),
                AheadState::Asked => receive(stream, |bytes| Response::parse(bytes, request))?,
                AheadState::Known => ask(stream, request)?,
            },
            Some(Ahead { request: ahead, state: AheadState::Asked }) => {
                let Some(early) = receive(stream, |bytes| Response::parse(bytes, &ahead))? else { return Ok(None) };
                self.ahead = Some(Ahead { request: ahead, state: AheadState::Answered(early) });
                ask(stream, request)?
            }
            ahead => {
                self.ahead = ahead;
                ask(stream, request)?
            }
        };
        if let (Request::Digests { key, count, .. }, Some(Response::Digests { next, .. })) = (request, &response) {
            let following = |first| Ahead { request: Request::Digests { key: *key, first, count: *count }, state: AheadState::Known };
            self.ahead = next.map(following);
        }
        Ok(response)
    }

    /// Asks what will be asked next.
    fn follow(&mut self, stream: &mut UnixStream) -> Result<()> {
        if let Some(Ahead { request, state: state @ AheadState::Known }) = &mut self.ahead {
            stream.write_all(&request.to_bytes()).context("ask a donor")?;
            *state = AheadState::Asked;
        }
        Ok(())
    }
}

fn ask(stream: &mut UnixStream, request: &Request) -> Result<Option<Response>> {
    stream.write_all(&request.to_bytes()).context("ask a donor")?;
    receive(stream, |bytes| Response::parse(bytes, request))
}
