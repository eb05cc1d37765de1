//! The values a user writes: durations, keys, byte counts, texts that may stand in a file. Parsed once, never checked again.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Longest file or standard input that is read as a ticket, a token or a key.
const TEXT_BYTES_MAX: u64 = 64 * 1024;

/// A duration in whole seconds, as in `24h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub u64);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected a time as in 30m, 24h or 7d".to_owned();
        let unit_s = match text.as_bytes().last() {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 3600,
            Some(b'd') => 86_400,
            _ => return Err(wrong()),
        };
        let seconds = whole(&text[..text.len() - 1]).and_then(|number| number.checked_mul(unit_s));
        seconds.filter(|seconds| *seconds > 0).map(Self).ok_or_else(wrong)
    }
}

/// A number of bytes, as in `64K`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
            _ => (text, 0),
        };
        let bytes = whole(digits).and_then(|number| number.checked_mul(1 << shift));
        bytes.map(Self).ok_or_else(|| "expected a number of bytes as in 4096, 64K or 1M".to_owned())
    }
}

/// `str::parse` would also take a plus sign.
fn whole(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// The key of a host, what its status screen shows as fingerprint, or of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostKey(pub [u8; 32]);

impl FromStr for HostKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected the 64 hexadecimal digits that the host's status screen shows, or `rebec user key`".to_owned();
        // Screens and people group the digits.
        let digits: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b' ' | b':' | b'-')).collect();
        if digits.len() != 64 {
            return Err(wrong());
        }
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            *byte = digit(0).zip(digit(1)).map(|(high, low)| high << 4 | low).ok_or_else(wrong)?;
        }
        Ok(Self(key))
    }
}

/// A text that stands on the command line, in a file (`@FILE`) or on standard input (`-`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextFrom {
    /// The text itself.
    Here(String),
    /// A file that holds it.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

impl FromStr for TextFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('@') {
            Some("") => Err("expected a file's name after @".to_owned()),
            Some(path) => Ok(Self::File(path.into())),
            None if text == "-" => Ok(Self::Stdin),
            None => Ok(Self::Here(text.to_owned())),
        }
    }
}

impl TextFrom {
    /// The text, without the space around it. `what` names it in the error.
    pub fn read(&self, what: &str) -> Result<String, String> {
        let text = match self {
            Self::Here(text) => text.clone(),
            Self::File(path) => {
                let place = format!("{what}: {}", path.display());
                let file = fs::File::open(path).map_err(|error| format!("{place}: {error}"))?;
                bounded(file, &place)?
            }
            Self::Stdin => bounded(std::io::stdin(), &format!("{what}: standard input"))?,
        };
        match text.trim() {
            "" => Err(format!("{what}: it is empty")),
            text => Ok(text.to_owned()),
        }
    }
}

fn bounded(from: impl std::io::Read, place: &str) -> Result<String, String> {
    let mut text = String::new();
    let read = from.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| format!("{place}: {error}"))?;
    let fits = u64::try_from(read).is_ok_and(|read| read <= TEXT_BYTES_MAX);
    if fits { Ok(text) } else { Err(format!("{place}: more than {} KiB; is it the right file?", TEXT_BYTES_MAX >> 10)) }
}

/// The keys that one `--ssh-key` stands for: the key itself, or those of a file of public keys.
pub fn ssh_keys(value: &str) -> Result<Vec<String>, String> {
    let is_key = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"].iter().any(|kind| value.starts_with(kind)) && value.contains(' ');
    let text = if is_key { value.to_owned() } else { TextFrom::File(value.into()).read("--ssh-key")? };
    if text.contains("PRIVATE KEY") {
        return Err(format!("--ssh-key: {value}: that is a private key; give the public one, {value}.pub"));
    }
    let keys: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect();
    if keys.is_empty() { Err(format!("--ssh-key: {value}: there is no key in it")) } else { Ok(keys) }
}

/// A user-data file, as it is: the guest reads it.
pub fn user_data(path: &Path) -> Result<String, String> {
    let place = format!("--user-data: {}", path.display());
    let file = fs::File::open(path).map_err(|error| format!("{place}: {error}"))?;
    bounded(file, &place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_bytes() {
        for (text, seconds) in [("1s", 1), ("30m", 1800), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(text.parse(), Ok(Span(seconds)));
        }
        for text in ["", "h", "24", "0h", "-1h", "+1h", "1.5h", "99999999999999999999d", "18446744073709551615d", "1é"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        assert_eq!(("0".parse(), "64K".parse(), "2m".parse()), (Ok(Bytes(0)), Ok(Bytes(65_536)), Ok(Bytes(2 << 20))));
        for text in ["", "K", "+1", "1G", "18446744073709551615K"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_key_is_64_digits_however_grouped() {
        let plain = "00ff".repeat(16);
        let Ok(HostKey(key)) = plain.parse() else { panic!("not a key") };
        assert_eq!((key[0], key[1]), (0, 255));
        assert_eq!(plain.to_uppercase().parse(), Ok(HostKey(key)));
        assert_eq!("00ff 00ff-00ff:00ff ".repeat(4).parse(), Ok(HostKey(key)));
        for text in ["", "00ff", &"0".repeat(63), &"g".repeat(64), &"é".repeat(32)] {
            assert!(text.parse::<HostKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_text_stands_here_or_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ticket");
        fs::write(&path, " rebec1abc\n").unwrap();
        let from: TextFrom = format!("@{}", path.display()).parse().unwrap();
        assert_eq!(from.read("ticket"), Ok("rebec1abc".to_owned()));
        assert_eq!("rebec1abc".parse::<TextFrom>().unwrap().read("ticket"), Ok("rebec1abc".to_owned()));
        assert_eq!("-".parse(), Ok(TextFrom::Stdin));
        assert!("@".parse::<TextFrom>().is_err());
        fs::write(&path, "x".repeat(70_000)).unwrap();
        assert!(from.read("ticket").unwrap_err().contains("more than 64 KiB"));
        fs::write(&path, "\n").unwrap();
        assert!(from.read("ticket").unwrap_err().contains("empty"));
        assert!("@/nowhere/x".parse::<TextFrom>().unwrap().read("ticket").unwrap_err().contains("/nowhere/x"));
    }

    #[test]
    fn user_data_is_text_and_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("user-data");
        fs::write(&path, "#!/bin/sh\n\n").unwrap();
        assert_eq!(user_data(&path).unwrap(), "#!/bin/sh\n\n");
        for wrong in [&[0x1f, 0x8b, 0xff][..], &[b'#'; 70_000]] {
            fs::write(&path, wrong).unwrap();
            assert!(user_data(&path).unwrap_err().contains("user-data"));
        }
        assert!(user_data(&folder.path().join("none")).unwrap_err().contains("none"));
    }

    #[test]
    fn ssh_keys_come_from_text_or_file_and_private_ones_are_refused() {
        assert_eq!(ssh_keys("ssh-ed25519 AAAA me@here"), Ok(vec!["ssh-ed25519 AAAA me@here".to_owned()]));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.pub");
        fs::write(&path, "# mine\nssh-ed25519 AAAA a\n\nssh-rsa BBBB b\n").unwrap();
        assert_eq!(ssh_keys(path.to_str().unwrap()).unwrap().len(), 2);
        fs::write(&path, "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n").unwrap();
        assert!(ssh_keys(path.to_str().unwrap()).unwrap_err().contains("give the public one"));
        fs::write(&path, "# nothing\n").unwrap();
        assert!(ssh_keys(path.to_str().unwrap()).unwrap_err().contains("no key"));
    }
}
