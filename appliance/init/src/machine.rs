//! The boot, step by step, and the loop that runs until the machine ends.

use std::{
    collections::VecDeque,
    fs, io,
    os::fd::OwnedFd,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::{Duration, Instant, SystemTime},
};

use nix::{
    fcntl::OFlag,
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        signal::{SigSet, Signal},
    },
    unistd::Pid,
};
use rebec_api::screen::Screen;
use rustix::system::{RebootCommand, reboot, sethostname};

use crate::{
    agent::{self, Agent, REBEC, Tail},
    console::{self, Console, Typed},
    devices::Devices,
    event::Event,
    late::{self, Act},
    modules::{self, ALWAYS, Loader},
    mounts,
    options::{Options, Place},
    power::{self, Ending, Watchdog},
    screen::{self, View},
    spawn,
    volumes::{self, State, TICKET, Volumes},
};

const VMM: &str = "/usr/bin/rebec-vmm";
/// The image has no such program. A lab that appends one to the initrd reaches into its machines with it.
const LAB: &str = "/lab/start";
const RUN: &str = "/run/rebec";
const SCREEN: &str = "/run/rebec/screen.json";
const SCREEN_BYTES_MAX: u64 = 64 << 10;
/// How often the screen's file is looked at and the watchdog petted.
const TURN: Duration = Duration::from_millis(500);
/// Disks are waited for until no device came for this long: USB sticks take a second to show theirs.
const QUIET: Duration = Duration::from_millis(1200);
/// And for this long where state is in RAM and there is no USB: all that may come is a seed volume in a drive.
const QUIET_NO_USB: Duration = Duration::from_millis(300);
const USB_DEVICES: &str = "/sys/bus/usb/devices";
/// And never longer than this.
const DISKS_DEADLINE: Duration = Duration::from_secs(15);
/// Drivers that no join needs are loaded when this has passed.
const JOIN_TIME: Duration = Duration::from_secs(10);
/// Events that may wait; those who send them wait too.
const EVENTS_MAX: usize = 64;
/// Commands typed while another runs.
const TYPED_AHEAD_MAX: usize = 8;
const SIGNALS: [Signal; 6] = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPWR];

struct Machine {
    consoles: Vec<Console>,
    agent: Option<Agent>,
    tail: Tail,
    screen: Option<Screen>,
    screen_time: Option<SystemTime>,
    hostname: String,
    state: Option<State>,
    /// A state disk that came late, and how far it is with taking RAM's place.
    late: Option<(Volumes, late::Change)>,
    notes: Vec<String>,
    /// The command that runs, and the console it was typed at.
    running: Option<(Pid, usize)>,
    /// Commands typed meanwhile, and where.
    typed_ahead: VecDeque<(Vec<String>, usize)>,
    events: SyncSender<Event>,
}

/// Is PID 1 from here on.
pub fn run() -> ! {
    let mut notes = mounts::prepare();
    if let Err(error) = modules::answer_from_now_on() {
        notes.push(format!("the kernel cannot ask for modules: {error}; make the image anew"));
    }
    fs::create_dir_all(RUN).ok();
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let options = Options::parse(&command_line);
    notes.extend(options.unknown.iter().map(|word| {
        format!(
            "{word} on the kernel's command line means nothing here; rebec.join, rebec.hostname, rebec.ip, rebec.vlan, rebec.ntp and rebec.state do"
        )
    }));
    if command_line.split_whitespace().any(|word| word == "quiet") {
        // Only what ends the machine may break into the screen.
        fs::write("/proc/sys/kernel/printk", "3 4 1 3").ok();
    }
    let (events, inbox) = sync_channel(EVENTS_MAX);
    catch_signals(&events, &mut notes);
    watch_screen(&events, &mut notes);
    let consoles = console::open_all(&events);
    let (output, tail) = match agent::keep_log() {
        Ok((output, tail)) => (Some(output), tail),
        Err(error) => {
            notes.push(format!("the agent's log cannot be kept: {error}"));
            (null(), Tail::default())
        }
    };
    if let Some(output) = output.as_ref().filter(|_| Path::new(LAB).exists())
        && let Err(error) = spawn::start(LAB, &[], output)
    {
        notes.push(format!("{LAB}: {error}"));
    }
    let hostname = String::from("rebec");
    let mut machine = Machine {
        consoles,
        agent: None,
        tail,
        screen: None,
        screen_time: None,
        hostname,
        state: None,
        late: None,
        notes,
        running: None,
        typed_ahead: VecDeque::new(),
        events,
    };
    machine.show();
    let volumes = machine.bring_devices(&options);
    machine.name(options.hostname.as_deref());
    machine.keep_state(&volumes, options.state == Place::Ram);
    machine.take_ticket(&volumes, options.ticket.as_deref());
    machine.agent = output.map(|output| Agent::new(agent_args(&options, machine.state.as_ref()), output, Instant::now()));
    machine.serve(&inbox, &options)
}

