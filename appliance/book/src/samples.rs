//! Keys and bodies for tests of this crate: each says what it is about and is bare beside it.

use ed25519_dalek::SigningKey;

use crate::{
    grant::Assigned,
    key::{Key, Name, Nonce, public},
    record::{ImageBody, PartRef, SeenBody, SeenState, VmBody},
};

pub fn secret(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

pub fn key(number: u8) -> Key {
    public(&secret(number))
}

/// An image of a kernel alone.
pub fn image(nonce: Nonce, name: &str) -> ImageBody {
    ImageBody::bare(nonce, name, PartRef { digest: Name([7; 32]), bytes: 7 })
}

/// A VM of such an image.
pub fn vm(nonce: Nonce, name: &str, assigned: Assigned) -> VmBody {
    VmBody {
        nonce,
        name: name.into(),
        assigned,
        image_name: "i".into(),
        image: image(Name([0; 16]), "i"),
        memory_bytes: 1,
        vcpus: 1,
        private: Name([0; 32]),
        nics: vec![],
        keeper: None,
        created: 0,
        must: None,
        disks: None,
        cpu: None,
        limits: None,
        placing: None,
    }
}

/// A VM that runs where it was first.
pub fn seen() -> SeenBody {
    SeenBody {
        epoch: 1,
        state: SeenState::Running,
        reason: None,
        endpoints: vec![],
        memory_bytes: 1,
        pid: 1,
        grants: vec![],
        to: None,
        keys: None,
        ahead: None,
    }
}
