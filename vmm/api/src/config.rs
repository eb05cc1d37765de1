//! The values a user writes: memory sizes, disks, network ports, serial ports. Parsed once, never checked again.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
    path::PathBuf,
    str::FromStr,
};

use rebec_layout::{DISK_BYTES_MAX, DISK_QUEUES_MAX, RAM_BYTES_MAX};

use crate::{dhcp_lease::DhcpLease, handle::Handle, mac::MacAddr};

/// Why a value on the command line was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A memory size that is not a number with a unit, or is out of range.
    #[error("memory `{0}`: expected a size from 16M to 1T in whole MiB, as in 512M or 4G")]
    Memory(String),
    /// A disk's size that is not a number with a unit, or is out of range.
    #[error("size `{0}`: expected a disk's size in whole MiB from 1M to {max}T, as in 512M or 20G", max = DISK_BYTES_MAX >> 40)]
    Size(String),
    /// A disk without a path, or with an option that does not exist.
    #[error("disk `{0}`: expected FILE, and behind it ,ro ,size=SIZE ,base=FILE ,base-digests=FILE or ,queues=N from 1 to {max}", max = DISK_QUEUES_MAX)]
    Disk(String),
    /// A port with a missing or malformed part.
    #[error("net `{text}`: {what}; expected {form}", form = NetConfig::FORM)]
    Net {
        /// What was written.
        text: String,
        /// What is wrong with it.
        what: String,
    },
    /// A rate that is not a number with a unit.
    #[error("rate `{0}`: expected a number from 1, as in 5000, 200M or 1G (thousands of millions), or none")]
    PerSecond(String),
    /// A serial backend that does not exist.
    #[error("serial `{0}`: expected stdio, file:PATH or unix:PATH")]
    Serial(String),
}

/// Guest memory in bytes: whole MiB from 16 MiB to 1 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

impl MemorySize {
    /// The smallest machine a kernel boots in.
    pub const MIN_BYTES: u64 = 16 << 20;
    /// The largest machine that is accepted, from a user or from a peer.
    pub const MAX_BYTES: u64 = RAM_BYTES_MAX;

    /// Accepts a size in range and in whole MiB.
    pub fn from_bytes(bytes: u64) -> Result<Self, ConfigError> {
        let whole = bytes.is_multiple_of(1 << 20);
        if whole && (Self::MIN_BYTES..=Self::MAX_BYTES).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(ConfigError::Memory(format!("{bytes} bytes")))
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let invalid = || ConfigError::Memory(text.to_owned());
        Self::from_bytes(whole_bytes(text).ok_or_else(invalid)?).map_err(|_| invalid())
    }
}

/// The virtual size of a disk in bytes: whole MiB up to the largest that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskSize(u64);

impl DiskSize {
    /// Accepts a size in range and in whole MiB.
    pub fn from_bytes(bytes: u64) -> Result<Self, ConfigError> {
        let fits = bytes.is_multiple_of(1 << 20) && (1 << 20..=DISK_BYTES_MAX).contains(&bytes);
        if fits { Ok(Self(bytes)) } else { Err(ConfigError::Size(format!("{bytes} bytes"))) }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for DiskSize {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let invalid = || ConfigError::Size(text.to_owned());
        Self::from_bytes(whole_bytes(text).ok_or_else(invalid)?).map_err(|_| invalid())
    }
}

/// Reads `512M`: digits, and a unit or none.
fn whole_bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        b'T' | b't' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|_| is_number)?.checked_mul(1 << shift)
}

/// Something a second, as users write it: digits with K, M or G for thousands, millions and thousands of millions; `none` is no limit, and 0 here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerSecond(pub u64);

impl FromStr for PerSecond {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let invalid = || ConfigError::PerSecond(text.to_owned());
        if text == "none" {
            return Ok(Self(0));
        }
        let (digits, unit) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 1_000),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 1_000_000),
            Some(b'G' | b'g') => (&text[..text.len() - 1], 1_000_000_000),
            _ => (text, 1),
        };
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let value = digits.parse::<u64>().ok().filter(|_| is_number).and_then(|value| value.checked_mul(unit));
        value.filter(|value| *value > 0).map(Self).ok_or_else(invalid)
    }
}

