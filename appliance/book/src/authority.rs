//! Who may ask what: one function over a closed list of questions. A handler takes the [`Granted`] that it returns, and nothing else
//! can make one. `docs/formats/authority.md` is the same as a table, and a test walks both.
//!
//! What a host asks is judged by proofs that are in the book, never by what it says of itself. A command is judged by the role that a
//! domain gave to whoever signed it (`signers`), the same at every host that it comes to.

mod signers;

use std::fmt;

pub use self::signers::{called, domains_of, needs_role, role_of};
pub use crate::role::Role;
use crate::{
    book::Book,
    contracts,
    key::{Digest, Id, Key},
    record::{Body, ImageBody, Kind, Signed, VmBody},
    view,
    warrant::Signer,
};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// Who gives a command: a user, or root at some host, or who showed a token there. By its signature; at the own socket by the socket.
    Signer(Signer),
    /// Whoever holds this key: what it is in the pool is for the book to say.
    Host(Key),
    /// Somebody who has shown neither.
    Nobody,
}

/// A question between hosts, or a user's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Let me in, by a ticket.
    Join,
    /// What have you that I lack; this is what I have.
    Exchange,
    /// I leave your domain.
    Leave,
    /// Addresses of a LAN that is at home here.
    Addresses(Id),
    /// Take addresses of such a LAN back that I have and do not need.
    Return(Id),
    /// How long may my copy of a VM run.
    Promise(Id),
    /// Have a VM started whose host is lost.
    Restart(Id),
    /// Start a VM, at this epoch.
    Start(Id, u64),
    /// Remove what you have of a VM.
    Remove(Id),
    /// Take over the disks that a VM is to have.
    Disks(Id),
    /// Make ready for a VM that I hold at this epoch.
    Arrive(Id, u64),
    /// A stream of a move that you made ready for.
    Stream(Id),
    /// How is the job that I began.
    Job,
    /// The bytes of a part.
    Part(Digest),
    /// What would you lend my domain.
    Lend,
    /// A contract that my domain is a side of: sign it, or hear what was said of it.
    Contract(Id),
    /// A user's command, about this thing if it is about one.
    Command(Command, Option<(Kind, Id)>),
}

impl Question {
    /// The id of what it is about.
    pub fn about(&self) -> Option<Id> {
        match *self {
            Self::Addresses(id)
            | Self::Return(id)
            | Self::Promise(id)
            | Self::Restart(id)
            | Self::Start(id, _)
            | Self::Remove(id)
            | Self::Disks(id)
            | Self::Arrive(id, _)
            | Self::Stream(id)
            | Self::Contract(id)
            | Self::Command(_, Some((_, id))) => Some(id),
            Self::Join | Self::Exchange | Self::Leave | Self::Job | Self::Lend | Self::Part(_) | Self::Command(_, None) => None,
        }
    }
}

macro_rules! commands {
    ($($name:ident $role:ident $reach:ident $words:literal $($own:ident)?,)*) => {
        /// What users ask for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Command {
            $(#[doc = $words] $name,)*
        }

        impl Command {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The least role that may.
            pub fn role(self) -> Role {
                match self { $(Self::$name => Role::$role),* }
            }

            /// Whether it may come through another host.
            fn reach(self) -> Reach {
                match self { $(Self::$name => Reach::$reach),* }
            }

            /// Whether it is about the asked machine alone: root there needs no role for it.
            fn is_own(self) -> bool {
                const OWN: &[Command] = &[$($(Command::$own,)?)*];
                OWN.contains(&self)
            }
        }

        impl fmt::Display for Command {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $words),* })
            }
        }
    };
}

/// How far a command may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// It is said to the asked host itself.
    Here,
    /// Through any host, by who has a role in the asked host's domain.
    Domain,
    /// The same, and by who has a role in the domain that the VM is at home in.
    Home,
    /// Through any host, by who has a role in some domain; whose job it is is looked at later.
    Job,
}

