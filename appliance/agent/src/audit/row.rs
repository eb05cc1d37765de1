//! Rows of the audit log and their chain (docs/formats/audit.md), pure: what is written, what follows what, and the first row that is wrong.
//!
//! A row is a line of JSON: the log is read after an incident, by people and by programs that are not this one. What is hashed is the
//! line as it stands, so nothing depends on how a reader would write it.

use rebec_book::{
    authority::{Asker, Question, Role},
    key::{Digest, Id, Key, Name},
    warrant::Signer,
};
use serde::{Deserialize, Serialize};

/// Longest refusal that is kept whole.
const WHY_BYTES_MAX: usize = 512;
/// What the hash of a row is for.
const PURPOSE: &str = "rebec audit row v1";
/// What is asked where there was too much to write down.
pub const DROPPED: &str = "dropped";

/// Who asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Who {
    /// A host, by its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Key>,
    /// The role of who gave a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The token that was shown; none with a user's own signature and for root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Who gave a command: a user's name, `root@HOST`, or a key that has no name here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The host through which a signed command came, if it was not given here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Key>,
}

impl Who {
    /// A host, or nobody, or somebody whose token was no good.
    pub fn new(asker: Asker, token: Option<&str>) -> Self {
        let host = if let Asker::Host(key) = asker { Some(key) } else { None };
        Self { host, token: token.map(str::to_owned), ..Self::default() }
    }

    /// Who gave a command, called so and in this role, to the host `own`.
    pub fn signer(signer: &Signer, own: Key, name: String, role: Option<Role>, token: Option<&str>) -> Self {
        let via = Some(signer.at()).filter(|at| *at != own);
        // Of a token of this host its name says all.
        let user = (token.is_none() || via.is_some()).then_some(name);
        Self { host: None, role: role.map(|role| role.to_string()), token: token.map(str::to_owned), user, via }
    }
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who asked.
    #[serde(flatten)]
    pub who: Who,
    /// Which question or command.
    pub asked: String,
    /// About what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<Id>,
    /// Why it was not granted; none where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Of how many decisions this row is, where it is of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
}

impl Entry {
    /// A question and what came of it.
    pub fn new(who: Who, question: &Question, refused: Option<String>) -> Self {
        let asked = match question {
            Question::Command(command, _) => format!("{command:?}"),
            other => format!("{other:?}").split('(').next().unwrap_or_default().to_owned(),
        };
        Self { who, asked, about: question.about(), refused: refused.map(cut), times: None }
    }

    /// Somebody who was not let in, before anything was asked.
    pub fn shut_out(token: Option<&str>, why: &str) -> Self {
        let who = Who::new(Asker::Nobody, token);
        Self { who, asked: "Enter".to_owned(), about: None, refused: Some(cut(why.to_owned())), times: None }
    }

    /// The log was not what it should be when the agent started.
    pub fn changed(wrong: &Wrong) -> Self {
        Self { who: Who::default(), asked: "changed".to_owned(), about: None, refused: Some(cut(wrong.to_string())), times: None }
    }

    /// So many decisions that are in no row.
    pub fn dropped(times: u64) -> Self {
        Self { who: Who::default(), asked: DROPPED.to_owned(), about: None, refused: None, times: Some(times) }
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(WHY_BYTES_MAX));
    text
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its number; the first is 1.
    pub seq: u64,
    /// When, in seconds since 1970.
    pub time: u64,
    /// What it says.
    #[serde(flatten)]
    pub entry: Entry,
    /// Hash of the row before; zero in the first.
    pub before: Digest,
}

/// How far a chain is: the last row's number and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub seq: u64,
    /// Its hash.
    pub hash: Digest,
}

