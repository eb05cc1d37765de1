//! What a domain says of its broker, to everybody: where it is, whether machines are lent by contract alone, and what may be asked for.

use minicbor::{Decode, Encode};

use crate::{contract::Reclaim, key::Key};

/// The broker of a domain: its key writes the record, so that there is one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct BrokerBody {
    /// The domain.
    #[n(0)]
    pub domain: Key,
    /// The host where it is.
    #[n(1)]
    pub host: Key,
    /// Whether VMs of other domains come by contract alone.
    #[n(2)]
    pub by_contract: bool,
    /// Machines that may be asked for, at the last look.
    #[n(3)]
    pub machines: u32,
    /// What one costs, in thousandths, for an hour.
    #[n(4)]
    pub price_milli: u64,
    /// How they come back, what is preferred first.
    #[n(5)]
    pub reclaim: Vec<Reclaim>,
}

impl BrokerBody {
    pub(super) fn is_sound(&self) -> bool {
        self.reclaim.len() <= Reclaim::ALL.len()
    }
}
