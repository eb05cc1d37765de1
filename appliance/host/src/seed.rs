//! NoCloud seed disks, which cloud-init and its like read: a FAT volume labelled CIDATA.
//!
//! ```text
//! meta-data        who the machine is: instance-id, local-hostname, public-keys
//! user-data        what its user wants: as it was given, or the host name and the keys once more as #cloud-config
//! network-config   how it is wired (version 2): for each NIC, by its MAC, DHCP, which the NIC's own port answers
//! ```
//! All that is made here is JSON, which is YAML and quotes itself.

use std::{
    fs::File,
    io::{Cursor, Write},
    path::Path,
};

use anyhow::{Context, Result};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use rebec_api::{ApiError, ErrorCode};
use rebec_book::record::{NicBody, SEED_BYTES_MAX};
use rebec_vmm_api::MacAddr;
use serde_json::{Value, json};

/// Room for three texts of the longest.
const BYTES: usize = 1 << 20;
/// Longest label of a host name, and the longest name (RFC 1123 §2.1, RFC 1035 §2.3.4).
const LABEL_BYTES_MAX: usize = 63;
const HOSTNAME_BYTES_MAX: usize = 253;
/// What a machine is called whose name holds nothing that a host name may.
const NAMELESS: &str = "vm";

/// What a VM is to be told.
#[derive(Debug, Clone, Copy)]
pub struct Wishes<'a> {
    /// The VM's name.
    pub name: &'a str,
    /// Its name for itself, if somebody says.
    pub hostname: Option<&'a str>,
    /// Who may log in.
    pub keys: &'a [String],
    /// A user-data file.
    pub user_data: Option<&'a str>,
    /// Its NICs.
    pub nics: &'a [NicBody],
}

/// The files of a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    /// `meta-data`.
    pub meta: String,
    /// `user-data`.
    pub user: String,
    /// `network-config`; none for a VM without NICs.
    pub network: Option<String>,
}

impl Wishes<'_> {
    /// The texts of the seed.
    ///
    /// # Errors
    /// What cannot be told, and what to give instead.
    pub fn texts(&self) -> Result<Texts, ApiError> {
        let bad = |what: String| ApiError::new(ErrorCode::BadRequest, what);
        let hostname = match self.hostname {
            Some(given) => checked_hostname(given).map_err(bad)?.to_owned(),
            None => fit_hostname(self.name),
        };
        if let Some(key) = self.keys.iter().find(|key| !(key.starts_with("ssh-") || key.starts_with("ecdsa-") || key.starts_with("sk-"))) {
            let start: String = key.chars().take(20).collect();
            return Err(bad(format!("ssh key `{start}...` is not an OpenSSH public key; give the .pub file")));
        }
        let mut meta = json!({ "instance-id": self.name, "local-hostname": hostname });
        if !self.keys.is_empty() {
            meta["public-keys"] = json!(self.keys);
        }
        let user = match self.user_data {
            Some(given) => checked_user_data(given).map_err(bad)?.to_owned(),
            None => format!("#cloud-config\n{}", cloud_config(&hostname, self.keys)),
        };
        let texts = Texts { meta: meta.to_string(), user, network: (!self.nics.is_empty()).then(|| network(self.nics).to_string()) };
        let too_long = |text: &str| text.len() > SEED_BYTES_MAX;
        let at_most = SEED_BYTES_MAX >> 10;
        if self.user_data.is_some() && too_long(&texts.user) {
            let is = texts.user.len() >> 10;
            return Err(bad(format!(
                "user-data of {is} KiB: at most {at_most} KiB fit a seed disk; have it fetch the rest (`#include URL`)"
            )));
        }
        if too_long(&texts.meta) || too_long(&texts.user) {
            let is = self.keys.iter().map(String::len).sum::<usize>() >> 10;
            return Err(bad(format!("ssh keys of {is} KiB: at most {at_most} KiB fit a seed disk")));
        }
        Ok(texts)
    }
}

/// The host name and the keys, for readers that take them from nowhere else.
fn cloud_config(hostname: &str, keys: &[String]) -> Value {
    let first = hostname.split('.').next().unwrap_or(hostname);
    let mut config = json!({ "hostname": first, "ssh_authorized_keys": keys });
    if first != hostname {
        config["fqdn"] = json!(hostname);
    }
    config
}