/// One `--disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// The image: raw, or qcow2 with or without a backing image.
    pub image: Handle,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// The least virtual size: a smaller disk grows to it when the machine starts.
    pub at_least: Option<u64>,
    /// Its backing image, which stands alone. Without it, the names in the image's own header are followed, if the image is named by a path.
    pub base: Option<Handle>,
    /// Kept digests of its backing image.
    pub base_digests: Option<Handle>,
    /// How many queues its requests come by, from 1 to 4. A VM keeps them where it goes.
    pub queues: u8,
}

impl FromStr for DiskConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::Disk(text.to_owned());
        let mut parts = text.split(',');
        let handle = |text: &str| text.parse().ok().filter(|_| !text.is_empty()).ok_or_else(wrong);
        let image = handle(parts.next().unwrap_or_default())?;
        let mut disk = Self { image, read_only: false, at_least: None, base: None, base_digests: None, queues: 1 };
        let mut is_counted = false;
        for part in parts {
            match part.split_once('=') {
                None if part == "ro" && !disk.read_only => disk.read_only = true,
                Some(("size", size)) if disk.at_least.is_none() => {
                    disk.at_least = Some(size.parse::<DiskSize>().map_err(|_| wrong())?.bytes())
                }
                Some(("queues", count)) if !is_counted => {
                    is_counted = true;
                    disk.queues = count.parse().ok().filter(|count| (1..=DISK_QUEUES_MAX).contains(count)).ok_or_else(wrong)?;
                }
                Some(("base", file)) if disk.base.is_none() => disk.base = Some(handle(file)?),
                Some(("base-digests", file)) if disk.base_digests.is_none() => disk.base_digests = Some(handle(file)?),
                _ => return Err(wrong()),
            }
        }
        Ok(disk)
    }
}

/// Where the frames of one MAC go: an entry of the forwarding database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The station.
    pub mac: MacAddr,
    /// The VXLAN endpoint behind which it lives.
    pub endpoint: SocketAddrV4,
    /// Its own IPv4 address, if ARP for it is to be answered here.
    pub ip: Option<Ipv4Addr>,
    /// What it is called, if that is to be answered here.
    pub name: Option<String>,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mac, place) = text
            .split_once('@')
            .ok_or_else(|| format!("peer `{text}`: expected MAC@IP:PORT, MAC@IP:PORT@ADDRESS or MAC@IP:PORT@ADDRESS@NAME"))?;
        let (endpoint, ip) = place.split_once('@').map_or((place, None), |(endpoint, ip)| (endpoint, Some(ip)));
        let (ip, name) = ip.map_or((None, None), |ip| ip.split_once('@').map_or((Some(ip), None), |(ip, name)| (Some(ip), Some(name))));
        let name = name.map(|name| dns_name(name).ok_or_else(|| format!("peer name `{name}`: expected {DNS_NAME_FORM}"))).transpose()?;
        let ip = ip.map(|ip| ip.parse().map_err(|_| format!("peer address `{ip}`: expected an IPv4 address"))).transpose()?;
        Ok(Self {
            ip,
            name,
            mac: mac.parse().map_err(|error| format!("{error}"))?,
            endpoint: endpoint.parse().map_err(|_| format!("peer endpoint `{endpoint}`: expected IPv4:PORT"))?,
        })
    }
}

/// One `--net`: a NIC and its port on a LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// The LAN's label on the wire, 24 bits.
    pub vni: u32,
    /// The NIC's own address.
    pub mac: MacAddr,
    /// Where this port's UDP socket listens.
    pub local: SocketAddrV4,
    /// The number of that socket among the descriptors that were handed over, if it is.
    pub socket: Option<usize>,
    /// What the guest is told by DHCP; without it, its questions go to the LAN.
    pub lease: Option<DhcpLease>,
    /// Forwarding entries known from the start.
    pub peers: Vec<Peer>,
    /// Whether frames are sealed on their way.
    pub sealed: bool,
    /// Largest IP packet, if it is not [`Self::MTU`].
    pub mtu: Option<u16>,
    /// Whether the guest bridges, and so speaks for stations that nobody else has.
    pub trunk: bool,
    /// What the names end with that the port answers for at `dns`.
    pub domain: Option<String>,
    /// What the guest is called there.
    pub name: Option<String>,
    /// The first half of the addresses that guests make themselves.
    pub prefix6: Option<Ipv6Addr>,
}

