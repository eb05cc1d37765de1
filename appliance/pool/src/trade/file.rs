//! A policy's file (docs/formats/policy.md): TOML becomes a [`Policy`], or all that is wrong with it, each with its line and column.

use std::{fmt, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use rebec_book::contract::NOTICE_S_MAX;

use super::{
    calendar::Calendar,
    policy::{Accept, Domains, Longest, Modes, Policy, Price, Reclaim, Rule, Share, Span},
};

/// A file that is longer is none of ours.
pub const BYTES_MAX: usize = 64 * 1024;
/// Who has made more mistakes mends these first.
const MISTAKES_MAX: usize = 50;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What, and how it is written right.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.what)
    }
}

/// Reads a policy.
///
/// # Errors
/// Everything that is wrong, in the order of the file.
pub fn read(text: &str) -> Result<Policy, Vec<Mistake>> {
    if text.len() > BYTES_MAX {
        return Err(vec![Mistake {
            line: 1,
            column: 1,
            what: format!("a policy has at most {} KiB; is it the right file?", BYTES_MAX >> 10),
        }]);
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { text, mistakes: vec![] };
    for error in &errors {
        reader.wrong(error.span().unwrap_or_default(), error.message().replace('\n', ", "));
    }
    let mut policy = Policy::default();
    // What follows a mistake of form would be about what was not meant.
    if errors.is_empty() {
        reader.root(root.get_ref(), &mut policy);
    }
    if reader.mistakes.is_empty() {
        return Ok(policy);
    }
    reader.mistakes.sort();
    reader.mistakes.truncate(MISTAKES_MAX);
    Err(reader.mistakes)
}

struct Reader<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    fn root(&mut self, root: &DeTable<'_>, policy: &mut Policy) {
        for (key, value) in root {
            match (key.get_ref().as_ref(), value.get_ref().as_table()) {
                ("lending", Some(table)) => self.lending(table, policy),
                ("borrowing", Some(table)) => self.borrowing(table, policy),
                (name @ ("lending" | "borrowing"), None) => self.wrong(value.span(), format!("`{name}` is a table; write [{name}]")),
                (name, _) => self.wrong(key.span(), format!("`{name}` is not part of a policy; there are [lending] and [borrowing]")),
            }
        }
    }

    fn lending(&mut self, table: &DeTable<'_>, policy: &mut Policy) {
        let lending = &mut policy.lending;
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "share" => self.set(&mut lending.share, value, share),
                "keep" => self.set(&mut lending.keep, value, |value| machines(value, 0)),
                "to" => self.set(&mut lending.to, value, domains),
                "when" => self.when(&mut lending.when, value),
                "longest" => self.set(&mut lending.longest, value, longest),
                "reclaim" => self.set(&mut lending.reclaim, value, modes),
                "price" => self.set(&mut lending.price, value, price),
                "notice" => self.set(&mut lending.notice, value, notice),
                "accept" => self.set(&mut lending.accept, value, accept),
                name => {
                    let known = "share, keep, to, when, longest, reclaim, price, notice and accept";
                    self.wrong(key.span(), format!("`{name}` is not part of [lending]; there are {known}"));
                }
            }
        }
    }

    fn borrowing(&mut self, table: &DeTable<'_>, policy: &mut Policy) {
        let borrowing = &mut policy.borrowing;
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "from" => self.set(&mut borrowing.from, value, domains),
                "threshold" => self.set(&mut borrowing.threshold, value, |value| machines(value, 1)),
                "least" => self.set(&mut borrowing.least, value, |value| machines(value, 1)),
                "most" => self.set(&mut borrowing.most, value, |value| machines(value, 0)),
                "survives" => self.set(&mut borrowing.survives, value, modes),
                "price" => self.set(&mut borrowing.price, value, price),
                name => {
                    let known = "from, threshold, least, most, survives and price";
                    self.wrong(key.span(), format!("`{name}` is not part of [borrowing]; there are {known}"));
                }
            }
        }
        if borrowing.least.value > borrowing.most.value && borrowing.most.value > 0 {
            let later = [&borrowing.least, &borrowing.most].into_iter().max_by_key(|rule| rule.line);
            let name = later.map_or("most", |rule| rule.name.trim_start_matches("borrowing."));
            let span = table.iter().find(|(key, _)| key.get_ref().as_ref() == name).map(|(_, value)| value.span());
            let what = format!("least = {} is more than most = {}: nothing would be borrowed", borrowing.least.value, borrowing.most.value);
            self.wrong(span.unwrap_or_default(), what);
        }
    }

    fn set<T>(&mut self, rule: &mut Rule<T>, value: &Value<'_>, read: impl FnOnce(&DeValue<'_>) -> Result<T, Wrong>) {
        match read(value.get_ref()) {
            Ok(read) => {
                rule.value = read;
                rule.line = Some(self.place(value.span().start).0);
            }
            Err(Wrong { within, what }) => self.wrong(within.unwrap_or_else(|| value.span()), format!("{}: {what}", rule.name)),
        }
    }

    fn when(&mut self, rule: &mut Rule<Calendar>, value: &Value<'_>) {
        let spans = match value.get_ref() {
            DeValue::String(_) => vec![value],
            DeValue::Array(array) => array.iter().collect(),
            _ => vec![],
        };
        let texts: Option<Vec<&str>> = spans.iter().map(|span| span.get_ref().as_str()).collect();
        let Some(texts) = texts.filter(|texts| !texts.is_empty()) else {
            return self.wrong(value.span(), format!("{}: write hours as in [\"mon-fri 18:00-08:00\", \"sat-sun\"]", rule.name));
        };
        match Calendar::of(&texts) {
            Ok(calendar) => *rule = Rule { name: rule.name, value: calendar, line: Some(self.place(value.span().start).0) },
            Err((number, what)) => self.wrong(spans[number].span(), format!("{}: {what}", rule.name)),
        }
    }

    fn wrong(&mut self, span: Range<usize>, what: String) {
        let (line, column) = self.place(span.start);
        self.mistakes.push(Mistake { line, column, what });
    }

    fn place(&self, at: usize) -> (usize, usize) {
        place(self.text, at)
    }
}

