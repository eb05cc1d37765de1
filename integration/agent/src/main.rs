//! The agent inside a lab machine: carries out what the host asks over a virtio-serial port.
//!
//! Started by busybox init, linked statically. At its start it loads the modules of `/lab/modules/list`; then it says
//! Hello and serves jobs until the machine ends. It decides nothing: the host's tests do. Frames are those of
//! `rebec_lab_agent`. Started as `agent tell-time` it is a time server and nothing else.

mod time;

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        fs::{FileTypeExt as _, OpenOptionsExt as _},
        net::UnixStream,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use rebec_lab_agent::{Frame, Kind, PAYLOAD_BYTES_MAX, PORT_NAME, PathOnly, Put, Run};
use rustix::{
    process::{Pid, Signal, kill_process_group},
    time::{ClockId, Timespec, clock_gettime, clock_settime},
};

/// Jobs at once.
const JOBS_MAX: usize = 128;
/// Frames of input that may wait for one job.
const INPUT_FRAMES_MAX: usize = 64;
/// How long the port may take to appear.
const PORT_DEADLINE: Duration = Duration::from_secs(60);

fn main() {
    let served = match std::env::args().nth(1).as_deref() {
        Some("tell-time") => time::serve(),
        _ => serve(),
    };
    if let Err(error) = served {
        eprintln!("lab-agent: {error}");
        std::process::exit(1);
    }
}

/// The jobs that are under way, and where frames to the host are written, one at a time.
#[derive(Clone)]
struct Desk {
    port: Arc<Mutex<File>>,
    jobs: Arc<Mutex<HashMap<u32, JobEnds>>>,
}

impl Desk {
    fn send(&self, frame: &Frame) -> io::Result<()> {
        frame.write(&mut *lock(&self.port))
    }

    /// The job is over: its number is free before the host hears of it.
    fn end(&self, job: u32, code: i32) {
        lock(&self.jobs).remove(&job);
        // Without the port there is nobody to tell.
        if let Ok(frame) = Frame::json(job, Kind::Exit, &code) {
            self.send(&frame).ok();
        }
    }

    fn refuse(&self, job: u32, why: impl std::fmt::Display) -> io::Result<()> {
        self.send(&Frame::new(job, Kind::Refused, why.to_string()))
    }

    /// Passes on everything a stream says.
    fn pump(&self, job: u32, kind: Kind, mut source: impl Read) -> io::Result<()> {
        let mut buffer = vec![0; PAYLOAD_BYTES_MAX];
        loop {
            match source.read(&mut buffer)? {
                0 => return Ok(()),
                length => self.send(&Frame::new(job, kind, &buffer[..length]))?,
            }
        }
    }
}

/// How a job is fed and ended.
struct JobEnds {
    /// `None` is the end of input.
    input: SyncSender<Option<Vec<u8>>>,
    kill: Box<dyn Fn() + Send>,
}

fn serve() -> io::Result<()> {
    load_modules(Path::new("/lab/modules/list"));
    let path = find_port()?;
    let mut reader = OpenOptions::new().read(true).write(true).open(&path)?;
    let desk = Desk { port: Arc::new(Mutex::new(reader.try_clone()?)), jobs: Arc::default() };
    desk.send(&Frame::new(0, Kind::Hello, []))?;
    loop {
        let frame = Frame::read(&mut reader)?;
        let job = frame.job;
        match frame.kind {
            Kind::Input | Kind::InputEnd => {
                let input = (frame.kind == Kind::Input).then_some(frame.payload);
                let to = lock(&desk.jobs).get(&job).map(|ends| ends.input.clone());
                if let Some(to) = to {
                    // Nobody reads what a job that has closed its input is sent.
                    to.send(input).ok();
                }
            }
            Kind::Kill => {
                if let Some(ends) = lock(&desk.jobs).get(&job) {
                    (ends.kill)();
                }
            }
            Kind::ReadClock => tell_time(&desk, job)?,
            Kind::StepClock => {
                step_clock(frame.parse()?)?;
                tell_time(&desk, job)?;
            }
            _ => {
                // Held until the job is among the others: it may end at once.
                let mut jobs = lock(&desk.jobs);
                let begun = if jobs.len() < JOBS_MAX { begin(&desk, &frame) } else { Err(io::Error::other("too many jobs at once")) };
                match begun {
                    Ok(ends) => {
                        jobs.insert(job, ends);
                    }
                    Err(error) => desk.refuse(job, error)?,
                }
            }
        }
    }
}

