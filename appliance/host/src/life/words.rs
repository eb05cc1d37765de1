//! What is said to the life of a VM, and what it says.

use std::time::Duration;

use rebec_book::{Key, record::SeenState};
use rebec_migrate::ledger::Right;
use rebec_vmm_api::{Outcome, control::VmState};
use serde::{Deserialize, Serialize};

/// What is wanted of a VM here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Want {
    /// It runs.
    Running,
    /// It does not.
    Stopped,
    /// It arrives from another host.
    Arriving,
    /// It runs at another host; what is left here goes once its VMM has ended.
    Gone,
}

/// What a new agent must know of a life: written before anybody acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Durable {
    /// What is wanted.
    pub want: Want,
    /// The last ownership counter seen; of a VM that arrives, the counter it will have.
    pub epoch: u64,
    /// The host that sends it here.
    pub from: Option<Key>,
    /// The host it was last sent to: whom a granted right waits for.
    pub to: Option<Key>,
    /// The ownership counter that it will have there.
    pub granting: Option<u64>,
}

/// What somebody wants of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// It is to start from its disk.
    Run {
        /// Why, where that is not plain.
        reason: Option<String>,
    },
    /// It is to end.
    Stop {
        /// How long its guest has to end by itself; none is a cut at once.
        patience: Duration,
    },
    /// A VMM is to wait for it.
    Arrive {
        /// The host that sends it.
        from: Key,
        /// The ownership counter it will have here.
        epoch: u64,
    },
    /// It is to move.
    Depart {
        /// The host.
        to: Key,
    },
    /// The move's streams are open: its VMM is about to be told to move.
    SetOut,
    /// What is here of a VM that does not run is to go.
    Remove,
}

/// What a VMM answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Which VMM: the number that [`super::Life::vmm`] had when it was asked.
    pub vmm: u32,
    /// How its VM is.
    pub state: VmState,
    /// Its ownership counter.
    pub epoch: u64,
    /// Its process.
    pub pid: u32,
    /// The name of the keeper whose lease has run out, where that is so.
    pub unleased: Option<String>,
}

/// The last record of a ledger: a right and its epoch; or why it cannot be read.
pub type Ledger = Result<Option<(Right, u64)>, String>;

/// How a VMM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code, where it can be known.
    pub code: Option<i32>,
    /// In words.
    pub how: String,
    /// What its ledger says.
    pub right: Ledger,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Somebody wants something. This alone can be refused.
    Want(Goal),
    /// A new agent has found the VMM of an earlier one: this process.
    Adopted(u32),
    /// A new agent has found no VMM, and has had a word from another host, or there is none to have one from.
    Heard,
    /// The VMM that was asked for answers.
    Started,
    /// It could not be started.
    NotStarted(String),
    /// Something about this host has changed that a VM may have waited for.
    Roused,
    /// A VMM said how its VM is.
    Said(Said),
    /// Its VMM has ended.
    Ended(Ended),
    /// Why the power button was not pressed.
    NotPressed(String),
    /// A stream of the move here began.
    StreamBegan,
    /// A stream of the move here ended.
    StreamEnded,
    /// The host that was to send it here says that it does not, and has not granted it.
    NotSent,
    /// What its ledger says, as was asked for.
    Ledger(Ledger),
    /// It was started elsewhere, and what this host has of it at this epoch is not the VM any more.
    Superseded(u64),
    /// An attempt to move, or to bring a granted right to the other side, has ended.
    Moved {
        /// So; none where it failed before the VMM could say.
        outcome: Option<Outcome>,
        /// In words, for whom a granted right waits, and why.
        why: String,
    },
    /// A host was declared dead: proof that it runs nothing that was granted to it.
    DeclaredDead(Key),
    /// This host was.
    Outcast,
}

/// How a VMM begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum How {
    /// From its disk.
    Boot,
    /// By waiting for the VM.
    Arrive,
}

/// A grant to sign: the right to run the VM goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grant {
    /// To another host; none is this host itself, after whom it was sent to let go.
    pub to: Option<Key>,
    /// At this epoch.
    pub epoch: u64,
}

/// How the VM is, for everybody to know.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Word {
    /// In one word.
    pub state: SeenState,
    /// Why, where that is not plain.
    pub reason: Option<String>,
    /// Its VMM's process; 0 where it has none.
    pub pid: u32,
    /// The host that it is being sent to.
    pub to: Option<Key>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output {
    /// Write this down, with these grants, before anything else is done.
    Keep {
        /// All that is to be kept.
        durable: Durable,
        /// Grants to sign and keep as well.
        grants: Vec<Grant>,
    },
    /// Tell everybody how the VM is now: [`super::Life::word`].
    Say,
    /// Start a VMM; [`Input::Started`] or [`Input::NotStarted`] follows.
    StartVmm(How),
    /// Press the guest's power button; [`Input::NotPressed`] may follow.
    PressPower,
    /// Tell the VMM to end.
    StopVmm,
    /// Kill this process and all that belongs to the VM; [`Input::Ended`] follows.
    Kill(u32),
    /// Read the ledger; [`Input::Ledger`] follows.
    ReadLedger,
    /// Try again to bring a granted right to the other side; [`Input::Moved`] follows.
    Bring,
    /// The same, but the other side was declared dead: answer the VMM in its place that it lets go.
    GiveBack,
    /// Tell the keeper how things are now, where there is one.
    AskKeeper,
    /// Nothing of the VM stays here. The last output.
    Remove,
}

/// Why a wish is refused. It follows the VM's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// It cannot be started twice.
    #[error("runs already")]
    RunsAlready,
    /// Its disk is another VMM's yet.
    #[error("is being stopped; wait until that is done")]
    BeingStopped,
    /// It may run elsewhere soon.
    #[error("is on the move; wait until it is there")]
    OnTheMove,
    /// Something else is under way.
    #[error("is being started or moved; wait until that is done")]
    Busy,
    /// Something else is under way.
    #[error("is being started, stopped or moved; wait until that is done")]
    NotNow,
    /// Only a running VM is moved.
    #[error("does not run; only a running VM is moved")]
    DoesNotRun,
    /// A copy from before is here.
    #[error("is still here; try again in a moment")]
    StillHere,
    /// Only a stopped VM is removed.
    #[error("runs; stop it first, by `rebec vm stop`")]
    Runs,
}
