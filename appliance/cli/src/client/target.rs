//! Which agent is asked: what the command line and the environment say about it, parsed once.

use std::{fmt, path::PathBuf};

use crate::args::{
    AgentOptions,
    values::{HostKey, TextFrom},
};

/// Which agent is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The one at this Unix socket.
    Socket(PathBuf),
    /// One elsewhere.
    Remote(Remote),
}

/// An agent elsewhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Remote {
    /// `ADDRESS:PORT`, with brackets around an IPv6 address.
    pub authority: String,
    /// The key of its host.
    pub key: HostKey,
    /// What lets this client in; none where commands are signed.
    pub token: Option<String>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token stays out of messages.
        f.debug_struct("Remote").field("authority", &self.authority).field("key", &self.key).finish_non_exhaustive()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "agent at {}", path.display()),
            Self::Remote(remote) => write!(f, "agent at https://{}", remote.authority),
        }
    }
}

impl Target {
    /// The agent that the options name, else the environment, else this host's.
    pub fn choose(options: &AgentOptions, environment: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        if options.socket.is_some() && options.host_url.is_some() {
            return Err("--socket and --host-url name two agents; leave one out".to_owned());
        }
        if let Some(path) = &options.socket {
            return Ok(Self::Socket(path.clone()));
        }
        let url = match &options.host_url {
            Some(url) => Some(url.clone()),
            None => environment("REBEC_SOCKET").is_none().then(|| environment("REBEC_URL")).flatten(),
        };
        let Some(url) = url else {
            if options.fingerprint.is_some() || options.token_file.is_some() {
                return Err("--fingerprint and --token-file are for an agent elsewhere: give --host-url too".to_owned());
            }
            return Ok(Self::Socket(environment("REBEC_SOCKET").unwrap_or_else(|| rebec_api::SOCKET.to_owned()).into()));
        };
        let authority = authority(&url).ok_or_else(|| format!("--host-url `{url}`: expected https://ADDRESS:PORT"))?;
        let key = match options.fingerprint {
            Some(key) => key,
            None => environment("REBEC_FINGERPRINT")
                .ok_or_else(|| format!("--fingerprint is missing: the key of https://{authority}, as its status screen shows it"))?
                .parse()
                .map_err(|error| format!("REBEC_FINGERPRINT: {error}"))?,
        };
        let token = match &options.token_file {
            Some(file) => Some(TextFrom::File(file.clone()).read("--token-file")?),
            // A key that is named is to sign.
            None if options.user_key.is_some() => None,
            None => environment("REBEC_TOKEN").map(|token| token.trim().to_owned()),
        };
        if token.iter().flat_map(|token| token.bytes()).any(|byte| !byte.is_ascii_graphic()) {
            return Err("the token is not one: it holds spaces or the like; is it the right file?".to_owned());
        }
        Ok(Self::Remote(Remote { authority, key, token }))
    }

    /// The value of the `Host` header.
    pub fn authority(&self) -> &str {
        match self {
            Self::Socket(_) => "localhost",
            Self::Remote(remote) => &remote.authority,
        }
    }

    /// What lets the client in; the Unix socket is guarded by its permissions.
    pub fn token(&self) -> Option<&str> {
        match self {
            Self::Socket(_) => None,
            Self::Remote(remote) => remote.token.as_deref(),
        }
    }
}

fn authority(url: &str) -> Option<String> {
    let parsed: hyper::Uri = url.parse().ok()?;
    let plain = parsed.scheme_str() == Some("https") && matches!(parsed.path(), "" | "/") && parsed.query().is_none();
    let host = parsed.host().filter(|host| plain && !host.is_empty())?;
    let named = parsed.authority()?.as_str();
    let port = if named == host { rebec_api::API_PORT } else { parsed.port_u16().filter(|port| *port > 0)? };
    (!named.contains('@')).then(|| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(options: &AgentOptions, environment: &[(&str, &str)]) -> Result<Target, String> {
        Target::choose(options, |name| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    fn remote(url: &str) -> AgentOptions {
        AgentOptions { host_url: Some(url.to_owned()), fingerprint: Some(HostKey([7; 32])), ..AgentOptions::default() }
    }

    #[test]
    fn this_host_unless_something_is_said() {
        assert_eq!(choose(&AgentOptions::default(), &[]), Ok(Target::Socket("/run/rebec/agent.sock".into())));
        assert_eq!(choose(&AgentOptions::default(), &[("REBEC_SOCKET", "/a")]), Ok(Target::Socket("/a".into())));
        let here = AgentOptions { socket: Some("/b".into()), ..AgentOptions::default() };
        assert_eq!(choose(&here, &[("REBEC_SOCKET", "/a"), ("REBEC_URL", "https://x")]), Ok(Target::Socket("/b".into())));
    }

    #[test]
    fn an_agent_elsewhere_by_options_or_environment() {
        let fingerprint = "07".repeat(32);
        let said = [("REBEC_URL", "https://10.0.0.1:7000"), ("REBEC_FINGERPRINT", fingerprint.as_str()), ("REBEC_TOKEN", "t1\n")];
        let expected = Remote { authority: "10.0.0.1:7000".into(), key: HostKey([7; 32]), token: Some("t1".into()) };
        assert_eq!(choose(&AgentOptions::default(), &said), Ok(Target::Remote(expected.clone())));
        assert_eq!(
            choose(&remote("https://10.0.0.1:7000/"), &[("REBEC_SOCKET", "/a"), ("REBEC_TOKEN", "t1")]),
            Ok(Target::Remote(expected))
        );
        let Ok(Target::Remote(defaulted)) = choose(&remote("https://[fe80::1]"), &said) else { panic!("refused") };
        assert_eq!(defaulted.authority, "[fe80::1]:7117");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let token = [("REBEC_TOKEN", "t")];
        for url in
            ["http://10.0.0.1:1", "10.0.0.1:1", "https://", "https://a:b", "https://a:0", "https://a/x", "https://me@a", "https://a?b"]
        {
            assert!(choose(&remote(url), &token).unwrap_err().contains("expected https://ADDRESS:PORT"), "{url}");
        }
        let keyless = AgentOptions { fingerprint: None, ..remote("https://a") };
        assert!(choose(&keyless, &token).unwrap_err().contains("--fingerprint is missing"));
        assert!(choose(&keyless, &[("REBEC_FINGERPRINT", "7")]).unwrap_err().contains("64 hexadecimal digits"));
        let Ok(Target::Remote(signing)) = choose(&remote("https://a"), &[]) else { panic!("refused") };
        assert_eq!(signing.token, None);
        let named = AgentOptions { user_key: Some("/k".into()), ..remote("https://a") };
        assert_eq!(choose(&named, &token).unwrap().token(), None);
        assert!(choose(&remote("https://a"), &[("REBEC_TOKEN", "a b")]).unwrap_err().contains("token"));
        let both = AgentOptions { socket: Some("/a".into()), ..remote("https://a") };
        assert!(choose(&both, &token).unwrap_err().contains("two agents"));
        let alone = AgentOptions { fingerprint: Some(HostKey([7; 32])), ..AgentOptions::default() };
        assert!(choose(&alone, &[]).unwrap_err().contains("--host-url"));
    }

    #[test]
    fn a_token_is_not_printed() {
        let target = choose(&remote("https://a"), &[("REBEC_TOKEN", "hush")]).unwrap();
        assert!(!format!("{target:?} {target}").contains("hush"));
    }
}
