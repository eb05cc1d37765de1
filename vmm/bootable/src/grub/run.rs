//! Carries a script out over the files of a disk: variables, functions and conditions as GRUB has them; of its commands those that lead to
//! a kernel.

use std::{collections::BTreeMap, rc::Rc};

use super::{
    environment,
    script::{self, Command, Piece, Script, Word},
};
use crate::{
    Entry, Forget, TEXT_BYTES_MAX,
    entries::{self, Words},
    text,
    volumes::Volume,
};

/// Commands that are carried out.
const STEPS_MAX: usize = 200_000;
/// Functions, files and conditions inside of each other.
const DEPTH_MAX: usize = 64;
/// Longest value of a variable, and longest word.
const VALUE_BYTES_MAX: usize = 64 << 10;
/// Bytes of all variables together.
const VARIABLES_BYTES_MAX: usize = 4 << 20;
/// Entries of all menus.
const ITEMS_MAX: usize = 1024;

/// Commands that load, show or ask for something that makes no difference here.
const DONE: [&str; 23] = [
    "insmod",
    "echo",
    "export",
    "terminal_output",
    "terminal_input",
    "terminal",
    "serial",
    "loadfont",
    "gfxmode",
    "gfxpayload",
    "play",
    "sleep",
    "true",
    ":",
    "normal",
    "rmmod",
    "increment",
    "decrement",
    "clear",
    "cpuid",
    "setparams",
    "nativedisk",
    "acpi",
];
/// The variable that names an entry for one start.
const ONCE: &str = "next_entry";
/// What a GRUB of today says of itself.
const FEATURES: [&str; 8] = [
    "feature_default_font_path",
    "feature_menuentry_id",
    "feature_menuentry_options",
    "feature_platform_search_hint",
    "feature_timeout_style",
    "feature_all_video_module",
    "feature_nativedisk_cmd",
    "feature_200_final",
];

/// Where entries of the Boot Loader Specification lie for GRUB; the last where /boot is in a subvolume of Fedora's btrfs.
const ENTRIES: [&str; 3] = ["/loader/entries", "/boot/loader/entries", "/root/boot/loader/entries"];

/// An entry of a menu.
#[derive(Debug, Clone)]
pub struct Item {
    pub title: String,
    pub id: String,
    pub action: Action,
}

/// What choosing an entry does.
#[derive(Debug, Clone)]
pub enum Action {
    Script(Rc<Script>),
    Menu(Rc<Script>),
    /// An entry of the Boot Loader Specification, on this volume.
    Words(usize, Words),
}

/// GRUB, as far as it goes.
pub struct Grub<'a> {
    pub volumes: &'a [Volume],
    variables: BTreeMap<String, String>,
    functions: BTreeMap<String, Rc<Script>>,
    pub menu: Vec<Item>,
    /// What `linux` and `initrd` have named.
    pub loaded: Option<Entry>,
    /// `grubenv` without what was to count once, and where it lies.
    pub forget: Option<Forget>,
    /// `grubenv` as it was read.
    environment: Option<(u64, String)>,
    items: usize,
    steps: usize,
    depth: usize,
    is_returning: bool,
}

impl<'a> Grub<'a> {
    /// One that was started from a folder of a volume.
    pub fn new(volumes: &'a [Volume], volume: usize, folder: &str) -> Self {
        let root = volumes.get(volume).map(Volume::grub_name).unwrap_or_default();
        let mut variables: BTreeMap<_, _> = FEATURES.iter().map(|name| ((*name).to_owned(), "y".to_owned())).collect();
        let said = [
            ("prefix", format!("({root}){folder}")),
            ("cmdpath", format!("({root}){folder}")),
            ("root", root),
            ("grub_platform", "efi".to_owned()),
            ("grub_cpu", "x86_64".to_owned()),
            // Ubuntu tries without its RAM disk first and writes down how that went; nothing is written here, so the way that always goes.
            ("initrdfail", "1".to_owned()),
        ];
        variables.extend(said.map(|(name, value)| (name.to_owned(), value)));
        let (functions, menu) = (BTreeMap::new(), vec![]);
        Self {
            volumes,
            variables,
            functions,
            menu,
            loaded: None,
            forget: None,
            environment: None,
            items: 0,
            steps: 0,
            depth: 0,
            is_returning: false,
        }
    }

