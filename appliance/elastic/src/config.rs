//! The file that says which scheduler and which nodes (docs/administrators.md): TOML, and each mistake with its line and column.

use std::{ops::Range, time::Duration};

use rebec_pool::trade::{
    demand::Demand,
    file::{Mistake, place},
    queue::Shape,
};
use rebec_vmm_api::MemorySize;
use serde::Deserialize;
use toml::Spanned;

use crate::{
    demand,
    fleet::{self, kind_of},
    scheduler::{Kind, Scheduler},
};

/// A file that is longer is none of ours.
const BYTES_MAX: usize = 64 * 1024;
/// The longest time that may be written.
const TIME_MAX: Duration = Duration::from_secs(86_400);
/// What was told of demand may hold so long: the agent keeps it no longer.
const KEEP: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(rebec_api::trade::Demand::VALID_S_MAX as u64));

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The scheduler.
    pub scheduler: Scheduler,
    /// Between two looks.
    pub every: Duration,
    /// How demand is told.
    pub demand: demand::Terms,
    /// The nodes; none where only demand is told.
    pub nodes: Option<Nodes>,
}

/// What nodes are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    /// Their lives.
    pub terms: fleet::Terms,
    /// The image.
    pub image: String,
    /// The LAN, if they are on one.
    pub lan: Option<String>,
    /// Memory of each.
    pub memory_bytes: u64,
    /// Processors of each.
    pub vcpus: u8,
    /// Added to the kernel's command line; `{name}` and `{feature}` stand for a node's.
    pub cmdline: Option<String>,
    /// For cloud-init, likewise.
    pub user_data: Option<String>,
    /// Its CPU model.
    pub cpu: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    scheduler: SchedulerTable,
    #[serde(default)]
    demand: DemandTable,
    nodes: Option<Spanned<NodesTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SchedulerTable {
    kind: Spanned<String>,
    every: Option<Spanned<String>>,
    patience: Option<Spanned<String>>,
    #[serde(default)]
    before: Vec<String>,
    partition: Option<String>,
    #[serde(default)]
    cpus: u32,
    queue: Option<Spanned<Vec<String>>>,
    hook: Option<Spanned<Vec<String>>>,
    machines: Option<Spanned<u32>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct DemandTable {
    rise: Option<Spanned<String>>,
    fall: Option<Spanned<String>>,
    keep: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodesTable {
    name: Option<Spanned<String>>,
    image: String,
    lan: Option<String>,
    memory: Option<Spanned<String>>,
    vcpus: Option<Spanned<u8>>,
    cmdline: Option<String>,
    user_data: Option<String>,
    cpu: Option<String>,
    #[serde(default)]
    own: u32,
    most: Option<u32>,
    boot: Option<Spanned<String>>,
    idle: Option<Spanned<String>>,
    silent: Option<Spanned<String>>,
}

/// Reads a configuration.
///
/// # Errors
/// What is wrong, in the order of the file. A mistake of form hides those that follow from it.
pub fn read(text: &str) -> Result<Config, Vec<Mistake>> {
    let mut reader = Reader { text, mistakes: vec![] };
    if text.len() > BYTES_MAX {
        reader.wrong(0..0, format!("a configuration has at most {} KiB; is it the right file?", BYTES_MAX >> 10));
        return Err(reader.mistakes);
    }
    let file: File = match toml::from_str(text) {
        Ok(file) => file,
        Err(error) => {
            reader.wrong(error.span().unwrap_or_default(), error.message().replace('\n', ", "));
            return Err(reader.mistakes);
        }
    };
    let config = reader.config(file);
    reader.mistakes.sort();
    if reader.mistakes.is_empty() { Ok(config) } else { Err(reader.mistakes) }
}

struct Reader<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
}

impl Reader<'_> {
    fn config(&mut self, file: File) -> Config {
        let every = self.time(file.scheduler.every.as_ref(), "every", Duration::from_secs(30), Duration::from_millis(100));
        let demand = demand::Terms {
            rise: self.time(file.demand.rise.as_ref(), "rise", Duration::ZERO, Duration::ZERO),
            fall: self.time(file.demand.fall.as_ref(), "fall", Duration::from_secs(60), Duration::ZERO),
            keep: self.time(file.demand.keep.as_ref(), "keep", Duration::from_secs(300), KEEP.0),
        };
        if let Some(keep) = file.demand.keep.as_ref().filter(|_| demand.keep > KEEP.1) {
            self.wrong(keep.span(), format!("keep: at most {} s", KEEP.1.as_secs()));
        }
        if let Some(keep) = file.demand.keep.as_ref().filter(|_| demand.keep < every * 2) {
            self.wrong(keep.span(), "keep: less than two looks at the queue; what holds shorter is withdrawn in between".into());
        }
        let scheduler = self.scheduler(file.scheduler);
        let nodes = file.nodes.map(|table| {
            if !scheduler.knows_nodes() {
                let how = "slurm, or a program with a `hook`";
                self.wrong(table.span().start..table.span().start, format!("[nodes] needs a scheduler that can be told about them: {how}"));
            }
            self.nodes(table.into_inner())
        });
        Config { scheduler, every, demand, nodes }
    }

    fn scheduler(&mut self, table: SchedulerTable) -> Scheduler {
        let time = self.time(table.patience.as_ref(), "patience", Duration::from_secs(60), Duration::from_millis(100));
        let word = table.kind.get_ref().clone();
        let known = ["slurm", "condor", "program", "fixed"];
        if !known.contains(&word.as_str()) {
            self.wrong(table.kind.span(), format!("kind: `{word}` is none of {}", known.join(", ")));
        }
        let belongs = |reader: &mut Self, span: Option<Range<usize>>, name: &str, kind: &str| match span {
            Some(span) if word != kind => reader.wrong(span, format!("{name} belongs to kind = \"{kind}\"")),
            _ => {}
        };
        belongs(self, table.queue.as_ref().map(Spanned::span), "queue", "program");
        belongs(self, table.hook.as_ref().map(Spanned::span), "hook", "program");
        belongs(self, table.machines.as_ref().map(Spanned::span), "machines", "fixed");
        for words in [&table.queue, &table.hook].into_iter().flatten().filter(|words| words.get_ref().is_empty()) {
            self.wrong(words.span(), "write a program and its arguments, as in [\"/usr/local/bin/queue\", \"--all\"]".into());
        }
        let kind = match word.as_str() {
            "condor" => Kind::Condor,
            "program" => {
                if table.queue.is_none() {
                    self.wrong(table.kind.span(), "a program needs `queue`: the program that prints the queue".into());
                }
                let words = |words: Option<Spanned<Vec<String>>>| words.map(Spanned::into_inner).unwrap_or_default();
                Kind::Program { queue: words(table.queue), hook: words(table.hook) }
            }
            "fixed" => {
                if table.machines.is_none() {
                    self.wrong(table.kind.span(), "fixed demand needs `machines`: how many are wanted".into());
                }
                Kind::Fixed(Demand { queued: table.machines.map_or(0, Spanned::into_inner), running: 0, widest: 0 })
            }
            _ => Kind::Slurm,
        };
        Scheduler { kind, before: table.before, time, shape: Shape { cpus: table.cpus, partition: table.partition } }
    }

    fn nodes(&mut self, table: NodesTable) -> Nodes {
        let name = table.name.as_ref().map_or("node", |name| name.get_ref()).to_owned();
        let is_name = kind_of(&name, &format!("{name}-own-1")).is_some()
            && (1..=32).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !name.starts_with('-');
        if let Some(written) = table.name.as_ref().filter(|_| !is_name) {
            self.wrong(written.span(), "name: 1 to 32 small letters, digits and -; nodes are called NAME-own-1, NAME-borrowed-1".into());
        }
        let memory = table.memory.as_ref().map(|memory| memory.get_ref().parse::<MemorySize>());
        if let (Some(Err(error)), Some(written)) = (&memory, &table.memory) {
            self.wrong(written.span(), format!("memory: {error}"));
        }
        let vcpus = table.vcpus.as_ref().map_or(1, |vcpus| *vcpus.get_ref());
        if let Some(written) = table.vcpus.as_ref().filter(|_| !(1..=16).contains(&vcpus)) {
            self.wrong(written.span(), "vcpus: 1 to 16".into());
        }
        let terms = fleet::Terms {
            name,
            own: table.own,
            most: table.most.unwrap_or(u32::MAX),
            boot: self.time(table.boot.as_ref(), "boot", Duration::from_secs(300), Duration::from_secs(1)),
            idle: self.time(table.idle.as_ref(), "idle", Duration::from_secs(120), Duration::ZERO),
            silent: self.time(table.silent.as_ref(), "silent", Duration::from_secs(120), Duration::from_secs(1)),
        };
        let memory_bytes = memory.and_then(Result::ok).map_or(rebec_api::vm::NewVm::default_memory_bytes(), MemorySize::bytes);
        let NodesTable { image, lan, cmdline, user_data, cpu, .. } = table;
        Nodes { terms, image, lan, memory_bytes, vcpus, cmdline, user_data, cpu }
    }

    /// A time as in `"500ms"`, `"30s"`, `"5m"` or `"2h"`.
    fn time(&mut self, written: Option<&Spanned<String>>, name: &str, otherwise: Duration, least: Duration) -> Duration {
        let Some(written) = written else { return otherwise };
        let text = written.get_ref();
        let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
        let read = units.into_iter().find_map(|(unit, ms)| text.strip_suffix(unit)?.parse::<u32>().ok().map(|number| (number, ms)));
        let time = read.map(|(number, ms)| Duration::from_millis(u64::from(number) * ms)).filter(|time| (least..=TIME_MAX).contains(time));
        if time.is_none() {
            let least = if least.is_zero() { String::new() } else { format!(", {} ms at least", least.as_millis()) };
            self.wrong(written.span(), format!("{name}: write a time in quotes, as in \"500ms\", \"30s\", \"5m\" or \"2h\"{least}"));
        }
        time.unwrap_or(otherwise)
    }

    fn wrong(&mut self, span: Range<usize>, what: String) {
        let (line, column) = place(self.text, span.start);
        self.mistakes.push(Mistake { line, column, what });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
[scheduler]
kind = "slurm"
every = "10s"
before = ["sudo", "-u", "slurm"]
partition = "main"
cpus = 4

[demand]
rise = "20s"
fall = "2m"
keep = "10m"

[nodes]
name = "n"
image = "node"
lan = "cluster"
memory = "2G"
vcpus = 4
own = 1
most = 8
idle = "500ms"
"#;

    #[test]
    fn a_file_is_read_and_what_is_left_out_is_usual() {
        let config = read(WHOLE).unwrap();
        let nodes = config.nodes.unwrap();
        assert_eq!((config.every, config.demand.keep), (Duration::from_secs(10), Duration::from_secs(600)));
        assert_eq!(config.scheduler.shape, Shape { cpus: 4, partition: Some("main".into()) });
        assert_eq!((nodes.memory_bytes, nodes.terms.most, nodes.terms.idle), (2 << 30, 8, Duration::from_millis(500)));
        let least = read("[scheduler]\nkind = \"fixed\"\nmachines = 3\n").unwrap();
        assert_eq!((least.scheduler.kind, least.nodes), (Kind::Fixed(Demand { queued: 3, running: 0, widest: 0 }), None));
    }

    #[test]
    fn each_mistake_is_told_with_its_place() {
        let changed = |from: &str, to: &str| WHOLE.replacen(from, to, 1);
        for (text, says) in [
            (String::new(), "1:1: missing field `scheduler`"),
            (changed("kind = \"slurm\"", "kind = \"pbs\""), "3:8: kind: `pbs` is none of slurm, condor, program, fixed"),
            (changed("kind = \"slurm\"", "kind = \"condor\""), "[nodes] needs a scheduler that can be told about them"),
            (changed("every = \"10s\"", "every = 10"), "4:9: invalid type: integer `10`"),
            (changed("every = \"10s\"", "every = \"10\""), "4:9: every: write a time"),
            (changed("every = \"10s\"", "evry = \"10s\""), "4:1: unknown field `evry`"),
            (changed("\"10s\"", "\"9m\""), "12:8: keep: less than two looks"),
            (changed("\"10m\"", "\"2h\""), "12:8: keep: at most 3600 s"),
            (changed("cpus = 4", "queue = []"), "7:9: queue belongs to kind = \"program\""),
            (changed("\"slurm\"", "\"program\""), "3:8: a program needs `queue`"),
            (changed("\"slurm\"", "\"fixed\""), "3:8: fixed demand needs `machines`"),
            (changed("\"n\"", "\"N_1\""), "15:8: name: 1 to 32 small letters"),
            (changed("\"2G\"", "\"much\""), "18:10: memory: "),
            (changed("vcpus = 4", "vcpus = 17"), "19:9: vcpus: 1 to 16"),
            (changed("image = \"node\"\n", ""), "missing field `image`"),
            (changed("[demand]", "[demand"), "9:8: "),
            ("#".repeat(BYTES_MAX + 1), "1:1: a configuration has at most 64 KiB"),
        ] {
            let told: Vec<String> = read(&text).unwrap_err().iter().map(ToString::to_string).collect();
            assert!(told.iter().any(|line| line.contains(says) && !line.contains('\n')), "{says}: {told:?}");
        }
        let two = changed("\"10s\"", "\"x\"").replacen("vcpus = 4", "vcpus = 0", 1);
        assert_eq!(read(&two).unwrap_err().len(), 2);
    }
}
