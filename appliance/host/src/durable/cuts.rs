//! Power cuts: the deeds of a story are recorded, and what each cut leaves of a folder is made anew for whoever opens it. Of what was written to a
//! file since its last sync a disk keeps any part, and of a single write its first sectors; of the names in a folder it keeps those of the first
//! deeds since that folder was synced, however many.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Component, Path},
};

use super::Deed;

/// What a disk writes whole.
const SECTOR_BYTES: usize = 512;
/// Images made of each cut: nothing that was not synced, all of it, and by chance.
const IMAGES: usize = 6;

thread_local! {
    static DEEDS: RefCell<Option<Vec<Deed>>> = const { RefCell::new(None) };
}

/// Takes down a deed of this thread, if somebody records.
pub fn did(deed: impl FnOnce() -> Deed) {
    DEEDS.with_borrow_mut(|deeds| deeds.as_mut().map(|deeds| deeds.push(deed())));
}

/// How many deeds this thread has done since it records.
pub fn deeds() -> usize {
    DEEDS.with_borrow(|deeds| deeds.as_ref().map_or(0, Vec::len))
}

/// Records what a story does to the disk in this thread.
pub fn record<T>(story: impl FnOnce() -> T) -> (Vec<Deed>, T) {
    DEEDS.replace(Some(vec![]));
    let told = story();
    (DEEDS.take().unwrap_or_default(), told)
}

/// Cuts the power behind each of the deeds that were done below an empty folder, and has what is left of it opened: behind which deed, in which
/// image of it, and where that is.
pub fn each(root: &Path, deeds: &[Deed], mut open: impl FnMut(usize, usize, &Path)) {
    let (mut disk, mut chance) = (Disk::new(), Chance(0x5eed));
    for at in 0..=deeds.len() {
        if at > 0 {
            disk.apply(root, &deeds[at - 1]);
        }
        for which in 0..IMAGES {
            let image = tempfile::tempdir().expect("a folder for an image");
            disk.leave(0, image.path(), which, &mut chance);
            open(at, which, image.path());
        }
    }
}

/// Numbers that a seed makes (xorshift).
pub struct Chance(pub u64);

impl Chance {
    /// One below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Clone)]
enum Naming {
    Link(OsString, usize),
    Unlink(OsString),
    Rename(OsString, OsString),
}

/// A file or a folder: what is on the disk of it, and what is not yet.
#[derive(Debug)]
enum Node {
    File { bytes: Vec<u8>, since: Vec<Change> },
    Folder { names: BTreeMap<OsString, usize>, since: Vec<Naming> },
}

/// All of them; the first is the folder that the story is in.
#[derive(Debug)]
struct Disk(Vec<Node>);

/// Writes into the bytes of a file, which grows where it must.
pub fn write(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    bytes.resize(bytes.len().max(at + data.len()), 0);
    bytes[at..at + data.len()].copy_from_slice(data);
}

fn change(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, data) => write(bytes, *at, data),
        Change::Length(length) => bytes.resize(*length, 0),
    }
}

fn name(names: &mut BTreeMap<OsString, usize>, naming: &Naming) {
    match naming {
        Naming::Link(name, node) => drop(names.insert(name.clone(), *node)),
        Naming::Unlink(name) => drop(names.remove(name)),
        Naming::Rename(from, to) => {
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
        }
    }
}

impl Disk {
    fn new() -> Self {
        Self(vec![Node::Folder { names: BTreeMap::new(), since: vec![] }])
    }

    /// The names in a folder as whoever looks now sees them.
    fn now(&self, folder: usize) -> BTreeMap<OsString, usize> {
        let Node::Folder { names, since } = &self.0[folder] else { panic!("no folder") };
        let mut now = names.clone();
        since.iter().for_each(|naming| name(&mut now, naming));
        now
    }

    fn find(&self, root: &Path, path: &Path) -> usize {
        let below = path.strip_prefix(root).unwrap_or_else(|_| panic!("{} is not below {}", path.display(), root.display()));
        below.components().fold(0, |node, part| {
            let Component::Normal(part) = part else { panic!("{}", path.display()) };
            *self.now(node).get(part).unwrap_or_else(|| panic!("{} was not made through here", path.display()))
        })
    }