/// The line and the column of a byte of a file, both from 1.
pub fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// What is wrong with a value, and where in it, if not as a whole.
struct Wrong {
    within: Option<Range<usize>>,
    what: String,
}

fn wrong<T>(what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { within: None, what: what.into() })
}

fn share(value: &DeValue<'_>) -> Result<Share, Wrong> {
    let per_cent = value.as_str().and_then(|text| text.strip_suffix('%')).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    match per_cent.and_then(|digits| digits.parse().ok()) {
        Some(share @ 0..=100) => Ok(Share(share)),
        _ => wrong("write per cent of the idle machines in quotes, 0 to 100, as in \"50%\""),
    }
}

fn machines(value: &DeValue<'_>, least: u32) -> Result<u32, Wrong> {
    let number = value.as_integer().and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok());
    match number {
        Some(number) if number >= least => Ok(number),
        _ => wrong(format!("write a number of machines, {least} or more")),
    }
}

fn domains(value: &DeValue<'_>) -> Result<Domains, Wrong> {
    let how = "write \"anyone\" or names of domains as in [\"beta\", \"gamma\"]";
    match value {
        DeValue::String(text) if text.as_ref() == "anyone" => Ok(Domains::Anyone),
        DeValue::Array(array) => {
            let mut names = vec![];
            for item in array.iter() {
                match item.get_ref().as_str() {
                    Some(name) if !name.is_empty() => names.push(name.to_owned()),
                    _ => return Err(Wrong { within: Some(item.span()), what: how.into() }),
                }
            }
            Ok(Domains::Named(names))
        }
        _ => wrong(how),
    }
}

fn longest(value: &DeValue<'_>) -> Result<Longest, Wrong> {
    let seconds = seconds(value).filter(|seconds| *seconds > 0);
    seconds.map_or_else(|| wrong("write a time in quotes, as in \"30m\", \"24h\" or \"7d\""), |seconds| Ok(Longest(Some(seconds))))
}

fn notice(value: &DeValue<'_>) -> Result<Span, Wrong> {
    match seconds(value).filter(|seconds| *seconds <= NOTICE_S_MAX) {
        Some(seconds) => Ok(Span(seconds)),
        None => wrong("write a time of at most 30d in quotes, as in \"90s\", \"10m\" or \"1h\""),
    }
}

fn price(value: &DeValue<'_>) -> Result<Price, Wrong> {
    let number = value.as_integer().and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok());
    number.map_or_else(|| wrong("write thousandths for a machine and an hour, as in 20"), |number| Ok(Price(number)))
}

fn accept(value: &DeValue<'_>) -> Result<Accept, Wrong> {
    match value.as_str() {
        Some("policy") => Ok(Accept::Policy),
        Some("operator") => Ok(Accept::Operator),
        _ => wrong("write \"policy\" or \"operator\""),
    }
}

fn seconds(value: &DeValue<'_>) -> Option<u64> {
    value.as_str().and_then(|text| {
        let unit = match text.as_bytes().last()? {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            _ => return None,
        };
        let digits = text.get(..text.len() - 1).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse::<u64>().ok()?.checked_mul(unit)
    })
}