    pub fn value(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    fn set(&mut self, name: &str, value: &str) {
        let held: usize = self.variables.iter().map(|(name, value)| name.len() + value.len()).sum();
        if value.len() <= VALUE_BYTES_MAX && held + value.len() <= VARIABLES_BYTES_MAX {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
    }

    /// Whether the last command did what it should.
    pub fn run(&mut self, script: &Script) -> bool {
        if self.depth >= DEPTH_MAX {
            return false;
        }
        self.depth += 1;
        let mut went_well = true;
        for command in script {
            self.steps += 1;
            if self.steps > STEPS_MAX || self.is_returning {
                break;
            }
            went_well = self.command(command);
        }
        self.depth -= 1;
        went_well
    }

    fn command(&mut self, command: &Command) -> bool {
        match command {
            Command::Simple(words) => self.simple(words),
            Command::If(arms, otherwise) => {
                for (condition, then) in arms {
                    if self.run(condition) {
                        return self.run(then);
                    }
                }
                self.run(otherwise)
            }
            Command::For { name, words, body } => {
                for value in self.expand(words) {
                    self.set(name, &value);
                    if self.steps > STEPS_MAX || !self.run(body) && self.is_returning {
                        break;
                    }
                }
                true
            }
            Command::Function(name, body) => {
                self.functions.insert(name.clone(), body.clone());
                true
            }
            Command::Entry { words, body, is_submenu } => {
                let words = self.expand(words);
                let option = |name: &str| {
                    let at =
                        words.iter().position(|word| word == name || word.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')))?;
                    words[at].split_once('=').map(|(_, value)| value.to_owned()).or_else(|| words.get(at + 1).cloned())
                };
                let Some(title) = words.first().cloned() else { return false };
                let id = option("--id").unwrap_or_default();
                let action = if *is_submenu { Action::Menu(body.clone()) } else { Action::Script(body.clone()) };
                self.add(Item { title, id, action })
            }
        }
    }

    fn add(&mut self, item: Item) -> bool {
        self.items += 1;
        if self.items > ITEMS_MAX {
            return false;
        }
        self.menu.push(item);
        true
    }

    fn simple(&mut self, words: &[Word]) -> bool {
        if let Some((name, word)) = assignment(words) {
            let value = self.whole(&word);
            self.set(name, &value);
            return true;
        }
        let words = self.expand(words);
        let Some((name, rest)) = words.split_first() else { return true };
        if let Some(body) = self.functions.get(name).cloned() {
            let went_well = self.run(&body);
            self.is_returning = false;
            return went_well;
        }
        match name.as_str() {
            "[" | "test" => self.test(rest.strip_suffix(&["]".to_owned()]).unwrap_or(rest)),
            "!" => {
                let pieces: Vec<Word> = rest.iter().map(|word| vec![Piece::Text(word.clone())]).collect();
                !self.simple(&pieces)
            }
            "set" => {
                for (name, value) in rest.iter().filter_map(|word| word.split_once('=')) {
                    self.set(name, value);
                }
                true
            }
            "unset" => {
                rest.iter().for_each(|name| {
                    self.variables.remove(name);
                });
                true
            }
            "return" => {
                self.is_returning = true;
                rest.first().is_none_or(|status| status == "0")
            }
            "eval" => script::parse(&rest.join(" ")).is_ok_and(|script| self.run(&script)),
            "source" | "." | "configfile" => self.file(name == "configfile", rest),
            "load_env" => self.load_env(rest),
            "save_env" => self.save_env(rest),
            "search" => self.search(rest),
            "search.fs_uuid" => self.found("-u", rest),
            "search.fs_label" => self.found("-l", rest),
            "search.file" => self.found("-f", rest),
            "blscfg" => self.entries(),
            "linux" | "linuxefi" | "linux16" => self.linux(rest),
            "initrd" | "initrdefi" | "initrd16" => self.initrd(rest),
            _ => DONE.contains(&name.as_str()),
        }
    }

    /// Words of a command: variables become their values, and those outside of quotation marks fall into words.
    fn expand(&self, words: &[Word]) -> Vec<String> {
        let mut all = vec![];
        for word in words {
            let (mut current, mut is_there) = (String::new(), word.is_empty());
            for piece in word {
                match piece {
                    Piece::Text(text) => {
                        current.push_str(text);
                        is_there = true;
                    }
                    Piece::Variable { name, is_quoted: true } => {
                        current.push_str(self.value(name));
                        is_there = true;
                    }
                    Piece::Variable { name, is_quoted: false } => {
                        let value = self.value(name);
                        let mut parts = value.split_whitespace();
                        if let Some(first) = parts.next() {
                            current.push_str(first);
                            is_there = true;
                        }
                        for part in parts {
                            all.push(std::mem::replace(&mut current, part.to_owned()));
                        }
                    }
                }
                current.truncate(floor(&current, VALUE_BYTES_MAX));
            }
            if is_there {
                all.push(current);
            }
        }
        all
    }

    /// A word that is not taken apart.
    pub fn whole(&self, word: &Word) -> String {
        let mut whole = String::new();
        for piece in word {
            whole.push_str(match piece {
                Piece::Text(text) => text,
                Piece::Variable { name, .. } => self.value(name),
            });
            whole.truncate(floor(&whole, VALUE_BYTES_MAX));
        }
        whole
    }

    fn test(&self, words: &[String]) -> bool {
        let is_file = |kind: &str, path: &str| match self.place(path) {
            Some((volume, path)) if kind == "-d" => self.volumes.get(volume).is_some_and(|volume| !volume.list(&path).is_empty()),
            Some((volume, path)) => self.volumes.get(volume).is_some_and(|volume| volume.has(&path)),
            None => false,
        };
        environment::test(words, &is_file)
    }

    /// `(hd0,gpt1)/path`, or a path on the root.
    fn place(&self, path: &str) -> Option<(usize, String)> {
        let (device, path) = match path.strip_prefix('(') {
            Some(inner) => inner.split_once(')')?,
            None => (self.value("root"), path),
        };
        let device = device.trim_matches(['(', ')']);
        // `hd0,1` and the names of other tables mean the same partition.
        let number =
            |name: &str| name.rsplit_once(',').map(|(_, part)| part.trim_start_matches(|letter: char| !letter.is_ascii_digit()).to_owned());
        let same = |volume: &Volume| {
            let name = volume.grub_name();
            name == device || (number(&name).is_some() && number(&name) == number(device))
        };
        Some((self.volumes.iter().position(same)?, path.to_owned()))
    }

    fn file(&mut self, is_new: bool, words: &[String]) -> bool {
        let Some((volume, path)) = words.first().and_then(|path| self.place(path)) else { return false };
        let Some(text) = self.volumes.get(volume).and_then(|volume| volume.text(&path)) else { return false };
        if is_new {
            self.menu.clear();
        }
        script::parse(&text).is_ok_and(|script| self.run(&script))
    }

    fn load_env(&mut self, words: &[String]) -> bool {
        let mut file = format!("{}/grubenv", self.value("prefix"));
        let mut names: Vec<&String> = vec![];
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-f" | "--file" => file = words.next().cloned().unwrap_or_default(),
                option if option.starts_with('-') => {}
                _ => names.push(word),
            }
        }
        let Some((volume, path)) = self.place(&file) else { return false };
        let read = self.volumes.get(volume).and_then(|volume| volume.read_placed(&path, TEXT_BYTES_MAX).ok());
        let Some((bytes, place)) = read else { return false };
        let text = text(bytes);
        self.environment = place.map(|place| (place, text.clone()));
        for (name, value) in environment::parse(&text) {
            if names.is_empty() || names.contains(&&name) {
                self.set(&name, &value);
            }
        }
        true
    }

    /// Of what GRUB would write one thing matters: that a choice for one start is forgotten.
    fn save_env(&mut self, words: &[String]) -> bool {
        let is_forgotten = words.iter().any(|name| name == ONCE) && self.value(ONCE).is_empty();
        if let (true, Some((offset, text))) = (is_forgotten, &self.environment) {
            self.forget = environment::without(text, ONCE).map(|bytes| Forget { offset: *offset, bytes });
        }
        true
    }

    fn search(&mut self, words: &[String]) -> bool {
        let (mut kind, mut variable, mut rest) = ("-f", None, vec![]);
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-u" | "--fs-uuid" => kind = "-u",
                "-l" | "--label" | "--fs-label" => kind = "-l",
                "-f" | "--file" => kind = "-f",
                // Its value is the next word, or `root` where that is an option.
                "-s" | "--set" => {
                    variable = words.next_if(|next| !next.starts_with('-') && words_left(next)).cloned().or(Some("root".to_owned()));
                }
                "-h" | "--hint" => drop(words.next()),
                option if option.starts_with("--set=") => variable = option.split_once('=').map(|(_, name)| name.to_owned()),
                option if option.starts_with('-') => {}
                _ => rest.push(word.clone()),
            }
        }
        if let Some(variable) = variable {
            rest.truncate(1);
            rest.push(variable);
        }
        self.found(kind, &rest)
    }

    /// `value [variable]`: the first volume that has it.
    fn found(&mut self, kind: &str, words: &[String]) -> bool {
        let Some(wanted) = words.first() else { return false };
        let fits = |volume: &&Volume| match kind {
            "-u" => volume.uuid().eq_ignore_ascii_case(wanted),
            "-l" => volume.label() == wanted,
            _ => volume.has(wanted),
        };
        let Some(name) = self.volumes.iter().find(fits).map(Volume::grub_name) else { return false };
        self.set(words.get(1).map_or("root", String::as_str), &name);
        true
    }

    /// Entries of the Boot Loader Specification, as Fedora's GRUB takes them into its menu.
    fn entries(&mut self) -> bool {
        let own = self.value("blsdir").to_owned();
        for folder in [own.as_str()].into_iter().chain(ENTRIES) {
            let Some((volume, path)) = self.place(folder).filter(|(_, path)| !path.is_empty()) else { continue };
            let found = self.volumes.get(volume).map(|volume| entries::read(volume, &path)).unwrap_or_default();
            if found.is_empty() {
                continue;
            }
            for words in found {
                self.add(Item { title: words.title.clone(), id: words.id.clone(), action: Action::Words(volume, words) });
            }
            return true;
        }
        false
    }

    fn linux(&mut self, words: &[String]) -> bool {
        let Some((path, rest)) = words.split_first() else { return false };
        let Some(kernel) = self.place(path) else { return false };
        let is_there = self.volumes.get(kernel.0).is_some_and(|volume| volume.has(&kernel.1));
        self.loaded = Some(Entry { title: String::new(), kernel, initramfs: vec![], cmdline: rest.join(" ") });
        is_there
    }

    fn initrd(&mut self, words: &[String]) -> bool {
        let places: Option<Vec<_>> = words.iter().map(|path| self.place(path)).collect();
        match (&mut self.loaded, places) {
            (Some(loaded), Some(places)) => {
                loaded.initramfs = places;
                true
            }
            _ => false,
        }
    }
}

/// `--set` takes a name, which no file system's UUID or path is.
fn words_left(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|letter| letter.is_ascii_alphabetic() || letter == '_')
}

/// `name=...` as the first word: the name, and the value still to be expanded.
fn assignment(words: &[Word]) -> Option<(&str, Word)> {
    let ([Piece::Text(text), rest @ ..], 1) = (words.first()?.as_slice(), words.len()) else { return None };
    let (name, value) = text.split_once('=')?;
    let is_name = !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    is_name.then(|| (name, [vec![Piece::Text(value.to_owned())], rest.to_vec()].concat()))
}

fn floor(text: &str, most: usize) -> usize {
    (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}