impl Machine {
    /// Loads the drivers that an agent needs, and waits for disks that matter; the others are loaded beside the agent.
    fn bring_devices(&mut self, options: &Options) -> Volumes {
        let opened = Loader::open().and_then(|loader| Devices::open(loader, self.events.clone()));
        let mut devices = match opened {
            Ok(devices) => devices,
            Err(error) => {
                self.notes.push(format!("no drivers can be loaded: {error}; make the image anew"));
                return Volumes::find();
            }
        };
        devices.load_present();
        let mut volumes = Volumes::default();
        let usb = fs::read_dir(USB_DEVICES).is_ok_and(|mut devices| devices.next().is_some());
        let in_ram = options.state == Place::Ram;
        devices.settle(if in_ram && !usb { QUIET_NO_USB } else { QUIET }, DISKS_DEADLINE, || {
            volumes = Volumes::find();
            (in_ram || volumes.has_state()) && (options.ticket.is_some() || volumes.has_seed())
        });
        if options.state == Place::Disk && !volumes.has_state() {
            let notes = self.notes.len();
            self.notes.push("no disk has the label REBEC-STATE yet, and rebec.state=disk has this machine wait for one".to_owned());
            self.show();
            while !volumes.has_state() {
                devices.settle(DISKS_DEADLINE, DISKS_DEADLINE, || {
                    volumes = Volumes::find();
                    volumes.has_state()
                });
            }
            self.notes.truncate(notes);
        }
        // One that comes later is told of, unless RAM was asked for or a disk is there.
        let (mut is_wanted, events) = (!in_ram && !volumes.has_state(), self.events.clone());
        let on_disk = move || {
            if is_wanted {
                let found = Volumes::find();
                // The loop never ends before the machine does.
                is_wanted = !(found.has_state() && events.send(Event::StateDisk(found)).is_ok());
            }
            !is_wanted
        };
        let served = std::thread::Builder::new().name("devices".to_owned()).spawn(move || devices.serve(&ALWAYS, JOIN_TIME, on_disk));
        if let Err(error) = served {
            self.notes.push(format!("devices that come later get no driver: {error}"));
        }
        volumes
    }

    /// Gives the machine its name: the one asked for, or one that differs between machines.
    fn name(&mut self, asked: Option<&str>) {
        self.hostname = asked.map_or_else(name_by_hardware, str::to_owned);
        if let Err(error) = sethostname(self.hostname.as_bytes()) {
            self.notes.push(format!("set host name {}: {error}", self.hostname));
        }
    }

    fn keep_state(&mut self, volumes: &Volumes, in_ram: bool) {
        match volumes.mount_state(in_ram) {
            Ok(state) => self.state = Some(state),
            Err(error) => {
                self.notes.push(format!("{} cannot be made: {error}", volumes::STATE));
                self.state = Some(State::Ram("no place of its own for it".to_owned()));
            }
        }
    }

    /// The command line's ticket counts before the seed volume's.
    fn take_ticket(&mut self, volumes: &Volumes, given: Option<&str>) {
        let taken = match given {
            Some(ticket) => volumes::hand_over(ticket).map_err(|error| format!("keep the ticket of rebec.join: {error}")),
            None => volumes.take_ticket().map(|_| ()),
        };
        self.notes.extend(taken.err());
    }