/// How a name is written.
const DNS_NAME_FORM: &str = "labels of letters, digits, `-` and `_`, at most 63 each and 128 with the points between";

/// A name that can be asked for, in small letters.
pub fn dns_name(text: &str) -> Option<String> {
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    (text.len() <= 128 && text.split('.').all(is_label)).then(|| text.to_ascii_lowercase())
}

impl NetConfig {
    /// MTU of a NIC where nothing else is said: VXLAN's headers and a seal still fit a 1500-byte network.
    pub const MTU: u16 = 1400;
    /// The smallest, which IPv6 needs.
    pub const MTU_MIN: u16 = 1280;
    /// The largest: what a wire of 9,000 bytes carries sealed, with room to spare.
    pub const MTU_MAX: u16 = 8900;

    /// Entries one port may be given on the command line.
    pub const PEERS_MAX: usize = 1024;
    /// How one is written.
    pub const FORM: &str = "vni=N,mac=MAC,local=IP:PORT[,socket=fd:N][,ip=ADDRESS/LENGTH[,gateway=ADDRESS][,dns=ADDRESS[,domain=NAME[,name=NAME]]]][,seal=on][,trunk=on][,mtu=BYTES][,prefix6=PREFIX][,peer=MAC@IP:PORT[@ADDRESS[@NAME]]]...";
}

impl FromStr for NetConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let fail = |what: String| ConfigError::Net { text: text.to_owned(), what };
        let (mut vni, mut mac, mut local, mut socket, mut peers) = (None, None, None, None, Vec::new());
        let (mut ip, mut gateway, mut dns, mut sealed) = (None, None, None, None);
        let (mut mtu, mut trunk, mut domain, mut name, mut prefix6) = (None, None, None, None, None);
        let switch = |key: &str, value: &str| match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(fail(format!("{key} `{value}` is neither on nor off"))),
        };
        let named = |key: &str, value: &str| dns_name(value).ok_or_else(|| fail(format!("{key} `{value}`: expected {DNS_NAME_FORM}")));
        let address = |key: &str, value: &str| value.parse().map_err(|_| fail(format!("{key} `{value}` is not an IPv4 address")));
        for item in text.split(',') {
            let (key, value) = item.split_once('=').ok_or_else(|| fail(format!("`{item}` has no value")))?;
            let doubled = match key {
                "vni" => {
                    let number = value.parse::<u32>().ok().filter(|n| *n < 1 << 24);
                    vni.replace(number.ok_or_else(|| fail(format!("vni `{value}` is not a number below 16777216")))?).is_some()
                }
                "mac" => {
                    let address: MacAddr = value.parse().map_err(|error| fail(format!("{error}")))?;
                    if address.is_multicast() {
                        return Err(fail(format!("mac {address} is a group address")));
                    }
                    mac.replace(address).is_some()
                }
                "local" => {
                    let endpoint = value.parse().map_err(|_| fail(format!("local `{value}` is not IPv4:PORT")))?;
                    local.replace(endpoint).is_some()
                }
                "socket" => match value.parse() {
                    Ok(Handle::Descriptor(number)) => socket.replace(number).is_some(),
                    Ok(Handle::Path(_)) | Err(_) => return Err(fail(format!("socket `{value}` is not fd:N"))),
                },
                "ip" => ip.replace(parse_network(value).ok_or_else(|| fail(format!("ip `{value}` is not IPv4/LENGTH")))?).is_some(),
                "gateway" => gateway.replace(address(key, value)?).is_some(),
                "dns" => dns.replace(address(key, value)?).is_some(),
                "seal" => sealed.replace(switch(key, value)?).is_some(),
                "trunk" => trunk.replace(switch(key, value)?).is_some(),
                "mtu" => {
                    let bytes = value.parse().ok().filter(|mtu| (Self::MTU_MIN..=Self::MTU_MAX).contains(mtu));
                    let bad = || fail(format!("mtu `{value}` is not a number from {} to {}", Self::MTU_MIN, Self::MTU_MAX));
                    mtu.replace(bytes.ok_or_else(bad)?).is_some()
                }
                "domain" => domain.replace(named(key, value)?).is_some(),
                "name" => name.replace(named(key, value)?).is_some(),
                "prefix6" => {
                    let prefix = value.parse::<Ipv6Addr>().ok().filter(|prefix| prefix.is_unique_local() && prefix.to_bits() as u64 == 0);
                    prefix6
                        .replace(prefix.ok_or_else(|| {
                            fail(format!(
                                "prefix6 `{value}` is not the first half of a unique local IPv6 address, as in fd12:3456:789a:1::"
                            ))
                        })?)
                        .is_some()
                }
                "peer" => {
                    if peers.len() == Self::PEERS_MAX {
                        return Err(fail(format!("more than {} peers", Self::PEERS_MAX)));
                    }
                    peers.push(value.parse().map_err(fail)?);
                    false
                }
                _ => return Err(fail(format!("`{key}` is not known"))),
            };
            if doubled {
                return Err(fail(format!("`{key}` is given twice")));
            }
        }
        let lease = match ip {
            Some((ip, bits)) => Some(DhcpLease::new(ip, bits, gateway, dns).map_err(|error| fail(error.to_string()))?),
            None if gateway.or(dns).is_some() => return Err(fail("gateway and dns go with ip, which is missing".into())),
            None => None,
        };
        if domain.is_some() && !lease.is_some_and(|lease| lease.dns().is_some_and(|dns| lease.is_neighbour(dns))) {
            return Err(fail("domain goes with dns, an address of the network of ip that no other station has".into()));
        }
        if name.is_some() && domain.is_none() {
            return Err(fail("name goes with domain, which is missing".into()));
        }
        Ok(Self {
            mtu,
            trunk: trunk.unwrap_or_default(),
            domain,
            name,
            prefix6,
            vni: vni.ok_or_else(|| fail("vni is missing".into()))?,
            mac: mac.ok_or_else(|| fail("mac is missing".into()))?,
            local: local.ok_or_else(|| fail("local is missing".into()))?,
            socket,
            lease,
            peers,
            sealed: sealed.unwrap_or_default(),
        })
    }
}