commands! {
    PoolShow Viewer Here "show the pool" PoolShow,
    PoolInit Admin Here "found a pool" PoolInit,
    PoolJoin Admin Here "join a pool" PoolJoin,
    PoolLeave Admin Here "leave the pool" PoolLeave,
    DomainList Viewer Here "list domains",
    DomainInvite Admin Here "invite a domain",
    DomainKeyExport Admin Here "export the domain's root key",
    DomainKeyImport Admin Here "import the domain's root key" DomainKeyImport,
    InvitationList Operator Here "list invitations",
    InvitationRevoke Admin Here "revoke an invitation",
    HostList Viewer Here "list hosts",
    HostInvite Admin Here "invite a host",
    HostShow Viewer Here "show a host",
    HostRoads Viewer Domain "see how a host reaches others",
    HostDrain Operator Domain "drain a host",
    HostSet Operator Domain "give a host labels",
    HostDeclareDead Admin Here "declare a host dead",
    HostSetRole Admin Here "give a host a role",
    PartPut Operator Here "import a part",
    ImageList Viewer Here "list images",
    ImageCreate Operator Here "make an image",
    ImageRemove Operator Here "remove an image",
    LanList Viewer Here "list LANs",
    LanCreate Operator Here "make a LAN",
    LanShow Viewer Here "show a LAN",
    LanRemove Operator Here "remove a LAN",
    LanSet Operator Here "change a LAN",
    VmList Viewer Here "list VMs",
    VmCreate User Here "run a VM",
    VmExplain User Here "hear where a VM would go",
    VmShow Viewer Home "show a VM",
    VmRemove User Home "remove a VM",
    VmStart User Home "start a VM",
    VmStop User Home "stop a VM",
    VmMove User Home "move a VM",
    VmResizeDisk User Home "make a VM's disk larger",
    VmSet User Home "change what a VM may take of its host",
    VmDiskAdd User Home "give a VM a disk",
    VmDiskRemove User Home "take a disk from a VM",
    VmTraffic Viewer Home "see whom a VM talks to",
    VmCapture Operator Home "capture what passes a VM's ports",
    VmLogs User Home "read a VM's console",
    VmConsole User Home "type at a VM's console",
    VmForward User Home "reach into a VM",
    VmWhy Viewer Home "say why a VM is where it is",
    PolicyShow Viewer Here "show the policy",
    PolicySet Admin Here "set the policy",
    ContractList Viewer Here "list contracts",
    ContractShow Viewer Here "show a contract",
    ContractPropose Operator Here "propose contracts",
    ContractAccept Operator Here "accept a contract",
    ContractRecall Operator Here "call a machine back, or give it back",
    DemandSet Scheduler Here "say what the domain's work wants",
    TradePlan Viewer Here "show what the broker would do",
    AccountShow Viewer Here "show what was lent and borrowed",
    UserList Viewer Here "list users",
    UserAdd Admin Here "give a user a role",
    UserRemove Admin Here "take a user's role back",
    TokenList Admin Here "list tokens" TokenList,
    TokenCreate Admin Here "make a token" TokenCreate,
    TokenRemove Admin Here "remove a token" TokenRemove,
    JobList Viewer Here "list jobs" JobList,
    JobShow Viewer Job "show a job" JobShow,
    JobFollow Viewer Job "follow a job" JobFollow,
    SupportBundle Operator Domain "make a support bundle" SupportBundle,
    HostMetrics Viewer Domain "read what a host counts" HostMetrics,
    AuditShow Operator Here "read the audit log" AuditShow,
    AuditVerify Operator Here "verify the audit log" AuditVerify,
    ApiShow Viewer Here "describe the API" ApiShow,
}

/// The right to what was asked. Only [`may`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    asker: Asker,
    question: Question,
}

impl Granted {
    /// Who asked.
    pub fn asker(&self) -> Asker {
        self.asker
    }

