//! The terminals that the screen is drawn on: video, and the serial line that the kernel was told to use. A ticket can be typed at either, and
//! a command of `rebec`: whoever stands at the machine owns it, and the first host of a pool has nobody else to ask.
//!
//! Each has a thread that writes, so that a stuck line holds up nobody, and one that reads.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    sync::mpsc::{SyncSender, sync_channel},
    time::Duration,
};

use crate::{
    event::Event,
    screen::{self, Line, Told},
};

/// Drawings that may wait for a slow line; what comes then is left out and drawn at the next change.
const DRAWINGS_MAX: usize = 4;
const TYPED_BYTES_MAX: usize = 4096;
/// Pause after Ctrl-D, which ends a read with nothing.
const END_OF_FILE_PAUSE: Duration = Duration::from_millis(200);
const TICKET_WORD: &str = "rebec";
const HINT: &str = "To join a pool press Enter and type its ticket. To found one type: rebec pool init NAME --domain DOMAIN\r\n";
/// Commands that go on until their user ends them.
const LASTING: [&str; 3] = ["console", "forward", "logs"];

/// One terminal.
pub struct Console {
    kind: Kind,
    to: SyncSender<String>,
    /// A line typed now is a ticket.
    asked: bool,
}

enum Kind {
    /// Its size may change: a display driver that loads takes over from the firmware's.
    Video {
        device: File,
        size: (usize, usize),
        drawn: String,
    },
    Serial(Told),
}

/// What a typed line means.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// `rebec` with these words: what was typed, or the join by a ticket.
    Command(Vec<String>),
    /// Nothing to do but to wait for more.
    Nothing,
}

/// Opens what this machine has. Lines typed arrive as events with the number of the console.
pub fn open_all(events: &SyncSender<Event>) -> Vec<Console> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let serial = active.split_whitespace().filter(|name| !name.starts_with("tty") || name.starts_with("ttyS"));
    let mut consoles = Vec::new();
    for name in ["tty1"].into_iter().chain(serial) {
        // A machine may lack either.
        if let Ok(console) = Console::open(name, consoles.len(), events) {
            consoles.push(console);
        }
    }
    consoles
}

impl Console {
    fn open(name: &str, number: usize, events: &SyncSender<Event>) -> io::Result<Self> {
        let open = || OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NOCTTY).open(format!("/dev/{name}"));
        let (mut writer, reader) = (open()?, open()?);
        let (to, texts) = sync_channel::<String>(DRAWINGS_MAX);
        std::thread::Builder::new().name(format!("to {name}")).spawn(move || {
            for text in texts {
                // A terminal that is gone stays gone; the screen is on the others.
                if writer.write_all(text.as_bytes()).is_err() {
                    return;
                }
            }
        })?;
        // The first drawing finds that the size is another.
        let video = || Ok::<_, io::Error>(Kind::Video { device: reader.try_clone()?, size: (0, 0), drawn: String::new() });
        let kind = if name == "tty1" { video()? } else { Kind::Serial(Told::default()) };
        let events = events.clone();
        std::thread::Builder::new().name(format!("from {name}")).spawn(move || listen(reader, number, &events))?;
        let console = Self { kind, to, asked: false };
        if matches!(console.kind, Kind::Serial(_)) {
            console.say(HINT);
        }
        Ok(console)
    }

    /// Shows the screen, if it is another than before.
    pub fn show(&mut self, lines: &[Line]) {
        match &mut self.kind {
            Kind::Video { device, size, drawn } => {
                let now = size_of(device);
                if now != *size && self.to.try_send(screen::video_start(now.0) + HINT).is_ok() {
                    *size = now;
                    drawn.clear();
                }
                let text = screen::video(lines, now.0, now.1);
                if text != *drawn && self.to.try_send(text.clone()).is_ok() {
                    *drawn = text;
                }
            }
            Kind::Serial(told) => {
                let text = told.news(lines);
                if !text.is_empty() {
                    // A line that is this slow loses some; each thing is on the other consoles and in the log.
                    self.to.try_send(text).ok();
                }
            }
        }
    }

    /// Writes to whoever types here.
    pub fn say(&self, text: &str) {
        self.to.try_send(text.to_owned()).ok();
    }

    /// Takes a typed line.
    pub fn typed(&mut self, line: &str) -> Typed {
        let line = line.trim();
        let asked = std::mem::replace(&mut self.asked, false);
        let (typed, answer) = judge(asked, line);
        self.asked = answer == Some(PROMPT);
        if let Some(answer) = answer {
            self.say(answer);
        }
        typed
    }
}

