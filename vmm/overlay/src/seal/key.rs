//! Whose a port is: a key pair of its own, and the secrets that two ports share.
//!
//! A port makes its pair when its process starts and never gives the secret half away, so a port that starts anew (after a move, a restart, a restore) is
//! another port: what was sealed for the old one opens nowhere else, and two processes never seal with one key. Two ports agree by X25519 (RFC 7748)
//! without a word between them; each direction has a root secret of its own, bound to both public keys, their order, and the LAN's label.

use std::fmt;

use curve25519_dalek::montgomery::MontgomeryPoint;
use rebec_vmm_api::PortKey;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};

use crate::vxlan::Vni;

/// Bytes of the initialization vector that a datagram carries (RFC 4106 §3.1); the rest of the nonce is the salt.
pub const IV_BYTES: usize = 8;
/// Bytes of the tag that ends a datagram.
pub const TAG_BYTES: usize = 16;
const SALT_BYTES: usize = NONCE_LEN - IV_BYTES;

const PAIR_CONTEXT: &str = "rebec LAN 1: root of what one port seals for another";
const GENERATION_CONTEXT: &str = "rebec LAN 1: key of a generation";

/// The secret half of a port's key pair.
pub struct PortSecret([u8; 32]);

/// Where the keys of one direction come from.
#[derive(Clone, PartialEq, Eq)]
pub struct Root {
    secret: [u8; 32],
    spi: u32,
}

/// What two ports share, as one of them sees it.
#[derive(Debug, Clone)]
pub struct Pair {
    /// For what this port seals.
    pub outgoing: Root,
    /// For what it opens.
    pub incoming: Root,
}

/// The keys of one generation of one direction.
pub struct Keys {
    salt: [u8; SALT_BYTES],
    cipher: LessSafeKey,
}

impl PortSecret {
    /// Of 32 random bytes that nobody else has.
    pub fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// The half that others are told.
    pub fn public(&self) -> PortKey {
        PortKey(MontgomeryPoint::mul_base_clamped(self.0).0)
    }

    /// What this port shares with `peer` on a LAN. `None` if `peer` is no key: a point of small order, with which everybody would share the same.
    pub fn pair(&self, peer: &PortKey, vni: Vni) -> Option<Pair> {
        let own = self.public();
        let shared = MontgomeryPoint(peer.0).mul_clamped(self.0).0;
        if peer == &own || shared == [0; 32] {
            return None;
        }
        let root = |from: &PortKey, to: &PortKey| {
            let mut hasher = blake3::Hasher::new_derive_key(PAIR_CONTEXT);
            let mut read = hasher.update(&shared).update(&vni.header()).update(&from.0).update(&to.0).finalize_xof();
            let (mut secret, mut spi) = ([0; 32], [0; 4]);
            read.fill(&mut secret);
            read.fill(&mut spi);
            // The first 256 are reserved.
            Root { secret, spi: u32::from_be_bytes(spi) | 0x100 }
        };
        Some(Pair { outgoing: root(&own, peer), incoming: root(peer, &own) })
    }
}

impl Root {
    /// The number by which the receiver finds this direction (RFC 4303 §2.1). Others can see it.
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// Salt and cipher of a generation, as bytes: 32 of AES-256, then the salt, as Linux takes them for `rfc4106(gcm(aes))`.
    pub fn key_bytes(&self, generation: u64) -> [u8; 32 + SALT_BYTES] {
        let mut bytes = [0; 32 + SALT_BYTES];
        let mut hasher = blake3::Hasher::new_derive_key(GENERATION_CONTEXT);
        hasher.update(&self.secret).update(&generation.to_be_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// The keys of a generation, ready to be used.
    pub fn keys(&self, generation: u64) -> Keys {
        let bytes = self.key_bytes(generation);
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&bytes[32..]);
        let cipher = UnboundKey::new(&AES_256_GCM, &bytes[..32]).expect("invariant: AES-256 takes 32 bytes");
        Keys { salt, cipher: LessSafeKey::new(cipher) }
    }
}

impl Keys {
    fn nonce(&self, iv: [u8; IV_BYTES]) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[..SALT_BYTES].copy_from_slice(&self.salt);
        nonce[SALT_BYTES..].copy_from_slice(&iv);
        Nonce::assume_unique_for_key(nonce)
    }

    /// Encrypts in place. `None` beyond what the cipher takes, which no datagram reaches.
    pub fn seal(&self, iv: [u8; IV_BYTES], authenticated: &[u8], bytes: &mut [u8]) -> Option<[u8; TAG_BYTES]> {
        let tag = self.cipher.seal_in_place_separate_tag(self.nonce(iv), Aad::from(authenticated), bytes).ok()?;
        tag.as_ref().try_into().ok()
    }

    /// Decrypts in place. Whether the tag was right; the bytes are of no use if it was not.
    pub fn open(&self, iv: [u8; IV_BYTES], authenticated: &[u8], bytes: &mut [u8], tag: [u8; TAG_BYTES]) -> bool {
        self.cipher.open_in_place_separate_tag(self.nonce(iv), Aad::from(authenticated), Tag::from(tag), bytes, 0..).is_ok()
    }
}

impl fmt::Debug for PortSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortSecret(of {})", self.public())
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({:08x})", self.spi())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x25519_is_as_rfc_7748_section_6_1_has_it() {
        let alice = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a";
        let public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
        assert_eq!(PortSecret::new(alice.parse::<PortKey>().unwrap().0).public().to_string(), public);
    }

    #[test]
    fn both_sides_have_the_same_and_each_direction_its_own() {
        let (a, b) = (PortSecret::new([1; 32]), PortSecret::new([2; 32]));
        let vni = Vni::new(7).unwrap();
        let (at_a, at_b) = (a.pair(&b.public(), vni).unwrap(), b.pair(&a.public(), vni).unwrap());
        assert_eq!(at_a.outgoing, at_b.incoming);
        assert_eq!(at_a.incoming, at_b.outgoing);
        assert_ne!(at_a.outgoing, at_a.incoming);
        let other_lan = a.pair(&b.public(), Vni::new(8).unwrap()).unwrap();
        assert_ne!(at_a.outgoing, other_lan.outgoing);
        assert_ne!(at_a.outgoing.key_bytes(0), at_a.outgoing.key_bytes(1));
    }

    #[test]
    fn points_of_small_order_and_its_own_key_are_no_peer() {
        let secret = PortSecret::new([3; 32]);
        let vni = Vni::new(7).unwrap();
        let mut one = [0; 32];
        one[0] = 1;
        for none in [PortKey([0; 32]), PortKey(one), secret.public()] {
            assert!(secret.pair(&none, vni).is_none(), "{none}");
        }
    }
}
