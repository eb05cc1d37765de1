//! What a domain lets somebody do: roles, the least first.

use std::fmt;

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

/// What somebody may do, the least first: each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looks.
    Viewer,
    /// Runs VMs.
    User,
    /// Runs VMs for a scheduler's queue, and says what that wants.
    Scheduler,
    /// Looks after hosts, images and LANs.
    Operator,
    /// Decides who belongs to the domain.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Viewer, Self::User, Self::Scheduler, Self::Operator, Self::Admin];

    /// Its number in records. There is room for others in between: what a later version puts there is read as the next lower one.
    fn number(self) -> u8 {
        match self {
            Self::Viewer => 10,
            Self::User => 20,
            Self::Scheduler => 25,
            Self::Operator => 30,
            Self::Admin => 40,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::User => "user",
            Self::Scheduler => "scheduler",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

impl<C> Encode<C> for Role {
    fn encode<W: encode::Write>(&self, encoder: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        encoder.u8(self.number())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Role {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let number = decoder.u8()?;
        let found = Self::ALL.into_iter().rev().find(|role| role.number() <= number);
        found.ok_or_else(|| decode::Error::message("a role that is less than any"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_of_a_later_version_is_read_as_the_next_lower_one() {
        let read = |number: u8| minicbor::decode::<Role>(&minicbor::to_vec(number).unwrap()).ok();
        for role in Role::ALL {
            assert_eq!(read(role.number()), Some(role));
        }
        assert_eq!((read(0), read(9), read(22), read(41)), (None, None, Some(Role::User), Some(Role::Admin)));
    }
}
