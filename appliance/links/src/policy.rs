//! What is wanted, and how a person writes it.

use std::{fmt, net::Ipv4Addr, str::FromStr};

/// Longest name of a link (IFNAMSIZ, with its end).
const NAME_BYTES_MAX: usize = 15;

/// How addresses are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressing {
    /// By DHCP, on every interface.
    Dhcp,
    /// As told, on the named interface, or else on the first with a carrier.
    Static(Static),
}

/// A fixed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Static {
    /// The address.
    pub address: Ipv4Addr,
    /// Prefix length.
    pub length: u8,
    /// Where the rest of the world is.
    pub gateway: Option<Ipv4Addr>,
    /// The interface that has it; none is the first with a carrier.
    pub link: Option<String>,
}

/// A VLAN (IEEE 802.1Q) to be on, in place of what its link carries without a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlan {
    /// Its number, from 1 to 4094.
    pub id: u16,
    /// The link that carries it; none is every one.
    pub link: Option<String>,
}

/// Why a text is no addressing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address; write ADDRESS/LENGTH[,GATEWAY][@LINK], as in 10.0.0.2/24,10.0.0.1 or 10.0.0.2/24@eth1, or dhcp")]
pub struct PolicyError(String);

/// Why a text is no VLAN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no VLAN; write its number from 1 to 4094, or NUMBER@LINK, as in 7@eth0")]
pub struct VlanError(String);

impl Vlan {
    /// Whether a link is to carry it.
    pub fn is_on(&self, link: &str) -> bool {
        self.link.as_ref().is_none_or(|wanted| wanted == link)
    }

    /// What its interface on a link is called.
    pub fn name_on(&self, link: &str) -> String {
        let name = format!("{link}.{}", self.id);
        if name.len() <= NAME_BYTES_MAX { name } else { format!("{}.{}", &link[..link.floor_char_boundary(NAME_BYTES_MAX - 5)], self.id) }
    }
}

impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        self.link.as_ref().map_or(Ok(()), |link| write!(f, "@{link}"))
    }
}

impl FromStr for Vlan {
    type Err = VlanError;

    fn from_str(text: &str) -> Result<Self, VlanError> {
        let parsed = || {
            let (id, link) = on_link(text)?;
            Some(Self { id: id.parse().ok().filter(|id| (1..=4094).contains(id))?, link })
        };
        parsed().ok_or_else(|| VlanError(text.to_owned()))
    }
}

/// What stands before `@LINK`, and that link's name.
fn on_link(text: &str) -> Option<(&str, Option<String>)> {
    let Some((before, link)) = text.split_once('@') else { return Some((text, None)) };
    let fits = (1..=NAME_BYTES_MAX).contains(&link.len()) && !link.contains(|c: char| c.is_whitespace() || c == '/' || c == '@');
    fits.then(|| (before, Some(link.to_owned())))
}

impl FromStr for Addressing {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        if text == "dhcp" {
            return Ok(Self::Dhcp);
        }
        let parsed = || {
            let (text, link) = on_link(text)?;
            let (subnet, gateway) = text.split_once(',').map_or((text, None), |(subnet, gateway)| (subnet, Some(gateway)));
            let (address, length) = subnet.split_once('/')?;
            let length: u8 = length.parse().ok().filter(|length| (1..=32).contains(length))?;
            let gateway = gateway.map(|gateway| gateway.parse().ok()).map_or(Some(None), |parsed: Option<Ipv4Addr>| parsed.map(Some))?;
            Some(Static { address: address.parse().ok()?, length, gateway, link })
        };
        parsed().map(Self::Static).ok_or_else(|| PolicyError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let (address, gateway) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 1));
        let fixed = |gateway| Addressing::Static(Static { address, length: 24, gateway, link: None });
        assert_eq!("10.0.0.2/24".parse(), Ok(fixed(None)));
        assert_eq!("10.0.0.2/24,10.0.0.1".parse(), Ok(fixed(Some(gateway))));
        assert_eq!("dhcp".parse(), Ok(Addressing::Dhcp));
        let on = Static { address, length: 32, gateway: Some(gateway), link: Some("eth1".to_owned()) };
        assert_eq!("10.0.0.2/32,10.0.0.1@eth1".parse(), Ok(Addressing::Static(on)));
        for wrong in [
            "10.0.0.2/24@",
            "10.0.0.2/24@a b",
            "10.0.0.2/24@abcdefghijklmnop",
            "",
            "10.0.0.2",
            "10.0.0.2/33",
            "10.0.0.2/0",
            "10.0.0.2/24,",
            "10.0.0/24",
            "10.0.0.2/24,x",
        ] {
            assert!(wrong.parse::<Addressing>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn vlans_are_read_as_people_write_them() {
        assert_eq!("7".parse(), Ok(Vlan { id: 7, link: None }));
        let on = Vlan { id: 4094, link: Some("enp134s0f1np1".to_owned()) };
        assert_eq!("4094@enp134s0f1np1".parse(), Ok(on.clone()));
        assert!(on.is_on("enp134s0f1np1") && !on.is_on("eth0") && Vlan { id: 7, link: None }.is_on("eth0"));
        assert_eq!((on.name_on("eth0"), on.name_on("enp134s0f1np1")), ("eth0.4094".to_owned(), "enp134s0f1.4094".to_owned()));
        for wrong in ["", "0", "4095", "7@", "@eth0", "x", "7@a/b"] {
            assert!(wrong.parse::<Vlan>().is_err(), "{wrong}");
        }
    }
}
