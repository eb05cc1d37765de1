//! What is wanted, and how a person writes it.

use std::{net::Ipv4Addr, str::FromStr};

/// How addresses are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressing {
    /// By DHCP, on every interface.
    Dhcp,
    /// As told, on every interface with a carrier.
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
}

/// Why a text is no addressing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address; write ADDRESS/LENGTH or ADDRESS/LENGTH,GATEWAY, as in 10.0.0.2/24,10.0.0.1, or dhcp")]
pub struct PolicyError(String);

impl FromStr for Addressing {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        if text == "dhcp" {
            return Ok(Self::Dhcp);
        }
        let parsed = || {
            let (subnet, gateway) = text.split_once(',').map_or((text, None), |(subnet, gateway)| (subnet, Some(gateway)));
            let (address, length) = subnet.split_once('/')?;
            let length: u8 = length.parse().ok().filter(|length| (1..=32).contains(length))?;
            let gateway = gateway.map(|gateway| gateway.parse().ok()).map_or(Some(None), |parsed: Option<Ipv4Addr>| parsed.map(Some))?;
            Some(Static { address: address.parse().ok()?, length, gateway })
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
        let fixed = |gateway| Addressing::Static(Static { address, length: 24, gateway });
        assert_eq!("10.0.0.2/24".parse(), Ok(fixed(None)));
        assert_eq!("10.0.0.2/24,10.0.0.1".parse(), Ok(fixed(Some(gateway))));
        assert_eq!("dhcp".parse(), Ok(Addressing::Dhcp));
        for wrong in ["", "10.0.0.2", "10.0.0.2/33", "10.0.0.2/0", "10.0.0.2/24,", "10.0.0/24", "10.0.0.2/24,x"] {
            assert!(wrong.parse::<Addressing>().is_err(), "{wrong}");
        }
    }
}
