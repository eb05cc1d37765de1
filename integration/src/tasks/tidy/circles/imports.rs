//! Which other modules of its crate a file names: paths that begin with `crate`, `super` or `self`, alone and in groups.
//!
//! What a path means is read as text. A name without such a beginning was imported by one, or is no other module's.

use super::source::Word;

/// A path from the root of the crate, and what the place that names it calls its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Named<'a> {
    pub path: Vec<&'a str>,
    pub called: &'a str,
    /// From 1.
    pub line: usize,
}

/// Every path in a file that lies in a module of its own crate; `module` is where the file is in it.
pub fn named<'a>(words: &[Word<'a>], module: &[&'a str]) -> Vec<Named<'a>> {
    let mut found = Vec::new();
    // For each open bracket the name of the module that it opened, if it did.
    let mut open: Vec<Option<&str>> = Vec::new();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let before = |back: usize| at.checked_sub(back).and_then(|at| words.get(at)).map_or("", |word| word.text);
        let is_start = ["crate", "super", "self"].contains(&word.text) && words.get(at + 1).is_some_and(|next| next.text == "::");
        // Visibility, as in `pub(in crate::x)`, uses nothing.
        let is_visibility = before(1) == "in" && before(2) == "(";
        if is_start && before(1) != "::" && !is_visibility {
            let here = module.iter().copied().chain(open.iter().copied().flatten()).collect();
            at = tree(words, at, Some(here), &mut found);
            continue;
        }
        match word.text {
            "{" => open.push((before(2) == "mod").then(|| before(1)).filter(|name| !name.is_empty())),
            "}" => {
                open.pop();
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// What `use` declarations at the root of a crate name in it, whether they begin with `crate` or with a module of it.
pub fn used_at_root<'a>(words: &[Word<'a>]) -> Vec<Named<'a>> {
    let mut found = Vec::new();
    for (at, _) in words.iter().enumerate().filter(|(_, word)| word.text == "use") {
        tree(words, at + 1, Some(Vec::new()), &mut found);
    }
    found
}

/// Reads a path and the groups in it from `at`; returns where it ends. `here` is what it is relative to, `None` if that lies outside the crate.
fn tree<'a>(words: &[Word<'a>], mut at: usize, mut here: Option<Vec<&'a str>>, found: &mut Vec<Named<'a>>) -> usize {
    let text = |at: usize| words.get(at).map_or("", |word| word.text);
    loop {
        match text(at) {
            "crate" => here = Some(Vec::new()),
            "super" => here = here.filter(|path| !path.is_empty()).map(|path| path[..path.len() - 1].to_vec()),
            "self" => {}
            "{" => return group(words, at + 1, here.as_ref(), found),
            "" | ";" | "," | "}" => return at,
            name => here.iter_mut().for_each(|path| path.push(name)),
        }
        if text(at + 1) != "::" {
            break;
        }
        at += 2;
    }
    if let (Some(path), Some(word)) = (here.filter(|path| !path.is_empty()), words.get(at)) {
        let called = if text(at + 1) == "as" { text(at + 2) } else { path.last().copied().unwrap_or_default() };
        found.push(Named { path, called, line: word.line });
    }
    at + 1
}

fn group<'a>(words: &[Word<'a>], mut at: usize, here: Option<&Vec<&'a str>>, found: &mut Vec<Named<'a>>) -> usize {
    while let Some(word) = words.get(at) {
        at = match word.text {
            "}" => return at + 1,
            ";" => return at,
            "," => at + 1,
            // `as NAME` was looked at where its path ended.
            "as" => at + 2,
            _ => tree(words, at, here.cloned(), found),
        };
    }
    at
}
