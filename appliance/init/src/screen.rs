//! What a person sees: the agent's words about the host, and what only this process knows. Pure: values in, text out.
//!
//! On video the whole is drawn in place; the rows below it scroll and belong to whoever types. On a serial line only what is new is
//! printed, as plain lines, so that a log of it stays readable.

use std::{collections::HashMap, fmt::Write as _};

use rebec_api::screen::{Join, Kvm, Screen};

use crate::volumes::State;

/// Rows at the bottom of the video screen for typing.
const TYPING_ROWS: usize = 5;
const LABEL_COLUMNS: usize = 11;

/// All there is to show.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// This program's version.
    pub version: &'a str,
    /// The machine's host name.
    pub hostname: &'a str,
    /// The agent's own words; none before it wrote any.
    pub agent: Option<&'a Screen>,
    /// How the agent ended last, if that was just now.
    pub trouble: Option<&'a str>,
    /// Where state is kept; none before that is known.
    pub state: Option<&'a State>,
    /// What went wrong at boot.
    pub notes: &'a [String],
    /// The agent's last lines.
    pub log: &'a [String],
}

/// One line with its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    label: &'static str,
    text: String,
}

/// The screen's lines.
pub fn lines(view: &View<'_>) -> Vec<Line> {
    let mut lines = Vec::new();
    // Names and reasons may come from other hosts: no control character of theirs reaches a terminal.
    let mut add = |label, text: &str| lines.push(Line { label, text: text.chars().filter(|letter| !letter.is_control()).collect() });
    add("rebec", &format!("Rebec {} on {}", view.agent.map_or(view.version, |agent| &agent.version), host(view)));
    match view.agent {
        None => add("agent", "starting"),
        Some(agent) => {
            let addresses = if agent.addresses.is_empty() { "none yet".to_owned() } else { agent.addresses.join("  ") };
            add("addresses", &addresses);
            add("key", &agent.fingerprint);
            add("API", agent.api.as_deref().unwrap_or("not before there is an address"));
            if let Some(clock) = &agent.clock {
                add("clock", clock);
            }
            match &agent.kvm {
                Kvm::Ready => add("VMs", &format!("{} running", agent.vms)),
                Kvm::Absent { reason } => add("VMs", &format!("cannot run here: {reason}")),
            }
            match &agent.join {
                Join::Alone => add("pool", "none: type a ticket, or `rebec pool init NAME --domain NAME`"),
                Join::Joining { what } => add("pool", &format!("joining: {what}")),
                Join::Joined { pool, domain } => add("pool", &format!("member of {pool}, domain {domain}")),
                Join::Refused { reason } => add("pool", &format!("refused: {reason}")),
            }
        }
    }
    match view.state {
        None => add("state", "looking for disks"),
        Some(State::Disk(path)) => add("state", &format!("on {}: survives a reboot", path.display())),
        Some(State::Ram(reason)) => add("state", &format!("in RAM, lost at the next boot: {reason}")),
    }
    if let Some(trouble) = view.trouble {
        add("agent", trouble);
    }
    for note in view.notes {
        add("note", note);
    }
    for line in view.log {
        add("log", line);
    }
    lines
}

fn host<'a>(view: &View<'a>) -> &'a str {
    view.agent.map(|agent| agent.host.as_str()).filter(|host| !host.is_empty()).unwrap_or(view.hostname)
}

/// Terminal codes that draw the lines at the top of a screen and leave the cursor, and the rows for typing, where they are.
pub fn video(lines: &[Line], rows: usize, columns: usize) -> String {
    let height = rows.saturating_sub(TYPING_ROWS).max(1);
    let mut text = String::from("\x1b7\x1b[H");
    let mut drawn = 0;
    for line in lines.iter().flat_map(|line| wrapped(line, columns)).take(height - 1) {
        // Writing to a terminal's text cannot fail.
        write!(text, "{line}\x1b[K\r\n").ok();
        drawn += 1;
    }
    for _ in drawn..height - 1 {
        text.push_str("\x1b[K\r\n");
    }
    write!(text, "{}\x1b[K\x1b8", "-".repeat(columns.saturating_sub(1))).ok();
    text
}

/// Terminal codes that clear a screen and put the cursor into the rows for typing, which scroll by themselves.
pub fn video_start(rows: usize) -> String {
    let top = rows.saturating_sub(TYPING_ROWS).max(1) + 1;
    format!("\x1b[2J\x1b[{top};{rows}r\x1b[{top};1H")
}