    fn place(&self, root: &Path, path: &Path) -> (usize, OsString) {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { panic!("{}", path.display()) };
        (self.find(root, folder), name.to_owned())
    }

    fn names(&mut self, folder: usize, naming: Naming) {
        let Node::Folder { since, .. } = &mut self.0[folder] else { panic!("no folder") };
        since.push(naming);
    }

    fn make(&mut self, root: &Path, path: &Path, node: Node) {
        let (folder, name) = self.place(root, path);
        self.0.push(node);
        self.names(folder, Naming::Link(name, self.0.len() - 1));
    }

    fn changes(&mut self, root: &Path, path: &Path, change: Change) {
        let node = self.find(root, path);
        let Node::File { since, .. } = &mut self.0[node] else { panic!("{} is no file", path.display()) };
        since.push(change);
    }

    fn apply(&mut self, root: &Path, deed: &Deed) {
        match deed {
            Deed::Create(path) => self.make(root, path, Node::File { bytes: vec![], since: vec![] }),
            Deed::MakeFolder(path) => self.make(root, path, Node::Folder { names: BTreeMap::new(), since: vec![] }),
            Deed::Write(path, at, bytes) => self.changes(root, path, Change::Write(*at as usize, bytes.clone())),
            Deed::Length(path, bytes) => self.changes(root, path, Change::Length(*bytes as usize)),
            Deed::Sync(path) | Deed::SyncFolder(path) => {
                let node = self.find(root, path);
                match &mut self.0[node] {
                    Node::File { bytes, since } => since.drain(..).for_each(|one| change(bytes, &one)),
                    Node::Folder { names, since } => since.drain(..).for_each(|one| name(names, &one)),
                }
            }
            Deed::Rename(from, to) => {
                let ((folder, from), (other, to)) = (self.place(root, from), self.place(root, to));
                assert_eq!(folder, other, "a rename between folders");
                self.names(folder, Naming::Rename(from, to));
            }
            Deed::Remove(path) => {
                let (folder, name) = self.place(root, path);
                self.names(folder, Naming::Unlink(name));
            }
            Deed::RemoveAll(path) => {
                self.empty(self.find(root, path));
                let (folder, name) = self.place(root, path);
                self.names(folder, Naming::Unlink(name));
            }
        }
    }

    fn empty(&mut self, folder: usize) {
        for (name, node) in self.now(folder) {
            if matches!(self.0[node], Node::Folder { .. }) {
                self.empty(node);
            }
            self.names(folder, Naming::Unlink(name));
        }
    }

    /// Makes what a cut leaves of a folder.
    fn leave(&self, folder: usize, at: &Path, which: usize, chance: &mut Chance) {
        let Node::Folder { names, since } = &self.0[folder] else { panic!("no folder") };
        let kept = match which {
            0 => 0,
            1 => since.len(),
            _ => chance.below(since.len() + 1),
        };
        let mut names = names.clone();
        since[..kept].iter().for_each(|naming| name(&mut names, naming));
        for (name, node) in names {
            let path = at.join(name);
            match &self.0[node] {
                Node::Folder { .. } => {
                    fs::create_dir(&path).expect("a folder of an image");
                    self.leave(node, &path, which, chance);
                }
                Node::File { bytes, since } => fs::write(&path, left(bytes, since, which, chance)).expect("a file of an image"),
            }
        }
    }
}

fn left(synced: &[u8], since: &[Change], which: usize, chance: &mut Chance) -> Vec<u8> {
    let mut bytes = synced.to_vec();
    for one in since {
        match (which, one) {
            (0, _) => {}
            (1, one) => change(&mut bytes, one),
            (_, _) if chance.below(2) == 0 => {}
            (_, Change::Write(at, data)) => {
                let sectors = chance.below(data.len() / SECTOR_BYTES + 1);
                let kept = if chance.below(2) == 0 { data.len() } else { sectors * SECTOR_BYTES };
                change(&mut bytes, &Change::Write(*at, data[..kept].to_vec()));
            }
            (_, one) => change(&mut bytes, one),
        }
    }
    bytes
}
