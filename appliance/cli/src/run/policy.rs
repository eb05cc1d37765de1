//! `rebec policy check`: a file is read and judged here, and nobody is asked.

use std::{
    fmt::Display,
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
};

use rebec_pool::trade::{
    file,
    policy::{Policy, Rule},
};
use serde_json::json;

use crate::{
    failure::{Exit, Failure},
    talk,
    text::{count, table::table},
};

/// Says what is wrong with a policy, or what it means.
pub fn check(path: &Path, json: bool) -> Exit {
    let shown = path.display();
    let text = match text(path) {
        Ok(text) => text,
        Err(why) => return Failure::Here(why).tell(),
    };
    let read = file::read(&text);
    let said = match (&read, json) {
        (read, true) => {
            let mistakes = read.as_ref().err().map(Vec::as_slice).unwrap_or_default();
            let mistakes: Vec<_> = mistakes.iter().map(|it| json!({ "line": it.line, "column": it.column, "what": it.what })).collect();
            format!("{:#}\n", json!({ "right": read.is_ok(), "mistakes": mistakes }))
        }
        (Ok(policy), false) => table(["RULE", "VALUE", "FROM"], &rules(policy)),
        (Err(mistakes), false) => {
            for mistake in mistakes {
                talk::say(&format!("{shown}:{mistake}"));
            }
            talk::say(&format!(
                "rebec: {shown}: {}; docs/formats/policy.md says how a policy is written",
                count(mistakes.len() as u64, "mistake")
            ));
            String::new()
        }
    };
    match io::stdout().write_all(said.as_bytes()) {
        Ok(()) if read.is_ok() => Exit::Done,
        Ok(()) => Exit::Failed,
        Err(error) => Failure::Output(error).tell(),
    }
}

/// Reads a policy for a command that stands on it.
pub fn read(path: &Path) -> Result<Policy, Failure> {
    let shown = path.display();
    let text = text(path).map_err(Failure::Here)?;
    file::read(&text).map_err(|mistakes| {
        let first = mistakes.first().map(ToString::to_string).unwrap_or_default();
        let more = if mistakes.len() > 1 {
            format!(" (and {} more; `rebec policy check {shown}` tells all)", mistakes.len() - 1)
        } else {
            String::new()
        };
        Failure::Here(format!("{shown}:{first}{more}"))
    })
}

/// One byte more than a policy may have, so that it is seen to be too long.
pub fn text(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(file::BYTES_MAX as u64 + 1).read_to_string(&mut text));
    read.map(|_| text).map_err(|error| format!("policy {}: {error}", path.display()))
}

fn rules(policy: &Policy) -> Vec<[String; 3]> {
    let Policy { lending, borrowing } = policy;
    let most = Rule { name: borrowing.most.name, value: any_number(borrowing.most.value), line: borrowing.most.line };
    vec![
        row(&lending.share),
        row(&lending.keep),
        row(&lending.to),
        row(&lending.when),
        row(&lending.longest),
        row(&lending.reclaim),
        row(&lending.price),
        row(&lending.notice),
        row(&lending.accept),
        row(&borrowing.from),
        row(&borrowing.threshold),
        row(&borrowing.least),
        row(&most),
        row(&borrowing.survives),
        row(&borrowing.price),
    ]
}

fn any_number(most: u32) -> String {
    if most == u32::MAX { "any number".into() } else { most.to_string() }
}

fn row<T: Display>(rule: &Rule<T>) -> [String; 3] {
    let from = rule.line.map_or_else(|| "default".to_owned(), |line| format!("line {line}"));
    [rule.name.to_owned(), rule.value.to_string(), from]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_policy_is_told_rule_by_rule_and_a_wrong_one_with_its_place() {
        let policy = file::read("[lending]\nshare = \"30%\"\n").unwrap();
        let rules = rules(&policy);
        assert!(rules.contains(&["lending.share", "30%", "line 2"].map(str::to_owned)), "{rules:?}");
        assert!(rules.contains(&["borrowing.most", "any number", "default"].map(str::to_owned)), "{rules:?}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        fs::write(&path, "[lending]\nshare = 3\nkeep = -1\n").unwrap();
        assert_eq!(check(&path, false), Exit::Failed);
        let told = read(&path).unwrap_err().to_string();
        assert!(told.contains("p.toml:2:9: lending.share: write per cent") && told.contains("(and 1 more;"), "{told}");
        assert_eq!(check(&folder.path().join("none"), true), Exit::Failed);
        fs::write(&path, "").unwrap();
        assert_eq!(check(&path, true), Exit::Done);
    }
}
