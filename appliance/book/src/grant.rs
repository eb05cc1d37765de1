//! How the right to run a VM comes from host to host, as others can check it.
//!
//! The home's record assigns a VM to a host at an epoch. Each grant is signed by who gave it:
//!
//! ```text
//! Vm{assigned: A at 1}   A grants B at 2   B grants C at 3                       C holds it at 3
//!                        A goes on at 3 (B let go): a grant to itself             A holds it at 3
//!                        the keeper grants D at 9 (its host was lost)             D holds it at 9
//! ```
//! Of several that one host gave at one epoch the last counts, which is the one of the greatest epoch.

use ed25519_dalek::SigningKey;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::key::{Id, Key, has_signed, public, sign};

/// Most grants in a row before the VM's home has taken notice.
pub const GRANTS_MAX: usize = 16;
/// A move takes one epoch.
const MOVE_EPOCHS: u64 = 1;
/// A source whose target let go takes two.
const RETURN_EPOCHS: u64 = 2;
/// What is signed begins with this.
const PURPOSE: &[u8] = b"rebec grant v1\0";

/// The home's word on who may start a VM. From there on it is granted from host to host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Assigned {
    /// The host.
    #[n(0)]
    pub host: Key,
    /// The ownership counter that it has there.
    #[n(1)]
    pub epoch: u64,
}

/// A host's word that another may run a VM.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Grant {
    /// Who gave it.
    #[n(0)]
    pub by: Key,
    /// Who may run the VM.
    #[n(1)]
    pub to: Key,
    /// At this epoch.
    #[n(2)]
    pub epoch: u64,
    #[cbor(n(3), with = "minicbor::bytes")]
    #[serde(with = "halves")]
    signature: [u8; 64],
}

impl Grant {
    /// Gives it.
    pub fn sign(vm: &Id, to: Key, epoch: u64, secret: &SigningKey) -> Self {
        Self { by: public(secret), to, epoch, signature: sign(secret, &signed_bytes(vm, &to, epoch)) }
    }

    /// Whether who gave it signed it, for this VM.
    pub fn is_signed(&self, vm: &Id) -> bool {
        has_signed(&self.by, &signed_bytes(vm, &self.to, self.epoch), &self.signature)
    }
}

fn signed_bytes(vm: &Id, to: &Key, epoch: u64) -> Vec<u8> {
    [PURPOSE, &vm.0, &to.0, &epoch.to_be_bytes()].concat()
}

/// The way of a VM from the host that its home assigned it to, by grants whose signatures are right: the last holds it.
pub fn way<'a>(assigned: Assigned, keeper: Option<Key>, grants: &[&'a Grant]) -> (Assigned, Vec<&'a Grant>) {
    let (mut at, mut way) = (assigned, vec![]);
    // Each step raises the epoch, and there are only so many grants.
    loop {
        let leads = |grant: &&Grant| {
            let by_holder = grant.by == at.host && grant.epoch == at.epoch.saturating_add(MOVE_EPOCHS);
            let by_itself = grant.by == at.host && grant.to == at.host && grant.epoch == at.epoch.saturating_add(RETURN_EPOCHS);
            grant.epoch > at.epoch && (by_holder || by_itself || Some(grant.by) == keeper)
        };
        match grants.iter().copied().filter(leads).max_by_key(|grant| grant.epoch) {
            Some(grant) => {
                at = Assigned { host: grant.to, epoch: grant.epoch };
                way.push(grant);
            }
            None => return (at, way),
        }
    }
}

/// A signature where people read: both halves as digits.
mod halves {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::key::Name;

    pub fn serialize<S: Serializer>(signature: &[u8; 64], serializer: S) -> Result<S::Ok, S::Error> {
        Name(*signature).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 64], D::Error> {
        Name::<64>::deserialize(deserializer).map(|name| name.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Name;

    const VM: Id = Name([7; 16]);

    fn secret(number: u8) -> SigningKey {
        SigningKey::from_bytes(&[number; 32])
    }

    fn host(number: u8) -> Key {
        public(&secret(number))
    }

    fn grant(by: u8, to: u8, epoch: u64) -> Grant {
        Grant::sign(&VM, host(to), epoch, &secret(by))
    }

    fn held(grants: &[Grant]) -> (Key, u64) {
        let (at, _) = way(Assigned { host: host(1), epoch: 1 }, Some(host(9)), &grants.iter().collect::<Vec<_>>());
        (at.host, at.epoch)
    }

    #[test]
    fn the_right_goes_from_host_to_host_and_back() {
        assert_eq!(held(&[]), (host(1), 1));
        assert_eq!(held(&[grant(2, 3, 3), grant(1, 2, 2)]), (host(3), 3));
        assert_eq!(held(&[grant(1, 2, 2), grant(2, 1, 3)]), (host(1), 3));
        // The target let go: its source goes on two later, whatever the target says then.
        assert_eq!(held(&[grant(1, 2, 2), grant(1, 1, 3)]), (host(1), 3));
        assert_eq!(held(&[grant(1, 2, 2), grant(1, 1, 3), grant(2, 2, 4)]), (host(1), 3));
    }

    #[test]
    fn nobody_takes_what_was_not_granted() {
        for alone in [grant(2, 2, 2), grant(2, 3, 3), grant(1, 2, 3), grant(1, 2, u64::MAX), grant(1, 1, u64::MAX), grant(1, 2, 1)] {
            assert_eq!(held(&[alone]), (host(1), 1));
        }
        // Who had it once has no say later.
        assert_eq!(held(&[grant(1, 2, 2), grant(2, 3, 3), grant(1, 1, 5)]), (host(3), 3));
        let forged = Grant { by: host(1), ..grant(2, 2, 2) };
        assert!(!forged.is_signed(&VM) && grant(1, 2, 2).is_signed(&VM) && !grant(1, 2, 2).is_signed(&Name([8; 16])));
    }

    #[test]
    fn a_keeper_grants_at_any_later_epoch() {
        assert_eq!(held(&[grant(1, 2, 2), grant(9, 4, 6)]), (host(4), 6));
        assert_eq!(held(&[grant(9, 4, 6), grant(4, 5, 7)]), (host(5), 7));
        assert_eq!(held(&[grant(9, 4, 1)]), (host(1), 1));
    }
}
