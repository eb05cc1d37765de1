//! Who may ask what: one function over a closed list of questions. A handler takes the [`Granted`] that it returns, and nothing else
//! can make one. `docs/formats/authority.md` is the same as a table, and a test walks both.
//!
//! What a host asks is judged by proofs that are in the book, never by what it says of itself.

use std::fmt;

use crate::{
    book::Book,
    key::{Digest, Id, Key},
    record::{Body, Kind, Signed},
    view,
};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A person or a program at this host's socket, or with a token.
    User(Role),
    /// Whoever holds this key: what it is in the pool is for the book to say.
    Host(Key),
    /// Somebody who has shown neither.
    Nobody,
}

/// What a user may do, the least first: each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looks.
    Viewer,
    /// Runs VMs.
    User,
    /// Looks after hosts, images and LANs.
    Operator,
    /// Decides who belongs to the domain.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::User, Self::Operator, Self::Admin];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::User => "user",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
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
    /// How long may my copy of a VM run.
    Promise(Id),
    /// Have a VM started whose host is lost.
    Restart(Id),
    /// Start a VM, at this epoch.
    Start(Id, u64),
    /// Remove what you have of a VM.
    Remove(Id),
    /// Make ready for a VM that I hold at this epoch.
    Arrive(Id, u64),
    /// A stream of a move that you made ready for.
    Stream(Id),
    /// How is the job that I began.
    Job,
    /// The bytes of a part.
    Part(Digest),
    /// A user's command, about this thing if it is about one.
    Command(Command, Option<(Kind, Id)>),
}

impl Question {
    /// The id of what it is about.
    pub fn about(&self) -> Option<Id> {
        match *self {
            Self::Addresses(id)
            | Self::Promise(id)
            | Self::Restart(id)
            | Self::Start(id, _)
            | Self::Remove(id)
            | Self::Arrive(id, _)
            | Self::Stream(id)
            | Self::Command(_, Some((_, id))) => Some(id),
            Self::Join | Self::Exchange | Self::Leave | Self::Job | Self::Part(_) | Self::Command(_, None) => None,
        }
    }
}

