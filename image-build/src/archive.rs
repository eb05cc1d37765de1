//! Packages of another Debian release, from the archive this machine is configured to use.
//!
//! The machine's own sources are read, their suite replaced, and the result put into a private apt root under a cache folder:
//! lists, state and downloads there, the machine's own configuration (proxies included) and its Debian keyring as they
//! are. Signatures are checked as always: a repository that is not signed by that keyring fails. Nothing of the machine
//! is changed, and root is not needed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{command::Program, progress::say};

/// Debian's keys, from package debian-archive-keyring.
/// The part of the archive that most packages are in.
pub const MAIN: &str = "main";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// How long lists or one package may take to arrive.
const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(600);

/// One release of Debian in a private apt root.
pub struct Archive {
    root: PathBuf,
    suite: String,
    component: String,
}

/// A package as the archive's signed lists describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Digest of its file.
    pub sha256: String,
    /// What it needs, as written in its `Depends` field.
    pub depends: String,
}

impl Archive {
    /// Opens a release, such as `trixie`, below `cache`, and fetches its lists if that has not happened yet.
    pub fn open(cache: &Path, suite: &str) -> Result<Self> {
        Self::component(cache, suite, MAIN)
    }

    /// The same for another part of the archive than `main`.
    pub fn component(cache: &Path, suite: &str, component: &str) -> Result<Self> {
        let folder = if component == MAIN { suite.to_owned() } else { format!("{suite}-{component}") };
        let archive = Self { root: cache.join("apt").join(folder), suite: suite.to_owned(), component: component.to_owned() };
        if !archive.root.join("ready").exists() {
            archive.refresh()?;
        }
        Ok(archive)
    }

    /// Fetches the lists again.
    pub fn refresh(&self) -> Result<()> {
        let sources = sources_for(&self.suite, &self.component)?;
        for folder in ["state/lists/partial", "cache/archives/partial", "downloads"] {
            fs::create_dir_all(self.root.join(folder)).with_context(|| format!("create apt root {}", self.root.display()))?;
        }
        fs::write(self.root.join("state/status"), "").context("write the private apt root")?;
        fs::write(self.root.join("sources.list"), sources).context("write the private apt root")?;
        say("archive", format_args!("fetching the signed package lists of {} {}", self.suite, self.component));
        let fetched = self.apt("apt-get").args(["-qq", "update"]).deadline(DOWNLOAD_DEADLINE).quiet();
        fetched.with_context(|| format!("fetch the package lists of {} from this machine's own Debian archive", self.suite))?;
        fs::write(self.root.join("ready"), "").context("write the private apt root")
    }

    /// The newest version of a package in this release.
    pub fn newest(&self, name: &str) -> Result<Candidate> {
        self.show(name)?.with_context(|| format!("package {name} is not in Debian {} {}", self.suite, self.component))
    }

    /// One version of a package, if the archive still has it.
    pub fn exact(&self, name: &str, version: &str) -> Result<Option<Candidate>> {
        self.show(&format!("{name}={version}"))
    }

    fn show(&self, what: &str) -> Result<Option<Candidate>> {
        // An unknown package is an exit code; it means the same as an empty answer here.
        let text = self.apt("apt-cache").args(["--no-all-versions", "show", what]).output().unwrap_or_default();
        let field = |key: &str| {
            let mut lines = text.lines().take_while(|line| !line.is_empty());
            lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(": ")).map(str::to_owned)
        };
        let (Some(name), Some(version), Some(sha256)) = (field("Package"), field("Version"), field("SHA256")) else {
            return Ok(None);
        };
        Ok(Some(Candidate { name, version, sha256, depends: field("Depends").unwrap_or_default() }))
    }

    /// Downloads a package; apt verifies it against the signed lists. The file is the caller's.
    pub fn download(&self, candidate: &Candidate) -> Result<PathBuf> {
        let folder = self.root.join("downloads");
        let what = format!("{}={}", candidate.name, candidate.version);
        let done = self.apt("apt-get").args(["-qq", "download", &what]).folder(&folder).deadline(DOWNLOAD_DEADLINE).quiet();
        done.with_context(|| format!("download {what}"))?;
        let prefix = format!("{}_", candidate.name);
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(&prefix) && name.ends_with(".deb") && sha256(&path)? == candidate.sha256 {
                return Ok(path);
            }
        }
        bail!("download {what}: the file that arrived has another digest than the signed list says")
    }

    /// Downloads a package of this release and everything it needs, recommendations aside, into a folder. apt verifies
    /// each file against the signed lists.
    pub fn download_with_dependencies(&self, name: &str, folder: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(folder.join("partial")).with_context(|| format!("create {}", folder.display()))?;
        let archives = format!("Dir::Cache::archives={}/", folder.display());
        let args = ["-qq", "--yes", "--download-only", "--no-install-recommends", "-o", &archives, "install", name];
        let done = self.apt("apt-get").args(args).deadline(DOWNLOAD_DEADLINE).quiet();
        done.with_context(|| format!("download {name} and what it needs"))?;
        let mut packages = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                packages.push(path);
            }
        }
        packages.sort();
        Ok(packages)
    }

    fn apt(&self, program: &str) -> Program {
        let at = |key: &str, path: &str| format!("{key}={}", self.root.join(path).display());
        let mut options = vec![
            at("Dir::State", "state"),
            at("Dir::State::status", "state/status"),
            at("Dir::Cache", "cache"),
            at("Dir::Etc::sourcelist", "sources.list"),
        ];
        let fixed = [
            "Dir::Etc::sourceparts=-",
            "Dir::Etc::preferences=-",
            "Dir::Etc::preferencesparts=-",
            "Dir::Etc::trusted=-",
            "Dir::Etc::trustedparts=-",
            "APT::Architecture=amd64",
            "Acquire::Languages=none",
            "Acquire::Retries=3",
            // The unprivileged download user cannot write below a user's own target folder.
            "APT::Sandbox::User=",
            "Acquire::AllowInsecureRepositories=false",
            "APT::Get::AllowUnauthenticated=false",
        ];
        options.extend(fixed.map(str::to_owned));
        Program::new(program).args(options.iter().flat_map(|option| ["-o", option.as_str()]))
    }
}