/// Rows and columns.
fn size_of(terminal: &File) -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(terminal).ok();
    let size = size.map(|size| (usize::from(size.ws_row), usize::from(size.ws_col)));
    size.filter(|(rows, columns)| *rows > 0 && *columns > 0).unwrap_or((25, 80))
}

const PROMPT: &str = "ticket: ";

/// What a line means, and what to answer.
fn judge(asked: bool, line: &str) -> (Typed, Option<&'static str>) {
    let one_word = !line.is_empty() && !line.contains(char::is_whitespace);
    let mut words = line.split_whitespace();
    if words.next() == Some(TICKET_WORD) && !one_word {
        let words: Vec<String> = words.map(str::to_owned).collect();
        return match words.iter().any(|word| LASTING.contains(&word.as_str())) {
            true => (
                Typed::Nothing,
                Some("This command needs a terminal of its own: run it on another machine, as docs/quickstart.md says.\r\n"),
            ),
            false => (Typed::Command(words), None),
        };
    }
    match (asked, line) {
        (true, "") => (Typed::Nothing, Some(HINT)),
        (false, "") => (Typed::Nothing, Some(PROMPT)),
        _ if one_word && (asked || line.starts_with(TICKET_WORD)) => {
            (Typed::Command(["pool", "join", line].map(str::to_owned).to_vec()), None)
        }
        (true, _) => (Typed::Nothing, Some("A ticket is one word, without spaces.\r\n")),
        (false, _) => (Typed::Nothing, Some(HINT)),
    }
}

/// Reads lines; the terminal itself does their editing.
fn listen(mut reader: File, number: usize, events: &SyncSender<Event>) {
    let mut bytes = [0; TYPED_BYTES_MAX];
    loop {
        match reader.read(&mut bytes) {
            Ok(0) => std::thread::sleep(END_OF_FILE_PAUSE),
            Ok(length) => {
                let line = String::from_utf8_lossy(&bytes[..length]).into_owned();
                if events.send(Event::Typed { console: number, line }).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_known_by_its_first_letters_or_by_being_asked_for() {
        let ticket = |text: &str| (Typed::Command(["pool", "join", text].map(str::to_owned).to_vec()), None);
        assert_eq!(judge(false, "rebec1abc"), ticket("rebec1abc"));
        assert_eq!(judge(true, "abc"), ticket("abc"));
        assert_eq!(judge(false, ""), (Typed::Nothing, Some(PROMPT)));
        assert_eq!(judge(false, "ls"), (Typed::Nothing, Some(HINT)));
        assert_eq!(judge(true, ""), (Typed::Nothing, Some(HINT)));
        assert!(judge(true, "two words").1.is_some_and(|answer| answer.contains("one word")));
    }

    #[test]
    fn a_command_of_rebec_is_carried_out_unless_it_lasts() {
        let words = |words: &[&str]| (Typed::Command(words.iter().map(|word| (*word).to_owned()).collect()), None);
        assert_eq!(judge(false, "rebec pool init lab --domain alpha"), words(&["pool", "init", "lab", "--domain", "alpha"]));
        assert_eq!(judge(true, "rebec host  invite"), words(&["host", "invite"]));
        assert!(judge(false, "rebec vm console web").1.is_some_and(|answer| answer.contains("terminal")));
        assert_eq!(judge(false, "sh -c reboot"), (Typed::Nothing, Some(HINT)));
    }
}