macro_rules! commands {
    ($($name:ident $role:ident $reach:ident $words:literal,)*) => {
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

            /// Whether another host may ask it for a user of its own.
            fn reach(self) -> Reach {
                match self { $(Self::$name => Reach::$reach),* }
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
    /// From this host's own users.
    Here,
    /// From hosts of its domain.
    Domain,
    /// From hosts of its domain, and of the domain that the VM is at home in.
    Home,
    /// From whoever began it.
    Job,
}

commands! {
    PoolShow Viewer Here "show the pool",
    PoolInit Admin Here "found a pool",
    PoolJoin Admin Here "join a pool",
    PoolLeave Admin Here "leave the pool",
    DomainList Viewer Here "list domains",
    DomainInvite Admin Here "invite a domain",
    DomainKeyExport Admin Here "export the domain's root key",
    DomainKeyImport Admin Here "import the domain's root key",
    InvitationList Operator Here "list invitations",
    InvitationRevoke Admin Here "revoke an invitation",
    HostList Viewer Here "list hosts",
    HostInvite Admin Here "invite a host",
    HostShow Viewer Here "show a host",
    HostDrain Operator Domain "drain a host",
    HostDeclareDead Admin Here "declare a host dead",
    PartPut Operator Here "import a part",
    ImageList Viewer Here "list images",
    ImageCreate Operator Here "make an image",
    ImageRemove Operator Here "remove an image",
    LanList Viewer Here "list LANs",
    LanCreate Operator Here "make a LAN",
    LanShow Viewer Here "show a LAN",
    LanRemove Operator Here "remove a LAN",
    VmList Viewer Here "list VMs",
    VmCreate User Here "run a VM",
    VmShow Viewer Home "show a VM",
    VmRemove User Home "remove a VM",
    VmStart User Home "start a VM",
    VmStop User Home "stop a VM",
    VmMove User Home "move a VM",
    VmLogs User Home "read a VM's console",
    VmConsole User Home "type at a VM's console",
    VmForward User Home "reach into a VM",
    TokenList Admin Here "list tokens",
    TokenCreate Admin Here "make a token",
    TokenRemove Admin Here "remove a token",
    JobList Viewer Here "list jobs",
    JobShow Viewer Job "show a job",
    JobFollow Viewer Job "follow a job",
    SupportBundle Operator Domain "make a support bundle",
    AuditShow Operator Here "read the audit log",
    AuditVerify Operator Here "verify the audit log",
    ApiShow Viewer Here "describe the API",
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

/// Whether somebody may ask something of the host `own`. Without a book it belongs to no pool, and only its users ask.
///
/// # Errors
/// Why not.
pub fn may(book: Option<&Book>, own: Key, asker: Asker, question: Question) -> Result<Granted, Refused> {
    match (asker, question) {
        (Asker::Nobody, _) => return Err(Refused::because("nobody asks: show a token or a key")),
        (Asker::User(role), Question::Command(command, _)) if role >= command.role() => {}
        (Asker::User(role), Question::Command(command, _)) => {
            return Err(Refused::because(format!("to {command} needs the role {}; this is {role}", command.role())));
        }
        (Asker::User(_), _) => return Err(Refused::because("/internal is for agents")),
        (Asker::Host(key), question) => {
            let book = book.ok_or_else(|| Refused::because("this host belongs to no pool"))?;
            host_may(book, own, key, question)?;
        }
    }
    Ok(Granted { asker, question })
}

fn host_may(book: &Book, own: Key, asker: Key, question: Question) -> Result<(), Refused> {
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
        Question::Join | Question::Exchange | Question::Job | Question::Stream(_) => return Ok(()),
        Question::Leave => return is_own.then_some(()).ok_or_else(|| Refused::because("the asking host belongs to another domain")),
        Question::Addresses(lan) => match book.get(Kind::LAN, lan, own) {
            Some(Body::Lan(lan)) => is_own || lan.domains.contains(&domain),
            _ => return refuse("no LAN of this id is at home here"),
        },
        Question::Promise(vm) => {
            let body = view::vm_body(book, vm).ok_or_else(unknown_vm)?;
            if body.keeper == Some(own) { true } else { return refuse("this host is not the keeper of that VM") }
        }
        Question::Restart(vm) => {
            let body = view::vm_body(book, vm).ok_or_else(unknown_vm)?;
            let holder = view::holder(book, vm).map(|at| at.host);
            if holder.is_none_or(|holder| book.dead(&holder).is_none()) {
                return refuse("the host that holds that VM was not declared dead");
            }
            body.keeper == Some(own) && home_domain(vm) == Some(domain)
        }
        Question::Start(vm, epoch) => {
            let body = view::vm_body(book, vm).ok_or_else(unknown_vm)?;
            if !holds(vm, own, epoch) {
                return refuse("its home has not assigned that VM to this host at that epoch");
            }
            book.thing(Kind::VM, vm).is_some_and(|thing| thing.home == asker) || body.keeper == Some(asker)
        }
        Question::Remove(vm) => book.thing(Kind::VM, vm).ok_or_else(unknown_vm)?.home == asker,
        Question::Arrive(vm, epoch) => {
            view::vm_body(book, vm).ok_or_else(unknown_vm)?;
            if !holds(vm, asker, epoch) {
                return refuse("the asking host does not hold that VM at that epoch");
            }
            true
        }
        Question::Part(digest) => is_own || needs_part(book, domain, &digest),
        Question::Command(command, about) => match command.reach() {
            Reach::Here => return refuse("that is asked by a host's own users, on that host"),
            Reach::Domain => is_own,
            Reach::Job => true,
            Reach::Home => match about {
                Some((Kind::VM, vm)) => is_own || home_domain(vm) == Some(domain),
                _ => is_own,
            },
        },
    };
    if allowed { Ok(()) } else { refuse("the asking host belongs to another domain: it may ask about its own VMs only") }
}

fn standing(book: &Book, own: Key, asker: Key) -> Result<Standing, Refused> {
    let Some((domain, member)) = book.membership(&asker) else {
        return Ok(if book.claims(&asker).next().is_some() { Standing::Claimed } else { Standing::Stranger });
    };
    if let Some(why) = &member.dead {
        let record =
            book.about(Kind::MEMBER, crate::key::id_of_key(&asker)).find(|record| record.body == Some(Body::Member(member.clone())));
        let proof = record.and_then(|record| book.signed(&record.key)).cloned();
        return Err(Refused { why: format!("this host was declared dead: {why}"), proof });
    }
    Ok(if book.domain_of(&own) == Some(domain) { Standing::Own(domain) } else { Standing::Foreign(domain) })
}

/// Whether a domain has a use for a part: an image or VM of its own is made of it, or a VM that one of its hosts holds or is to have.
fn needs_part(book: &Book, domain: Key, digest: &Digest) -> bool {
    let ours = |host: Key| book.domain_of(&host) == Some(domain);
    let images = view::images(book).into_iter().any(|image| ours(image.home) && image.body.parts().any(|part| part.digest == *digest));
    images
        || view::vms(book).into_iter().filter(|vm| vm.body.image.parts().any(|part| part.digest == *digest)).any(|vm| {
            let to = view::seen(book, vm.id).and_then(|seen| seen.body.to);
            ours(vm.home) || view::holder(book, vm.id).is_some_and(|at| ours(at.host)) || to.is_some_and(ours)
        })
}

#[cfg(test)]
mod tests;