fn modes(value: &DeValue<'_>) -> Result<Modes, Wrong> {
    let how = "write kill, wait or migrate, the preferred first, as in [\"migrate\", \"wait\"]";
    let Some(array) = value.as_array().filter(|array| array.iter().next().is_some()) else { return wrong(how) };
    let mut modes = vec![];
    for item in array.iter() {
        let mode = item.get_ref().as_str().and_then(|word| Reclaim::ALL.into_iter().find(|mode| mode.word() == word));
        let at = |what: &str| Wrong { within: Some(item.span()), what: what.into() };
        let mode = mode.ok_or_else(|| at(how))?;
        if modes.contains(&mode) {
            return Err(at("stands twice"));
        }
        modes.push(mode);
    }
    Ok(Modes(modes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"# The hardware lab
[lending]
share = "30%"
keep = 2
to = ["beta", "gamma"]
when = ["mon-fri 18:00-08:00", "sat-sun"]
longest = "12h"
reclaim = ["migrate", "wait"]

[borrowing]
from = "anyone"
threshold = 4
least = 2
most = 0x20
survives = ["kill"]
"#;

    #[test]
    fn a_whole_file_is_a_policy_whose_rules_know_their_lines() {
        let policy = read(WHOLE).unwrap();
        assert_eq!(policy.lending.share.to_string(), "line 3: lending.share = 30%");
        assert_eq!(policy.lending.to.to_string(), "line 5: lending.to = beta, gamma");
        assert_eq!(policy.lending.when.to_string(), "line 6: lending.when = mon-fri 18:00-08:00, sat-sun");
        assert_eq!(policy.lending.longest.to_string(), "line 7: lending.longest = 12h");
        assert_eq!((policy.borrowing.most.value, policy.borrowing.most.line), (32, Some(14)));
        assert_eq!(policy.borrowing.survives.value, Modes(vec![Reclaim::Kill]));
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let policy = read("").unwrap();
        assert_eq!(policy, Policy::default());
        assert_eq!(policy.lending.share.to_string(), "default: lending.share = 50%");
    }

    #[test]
    fn every_mistake_is_told_with_its_line_and_column() {
        let text = "lending = 5\nlend = 1\n[borrowing]\nmost = -1\n  least = \"2\"\nsurvives = [\"kill\", \"kïll\"]\nfrom = [\"a\", 5]\nbudget = 3\nthreshold = 0\n";
        let mistakes: Vec<String> = read(text).unwrap_err().iter().map(ToString::to_string).collect();
        let expected = [
            "1:11: `lending` is a table",
            "2:1: `lend` is not part of a policy",
            "4:8: borrowing.most: write a number of machines, 0",
            "5:11: borrowing.least: write a number",
            "6:21: borrowing.survives: write kill, wait or migrate",
            "7:14: borrowing.from: write \"anyone\"",
            "8:1: `budget` is not part of [borrowing]",
            "9:13: borrowing.threshold: write a number of machines, 1",
        ];
        assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
        for (mistake, expected) in mistakes.iter().zip(expected) {
            assert!(mistake.starts_with(expected), "{mistake} is not {expected}");
        }
    }

    #[test]
    fn values_out_of_range_are_mistakes() {
        for (line, column) in [
            ("share = \"101%\"", 9),
            ("share = \"-1%\"", 9),
            ("share = 0.5", 9),
            ("longest = \"7\"", 11),
            ("longest = \"0h\"", 11),
            ("longest = \"99999999999999999999d\"", 11),
            ("when = []", 8),
            ("when = [\"mon\", \"moon\"]", 16),
            ("reclaim = []", 11),
            ("reclaim = [\"wait\", \"wait\"]", 20),
            ("to = \"beta\"", 6),
            ("keep = 4294967296", 8),
            ("price = -1", 9),
            ("notice = \"31d\"", 10),
            ("accept = \"me\"", 10),
        ] {
            let mistakes = read(&format!("[lending]\n{line}\n")).unwrap_err();
            assert_eq!((mistakes.len(), mistakes[0].line, mistakes[0].column), (1, 2, column), "{line}: {mistakes:?}");
        }
        let mistakes = read("[borrowing]\nmost = 2\nleast = 3\n").unwrap_err();
        assert_eq!((mistakes[0].line, mistakes[0].column), (3, 9), "{mistakes:?}");
    }

    #[test]
    fn mistakes_of_form_are_told_alone() {
        let mistakes = read("[lending]\nshare = \nkeep = \"x\n").unwrap_err();
        assert!(mistakes.iter().all(|mistake| mistake.line >= 2) && mistakes[0].line == 2, "{mistakes:?}");
        let twice = read("[lending]\nkeep = 1\nkeep = 2\n").unwrap_err();
        assert_eq!(twice[0].line, 3, "{twice:?}");
        assert_eq!(read(&"x".repeat(BYTES_MAX + 1)).unwrap_err().len(), 1);
        let nested = format!("a = {}", "[".repeat(50_000));
        assert!(read(&nested).unwrap_err().len() <= MISTAKES_MAX);
    }
}