/// Why a log is not the one that was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// A line that is no row.
    #[error("row {0} is no row: its bytes were changed")]
    NoRow(u64),
    /// A row is not where it was.
    #[error("row {0} is not there: row {1} is in its place")]
    Number(u64, u64),
    /// A row was changed, or one in place of another.
    #[error("row {1} does not follow row {0}: one of them was changed")]
    Chain(u64, u64),
    /// The row that somebody knows is another.
    #[error("row {0} is not the one that {1}")]
    Other(u64, &'static str),
    /// The end is missing.
    #[error("the rows from {0} to {1} are missing, which {2}")]
    Missing(u64, u64, &'static str),
}

impl Head {
    /// Of a log without rows.
    pub const NONE: Self = Self { seq: 0, hash: Name([0; 32]) };

    /// The line of the next row, without its end, and the head then.
    pub fn next(&self, time: u64, entry: Entry) -> (String, Self) {
        let row = Row { seq: self.seq + 1, time, entry, before: self.hash };
        let line = serde_json::to_string(&row).expect("invariant: the fields of a row have string keys only");
        let head = Self { seq: row.seq, hash: hash(line.as_bytes()) };
        (line, head)
    }

    /// The row of a line that should be next, and the head then.
    ///
    /// # Errors
    /// Where it is not.
    pub fn follow(&self, line: &[u8]) -> Result<(Row, Self), Wrong> {
        let expected = self.seq + 1;
        let row: Row = serde_json::from_slice(line).map_err(|_| Wrong::NoRow(expected))?;
        if row.seq != expected {
            return Err(Wrong::Number(expected, row.seq));
        }
        if row.before != self.hash {
            return Err(Wrong::Chain(self.seq, expected));
        }
        Ok((row, Self { seq: expected, hash: hash(line) }))
    }
}

/// The hash of a row, by its line without its end.
pub fn hash(line: &[u8]) -> Digest {
    Name(blake3::derive_key(PURPOSE, line))
}

/// Walks a log from a row that is known, which is not in it any more, to its end. `known` are other rows that somebody knows, and who.
///
/// # Errors
/// The first row that is wrong.
pub fn verify<'a>(from: Head, lines: impl IntoIterator<Item = &'a [u8]>, known: &[(Head, &'static str)]) -> Result<Head, Wrong> {
    let is_known = |head: Head| match known.iter().find(|(at, _)| at.seq == head.seq && at.hash != head.hash) {
        Some((at, who)) => Err(Wrong::Other(at.seq, who)),
        None => Ok(head),
    };
    let mut head = is_known(from)?;
    for line in lines {
        head = is_known(head.follow(line)?.1)?;
    }
    match known.iter().find(|(at, _)| at.seq > head.seq) {
        Some((at, who)) => Err(Wrong::Missing(head.seq + 1, at.seq, who)),
        None => Ok(head),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rebec_book::{authority::Command, record::Kind};

    const VM: Id = Name([7; 16]);

    fn entry(number: u64) -> Entry {
        let question = Question::Command(Command::VmStop, Some((Kind::VM, VM)));
        let refused = number.is_multiple_of(3).then(|| "to stop a VM needs the role user; this is viewer".to_owned());
        let own = Name([5; 32]);
        let who = Who::signer(&Signer::token(own, Role::Viewer), own, "root@a1".into(), Some(Role::Viewer), Some("eyes"));
        Entry::new(who, &question, refused)
    }

    fn log(rows: u64) -> (Vec<Vec<u8>>, Head) {
        let (mut head, mut lines) = (Head::NONE, vec![]);
        for number in 1..=rows {
            let (line, next) = head.next(1_700_000_000 + number, entry(number));
            lines.push(line.into_bytes());
            head = next;
        }
        (lines, head)
    }

    fn judge(lines: &[Vec<u8>], head: Head) -> Result<Head, Wrong> {
        verify(Head::NONE, lines.iter().map(Vec::as_slice), &[(head, "this agent wrote")])
    }

    #[test]
    fn a_row_looks_like_this_for_ever() {
        let (lines, head) = log(1);
        let zeros = "0".repeat(64);
        let expected = format!(
            r#"{{"seq":1,"time":1700000001,"role":"viewer","token":"eyes","asked":"VmStop","about":"{}","before":"{zeros}"}}"#,
            "07".repeat(16)
        );
        assert_eq!(String::from_utf8(lines[0].clone()).unwrap(), expected);
        assert_eq!(head.follow(&lines[0]), Err(Wrong::Number(2, 1)));
        let (row, _) = Head::NONE.follow(&lines[0]).unwrap();
        assert_eq!(row.entry, entry(1));
        let host = Entry::new(Who::new(Asker::Host(Name([5; 32])), None), &Question::Arrive(VM, 3), Some("no".into()));
        let (line, _) = head.next(2, host.clone());
        assert_eq!(head.follow(line.as_bytes()).unwrap().0.entry, host);
        assert!(line.contains(r#""asked":"Arrive""#) && line.contains(r#""refused":"no""#), "{line}");
    }

    #[test]
    fn any_byte_that_was_changed_is_found() {
        let (lines, head) = log(4);
        assert_eq!(judge(&lines, head), Ok(head));
        for (at, line) in lines.iter().enumerate() {
            for byte in 0..line.len() {
                let mut changed = lines.clone();
                changed[at][byte] ^= 1;
                let wrong = judge(&changed, head).unwrap_err();
                let near = at as u64 + 1;
                let said = match wrong {
                    Wrong::NoRow(row) | Wrong::Number(row, _) | Wrong::Other(row, _) => row,
                    Wrong::Chain(before, _) => before.max(1),
                    Wrong::Missing(row, ..) => row,
                };
                assert!(said.abs_diff(near) <= 1, "row {near}, byte {byte}: {wrong}");
            }
        }
    }

    #[test]
    fn rows_that_were_taken_out_put_in_or_moved_are_found() {
        let (lines, head) = log(5);
        for at in 0..5 {
            let mut without = lines.clone();
            without.remove(at);
            assert!(judge(&without, head).is_err(), "without {at}");
            let mut twice = lines.clone();
            twice.insert(at, lines[at].clone());
            assert!(judge(&twice, head).is_err(), "twice {at}");
            for other in 0..at {
                let mut moved = lines.clone();
                moved.swap(at, other);
                assert!(judge(&moved, head).is_err(), "{at} and {other}");
            }
        }
        assert_eq!(judge(&lines[..3], head), Err(Wrong::Missing(4, 5, "this agent wrote")));
        assert_eq!(judge(&lines[1..], head), Err(Wrong::Number(1, 2)));
    }

    #[test]
    fn a_log_that_was_written_anew_is_not_the_one_that_others_know() {
        let (lines, _) = log(5);
        let known = verify(Head::NONE, lines[..3].iter().map(Vec::as_slice), &[]).unwrap();
        let mut head = Head::NONE;
        let again: Vec<Vec<u8>> = (1..=5)
            .map(|number| {
                let (line, next) = head.next(1_800_000_000, entry(number));
                head = next;
                line.into_bytes()
            })
            .collect();
        let judged = verify(Head::NONE, again.iter().map(Vec::as_slice), &[(head, "this agent wrote"), (known, "the pool was told of")]);
        assert_eq!(judged, Err(Wrong::Other(3, "the pool was told of")));
    }

    #[test]
    fn a_log_without_its_beginning_is_walked_from_there() {
        let (lines, head) = log(5);
        let from = verify(Head::NONE, lines[..2].iter().map(Vec::as_slice), &[]).unwrap();
        assert_eq!(verify(from, lines[2..].iter().map(Vec::as_slice), &[(head, "x"), (Head::NONE, "y")]), Ok(head));
        let other = Head { hash: Name([1; 32]), ..from };
        assert_eq!(verify(other, lines[2..].iter().map(Vec::as_slice), &[]), Err(Wrong::Chain(2, 3)));
    }

    #[test]
    fn a_long_refusal_is_cut() {
        let entry = Entry::new(Who::default(), &Question::Exchange, Some("é".repeat(1000)));
        assert_eq!(entry.refused.unwrap().len(), WHY_BYTES_MAX);
    }
}