fn wrapped(line: &Line, columns: usize) -> Vec<String> {
    let width = columns.saturating_sub(LABEL_COLUMNS + 2).max(8);
    let letters: Vec<char> = line.text.chars().collect();
    let mut rows: Vec<String> = letters.chunks(width).map(|part| part.iter().collect()).collect();
    if rows.is_empty() {
        rows.push(String::new());
    }
    let label = |number| if number == 0 { line.label } else { "" };
    rows.iter().enumerate().map(|(number, row)| format!(" {:LABEL_COLUMNS$}{row}", label(number))).collect()
}

/// What a serial line has been told.
#[derive(Debug, Default)]
pub struct Told(HashMap<&'static str, Vec<String>>);

impl Told {
    /// Lines that have not been told yet, as text to print; they count as told.
    pub fn news(&mut self, lines: &[Line]) -> String {
        let mut text = String::new();
        let mut now: HashMap<&'static str, Vec<String>> = HashMap::new();
        for line in lines {
            if !self.0.get(line.label).is_some_and(|told| told.contains(&line.text)) {
                write!(text, "{:LABEL_COLUMNS$}{}\r\n", line.label, line.text).ok();
            }
            now.entry(line.label).or_default().push(line.text.clone());
        }
        self.0 = now;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> Screen {
        Screen {
            version: "0.1.0".to_owned(),
            host: "spare-1".to_owned(),
            fingerprint: "ab".repeat(32),
            addresses: vec!["10.0.0.5".to_owned()],
            api: None,
            clock: Some("by 10.0.0.1, was off by less than 1ms".to_owned()),
            kvm: Kvm::Ready,
            join: Join::Joined { pool: "lab".to_owned(), domain: "alpha\x1b[2J".to_owned() },
            vms: 2,
        }
    }

    fn view<'a>(agent: Option<&'a Screen>, state: &'a State, log: &'a [String]) -> View<'a> {
        View { version: "0.1.0", hostname: "rebec", agent, trouble: None, state: Some(state), notes: &[], log }
    }

    #[test]
    fn the_screen_says_all_it_must_and_no_control_character_passes() {
        let state = State::Ram("no disk".to_owned());
        let agent = agent();
        let lines = lines(&view(Some(&agent), &state, &[]));
        let all: Vec<String> = lines.iter().map(|line| format!("{}: {}", line.label, line.text)).collect();
        let expected = [
            "rebec: Rebec 0.1.0 on spare-1".to_owned(),
            "addresses: 10.0.0.5".to_owned(),
            format!("key: {}", "ab".repeat(32)),
            "API: not before there is an address".to_owned(),
            "clock: by 10.0.0.1, was off by less than 1ms".to_owned(),
            "VMs: 2 running".to_owned(),
            "pool: member of lab, domain alpha[2J".to_owned(),
            "state: in RAM, lost at the next boot: no disk".to_owned(),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn a_serial_line_hears_each_thing_once() {
        let (state, mut told) = (State::Ram("no disk".to_owned()), Told::default());
        let log = |from: usize, to: usize| (from..to).map(|n| format!("line {n}")).collect::<Vec<_>>();
        let first = told.news(&lines(&view(None, &state, &log(0, 2))));
        assert!(first.contains("starting\r\n") && first.contains("line 1\r\n"), "{first}");
        assert_eq!(told.news(&lines(&view(None, &state, &log(0, 2)))), "");
        assert_eq!(told.news(&lines(&view(None, &state, &log(1, 3)))), "log        line 2\r\n");
    }

    #[test]
    fn video_keeps_to_its_rows_and_shows_the_whole_key() {
        let (state, agent) = (State::Ram("no disk ".repeat(40)), agent());
        let log: Vec<String> = (0..40).map(|n| format!("line {n}")).collect();
        let text = video(&lines(&view(Some(&agent), &state, &log)), 25, 80);
        assert_eq!(text.matches("\r\n").count(), 25 - TYPING_ROWS - 1);
        assert!(text.contains(&"ab".repeat(32)));
        assert!(text.split("\r\n").all(|row| row.len() < 80 + 16));
        // A terminal that claims to have no size at all.
        video(&lines(&view(None, &state, &log)), 0, 0);
    }
}
