//! `grubenv`, the file in which GRUB keeps variables from one start to the next, and the conditions of `test`.

/// GRUB's own size of the file, which lies in one piece.
const FILE_BYTES: usize = 1024;
/// Variables of one file.
const VARIABLES_MAX: usize = 256;

/// The variables of a `grubenv`: `name=value` lines under a first line that says what it is.
pub fn parse(text: &str) -> Vec<(String, String)> {
    let mut lines = text.lines();
    if lines.next() != Some("# GRUB Environment Block") {
        return vec![];
    }
    let pairs = lines.filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    pairs.take(VARIABLES_MAX).map(|(name, value)| (name.to_owned(), value.replace("\\\\", "\\"))).collect()
}

/// The file without a variable, as large as before; none, if it is not such a file or has no such variable.
pub fn without(text: &str, name: &str) -> Option<Vec<u8>> {
    let is_it = |line: &&str| line.split_once('=').is_some_and(|(key, _)| key == name);
    if text.len() != FILE_BYTES || parse(text).is_empty() || !text.lines().any(|line| is_it(&line)) {
        return None;
    }
    let mut left: String = text.trim_end_matches('#').split_inclusive('\n').filter(|line| !is_it(&line.trim_end())).collect();
    left.extend(std::iter::repeat_n('#', FILE_BYTES.saturating_sub(left.len())));
    Some(left.into_bytes()).filter(|bytes| bytes.len() == FILE_BYTES)
}

/// What `test` says of words. `is_file` answers `-f`, `-e`, `-s` and `-d`.
pub fn test(words: &[String], is_file: &dyn Fn(&str, &str) -> bool) -> bool {
    // `-o` binds least. Words that look like an operator but stand for a value (`[ -o = x ]`) are written so by nobody.
    words.split(|word| word == "-o").any(|any| any.split(|word| word == "-a").all(|all| one(all, is_file)))
}

fn one(words: &[String], is_file: &dyn Fn(&str, &str) -> bool) -> bool {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let negations = words.iter().take_while(|word| **word == "!").count();
    let number = |text: &str| text.parse::<i64>().unwrap_or(0);
    let holds = match words[negations..] {
        [] => false,
        [word] => !word.is_empty(),
        ["-n", word] => !word.is_empty(),
        ["-z", word] => word.is_empty(),
        [kind @ ("-e" | "-f" | "-s" | "-d"), path] => is_file(kind, path),
        [a, "=" | "==", b] => a == b,
        [a, "!=", b] => a != b,
        [a, "<", b] => a < b,
        [a, ">", b] => a > b,
        [a, "-eq", b] => number(a) == number(b),
        [a, "-ne", b] => number(a) != number(b),
        [a, "-lt", b] => number(a) < number(b),
        [a, "-le", b] => number(a) <= number(b),
        [a, "-gt", b] => number(a) > number(b),
        [a, "-ge", b] => number(a) >= number(b),
        _ => false,
    };
    holds != (negations % 2 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_hold_as_in_grub() {
        let holds = |text: &str| {
            let words: Vec<String> = text.split(' ').map(|word| word.trim_matches('\'').to_owned()).collect();
            test(&words, &|_, path| path == "/there")
        };
        for text in ["x", "-n x", "-z ''", "a = a", "a != b", "2 -lt 10", "! -f /gone", "-s /there", "a = b -o c = c", "! ! x"] {
            assert!(holds(text), "{text}");
        }
        for text in ["''", "! x", "a = b", "10 -lt 2", "-f /gone", "a = a -a b = c", "a b c d"] {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn a_grubenv_is_read_and_nothing_else() {
        let text = "# GRUB Environment Block\n# WARNING: Do not edit\nsaved_entry=a>b\nx=c\\\\d\n######";
        assert_eq!(parse(text), [("saved_entry".to_owned(), "a>b".to_owned()), ("x".to_owned(), "c\\d".to_owned())]);
        assert_eq!(parse("saved_entry=1\n"), []);
        let whole = |lines: &str| format!("{:#<1024}", format!("# GRUB Environment Block\n{lines}"));
        let both = whole("next_entry=1>2\nsaved_entry=next_entry=\n");
        assert_eq!(without(&both, "next_entry"), Some(whole("saved_entry=next_entry=\n").into_bytes()));
        assert_eq!(
            (without(&both, "gone"), without(&both[..1000], "next_entry"), without("next_entry=1\n", "next_entry")),
            (None, None, None)
        );
    }
}
