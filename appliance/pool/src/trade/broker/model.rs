//! Two borrowers, one lender and its one machine, checked in every order of events (stateright): they run [`super::consider`] and what a contract is
//! worth by `rebec_book::contract`.
//!
//! - What a side has signed and said is on its disk and only grows. At any moment a copy of it as it was then or is now may come to the other side, or
//!   never: so messages are lost, doubled, late and out of order, agents start anew, and domains are cut off from each other.
//! - Time passes at any moment, past the end of proposals and of a recall's notice.
//! - What a borrower knows comes to it by the lender's answer or by the gossip, and may never come.

use std::sync::LazyLock;

use ed25519_dalek::SigningKey;
use rebec_book::{
    contract::{Contract, Reclaim, Said, Side, State as Worth, Terms, What},
    key::{Key, Name, public},
};
use stateright::{Checker, Model, Property};

use super::{ANSWER_S, Desk, Held, Machine, Verdict, consider};
use crate::trade::{file, policy::Policy};

const NOW: u64 = 1_800_000_000;
/// Half of what a proposal waits, and of a notice.
const TICK_S: u64 = ANSWER_S / 2;
const NOTICE_S: u64 = ANSWER_S;
const TICKS: u64 = 6;
const LENDER: u8 = 9;

/// What is known of a contract: who signed it, and what was said of it.
type Known = u8;
const BORROWER_SIGNED: Known = 1;
const LENDER_SIGNED: Known = 2;
const RECALLED: Known = 4;
const GIVEN_BACK: Known = 8;

static POLICY: LazyLock<Policy> = LazyLock::new(|| file::read("[lending]\nshare = \"100%\"\n").unwrap());