/// Network configuration of version 2: each NIC asks its own port for its address.
fn network(nics: &[NicBody]) -> Value {
    let one = |(number, nic): (usize, &NicBody)| {
        let mac = MacAddr(nic.mac).to_string();
        (format!("nic{number}"), json!({ "match": { "macaddress": mac }, "dhcp4": true }))
    };
    json!({ "version": 2, "ethernets": nics.iter().enumerate().map(one).collect::<serde_json::Map<_, _>>() })
}

/// A host name, whole or with its domain, as somebody gave it.
fn checked_hostname(name: &str) -> Result<&str, String> {
    let label = |label: &str| {
        let letters = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        (1..=LABEL_BYTES_MAX).contains(&label.len()) && letters && !label.starts_with('-') && !label.ends_with('-')
    };
    if name.len() <= HOSTNAME_BYTES_MAX && name.split('.').all(label) {
        return Ok(name);
    }
    Err(format!(
        "hostname `{name}`: expected letters, digits and dashes, {LABEL_BYTES_MAX} at most, a dash neither first nor last; with dots in between it \
         names the domain too, as in web1.example.org"
    ))
}

/// The nearest host name to the name of a VM, which may have what no host name has.
fn fit_hostname(name: &str) -> String {
    let fit = |label: &str| {
        let letters = label.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' });
        let label: String = letters.skip_while(|letter| *letter == '-').take(LABEL_BYTES_MAX).collect();
        label.trim_end_matches('-').to_owned()
    };
    let labels: Vec<String> = name.split('.').map(fit).filter(|label| !label.is_empty()).collect();
    let whole = labels.join(".");
    match labels.into_iter().next() {
        None => NAMELESS.to_owned(),
        Some(first) if whole.len() > HOSTNAME_BYTES_MAX => first,
        Some(_) => whole,
    }
}

/// What cloud-init would take for user-data: by its first line, or it warns on a console that nobody reads and goes on without.
fn checked_user_data(text: &str) -> Result<&str, String> {
    const BEGINNINGS: [&str; 5] = ["#", "Content-Type: ", "MIME-Version: ", "From ", "## template: jinja"];
    if BEGINNINGS.iter().any(|beginning| text.starts_with(beginning)) {
        return Ok(text);
    }
    let line: String = text.lines().next().unwrap_or_default().chars().take(40).collect();
    Err(format!("user-data begins with `{line}`: its first line says what it is, as in `#cloud-config` or `#!/bin/sh`"))
}

