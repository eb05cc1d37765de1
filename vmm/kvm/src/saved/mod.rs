//! Saved state of what KVM holds: vCPUs, interrupt chips, timer, clocks.
//!
//! KVM's own structures travel as their bytes: they are a stable ABI, and a byte array of the right length is all that
//! [`Abi`] lets in. What the bytes say is KVM's to check, as it does for any caller. Everything that has a length or a
//! meaning here is checked here, before KVM sees it. `docs/formats/saved.md` says what each part holds.
//!
//! Restoring has an order: [`crate::Machine::restore_clock`], then every [`crate::Vcpu::restore`], then
//! [`crate::Machine::restore_chips`]. Clocks first, because a vCPU's time stamp counter is set against the machine's clock; chips
//! last, because an interrupt that waits in one is delivered to a local APIC that must be there.

pub(crate) mod chips;
pub(crate) mod clock;
mod confined;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
pub(crate) mod tsc;
pub(crate) mod vcpu;

use std::marker::PhantomData;

pub(crate) use confined::MSR_ARCH_CAPABILITIES;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// One of KVM's structures, as exactly its bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Abi<T>(pub T);

impl<T: IntoBytes + Immutable> Serialize for Abi<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.as_bytes())
    }
}

impl<'de, T: FromBytes> Deserialize<'de> for Abi<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Exactly(PhantomData))
    }
}

struct Exactly<T>(PhantomData<T>);

impl<T: FromBytes> de::Visitor<'_> for Exactly<T> {
    type Value = Abi<T>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} bytes", size_of::<T>())
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Abi<T>, E> {
        T::read_from_bytes(bytes).map(Abi).map_err(|_| E::invalid_length(bytes.len(), &self))
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_mp_state;
    use rebec_vmm_saved::{Part, PartKind};

    use super::*;

    #[test]
    fn only_the_right_length_is_a_structure() {
        let part = Part::encode(PartKind::Vcpu, 0, 1, &Abi(kvm_mp_state { mp_state: 0x0403_0201 }));
        assert_eq!(part.bytes, [4, 1, 2, 3, 4]);
        assert_eq!(part.decode::<Abi<kvm_mp_state>>(1).unwrap().0.mp_state, 0x0403_0201);
        for bytes in [&[3, 1, 2, 3][..], &[5, 1, 2, 3, 4, 5], &[4, 1, 2, 3], &[]] {
            let wrong = Part { bytes: bytes.to_vec(), ..part.clone() };
            assert!(wrong.decode::<Abi<kvm_mp_state>>(1).is_err(), "{bytes:?}");
        }
    }
}
