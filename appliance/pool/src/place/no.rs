//! Why a host does not take a VM. Put into words only where somebody reads them: most hosts of most plans are refused for nobody.

use rebec_book::{
    Key,
    contracts::Bar,
    key::{Id, Name},
    view,
};

use super::{Want, World};

/// Features that a refusal names.
const LACKS_SHOWN: usize = 6;

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum No {
    /// The VM is there already.
    There,
    /// The host does not answer.
    Silent,
    /// No contract lets it come, or the host is lent to others.
    Contract(Bar),
    /// Whether a contract lets it come is not told to the host that decides.
    NotTold {
        /// Domain whose the host is.
        lender: Key,
        /// Domain that the VM is at home in.
        home: Key,
    },
    /// It is of another domain, and no contract lets the VM come, which goes there by contract alone.
    Abroad,
    /// It is being emptied.
    Draining,
    /// No VM can run there.
    Incapable(String),
    /// This label is not among those that it has.
    Label(String),
    /// It does not say what its processor has.
    ProcessorUntold,
    /// Its processor lacks something.
    Processor(Vec<String>),
    /// It has no address for ports of LANs.
    Underlay,
    /// The one that the VM goes near to, by its number, is not there; the first place where it is.
    Near(usize, Option<usize>),
    /// One that the VM stays apart from is there; one of the same plan may have no record yet.
    Apart(Option<Id>),
    /// One is there that stays apart from the VM.
    Shunned(Option<Id>),
    /// Memory: free, wanted.
    Memory(u64, u64),
    /// Room on its disk: free, wanted.
    Disk(u64, u64),
}

impl No {
    /// The same for all hosts of a domain that say it in other words alone: lent to one domain, by a contract each.
    pub(super) fn kind(&self) -> Self {
        match self {
            Self::Contract(Bar::Promised { to, .. }) => Self::Contract(Bar::Promised { contract: Name([0; 16]), to: *to }),
            other => other.clone(),
        }
    }

    /// In words, of a host by its place in the world.
    pub(super) fn told(&self, world: &World<'_>, want: &Want, place: usize) -> String {
        let book = world.book;
        let vm = |vm: &Option<Id>| {
            let named = |vm: Id| view::vm(book, vm).map_or_else(|| vm.short(), |vm| vm.name);
            vm.map_or_else(|| "another VM of the same plan".to_owned(), |vm| format!("VM {}", named(vm)))
        };
        let short =
            |what: &str, free: u64, wanted: u64| format!("{what}: {} MiB free, {} MiB wanted", free >> 20, wanted.div_ceil(1 << 20));
        match self {
            Self::There => "the VM is there already".to_owned(),
            Self::Silent => "does not answer".to_owned(),
            Self::Contract(bar) => bar.told(book),
            Self::NotTold { lender, home } => format!(
                "domain {} lends by contract alone, and this host is not told what it agreed with domain {}; name a host, and that one decides",
                book.domain_name(lender),
                book.domain_name(home)
            ),
            Self::Abroad => "is of another domain, and no contract lets the VM come; it goes there where somebody says so".to_owned(),
            Self::Draining => "is being drained".to_owned(),
            Self::Incapable(why) => format!("cannot run VMs: {why}"),
            Self::Label(wanted) => match &world.hosts[place].labels[..] {
                [] => format!("has no label {wanted}; `rebec host set HOST --label {wanted}` gives it one"),
                has => format!("has no label {wanted}, but {}", has.join(", ")),
            },
            Self::ProcessorUntold => "does not say what its processor has, which the VM's CPU model asks: upgrade it".to_owned(),
            Self::Processor(lacks) => {
                let more = lacks.len().saturating_sub(LACKS_SHOWN);
                let shown = lacks[..lacks.len() - more].join(", ");
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!("its processor lacks {shown}{more}, which the VM may use")
            }
            Self::Underlay => "has no IPv4 address, which LANs need; give it one, or run the VM without a LAN".to_owned(),
            Self::Near(number, at) => {
                let partner = want.near.get(*number);
                let label = || partner.and_then(|partner| partner.label.as_deref()).unwrap_or_default();
                let whom = partner.filter(|partner| partner.vm.is_some()).map(|partner| vm(&partner.vm));
                let whom = whom.unwrap_or_else(|| format!("a VM with label {}", label()));
                match at {
                    Some(at) => format!("{whom} is not there but on host {}, and the VM goes where it is", world.hosts[*at].name),
                    None => format!("{whom} is nowhere, and the VM goes where it is"),
                }
            }
            Self::Apart(whom) => format!("{} is there, from which this one stays apart", vm(whom)),
            Self::Shunned(whom) => format!("{} is there, which stays apart from this one", vm(whom)),
            Self::Memory(free, wanted) => short("memory", *free, *wanted),
            Self::Disk(free, wanted) => short("disk", *free, *wanted),
        }
    }
}