/// Writes the volume, the same bytes for the same texts.
pub fn write(path: &Path, texts: &Texts) -> Result<()> {
    let mut volume = Cursor::new(vec![0; BYTES]);
    format_volume(&mut volume, FormatVolumeOptions::new().volume_label(*b"CIDATA     ").volume_id(0x5265_6265))
        .context("seed disk: format")?;
    {
        let fs = FileSystem::new(&mut volume, FsOptions::new()).context("seed disk: open")?;
        let network = texts.network.as_ref().map(|network| ("network-config", network));
        for (name, text) in [("meta-data", &texts.meta), ("user-data", &texts.user)].into_iter().chain(network) {
            let mut file = fs.root_dir().create_file(name).with_context(|| format!("seed disk: create {name}"))?;
            file.write_all(text.as_bytes()).with_context(|| format!("seed disk: write {name}"))?;
        }
        fs.unmount().context("seed disk: finish")?;
    }
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.write_all(volume.get_ref())?;
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, net::Ipv4Addr};

    use rebec_book::key::Name;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAA me";

    fn wishes(name: &str) -> Wishes<'_> {
        Wishes { name, hostname: None, keys: &[], user_data: None, nics: &[] }
    }

    fn nic(last: u8) -> NicBody {
        let address = Ipv4Addr::new(10, 7, 0, last);
        NicBody { lan: Name([0; 16]), vni: 7, mac: [0x52, 0x54, 10, 7, 0, last], address, prefix: 24, sealed: None, mtu: None, trunk: None }
    }

    #[test]
    fn the_texts_say_what_was_asked() {
        let keys = [KEY.to_owned()];
        let texts = Wishes { hostname: Some("web1"), keys: &keys, nics: &[nic(8), nic(9)], ..wishes("web") }.texts().unwrap();
        assert_eq!(texts.meta, r#"{"instance-id":"web","local-hostname":"web1","public-keys":["ssh-ed25519 AAAA me"]}"#);
        assert_eq!(texts.user, "#cloud-config\n{\"hostname\":\"web1\",\"ssh_authorized_keys\":[\"ssh-ed25519 AAAA me\"]}");
        let one = |number, last| format!(r#""nic{number}":{{"dhcp4":true,"match":{{"macaddress":"52:54:0a:07:00:{last:02x}"}}}}"#);
        assert_eq!(texts.network.unwrap(), format!(r#"{{"ethernets":{{{},{}}},"version":2}}"#, one(0, 8), one(1, 9)));
        assert_eq!(wishes("web").texts().unwrap().network, None);

        let texts = Wishes { hostname: Some("web1.example.org"), ..wishes("web") }.texts().unwrap();
        assert_eq!(texts.meta, r#"{"instance-id":"web","local-hostname":"web1.example.org"}"#);
        assert_eq!(texts.user, "#cloud-config\n{\"fqdn\":\"web1.example.org\",\"hostname\":\"web1\",\"ssh_authorized_keys\":[]}");
    }

    #[test]
    fn user_data_goes_as_it_came() {
        let keys = [KEY.to_owned()];
        let script = "#!/bin/sh\necho \u{e4}\r\n";
        let texts = Wishes { keys: &keys, user_data: Some(script), ..wishes("web") }.texts().unwrap();
        assert_eq!(texts.user, script);
        assert!(texts.meta.contains(KEY), "{}", texts.meta);
        let refused = |text: &str| Wishes { user_data: Some(text), ..wishes("web") }.texts().unwrap_err().message;
        assert!(refused("packages: [vim]\n").contains("begins with `packages: [vim]`"));
        assert!(refused("").contains("#cloud-config"));
        assert!(refused(&format!("#cloud-config\n{}", "#".repeat(SEED_BYTES_MAX))).contains("#include"));
    }

    #[test]
    fn a_name_becomes_a_host_name_and_a_given_one_is_checked() {
        let long = "a".repeat(70);
        for (name, fit) in [
            ("web", "web"),
            ("db_1", "db-1"),
            ("web.example.org", "web.example.org"),
            ("-x-", "x"),
            ("..a..b.", "a.b"),
            ("__", "vm"),
            (&long, &long[..63]),
            (&format!("{}-b", "a".repeat(62)), &"a".repeat(62)),
            (&["abcdefgh"; 40].join("."), "abcdefgh"),
        ] {
            assert_eq!(fit_hostname(name), fit);
            assert_eq!(checked_hostname(fit), Ok(fit));
        }
        for bad in ["", "a b", "-x", "x-", "a..b", "a.", ".a", "db_1", "\u{e4}", &long, &["abcdefgh"; 40].join(".")] {
            assert!(checked_hostname(bad).unwrap_err().contains("web1.example.org"), "{bad}");
        }
    }

    #[test]
    fn keys_that_are_none_or_too_many_are_refused() {
        let refused = |key: String| Wishes { keys: &[key], ..wishes("web") }.texts().unwrap_err().message;
        assert!(refused("-----BEGIN OPENSSH PRIVATE KEY".into()).contains("give the .pub file"));
        assert!(refused(format!("ssh-rsa {}", "A".repeat(SEED_BYTES_MAX))).contains("ssh keys of 16 KiB"));
    }

    #[test]
    fn the_volume_holds_the_files_byte_for_byte_and_is_the_same_twice() {
        let folder = tempfile::tempdir().unwrap();
        let user = format!("#cloud-config\n{}", "# \u{e4}\n".repeat(2000));
        let texts = Wishes { user_data: Some(&user), nics: &[nic(8)], ..wishes("web") }.texts().unwrap();
        let images = ["a", "b"].map(|name| {
            let path = folder.path().join(name);
            write(&path, &texts).unwrap();
            std::fs::read(&path).unwrap()
        });
        assert_eq!(images[0], images[1]);
        assert_eq!(images[0].len(), BYTES);
        let fs = FileSystem::new(Cursor::new(images[0].clone()), FsOptions::new()).unwrap();
        assert_eq!(fs.volume_label().trim(), "CIDATA");
        let files: Vec<_> = fs
            .root_dir()
            .iter()
            .map(|entry| {
                let (entry, mut text) = (entry.unwrap(), String::new());
                entry.to_file().read_to_string(&mut text).unwrap();
                (entry.file_name(), text)
            })
            .collect();
        let expected = [("meta-data", texts.meta), ("user-data", texts.user), ("network-config", texts.network.unwrap())];
        assert_eq!(files, expected.map(|(name, text)| (name.to_owned(), text)));
    }
}
