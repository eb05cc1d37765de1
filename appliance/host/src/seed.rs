//! NoCloud seed disks: a FAT volume labelled CIDATA with `meta-data` and `user-data`, which cloud-init and its like read.

use std::{
    fs::File,
    io::{Cursor, Write},
    path::Path,
};

use anyhow::{Context, Result};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use rebec_api::{ApiError, ErrorCode};
use serde_json::json;

/// Room for a hundred keys.
const BYTES: usize = 1 << 20;
/// Longest text of one file.
const TEXT_BYTES_MAX: usize = 24 * 1024;

/// The texts of a seed: meta-data and user-data. JSON is YAML, and quotes itself.
pub fn texts(name: &str, hostname: Option<&str>, keys: &[String]) -> Result<(String, String), ApiError> {
    let bad = |what: String| ApiError::new(ErrorCode::BadRequest, what);
    let hostname = hostname.unwrap_or(name);
    let valid = !hostname.is_empty() && hostname.len() <= 63 && hostname.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !valid {
        return Err(bad(format!("hostname `{hostname}`: expected letters, digits and dashes, at most 63")));
    }
    if let Some(key) = keys.iter().find(|key| !(key.starts_with("ssh-") || key.starts_with("ecdsa-") || key.starts_with("sk-"))) {
        let start: String = key.chars().take(20).collect();
        return Err(bad(format!("ssh key `{start}...` is not an OpenSSH public key; give the .pub file")));
    }
    let meta = json!({ "instance-id": name, "local-hostname": hostname }).to_string();
    let user = format!("#cloud-config\n{}", json!({ "hostname": hostname, "ssh_authorized_keys": keys }));
    if user.len() > TEXT_BYTES_MAX {
        return Err(bad(format!("ssh keys of {} KiB: at most {} KiB fit a seed disk", user.len() >> 10, TEXT_BYTES_MAX >> 10)));
    }
    Ok((meta, user))
}

/// Writes the volume, the same bytes for the same texts.
pub fn write(path: &Path, (meta, user): &(String, String)) -> Result<()> {
    let mut volume = Cursor::new(vec![0; BYTES]);
    format_volume(&mut volume, FormatVolumeOptions::new().volume_label(*b"CIDATA     ").volume_id(0x5265_6265))
        .context("seed disk: format")?;
    {
        let fs = FileSystem::new(&mut volume, FsOptions::new()).context("seed disk: open")?;
        for (name, text) in [("meta-data", meta), ("user-data", user)] {
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
    use super::*;

    #[test]
    fn the_texts_say_what_was_asked() {
        let (meta, user) = texts("web", Some("web1"), &["ssh-ed25519 AAAA me".into()]).unwrap();
        assert_eq!(meta, r#"{"instance-id":"web","local-hostname":"web1"}"#);
        assert_eq!(user, "#cloud-config\n{\"hostname\":\"web1\",\"ssh_authorized_keys\":[\"ssh-ed25519 AAAA me\"]}");
        assert!(texts("web", Some("a b"), &[]).is_err());
        assert!(texts("web", None, &["-----BEGIN OPENSSH PRIVATE KEY".into()]).is_err());
        assert!(texts("web", None, &[format!("ssh-rsa {}", "A".repeat(TEXT_BYTES_MAX))]).is_err());
    }

    #[test]
    fn the_volume_holds_both_files_and_is_the_same_twice() {
        let folder = tempfile::tempdir().unwrap();
        let texts = texts("web", None, &[]).unwrap();
        let images = ["a", "b"].map(|name| {
            let path = folder.path().join(name);
            write(&path, &texts).unwrap();
            std::fs::read(&path).unwrap()
        });
        assert_eq!(images[0], images[1]);
        let fs = FileSystem::new(Cursor::new(images[0].clone()), FsOptions::new()).unwrap();
        assert_eq!(fs.volume_label().trim(), "CIDATA");
        let names: Vec<_> = fs.root_dir().iter().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["meta-data", "user-data"]);
    }
}
