//! No circle among the modules of a crate: what uses each other is one thing, or one of the two is in the wrong place.
//!
//! ```text
//! *.rs of a crate -> source (words that users get) -> imports (paths) -> arrows between its top-level modules -> circles -> faults
//! ```
//! A module and what is below it count as one. `lib.rs` and `main.rs` are no modules: a name that they take from a module and that others
//! name as `crate::Name` is an arrow to that module. Test code does not count: a test may look at everything.

mod imports;
mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Fault;

/// Modules of one crate that may lie in a circle, until somebody cuts it.
pub struct Exception {
    /// The crate's folder of sources.
    pub folder: &'static str,
    /// All of them, and no other.
    pub modules: &'static [&'static str],
    /// What keeps them together.
    pub why: &'static str,
}

/// The only place where a circle is excused. One that is cut has to go from here too.
pub const EXCEPTIONS: &[Exception] = &[Exception {
    folder: "vmm/kvm/src",
    modules: &["cpu_model", "kick", "machine", "run_page", "saved", "vcpu"],
    why: "a machine makes its vCPUs and logs, and the parts are methods of `Machine` and `Vcpu` in files of their own",
}];

/// A file of Rust: its path from the root of the repository, and its text.
pub type File = (String, String);

/// Where a module first names another.
type Arrows<'a> = BTreeMap<&'a str, BTreeMap<&'a str, String>>;

/// Adds the circles that nobody excused, and the excuses that nobody needs.
pub fn check(files: &[File], exceptions: &[Exception], faults: &mut Vec<Fault>) {
    let roots: BTreeSet<&str> = files.iter().filter_map(|(path, _)| root_of(path)).collect();
    let mut left: Vec<(&Exception, BTreeSet<&str>)> =
        exceptions.iter().map(|exception| (exception, exception.modules.iter().copied().collect())).collect();
    for folder in roots {
        let arrows = arrows(folder, files);
        for circle in circles(&arrows) {
            let excused = left
                .iter_mut()
                .find(|(exception, _)| exception.folder == folder && circle.iter().all(|module| exception.modules.contains(module)));
            match excused {
                Some((_, unneeded)) => unneeded.retain(|module| !circle.contains(module)),
                None => faults.push(fault(folder, told(&arrows, &circle))),
            }
        }
    }
    for (exception, unneeded) in left.into_iter().filter(|(_, unneeded)| !unneeded.is_empty()) {
        let names = list(unneeded);
        let what = format!("{names}: in no circle any more; take the names out of the exceptions of this rule ({})", exception.why);
        faults.push(fault(exception.folder, what));
    }
}

fn fault(folder: &str, what: String) -> Fault {
    Fault { path: folder.to_owned(), line: 0, what }
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// The folder of a crate whose root this file is.
fn root_of(path: &str) -> Option<&str> {
    let folder = path.strip_suffix("/lib.rs").or_else(|| path.strip_suffix("/main.rs"))?;
    folder.ends_with("/src").then_some(folder)
}

/// Where in its crate a file is; `None` for the programs beside it and for tests.
fn module_of(inside: &str) -> Option<Vec<&str>> {
    let mut path: Vec<&str> = inside.strip_suffix(".rs")?.split('/').collect();
    if path[0] == "bin" || path.contains(&"tests") {
        return None;
    }
    if path.last() == Some(&"mod") || ["lib", "main"].contains(&inside.strip_suffix(".rs")?) {
        path.pop();
    }
    Some(path)
}

/// Which top-level module of a crate names which.
fn arrows<'a>(folder: &str, files: &'a [File]) -> Arrows<'a> {
    let inside = |path: &'a str| path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
    let read = files.iter().filter_map(|(path, text)| {
        let module = module_of(inside(path)?)?;
        Some((path, module, source::shipped(&source::words(text))))
    });
    let read: Vec<(&String, Vec<&str>, source::Shipped<'a>)> = read.collect();
    let of_tests: BTreeSet<Vec<&str>> =
        read.iter().flat_map(|(_, module, file)| file.test_modules.iter().map(|name| [&module[..], &[*name]].concat())).collect();
    let is_for_tests = |module: &[&str]| (0..=module.len()).any(|length| of_tests.contains(&module[..length]));

    let (roots, others): (Vec<_>, Vec<_>) =
        read.iter().filter(|(_, module, _)| !is_for_tests(module)).partition(|(_, module, _)| module.is_empty());
    let mut arrows: Arrows<'a> = others.iter().map(|(_, module, _)| (module[0], BTreeMap::new())).collect();
    let modules: BTreeSet<&str> = arrows.keys().copied().collect();
    let passed_on = roots.iter().flat_map(|(_, _, root)| imports::used_at_root(&root.words));
    let passed_on: BTreeMap<&str, &str> = passed_on
        .filter(|named| named.path.len() > 1 && modules.contains(named.path[0]))
        .map(|named| (named.called, named.path[0]))
        .collect();
    for (path, module, file) in others {
        for named in imports::named(&file.words, module) {
            let first = named.path[0];
            let Some(to) = modules.get(first).or_else(|| passed_on.get(first)).copied().filter(|to| *to != module[0]) else { continue };
            let place = || format!("{path}:{}", named.line);
            arrows.entry(module[0]).or_default().entry(to).or_insert_with(place);
        }
    }
    arrows
}

/// Sets of modules of which each leads to every other.
fn circles<'a>(arrows: &Arrows<'a>) -> Vec<BTreeSet<&'a str>> {
    let reached: BTreeMap<&str, BTreeSet<&str>> = arrows.keys().map(|module| (*module, reached_from(arrows, module))).collect();
    let mut circles: Vec<BTreeSet<&str>> = Vec::new();
    for (module, reaches) in &reached {
        let known = circles.iter().any(|circle| circle.contains(module));
        if reaches.contains(module) && !known {
            circles.push(reaches.iter().copied().filter(|other| reached[other].contains(module)).collect());
        }
    }
    circles
}

fn reached_from<'a>(arrows: &Arrows<'a>, from: &'a str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(module) = open.pop() {
        open.extend(arrows[module].keys().filter(|next| reached.insert(**next)));
    }
    reached
}

/// A sentence with a shortest way round.
fn told(arrows: &Arrows<'_>, circle: &BTreeSet<&str>) -> String {
    let shortest = circle.iter().filter_map(|module| way_round(arrows, module)).min_by_key(Vec::len).unwrap_or_default();
    let place = shortest.first().zip(shortest.get(1)).and_then(|(from, to)| arrows.get(from)?.get(to)).cloned().unwrap_or_default();
    let more = if circle.len() > shortest.len() - 1 { format!("; with it {}", list(circle.iter().copied())) } else { String::new() };
    format!("{} is a circle of modules (use at {place}{more})", shortest.join(" -> "))
}

/// The shortest way from a module back to it, with it at both ends.
fn way_round<'a>(arrows: &Arrows<'a>, module: &'a str) -> Option<Vec<&'a str>> {
    let mut ways = VecDeque::from([vec![module]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for next in arrows.get(way.last()?)?.keys() {
            let longer = [&way[..], &[*next]].concat();
            if *next == module {
                return Some(longer);
            }
            if seen.insert(*next) {
                ways.push_back(longer);
            }
        }
    }
    None
}