    /// The host that asked; none where it was a user.
    pub fn host(&self) -> Option<Key> {
        if let Asker::Host(key) = self.asker { Some(key) } else { None }
    }

    /// What was asked.
    pub fn question(&self) -> &Question {
        &self.question
    }

    /// The id of what it is about.
    pub fn about(&self) -> Option<Id> {
        self.question.about()
    }
}

/// Why it was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    why: String,
    /// Where the asker was declared dead: the record that says so, for the asker to read before anything else.
    pub proof: Option<Signed>,
}

impl Refused {
    fn because(why: impl Into<String>) -> Self {
        Self { why: why.into(), proof: None }
    }
}

/// What an asking host is, to the host that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// No domain claims it.
    Stranger,
    /// A domain claims it, and it has not said that it belongs there.
    Claimed,
    /// It belongs to another domain.
    Foreign(Key),
    /// It belongs to the same domain.
    Own(Key),
}

/// Whether somebody may ask something of the host `own`. Without a book it belongs to no pool, and only its root and who has its tokens ask.
///
/// # Errors
/// Why not.
pub fn may(book: Option<&Book>, own: Key, now_s: u64, asker: Asker, question: Question) -> Result<Granted, Refused> {
    match (asker, question) {
        (Asker::Nobody, _) => return Err(Refused::because("nobody asks: sign the command, or show a token or a key")),
        (Asker::Signer(signer), Question::Command(command, about)) => {
            signers::may(book, own, now_s, &signer, command, about)?;
            // What comes by a command of who may give it comes under no other rule than what another host sends.
            if let (Command::VmStart, Some((Kind::VM, vm)), Some(book)) = (command, about, book)
                && view::holder(book, vm).is_some_and(|at| at.host == own)
            {
                may_come(book, own, vm, now_s)?;
            }
        }
        (Asker::Signer(_), _) => return Err(Refused::because("/internal is for agents")),
        (Asker::Host(_), Question::Command(..)) if book.is_some() => {
            return Err(Refused::because("a command needs a signature: of a user, or of a host for root at its socket"));
        }
        (Asker::Host(key), question) => {
            let book = book.ok_or_else(|| Refused::because("this host belongs to no pool"))?;
            host_may(book, own, now_s, key, question)?;
        }
    }
    Ok(Granted { asker, question })
}

