//! What the kernel's command line asks for.

/// Where state is to be.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `any`, or nothing said: on a disk that is there soon, else in RAM until one comes and nothing of RAM's would be lost.
    #[default]
    Any,
    /// `ram`: no disk is looked for.
    Ram,
    /// `disk`: nothing begins before there is one.
    Disk,
}

/// Options of the appliance.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Options {
    /// `rebec.join=TICKET`: join a pool with it.
    pub ticket: Option<String>,
    /// `rebec.hostname=NAME`.
    pub hostname: Option<String>,
    /// `rebec.ip=...`, for the agent.
    pub ip: Option<String>,
    /// `rebec.vlan=...`, for the agent.
    pub vlan: Option<String>,
    /// `rebec.ntp=...`, for the agent.
    pub ntp: Option<String>,
    /// `rebec.state=...`: where state is to be.
    pub state: Place,
    /// Words under `rebec.` that mean nothing.
    pub unknown: Vec<String>,
}

impl Options {
    /// Reads the words of a command line.
    pub fn parse(line: &str) -> Self {
        let mut options = Self::default();
        for word in line.split_whitespace() {
            let Some(word) = word.strip_prefix("rebec.") else { continue };
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let value = value.trim_matches('"').to_owned();
            match key {
                "join" if !value.is_empty() => options.ticket = Some(value),
                "hostname" if is_hostname(&value) => options.hostname = Some(value),
                "ip" if !value.is_empty() => options.ip = Some(value),
                "vlan" if !value.is_empty() => options.vlan = Some(value),
                "ntp" if !value.is_empty() => options.ntp = Some(value),
                "state" if value == "ram" => options.state = Place::Ram,
                "state" if value == "disk" => options.state = Place::Disk,
                "state" if value == "any" => options.state = Place::Any,
                // The value stays out of it: it may be a ticket.
                _ => options.unknown.push(format!("rebec.{key}")),
            }
        }
        options
    }
}

/// One label of a host name (RFC 1123 §2.1).
fn is_hostname(name: &str) -> bool {
    let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    letters && (1..=63).contains(&name.len()) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_among_other_words() {
        let line = "console=tty1 rebec.join=rebec1abc quiet rebec.hostname=spare-1 rebec.ip=10.0.0.2/24,10.0.0.1 rebec.vlan=7@eth0 rebec.ntp=10.0.0.1,fd00::1\n";
        let options = Options::parse(line);
        assert_eq!(options.ticket.as_deref(), Some("rebec1abc"));
        assert_eq!(options.hostname.as_deref(), Some("spare-1"));
        assert_eq!(options.ip.as_deref(), Some("10.0.0.2/24,10.0.0.1"));
        assert_eq!(options.vlan.as_deref(), Some("7@eth0"));
        assert_eq!(options.ntp.as_deref(), Some("10.0.0.1,fd00::1"));
        assert!(options.state == Place::Any && options.unknown.is_empty());
        assert_eq!(Options::parse("rebec.state=ram").state, Place::Ram);
        assert_eq!(Options::parse("rebec.state=disk").state, Place::Disk);
        assert_eq!(Options::parse("rebec.state=ram rebec.state=any").state, Place::Any, "the last word counts");
    }

    #[test]
    fn what_means_nothing_is_named_without_its_value() {
        let options = Options::parse("rebec.jion=secret rebec.hostname=a_b rebec.join= rebec.state=flash");
        assert_eq!(options.unknown, ["rebec.jion", "rebec.hostname", "rebec.join", "rebec.state"]);
        assert_eq!(Options { unknown: Vec::new(), ..options }, Options::default());
    }
}
