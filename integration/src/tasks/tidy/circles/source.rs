//! A Rust file as words: without comments, without what is in quotes, and without what only tests compile.
//!
//! It is no parser. It knows as much of the language as is needed to find paths in it, and what it does not know passes as words that name nothing.

/// A word of a file: a name, `::`, or one other sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word<'a> {
    pub text: &'a str,
    /// From 1.
    pub line: usize,
}

/// The words of a file, in order.
pub fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let (bytes, is_word) = next(rest, first);
        let (taken, after) = rest.split_at(bytes);
        if is_word {
            words.push(Word { text: taken, line });
        }
        line += taken.matches('\n').count();
        rest = after;
    }
    words
}

/// How many bytes belong together at the beginning of `rest`, and whether they are a word.
fn next(rest: &str, first: char) -> (usize, bool) {
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), false);
    }
    if rest.starts_with("/*") {
        return (block_comment(rest), false);
    }
    if let Some(bytes) = quoted(rest) {
        return (bytes, false);
    }
    if rest.starts_with("::") {
        return (2, true);
    }
    if is_of_name(first) {
        return (rest.find(|letter| !is_of_name(letter)).unwrap_or(rest.len()), true);
    }
    (first.len_utf8(), !first.is_whitespace())
}

fn is_of_name(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Block comments lie in each other.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(left) = rest.get(at..).filter(|left| !left.is_empty()) {
        if left.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if left.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += left.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length of a string or character that stands at the beginning.
fn quoted(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r"].into_iter().find(|prefix| rest.strip_prefix(prefix).is_some_and(is_quote)).unwrap_or("");
    let body = &rest[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = body.len() - body.trim_start_matches('#').len();
        // `r#type` is a name.
        let inside = body[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
        return Some(prefix.len() + hashes + 1 + length);
    }
    let quote = body.chars().next().filter(|first| ['"', '\''].contains(first))?;
    let mut letters = body.char_indices().skip(1);
    // A quote that does not close after one letter begins the name of a lifetime.
    if quote == '\'' && !body.starts_with("'\\") && body.chars().nth(2) != Some('\'') {
        return None;
    }
    while let Some((at, letter)) = letters.next() {
        if letter == '\\' {
            letters.next();
        } else if letter == quote {
            return Some(prefix.len() + at + 1);
        }
    }
    Some(rest.len())
}

fn is_quote(rest: &str) -> bool {
    rest.starts_with(['"', '\'']) || rest.trim_start_matches('#').starts_with('"')
}

/// What of a file is compiled for users.
#[derive(Debug, Default)]
pub struct Shipped<'a> {
    pub words: Vec<Word<'a>>,
    /// Modules in other files that only tests compile, by their names in this one.
    pub test_modules: Vec<&'a str>,
}

/// Leaves out items under `#[cfg(test)]`.
pub fn shipped<'a>(words: &[Word<'a>]) -> Shipped<'a> {
    let mut shipped = Shipped::default();
    let mut rest = words;
    while let Some((first, after)) = rest.split_first() {
        if !is_for_tests(rest) {
            shipped.words.push(*first);
            rest = after;
            continue;
        }
        while rest.first().is_some_and(|word| word.text == "#") {
            rest = &rest[end_of_item(rest, "]")..];
        }
        let end = end_of_item(rest, "}");
        if let [.., word, name, Word { text: ";", .. }] = &rest[..end]
            && word.text == "mod"
        {
            shipped.test_modules.push(name.text);
        }
        rest = &rest[end..];
    }
    shipped
}

fn texts<'a>(words: &[Word<'a>]) -> impl Iterator<Item = &'a str> {
    words.iter().map(|word| word.text)
}

fn is_for_tests(words: &[Word<'_>]) -> bool {
    let begins = |beginning: &[&str]| texts(words).take(beginning.len()).eq(beginning.iter().copied());
    begins(&["#", "[", "cfg", "(", "test", ")", "]"]) || begins(&["#", "[", "cfg", "(", "all", "(", "test", ","])
}

/// Behind the bracket that closes an item's first one of its kind, or behind its semicolon; before a bracket that the item did not open.
fn end_of_item(words: &[Word<'_>], close: &str) -> usize {
    let mut depth = 0_usize;
    for (at, text) in texts(words).enumerate() {
        match text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" if depth == 0 => return at,
            ")" | "]" | "}" => {
                depth -= 1;
                if depth == 0 && text == close {
                    return at + 1;
                }
            }
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
    }
    words.len()
}