fn secret(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn key(number: u8) -> Key {
    public(&secret(number))
}

/// The contract that a borrower proposes at a tick, with what is known of it: signatures are made once.
static CONTRACTS: LazyLock<Vec<Vec<Contract>>> =
    LazyLock::new(|| (0..BORROWERS.len()).map(|borrower| (0..16).map(|known| make(borrower, known)).collect()).collect());
/// Each with the tick at which it makes its proposal.
const BORROWERS: [(u8, u64); 3] = [(1, 0), (2, 0), (1, 2)];

fn make(borrower: usize, known: Known) -> Contract {
    let (domain, at) = BORROWERS[borrower];
    let from = NOW + at * TICK_S;
    let mut contract = Contract::draft(Terms {
        nonce: Name([borrower as u8; 16]),
        lender: key(LENDER),
        borrower: key(domain),
        host: Name([7; 32]),
        vcpus: 1,
        memory_bytes: 1,
        disk_bytes: 1,
        price_milli: 0,
        from,
        until: None,
        notice_s: NOTICE_S,
        reclaim: Reclaim::Migrate,
        lans: vec![],
        vms: vec![],
        answer_by: from + ANSWER_S,
    });
    if known & BORROWER_SIGNED > 0 {
        contract.sign(&secret(domain));
    }
    if known & LENDER_SIGNED > 0 {
        contract.sign(&secret(LENDER));
    }
    if known & RECALLED > 0 {
        contract.say(Said::new(What::Recalled, from + 2 * TICK_S, "so", 0), &secret(LENDER));
    }
    if known & GIVEN_BACK > 0 {
        contract.say(Said::new(What::Ended, from + 2 * TICK_S, "so", 0), &secret(domain));
    }
    contract
}

fn contract(borrower: usize, known: Known) -> &'static Contract {
    &CONTRACTS[borrower][known as usize]
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pool {
    tick: u64,
    /// By the borrowers' disks, and by the lender's.
    borrowers: [Known; 3],
    lender: [Known; 3],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Action {
    Tick,
    Propose(usize),
    /// A borrower's copy comes to the lender.
    Ask(usize, Known),
    /// The lender's copy comes to a borrower.
    Tell(usize, Known),
    Recall(usize),
    GiveBack(usize),
}

struct Rules {
    /// Whether the lender looks at what it has promised: without it the model must find the fault.
    looks: bool,
}

impl Pool {
    fn now(&self) -> u64 {
        NOW + self.tick * TICK_S
    }

    fn worth(&self, known: Known, borrower: usize) -> Worth {
        contract(borrower, known).standing(self.now()).state
    }

    fn desk(&self, looks: bool) -> Desk<'static> {
        let machine = Machine {
            key: Name([7; 32]),
            name: "b1".into(),
            vcpus: 1,
            memory_bytes: 1,
            disk_bytes: 1,
            out: None,
            own_vms: 0,
            other_vms: 0,
        };
        let signed = |borrower: &usize| looks && self.lender[*borrower] & LENDER_SIGNED > 0;
        let held = |borrower: usize| {
            let contract = contract(borrower, self.lender[borrower]).clone();
            Held { id: contract.id(), contract, guests: vec![], recalled_s: 0, wasted_s: 0 }
        };
        let held = (0..BORROWERS.len()).filter(signed).map(held).collect();
        Desk {
            now: self.now(),
            me: key(LENDER),
            policy: &POLICY,
            told: None,
            machines: vec![machine],
            held,
            names: Default::default(),
            rates: Default::default(),
        }
    }
}

impl Model for Rules {
    type State = Pool;
    type Action = Action;

    fn init_states(&self) -> Vec<Pool> {
        vec![Pool { tick: 0, borrowers: [0; 3], lender: [0; 3] }]
    }

    fn actions(&self, state: &Pool, actions: &mut Vec<Action>) {
        if state.tick < TICKS {
            actions.push(Action::Tick);
        }
        for (borrower, (_, at)) in BORROWERS.iter().enumerate() {
            if state.tick >= *at && state.borrowers[borrower] == 0 {
                actions.push(Action::Propose(borrower));
            }
            let (theirs, mine) = (state.borrowers[borrower], state.lender[borrower]);
            if theirs > 0 {
                actions.extend([BORROWER_SIGNED, theirs].map(|known| Action::Ask(borrower, known)));
            }
            if mine > 0 {
                actions.extend([BORROWER_SIGNED | LENDER_SIGNED, mine].map(|known| Action::Tell(borrower, known)));
            }
            // Both words are of the second tick after the proposal.
            if state.tick >= at + 2 {
                actions.extend([Action::Recall(borrower), Action::GiveBack(borrower)]);
            }
        }
    }

    fn next_state(&self, before: &Pool, action: Action) -> Option<Pool> {
        let mut state = before.clone();
        match action {
            Action::Tick => state.tick += 1,
            Action::Propose(borrower) => state.borrowers[borrower] = BORROWER_SIGNED,
            Action::Ask(borrower, known) => {
                let mine = &mut state.lender[borrower];
                // Words of the borrower are heard; a signature of the lender's is only its own to make.
                if *mine & LENDER_SIGNED > 0 {
                    *mine |= known & GIVEN_BACK;
                }
                match consider(&before.desk(self.looks), contract(borrower, known & BORROWER_SIGNED)) {
                    Verdict::Sign(_) => *mine |= BORROWER_SIGNED | LENDER_SIGNED,
                    Verdict::Known | Verdict::Wait(_) | Verdict::Counter(..) | Verdict::Refuse(_) => {}
                }
            }
            Action::Tell(borrower, known) => state.borrowers[borrower] |= known,
            Action::Recall(borrower) if before.worth(before.lender[borrower], borrower).binds() => state.lender[borrower] |= RECALLED,
            Action::GiveBack(borrower) if before.worth(before.borrowers[borrower], borrower).binds() => {
                state.borrowers[borrower] |= GIVEN_BACK;
            }
            Action::Recall(_) | Action::GiveBack(_) => {}
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no machine is promised twice", |_, state: &Pool| {
                (0..3).filter(|borrower| state.worth(state.lender[*borrower], *borrower).binds()).count() <= 1
            }),
            Property::always("a borrower believes in no more than the lender signed", |_, state: &Pool| {
                (0..3)
                    .all(|borrower| !state.worth(state.borrowers[borrower], borrower).binds() || state.lender[borrower] & LENDER_SIGNED > 0)
            }),
            Property::always("a lender believes in no more than the borrower signed", |_, state: &Pool| {
                (0..3).all(|borrower| {
                    !state.worth(state.lender[borrower], borrower).binds() || state.borrowers[borrower] & BORROWER_SIGNED > 0
                })
            }),
            // It may not have heard of its recall: then it holds on, and the lender's own machine refuses.
            Property::always("whose contract holds has the machine, but for what it was not told yet", |_, state: &Pool| {
                (0..3).all(|borrower| {
                    let told = state.lender[borrower] & !state.borrowers[borrower] == 0;
                    let holds = state.worth(state.borrowers[borrower], borrower).binds();
                    !holds || !told || state.worth(state.lender[borrower], borrower).binds()
                })
            }),
            Property::sometimes("a machine is lent", |_, state: &Pool| state.worth(state.borrowers[0], 0) == Worth::Active),
            Property::sometimes("it is lent again to another after it was given back", |_, state: &Pool| {
                state.worth(state.lender[0], 0) == Worth::Ended && state.worth(state.borrowers[2], 2) == Worth::Active
            }),
            Property::sometimes("a recall ends it although nobody hears of it", |_, state: &Pool| {
                state.worth(state.lender[0], 0) == Worth::Ended && state.worth(state.borrowers[0], 0) == Worth::Active
            }),
            Property::sometimes("a proposal lapses", |_, state: &Pool| state.worth(state.borrowers[1], 1) == Worth::Lapsed),
        ]
    }
}

#[test]
fn no_machine_is_promised_twice_and_nobody_believes_in_more_than_was_signed() {
    let checked = Rules { looks: true }.checker().threads(2).spawn_bfs().join();
    checked.assert_properties();
    assert!(checked.unique_state_count() > 1000, "{}", checked.unique_state_count());
}

#[test]
fn a_lender_that_does_not_look_promises_a_machine_twice() {
    let checked = Rules { looks: false }.checker().spawn_bfs().join();
    assert!(checked.discovery("no machine is promised twice").is_some());
}

/// The two sides are told apart everywhere by this.
#[test]
fn the_lender_is_no_borrower() {
    assert_eq!(contract(0, 3).terms().side(&key(LENDER)), Some(Side::Lender));
}