fn parse_network(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, bits) = text.split_once('/')?;
    Some((address.parse().ok()?, bits.parse().ok()?))
}

/// One `--serial`: where the guest's first serial port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialConfig {
    /// This process's own standard input and output.
    Stdio,
    /// Output is appended to a file; there is no input.
    File(PathBuf),
    /// A socket is created at the path; whoever connects talks to the guest.
    Unix(PathBuf),
}

impl FromStr for SerialConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text.split_once(':') {
            None if text == "stdio" => Ok(Self::Stdio),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(ConfigError::Serial(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_units_and_limits() {
        assert_eq!("512M".parse::<MemorySize>().unwrap().bytes(), 512 << 20);
        assert_eq!("2g".parse::<MemorySize>().unwrap().bytes(), 2 << 30);
        assert_eq!("16777216".parse::<MemorySize>().unwrap().bytes(), 16 << 20);
        for text in ["", "M", "15M", "2T", "-1G", "+1G", "1.5G", "1000000001", "99999999999999999999G"] {
            assert!(text.parse::<MemorySize>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_disk_has_a_size_in_whole_mib() {
        let sizes = [("1M", 1 << 20), ("20G", 20 << 30), ("8T", DISK_BYTES_MAX), ("1073741824", 1 << 30)];
        sizes.iter().for_each(|(text, bytes)| assert_eq!(text.parse::<DiskSize>().unwrap().bytes(), *bytes, "{text}"));
        for text in ["", "0", "20", "1K", "+1G", "1.5G", "9T", "20GB", "99999999999999999999G"] {
            assert!(text.parse::<DiskSize>().is_err(), "{text}");
        }
        assert_eq!("a,size=20G".parse::<DiskConfig>().unwrap().at_least, Some(20 << 30));
        for text in ["a,size=", "a,size=x", "a,size=1G,size=1G"] {
            assert!(text.parse::<DiskConfig>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_rate_has_decimal_units() {
        for (text, value) in [("none", 0), ("5000", 5000), ("200M", 200_000_000), ("1g", 1_000_000_000), ("64k", 64_000)] {
            assert_eq!(text.parse(), Ok(PerSecond(value)), "{text}");
        }
        for text in ["", "0", "M", "-1", "+1", "1.5M", "1T", "99999999999999999999", "18446744073709551615G"] {
            assert!(text.parse::<PerSecond>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_disk_is_a_file_with_options() {
        let named = |text: &str| text.parse::<Handle>().unwrap();
        let plain = DiskConfig { image: named("a.qcow2"), read_only: false, at_least: None, base: None, base_digests: None, queues: 1 };
        assert_eq!("a.qcow2".parse(), Ok(plain.clone()));
        assert_eq!("a.qcow2,ro".parse(), Ok(DiskConfig { read_only: true, ..plain.clone() }));
        let with_base = DiskConfig { image: Handle::Descriptor(3), base: Some(named("b")), base_digests: Some(named("fd:4")), ..plain };
        assert_eq!("fd:3,base=b,base-digests=fd:4".parse(), Ok(with_base.clone()));
        assert_eq!("fd:3,base-digests=fd:4,base=b".parse(), Ok(with_base));
        assert_eq!("a.qcow2,queues=4".parse::<DiskConfig>().unwrap().queues, 4);
        for text in ["a,queues=0", "a,queues=5", "a,queues=", "a,queues=1,queues=1", "a,queues"] {
            assert!(text.parse::<DiskConfig>().is_err(), "{text}");
        }
        assert!("a,base-digests=".parse::<DiskConfig>().is_err());
        assert!("a,base=".parse::<DiskConfig>().is_err());
        assert!("a,base=b,base=b".parse::<DiskConfig>().is_err());
        assert!("a,ro,ro".parse::<DiskConfig>().is_err());
        assert!("a.raw,rw".parse::<DiskConfig>().is_err());
        assert!("".parse::<DiskConfig>().is_err());
        assert!(",ro".parse::<DiskConfig>().is_err());
    }

    #[test]
    fn a_port_names_what_is_wrong_with_it() {
        let net: NetConfig = "vni=7,mac=52:54:00:00:00:01,local=10.0.0.1:4789,peer=52:54:00:00:00:02@10.0.0.2:4790".parse().unwrap();
        assert_eq!(net.vni, 7);
        assert_eq!((net.lease, net.peers[0].endpoint.port(), net.peers[0].ip), (None, 4790, None));
        let text = "vni=7,mac=52:54:00:00:00:01,local=10.0.0.1:4789,ip=10.7.0.5/24,gateway=10.7.0.1,dns=9.9.9.9,\
                    peer=52:54:00:00:00:02@10.0.0.2:4790@10.7.0.6";
        let net: NetConfig = text.parse().unwrap();
        let [address, gateway, dns, peer] = ["10.7.0.5", "10.7.0.1", "9.9.9.9", "10.7.0.6"].map(|text| text.parse::<Ipv4Addr>().unwrap());
        assert_eq!(net.lease, Some(DhcpLease::new(address, 24, Some(gateway), Some(dns)).unwrap()));
        assert_eq!(net.peers[0].ip, Some(peer));
        for (text, what) in [
            ("vni=7,mac=52:54:00:00:00:01", "local is missing"),
            ("vni=16777216,mac=52:54:00:00:00:01,local=1.2.3.4:1", "not a number below"),
            ("vni=1,vni=2,mac=52:54:00:00:00:01,local=1.2.3.4:1", "given twice"),
            ("vni=1,mac=53:54:00:00:00:01,local=1.2.3.4:1", "group address"),
            ("vni=1,colour=blue", "`colour` is not known"),
            ("socket=/run/s", "not fd:N"),
            ("socket=fd:1,socket=fd:1", "given twice"),
            ("ip=10.7.0.5", "not IPv4/LENGTH"),
            ("ip=10.7.0.5/33", "the length of its network's prefix"),
            ("ip=10.7.0.0/24", "the address of a host"),
            ("ip=10.7.0.5/24,ip=10.7.0.5/24", "`ip` is given twice"),
            ("ip=10.7.0.5/24,gateway=10.8.0.1", "gateway 10.8.0.1"),
            ("ip=10.7.0.5/24,gateway=here", "gateway `here` is not an IPv4 address"),
            ("dns=10.7.0.1", "go with ip"),
            ("peer=52:54:00:00:00:02@10.0.0.2:4790@host", "peer address `host`"),
        ] {
            let error = text.parse::<NetConfig>().unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn serial_backends() {
        assert_eq!("stdio".parse(), Ok(SerialConfig::Stdio));
        assert_eq!("unix:/run/s".parse(), Ok(SerialConfig::Unix("/run/s".into())));
        assert!("file:".parse::<SerialConfig>().is_err());
        assert!("tcp:1".parse::<SerialConfig>().is_err());
    }
}