/// SHA-256 of a file, as hexadecimal digits.
pub fn sha256(path: &Path) -> Result<String> {
    let line = Program::new("sha256sum").arg("-b").arg(path).output()?;
    line.split_whitespace().next().map(str::to_owned).with_context(|| format!("digest of {}", path.display()))
}

/// The sources of a private apt root: this machine's Debian archive with another suite.
fn sources_for(suite: &str, component: &str) -> Result<String> {
    let mut texts = vec![("sources.list".to_owned(), fs::read_to_string("/etc/apt/sources.list").unwrap_or_default())];
    for entry in fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        texts.push((name, fs::read_to_string(entry.path()).unwrap_or_default()));
    }
    let codename = os_codename()?;
    let mut archives: Vec<String> = texts.iter().flat_map(|(name, text)| archives_in(name, text, &codename)).collect();
    archives.dedup();
    if archives.is_empty() {
        bail!(
            "no Debian archive with suite {codename} and component main in /etc/apt/sources.list or sources.list.d; add one and run this again"
        );
    }
    Ok(archives.iter().map(|uri| format!("deb [arch=amd64 signed-by={KEYRING}] {uri} {suite} {component}\n")).collect())
}

fn os_codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let codename = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    codename.map(|name| name.trim_matches('"').to_owned()).context("/etc/os-release names no release; a Debian machine is needed")
}

/// Addresses of binary archives that serve this release's main component, from one file of either format.
fn archives_in(name: &str, text: &str, codename: &str) -> Vec<String> {
    let ours = |suites: &str| suites.split_whitespace().any(|suite| [codename, "stable", "oldstable"].contains(&suite));
    let main = |components: &str| components.split_whitespace().any(|component| component == "main");
    let mut found = Vec::new();
    if name.ends_with(".sources") {
        for stanza in text.split("\n\n") {
            let field = |key: &str| stanza.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_owned();
            let enabled = field("Enabled:") != "no";
            if enabled
                && field("Types:").split_whitespace().any(|kind| kind == "deb")
                && ours(&field("Suites:"))
                && main(&field("Components:"))
            {
                found.extend(field("URIs:").split_whitespace().map(str::to_owned));
            }
        }
    } else if name.ends_with(".list") {
        for line in text.lines() {
            let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
            let rest = rest.trim_start();
            let rest = if rest.starts_with('[') { rest.split_once(']').map_or("", |(_, rest)| rest) } else { rest };
            let mut words = rest.split_whitespace();
            let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
            if ours(suite) && words.any(|component| component == "main") {
                found.push(uri.to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_of_sources_are_read() {
        let stanza = "Types: deb\nURIs: http://one.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
                      Types: deb\nURIs: http://two.example/security\nSuites: bookworm-security\nComponents: main\n\n\
                      Enabled: no\nTypes: deb\nURIs: http://three.example/debian\nSuites: bookworm\nComponents: main\n";
        assert_eq!(archives_in("debian.sources", stanza, "bookworm"), ["http://one.example/debian"]);
        let lines = "# deb http://zero.example/ bookworm main\ndeb-src http://one.example/ bookworm main\n\
                     deb [arch=amd64 signed-by=/k] https://two.example/debian bookworm contrib main\n\
                     deb http://three.example/debian bookworm contrib\ndeb http://four.example/debian stable main\n";
        assert_eq!(archives_in("sources.list", lines, "bookworm"), ["https://two.example/debian", "http://four.example/debian"]);
        assert!(archives_in("notes.txt", lines, "bookworm").is_empty());
    }
}
