//! The audit log on the disk: `audit/N.log` in the state folder, lines of rows, each file bounded. The oldest goes when there are too many;
//! the number and hash of its last row stay in `audit/from`, so that the chain is walked from there.
//!
//! A line without an end, or a last line that is no row, is what a power cut or a killed agent left of a batch: nobody was told of it, and it
//! is cut off at the start.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rebec_host::{durable, reserve::Reserve};

use super::row::{self, Entry, Head, Row, Wrong};

/// How large the log may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of a file.
    pub file_bytes: u64,
    /// Files.
    pub files: usize,
}

/// 64 MiB: some two hundred thousand rows.
pub const BOUNDS: Bounds = Bounds { file_bytes: 1 << 20, files: 64 };
/// A row is shorter.
const LINE_BYTES_MAX: u64 = 4096;

/// The open log.
pub struct Files {
    folder: PathBuf,
    reserve: Reserve,
    bounds: Bounds,
    /// Those that are there, the oldest first. The last is open.
    numbers: Vec<u64>,
    open: File,
    bytes: u64,
    /// The last row that is not in the files any more.
    from: Head,
    head: Head,
}

impl Files {
    /// Opens or makes the log of a state folder. Says what was cut off.
    pub fn open(state: &Path, bounds: Bounds) -> Result<(Self, Option<String>)> {
        let folder = state.join("audit");
        durable::make_folder(&folder).with_context(|| format!("create {}", folder.display()))?;
        let from = read_from(&folder)?;
        let mut numbers = numbers(&folder)?;
        let cut = numbers.last().map(|last| cut_off(&path(&folder, *last))).transpose()?.flatten();
        // A file that was on its way out when the agent was killed.
        while let [oldest, _, ..] = numbers[..]
            && let Some(last) = last_row(&path(&folder, oldest))?
            && last.seq <= from.seq
        {
            remove(&folder, oldest)?;
            numbers.remove(0);
        }
        let mut head = None;
        for number in numbers.iter().rev() {
            head = last_row(&path(&folder, *number))?;
            if head.is_some() {
                break;
            }
        }
        let head = head.unwrap_or(from);
        if numbers.is_empty() {
            numbers.push(1);
        }
        let open = open(&folder, numbers.last().copied().unwrap_or(1))?;
        let bytes = open.metadata()?.len();
        let files = Self { reserve: Reserve::of(state), folder, bounds, numbers, open, bytes, from, head };
        Ok((files, cut))
    }

    /// The last row that is on the disk.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Writes rows, all or none; they are on the disk then.
    pub fn append(&mut self, time: u64, entries: impl IntoIterator<Item = Entry>) -> Result<()> {
        let (mut head, mut text) = (self.head, String::new());
        for entry in entries {
            let (line, next) = head.next(time, entry);
            text.push_str(&line);
            text.push('\n');
            head = next;
        }
        if text.is_empty() {
            return Ok(());
        }
        if self.bytes > 0 && self.bytes + text.len() as u64 > self.bounds.file_bytes {
            self.turn()?;
        }
        let (open, bytes) = (&self.open, self.bytes);
        let path = path(&self.folder, self.numbers.last().copied().unwrap_or(1));
        // What an attempt that found no room has written goes first.
        let written = self.reserve.write(|| {
            durable::set_len(open, &path, bytes)?;
            durable::write(open, &path, bytes, text.as_bytes())?;
            Ok(durable::sync(open, &path)?)
        });
        written.with_context(|| format!("write {}", self.folder.display()))?;
        self.bytes += text.len() as u64;
        self.head = head;
        Ok(())
    }

    /// Goes on in a new file; the oldest goes where there are too many.
    fn turn(&mut self) -> Result<()> {
        while self.numbers.len() >= self.bounds.files.max(1) {
            let oldest = self.numbers[0];
            if let Some(last) = last_row(&path(&self.folder, oldest))? {
                durable::replace(&self.folder.join("from"), format!("{} {}\n", last.seq, last.hash).as_bytes())?;
                self.from = last;
            }
            remove(&self.folder, oldest)?;
            self.numbers.remove(0);
        }
        let number = self.numbers.last().map_or(1, |last| last + 1);
        self.open = open(&self.folder, number)?;
        self.numbers.push(number);
        self.bytes = 0;
        Ok(())
    }