fn host_may(book: &Book, own: Key, now_s: u64, asker: Key, question: Question) -> Result<(), Refused> {
    let standing = standing(book, own, asker)?;
    if question == Question::Join {
        return Ok(());
    }
    let refuse = |why: &str| Err(Refused::because(why));
    let domain = match standing {
        Standing::Stranger => return refuse("the asking host is no member of this host's pool"),
        Standing::Claimed if question == Question::Exchange => return Ok(()),
        Standing::Claimed => return refuse("the asking host has not said to which domain it belongs"),
        Standing::Own(domain) | Standing::Foreign(domain) => domain,
    };
    let is_own = matches!(standing, Standing::Own(_));
    let home_domain = |vm: Id| book.thing(Kind::VM, vm).and_then(|thing| thing.domain);
    let unknown_vm = || Refused::because("no VM of this id is known here");
    let holds = |vm: Id, key: Key, epoch: u64| view::holder(book, vm).is_some_and(|at| (at.host, at.epoch) == (key, epoch));
    let allowed = match question {
        // Contracts and offers prove themselves, whoever carries them.
        Question::Join | Question::Exchange | Question::Job | Question::Stream(_) | Question::Lend | Question::Contract(_) => return Ok(()),
        Question::Leave => return is_own.then_some(()).ok_or_else(|| Refused::because("the asking host belongs to another domain")),
        Question::Addresses(lan) | Question::Return(lan) => match book.get(Kind::LAN, lan, own) {
            Some(Body::Lan(lan)) => is_own || lan.domains.contains(&domain),
            _ => return refuse("no LAN of this id is at home here"),
        },
        Question::Promise(vm) => {
            view::vm_body(book, vm).ok_or_else(unknown_vm)?;
            if view::keeper(book, vm) == Some(own) { true } else { return refuse("this host is not the keeper of that VM") }
        }
        Question::Restart(vm) => {
            view::vm_body(book, vm).ok_or_else(unknown_vm)?;
            let holder = view::holder(book, vm).map(|at| at.host);
            if holder.is_none_or(|holder| book.dead(&holder).is_none()) {
                return refuse("the host that holds that VM was not declared dead");
            }
            view::keeper(book, vm) == Some(own) && home_domain(vm) == Some(domain)
        }
        Question::Start(vm, epoch) => {
            view::vm_body(book, vm).ok_or_else(unknown_vm)?;
            if !holds(vm, own, epoch) {
                return refuse("its home has not assigned that VM to this host at that epoch");
            }
            may_come(book, own, vm, now_s)?;
            book.thing(Kind::VM, vm).is_some_and(|thing| thing.home == asker) || view::keeper(book, vm) == Some(asker)
        }
        Question::Remove(vm) | Question::Disks(vm) => book.thing(Kind::VM, vm).ok_or_else(unknown_vm)?.home == asker,
        Question::Arrive(vm, epoch) => {
            view::vm_body(book, vm).ok_or_else(unknown_vm)?;
            if !holds(vm, asker, epoch) {
                return refuse("the asking host does not hold that VM at that epoch");
            }
            may_come(book, own, vm, now_s)?;
            true
        }
        Question::Part(digest) => is_own || needs_part(book, domain, &digest),
        // Commands are signed.
        Question::Command(..) => false,
    };
    if allowed { Ok(()) } else { refuse("the asking host belongs to another domain: it may ask about its own VMs only") }
}

/// Refuses a VM of another domain that no contract lets come to this host, where its domain lends by contract.
fn may_come(book: &Book, own: Key, vm: Id, now_s: u64) -> Result<(), Refused> {
    let refused = |why| {
        let host = book.membership(&own).map_or_else(|| own.short(), |(_, member)| member.name.clone());
        Refused::because(format!("host {host}: {why}"))
    };
    contracts::may_come(book, &own, vm, now_s).map_err(refused)
}

fn standing(book: &Book, own: Key, asker: Key) -> Result<Standing, Refused> {
    let Some((domain, member)) = book.membership(&asker) else {
        return Ok(if book.claims(&asker).next().is_some() { Standing::Claimed } else { Standing::Stranger });
    };
    if let Some(why) = &member.dead {
        let proof = book.proof_of_death(&asker).cloned();
        return Err(Refused { why: format!("this host was declared dead: {why}"), proof });
    }
    Ok(if book.domain_of(&own) == Some(domain) { Standing::Own(domain) } else { Standing::Foreign(domain) })
}

/// Whether another domain gave this one a use for a part: by an image that it shares, or a VM of its own that a host of this domain holds or
/// is to have. What a domain says of its own VMs and images is no reason: it can say anything.
fn needs_part(book: &Book, domain: Key, digest: &Digest) -> bool {
    let theirs = |host: Key| book.domain_of(&host) == Some(domain);
    let of_it = |image: &ImageBody| image.parts().any(|part| part.digest == *digest);
    let shared = |image: &view::Named<'_, ImageBody>| !theirs(image.home) && image.body.domains.contains(&domain) && of_it(image.body);
    let lent = |vm: &view::Named<'_, VmBody>| {
        let to = || view::seen(book, vm.id).and_then(|seen| seen.body.to).is_some_and(theirs);
        !theirs(vm.home) && of_it(&vm.body.image) && (view::holder(book, vm.id).is_some_and(|at| theirs(at.host)) || to())
    };
    view::images(book).iter().any(shared) || view::vms(book).iter().any(lent)
}

#[cfg(test)]
mod tests;
