//! The repository's own rules, as far as a program can judge them.
//!
//! - a Rust file opens with `//!` and has at most 600 lines;
//! - `unsafe` only in `vmm/kvm` and `integration/guest`;
//! - no word that puts work off;
//! - a relative link in a Markdown file leads to a file;
//! - no circle among the modules of a crate (`circles`);
//! - every outside dependency of the workspace has a line in `docs/dependencies.md`, is used by a member, and no line there is stale.

mod circles;
#[cfg(test)]
mod tests;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Past this a second story has moved in.
const LINES_MAX: usize = 600;
/// Where `unsafe` may live.
const UNSAFE_HOMES: [&str; 2] = ["vmm/kvm/", "integration/guest/"];
/// Words that put work off. Written apart, so that this file keeps its own rule.
const PUT_OFF: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
/// Folders that hold nothing written by people.
const SKIPPED: [&str; 6] = ["target", ".git", "corpus", "artifacts", "node_modules", "proptest-regressions"];

/// One place that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    path: String,
    /// From 1; 0 is the whole file.
    line: usize,
    what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what),
            line => write!(f, "{}:{line}: {}", self.path, self.what),
        }
    }
}

/// Everything that breaks a rule below `root`.
pub fn check(root: &Path) -> Result<Vec<Fault>> {
    check_with(root, circles::EXCEPTIONS)
}

fn check_with(root: &Path, exceptions: &[circles::Exception]) -> Result<Vec<Fault>> {
    let mut files = Vec::new();
    walk(root, &mut files)?;
    files.sort();
    let (mut faults, mut programs) = (Vec::new(), Vec::new());
    for path in &files {
        let name = path.strip_prefix(root).unwrap_or(path).display().to_string();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if !["rs", "md", "toml", "sh", "ld"].contains(&extension) {
            continue;
        }
        let text = fs::read_to_string(path).with_context(|| format!("read {name}"))?;
        put_off(&name, &text, &mut faults);
        match extension {
            "rs" => {
                rust(&name, &text, &mut faults);
                programs.push((name, text));
            }
            "md" => links(&name, &text, path, &mut faults),
            _ => {}
        }
    }
    circles::check(&programs, exceptions, &mut faults);
    dependencies(root, &mut faults)?;
    Ok(faults)
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry.with_context(|| format!("read {}", folder.display()))?;
        let kind = entry.file_type().with_context(|| format!("look at {}", entry.path().display()))?;
        let skipped = entry.file_name().to_str().is_some_and(|name| SKIPPED.contains(&name));
        if kind.is_dir() && !skipped {
            walk(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn rust(name: &str, text: &str, faults: &mut Vec<Fault>) {
    let mut fault = |line, what: String| faults.push(Fault { path: name.to_owned(), line, what });
    if !text.starts_with("//!") {
        fault(1, "does not open with //! (what it is, what it is not, where its data comes from and goes)".to_owned());
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        fault(0, format!("has {lines} lines, and a file ends at {LINES_MAX}: find the second story"));
    }
    if UNSAFE_HOMES.iter().any(|home| name.starts_with(home)) {
        return;
    }
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap_or_default();
        let words = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "(unsafe_code"];
        if words.iter().any(|word| code.contains(word) && !code.contains(&format!("\"{word}"))) {
            fault(number, "unsafe code lives in vmm/kvm and integration/guest only".to_owned());
        }
    }
}

fn put_off(name: &str, text: &str, faults: &mut Vec<Fault>) {
    for (number, line) in (1..).zip(text.lines()) {
        let mut words = line.split(|letter: char| !letter.is_ascii_alphanumeric());
        if let Some(word) = words.find(|word| PUT_OFF.contains(word)) {
            faults.push(Fault { path: name.to_owned(), line: number, what: format!("{word}: do it, or write an issue") });
        }
    }
}

/// Links of the form `](target)`, outside code.
fn links(name: &str, text: &str, path: &Path, faults: &mut Vec<Fault>) {
    let mut in_code = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for rest in line.split("](").skip(1) {
            let target = rest.split([')', '#', ' ']).next().unwrap_or_default();
            let outside = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            let found = path.parent().is_some_and(|folder| folder.join(target).exists());
            if !outside && !found {
                faults.push(Fault { path: name.to_owned(), line: number, what: format!("links to {target}, which is not there") });
            }
        }
    }
}

fn dependencies(root: &Path, faults: &mut Vec<Fault>) -> Result<()> {
    const DESCRIBED: &str = "docs/dependencies.md";
    let workspace = manifest(&root.join("Cargo.toml"))?;
    let workspace = workspace.get("workspace").and_then(toml::Value::as_table);
    let listed = workspace.and_then(|workspace| workspace.get("dependencies")).and_then(toml::Value::as_table);
    let members = workspace.and_then(|workspace| workspace.get("members")).and_then(toml::Value::as_array);
    let mut used = Vec::new();
    for member in members.into_iter().flatten().filter_map(toml::Value::as_str) {
        used.extend(named_dependencies(&manifest(&root.join(member).join("Cargo.toml"))?));
    }
    let fuzz = root.join("fuzz/Cargo.toml");
    let outside = if fuzz.exists() { named_dependencies(&manifest(&fuzz)?) } else { Vec::new() };

    let described = fs::read_to_string(root.join(DESCRIBED)).unwrap_or_default();
    let mut fault = |path: &str, line, what| faults.push(Fault { path: path.to_owned(), line, what });
    for (name, value) in listed.into_iter().flatten() {
        if value.get("path").is_none() && !described.contains(&format!("`{name}`:")) {
            fault("Cargo.toml", 0, format!("dependency {name} has no line in {DESCRIBED}"));
        }
        if members.is_some() && !used.contains(name) {
            fault("Cargo.toml", 0, format!("dependency {name} is used by no member"));
        }
    }
    for (number, line) in (1..).zip(described.lines()) {
        let name = line.strip_prefix("- `").and_then(|rest| rest.split_once("`:")).map(|(name, _)| name);
        if let Some(name) =
            name.filter(|name| !listed.is_some_and(|listed| listed.contains_key(*name)) && !outside.iter().any(|o| o == name))
        {
            fault(DESCRIBED, number, format!("{name} is in no manifest"));
        }
    }
    Ok(())
}

fn manifest(path: &Path) -> Result<toml::Table> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    text.parse().with_context(|| format!("read {}", path.display()))
}

fn named_dependencies(manifest: &toml::Table) -> Vec<String> {
    let tables = ["dependencies", "dev-dependencies", "build-dependencies"].into_iter().filter_map(|key| manifest.get(key)?.as_table());
    tables.flat_map(|table| table.keys().cloned()).collect()
}