    /// The last rows, the oldest first. Lines that are no rows are left out: [`Files::verify`] says which.
    pub fn tail(&self, rows: usize) -> Result<Vec<Row>> {
        let mut found: Vec<Row> = vec![];
        for number in self.numbers.iter().rev() {
            if found.len() >= rows {
                break;
            }
            let bytes = read(&path(&self.folder, *number), self.bounds)?;
            let here = lines(&bytes).filter_map(|line| serde_json::from_slice(line).ok());
            found.splice(0..0, here.collect::<Vec<Row>>());
        }
        found.drain(..found.len().saturating_sub(rows));
        Ok(found)
    }

    /// Walks the whole log. Returns the number before its first row and its head, or what is wrong.
    pub fn verify(&self, known: &[(Head, &'static str)]) -> Result<(u64, Result<Head, Wrong>)> {
        let mut all = vec![(self.head, "this agent wrote")];
        all.extend_from_slice(known);
        // What was dropped is not looked for.
        all.retain(|(at, _)| at.seq >= self.from.seq);
        let mut head = self.from;
        for number in &self.numbers {
            let bytes = read(&path(&self.folder, *number), self.bounds)?;
            let in_this = |at: &&(Head, &'static str)| at.0.seq <= head.seq + lines(&bytes).count() as u64;
            let known: Vec<_> = all.iter().filter(in_this).copied().collect();
            match row::verify(head, lines(&bytes), &known) {
                Ok(next) => head = next,
                Err(wrong) => return Ok((self.from.seq, Err(wrong))),
            }
        }
        Ok((self.from.seq, row::verify(head, [], &all)))
    }
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number}.log"))
}

fn open(folder: &Path, number: u64) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = path(folder, number);
    let is_new = !path.exists();
    let file = File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    if is_new {
        durable::created(&path);
    }
    durable::sync_folder(folder)?;
    Ok(file)
}

fn remove(folder: &Path, number: u64) -> Result<()> {
    let path = path(folder, number);
    durable::remove(&path).with_context(|| format!("remove {}", path.display()))
}

fn numbers(folder: &Path) -> Result<Vec<u64>> {
    let mut numbers = vec![];
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn read_from(folder: &Path) -> Result<Head> {
    let path = folder.join("from");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Head::NONE),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let known = || {
        let (seq, hash) = text.trim().split_once(' ')?;
        Some(Head { seq: seq.parse().ok()?, hash: hash.parse().ok()? })
    };
    known().with_context(|| format!("{}: not a row's number and hash; move the folder `audit` away to begin a new log", path.display()))
}

/// A file as far as one of this log's may be long.
fn read(path: &Path, bounds: Bounds) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    let file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    file.take(bounds.file_bytes.max(LINE_BYTES_MAX) * 2).read_to_end(&mut bytes).with_context(|| format!("read {}", path.display()))?;
    Ok(bytes)
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// The head that the last row of a file makes; none of a file without rows.
fn last_row(path: &Path) -> Result<Option<Head>> {
    let bytes = read(path, BOUNDS)?;
    let last = lines(&bytes).filter_map(|line| serde_json::from_slice::<Row>(line).ok().map(|row| (row.seq, line))).last();
    Ok(last.map(|(seq, line)| Head { seq, hash: row::hash(line) }))
}

/// Cuts off what is no whole row at the end of a file. Says so.
fn cut_off(path: &Path) -> Result<Option<String>> {
    let bytes = read(path, BOUNDS)?;
    let is_row = |line: &[u8]| serde_json::from_slice::<Row>(line).is_ok();
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let last = bytes[..whole.saturating_sub(1)].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let keep = if whole > 0 && !is_row(&bytes[last..whole - 1]) { last } else { whole };
    if keep == bytes.len() {
        return Ok(None);
    }
    let file = File::options().write(true).open(path)?;
    durable::set_len(&file, path, keep as u64)
        .and_then(|()| durable::sync(&file, path))
        .with_context(|| format!("cut {}", path.display()))?;
    Ok(Some(format!("{}: {} bytes after its last whole row were cut off", path.display(), bytes.len() - keep)))
}

#[cfg(test)]
mod tests;