    /// Runs until the machine ends.
    fn serve(mut self, inbox: &Receiver<Event>, options: &Options) -> ! {
        // Ctrl-Alt-Del becomes SIGINT to this process.
        reboot(RebootCommand::CadOff).ok();
        let mut watchdog = Watchdog::default();
        loop {
            let now = Instant::now();
            if let Some(agent) = &mut self.agent {
                agent.tick(now);
                agent.forget_trouble(now);
            }
            watchdog.pet();
            self.take_late(options);
            self.read_screen();
            self.show();
            match inbox.recv_timeout(TURN) {
                Ok(Event::Signal(signal)) => {
                    if let Some(ending) = Ending::of(signal) {
                        self.end(ending, watchdog)
                    }
                }
                Ok(Event::StateDisk(volumes)) => self.late = Some((volumes, late::Change::default())),
                Ok(Event::PowerButton) => self.end(Ending::PowerOff, watchdog),
                Ok(Event::Typed { console, line }) => self.typed(console, &line),
                Ok(Event::Said { console, line }) => self.say(console, &format!("{line}\r\n")),
                Ok(Event::Screen) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            self.reap();
        }
    }

    /// Has a state disk that came late take RAM's place, once no VM is lost by that.
    fn take_late(&mut self, options: &Options) {
        const WAITS: &str = "a disk with the label REBEC-STATE has come: it takes RAM's place as soon as no VM and no key of a pool or a domain is here, or at the next boot";
        let Some((volumes, change)) = &mut self.late else { return };
        let has_vms = fs::read_dir(Path::new(volumes::STATE).join("vms")).is_ok_and(|mut vms| vms.next().is_some());
        let has_agent = self.agent.as_ref().is_some_and(Agent::is_running);
        // A host has them for as long as it is the one that founded the pool, or its domain.
        let has_keys = ["pool", "domain"].iter().any(|key| Path::new(volumes::STATE).join("keys").join(key).exists());
        self.notes.retain(|note| note != WAITS);
        match change.step(Instant::now(), late::Look { has_vms, has_keys, has_agent }) {
            Act::Wait => self.notes.push(WAITS.to_owned()),
            Act::AwaitEnd => {}
            Act::EndAgent | Act::EndAgain => {
                if let Some(agent) = &self.agent {
                    agent.signal(Signal::SIGTERM);
                }
            }
            Act::Take => {
                match volumes.mount_disk() {
                    Ok(state) => self.state = Some(state),
                    Err(why) => self.notes.push(why),
                }
                self.late = None;
                let args = agent_args(options, self.state.as_ref());
                if let Some(agent) = &mut self.agent {
                    agent.anew(args, Instant::now());
                }
            }
        }
    }

    fn end(&mut self, ending: Ending, watchdog: Watchdog) -> ! {
        self.say_to_all(if ending == Ending::Reboot { "Starting anew.\r\n" } else { "Switching off.\r\n" });
        power::end(ending, self.agent.take(), watchdog, |text| self.say_to_all(text))
    }

    fn reap(&mut self) {
        let now = Instant::now();
        for ended in spawn::reap() {
            if self.agent.as_mut().is_some_and(|agent| agent.ended(&ended, now)) {
                continue;
            }
            if let Some((_, console)) = self.running.take_if(|(pid, _)| *pid == ended.pid)
                && ended.how != "ended with code 0"
            {
                self.say(console, &format!("rebec {}.\r\n", ended.how));
            }
        }
        self.start_next();
    }

    fn typed(&mut self, console: usize, line: &str) {
        let Some(Typed::Command(words)) = self.consoles.get_mut(console).map(|console| console.typed(line)) else { return };
        if self.typed_ahead.len() == TYPED_AHEAD_MAX {
            return self.say(console, "Too many commands wait for one that is under way; try again when it has ended.\r\n");
        }
        self.typed_ahead.push_back((words, console));
        self.start_next();
    }

    /// Commands run one after the other.
    fn start_next(&mut self) {
        while self.running.is_none()
            && let Some((words, console)) = self.typed_ahead.pop_front()
        {
            match self.start_command(&words, console) {
                Ok(pid) => self.running = Some((pid, console)),
                Err(error) => self.say(console, &format!("rebec cannot be started: {error}\r\n")),
            }
        }
    }

    fn start_command(&self, words: &[String], console: usize) -> io::Result<Pid> {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let pid = spawn::start(REBEC, &words, &writer)?;
        let events = self.events.clone();
        std::thread::Builder::new().name("command".to_owned()).spawn(move || {
            agent::lines(fs::File::from(reader), |line| {
                // The loop never ends before the machine does.
                events.send(Event::Said { console, line: line.to_owned() }).ok();
            });
        })?;
        Ok(pid)
    }

    fn say(&self, console: usize, text: &str) {
        if let Some(console) = self.consoles.get(console) {
            console.say(text);
        }
    }

    fn say_to_all(&self, text: &str) {
        for console in &self.consoles {
            console.say(text);
        }
    }

    /// Reads the agent's words if it wrote new ones.
    fn read_screen(&mut self) {
        let Ok(data) = fs::metadata(SCREEN) else { return };
        let time = data.modified().ok();
        if time == self.screen_time || data.len() > SCREEN_BYTES_MAX {
            return;
        }
        self.screen_time = time;
        let read = fs::read(SCREEN).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        self.screen = read.or(self.screen.take());
    }

    fn show(&mut self) {
        let log = self.tail.lines();
        let view = View {
            version: env!("CARGO_PKG_VERSION"),
            hostname: &self.hostname,
            agent: self.screen.as_ref(),
            trouble: self.agent.as_ref().and_then(|agent| agent.trouble.as_deref()),
            state: self.state.as_ref(),
            notes: &self.notes,
            log: &log,
        };
        let lines = screen::lines(&view);
        for console in &mut self.consoles {
            console.show(&lines);
        }
    }
}

/// Blocks the signals in every thread to come, and has one wait for them.
fn catch_signals(events: &SyncSender<Event>, notes: &mut Vec<String>) {
    let set = SigSet::from_iter(SIGNALS);
    let blocked = set.thread_block().map_err(io::Error::from);
    let events = events.clone();
    let waiting = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(signal) = set.wait() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
    if let Err(error) = blocked.and(waiting.map(|_| ())) {
        notes.push(format!("signals are not heard: {error}; use the power button to end this machine"));
    }
}

/// Has a thread wait for new screens.
fn watch_screen(events: &SyncSender<Event>, notes: &mut Vec<String>) {
    let events = events.clone();
    let opened = || {
        let watch = Inotify::init(InitFlags::IN_CLOEXEC)?;
        watch.add_watch(RUN, AddWatchFlags::IN_MOVED_TO)?;
        std::thread::Builder::new().name("screen".to_owned()).spawn(move || {
            while watch.read_events().is_ok() {
                if events.send(Event::Screen).is_err() {
                    return;
                }
            }
        })
    };
    if let Err(error) = opened() {
        // It is looked at now and then anyway.
        notes.push(format!("{RUN} is not watched: {error}"));
    }
}

fn agent_args(options: &Options, state: Option<&State>) -> Vec<String> {
    let mut args: Vec<String> =
        ["agent", "--state", volumes::STATE, "--screen", SCREEN, "--vmm", VMM, "--bring-up-links", "--keep-time"].map(str::to_owned).into();
    for (name, value) in [("--ip", &options.ip), ("--vlan", &options.vlan), ("--ntp", &options.ntp), ("--name", &options.hostname)] {
        args.extend(value.iter().flat_map(|value| [name.to_owned(), value.clone()]));
    }
    if let Some(State::Ram(_)) = state {
        args.push("--volatile".to_owned());
    }
    if Path::new(TICKET).exists() {
        args.extend(["--join-file".to_owned(), TICKET.to_owned()]);
    }
    args
}

/// `rebec-` and the last digits of the first network adapter's address, which are on its sticker too.
fn name_by_hardware() -> String {
    let mut adapters: Vec<_> = fs::read_dir("/sys/class/net").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    adapters.retain(|adapter| adapter.join("device").exists());
    adapters.sort();
    let address = adapters.first().and_then(|adapter| fs::read_to_string(adapter.join("address")).ok()).unwrap_or_default();
    let digits: String = address.chars().filter(char::is_ascii_hexdigit).collect();
    match digits.get(6..12) {
        Some(digits) => format!("rebec-{digits}"),
        None => "rebec".to_owned(),
    }
}

fn null() -> Option<OwnedFd> {
    fs::File::create("/dev/null").ok().map(OwnedFd::from)
}