fn begin(desk: &Desk, frame: &Frame) -> io::Result<JobEnds> {
    let job = frame.job;
    let (input, fed) = sync_channel(INPUT_FRAMES_MAX);
    let kill: Box<dyn Fn() + Send> = match frame.kind {
        Kind::Run => {
            let run: Run = frame.parse()?;
            let child = start(&run)?;
            let group = Pid::from_child(&child);
            supervise(desk.clone(), job, child, fed);
            Box::new(move || {
                // It may have ended by itself.
                kill_process_group(group, Signal::KILL).ok();
            })
        }
        Kind::Connect => {
            let request: PathOnly = frame.parse()?;
            let stream = UnixStream::connect(&request.path).map_err(|error| named(&request.path, &error))?;
            let (reading, ending) = (stream.try_clone()?, stream.try_clone()?);
            let desk = desk.clone();
            thread::spawn(move || feed(fed, stream));
            thread::spawn(move || {
                let code = i32::from(desk.pump(job, Kind::Output, reading).is_err());
                desk.end(job, code);
            });
            Box::new(move || {
                ending.shutdown(std::net::Shutdown::Both).ok();
            })
        }
        Kind::Put => {
            let request: Put = frame.parse()?;
            let file = create(&request)?;
            let desk = desk.clone();
            thread::spawn(move || match feed(fed, file) {
                Ok(()) => desk.end(job, 0),
                Err(error) => {
                    lock(&desk.jobs).remove(&job);
                    desk.refuse(job, named(&request.path, &error)).ok();
                }
            });
            Box::new(|| {})
        }
        Kind::Get => {
            let request: PathOnly = frame.parse()?;
            let file = File::open(&request.path).map_err(|error| named(&request.path, &error))?;
            let desk = desk.clone();
            thread::spawn(move || {
                let code = i32::from(desk.pump(job, Kind::Output, file).is_err());
                desk.end(job, code);
            });
            Box::new(|| {})
        }
        kind => return Err(io::Error::other(format!("{kind:?} is not a request"))),
    };
    Ok(JobEnds { input, kill })
}

fn start(run: &Run) -> io::Result<Child> {
    let (program, args) = run.argv.split_first().ok_or_else(|| io::Error::other("no program was named"))?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    command.spawn().map_err(|error| named(program, &error))
}

/// Passes on what a program says and how it ends.
fn supervise(desk: Desk, job: u32, mut child: Child, fed: Receiver<Option<Vec<u8>>>) {
    if let Some(stdin) = child.stdin.take() {
        thread::spawn(move || feed(fed, stdin));
    }
    let outputs = (child.stdout.take(), child.stderr.take());
    thread::spawn(move || {
        let errors = outputs.1.map(|pipe| {
            let desk = desk.clone();
            thread::spawn(move || desk.pump(job, Kind::Errors, pipe))
        });
        let said = outputs.0.map_or(Ok(()), |pipe| desk.pump(job, Kind::Output, pipe));
        let complained = errors.map_or(Ok(()), |thread| thread.join().unwrap_or(Ok(())));
        let code = match child.wait() {
            Ok(status) => status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(-1),
            Err(_) => -1,
        };
        if said.and(complained).is_ok() {
            desk.end(job, code);
        }
    });
}

/// Writes what the host sends until it says that this was all.
fn feed(fed: Receiver<Option<Vec<u8>>>, mut sink: impl Write) -> io::Result<()> {
    while let Ok(Some(bytes)) = fed.recv() {
        sink.write_all(&bytes)?;
    }
    sink.flush()
}

fn create(request: &Put) -> io::Result<File> {
    if let Some(folder) = Path::new(&request.path).parent() {
        fs::create_dir_all(folder).map_err(|error| named(&request.path, &error))?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(request.mode);
    options.open(&request.path).map_err(|error| named(&request.path, &error))
}

fn tell_time(desk: &Desk, job: u32) -> io::Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    desk.send(&Frame::json(job, Kind::Time, &(now.tv_sec * 1_000_000_000 + now.tv_nsec))?)
}

fn step_clock(by_ns: i64) -> io::Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    let ns = now.tv_sec * 1_000_000_000 + now.tv_nsec + by_ns;
    let time = Timespec { tv_sec: ns.div_euclid(1_000_000_000), tv_nsec: ns.rem_euclid(1_000_000_000) };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

fn load_modules(list: &Path) {
    for path in fs::read_to_string(list).unwrap_or_default().lines() {
        let loaded = File::open(path).and_then(|file| Ok(rustix::system::finit_module(file, c"", 0)?));
        // kvm_amd and kvm_intel are both listed; the one without its processor refuses.
        if let Err(error) = loaded
            && !path.contains("kvm_")
        {
            eprintln!("lab-agent: load {path}: {error}");
        }
    }
}

fn find_port() -> io::Result<PathBuf> {
    let start = Instant::now();
    while start.elapsed() < PORT_DEADLINE {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            let device = Path::new("/dev").join(entry.file_name());
            if name.trim() == PORT_NAME && fs::metadata(&device).is_ok_and(|data| data.file_type().is_char_device()) {
                return Ok(device);
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(io::Error::other(format!("no virtio-serial port named {PORT_NAME}")))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn named(path: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path}: {error}"))
}
