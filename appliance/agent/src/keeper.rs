//! The keeper's side of leases (docs/formats/lease.md): answers the holders of VMs that this host keeps, and knows which may be started elsewhere because
//! their holders have not asked for long enough (`orders::restart` does so). What is decided, and when, is `rebec_pool::lease`; what must survive is in the store before anybody hears of it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{Key, Signed, authority::Granted, key::Id, record::Kind, view};
use rebec_host::{failed, lock};
use rebec_pool::{
    assign,
    lease::{self, Ask, Charge, Promises, Refusal, Terms},
};
use serde::{Deserialize, Serialize};

use crate::{facts, knowledge::Knowledge, store::Store};

/// What holders and keepers of a pool agree on.
pub const TERMS: Terms = Terms::STANDARD;
/// What a keeper has promised: what must survive is in the store, the rest is remembered while its agent lives.
pub struct Keeper {
    knowledge: Arc<Knowledge>,
    store: Arc<Store>,
    promises: Mutex<Promises>,
}

/// `POST /internal/promises`: may the VM run here?
#[derive(Debug, Serialize, Deserialize)]
pub struct Question {
    /// The VM.
    pub vm: Id,
    /// What the asker has of it.
    pub ask: Ask,
    /// What proves it: the news may not have come here yet.
    pub records: Vec<Signed>,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// So long from when it was asked.
    Promised {
        /// In milliseconds.
        lease_ms: u64,
    },
    /// It was started elsewhere: what the asker has of it must go.
    Superseded {
        /// The host that it was started on.
        host: Key,
        /// At this epoch.
        epoch: u64,
    },
}

/// `POST /internal/restarts`: a VM that is stopped, or counts as such, on a host that is lost is to run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wish {
    /// The VM.
    pub vm: Id,
}

impl Keeper {
    /// A keeper whose agent starts now.
    pub fn new(knowledge: Arc<Knowledge>, store: Arc<Store>) -> Self {
        Self { knowledge, store, promises: Mutex::new(Promises::new(facts::boot_time(), TERMS)) }
    }

    /// Answers a host that has a copy of a VM, if what it asks has been granted: a promise only to who holds the VM by proof, and to the host
    /// that the holder sends it to. Others can hear that their copy is superseded.
    pub fn answer(&self, granted: Granted, ask: Ask) -> Result<Verdict, ApiError> {
        let (Some(asker), Some(vm)) = (granted.host(), granted.about()) else {
            return Err(ApiError::new(ErrorCode::Forbidden, "no promise was granted"));
        };
        self.judge(asker, vm, ask)
    }

    /// The same for a copy of the keeper's own.
    pub fn answer_own(&self, vm: Id, ask: Ask) -> Result<Verdict, ApiError> {
        self.judge(self.knowledge.key(), vm, ask)
    }

    fn judge(&self, asker: Key, vm: Id, ask: Ask) -> Result<Verdict, ApiError> {
        let name = self.require_charge(vm)?;
        let has = self.knowledge.pool(|book| assign::has_copy(book, vm, asker, ask))?;
        // Judged and noted as one, so that no grant comes in between.
        let judged = self.store.change_charge(&vm, |charge| {
            let charge = lease::promise(charge, asker, ask)?;
            if !has {
                return Err(Refusal::Unheard);
            }
            lock(&self.promises).note(vm, facts::boot_time(), TERMS);
            Ok(charge)
        });
        match judged.map_err(|error| failed(&error))? {
            Ok(_) => Ok(Verdict::Promised { lease_ms: TERMS.lease.as_millis().try_into().unwrap_or(u64::MAX) }),
            Err(Refusal::Superseded { epoch, host }) => Ok(Verdict::Superseded { host, epoch }),
            Err(Refusal::Unheard) => {
                let message = format!(
                    "VM {name}: its keeper made no promise that leads to epoch {} at the asking host; it stays as it is",
                    ask.epoch
                );
                Err(ApiError::new(if has { ErrorCode::Refused } else { ErrorCode::Forbidden }, message))
            }
        }
    }

    /// A user wants a VM to run whose host was lost: it is started as soon as that is safe.
    pub fn wish(&self, vm: Id) -> Result<(), ApiError> {
        let name = self.require_charge(vm)?;
        let none = || ApiError::new(ErrorCode::Conflict, format!("VM {name} has not been started yet; `rebec vm start {name}`"));
        let changed = self.store.change_charge(&vm, |charge| Ok(Charge { runs: true, ..charge.cloned().ok_or_else(none)? }));
        changed.map_err(|error| failed(&error))?.map(|_| ())
    }

    /// The name of a VM that this host keeps.
    fn require_charge(&self, vm: Id) -> Result<String, ApiError> {
        let (_, body) = self.knowledge.desired(vm)?;
        if self.knowledge.pool(|book| view::keeper(book, vm))? != Some(self.knowledge.key()) {
            let message = format!("host {} is not the keeper of VM {}", self.knowledge.own_name(), body.name);
            return Err(ApiError::new(ErrorCode::Conflict, message));
        }
        Ok(body.name)
    }

    /// The VMs that this host keeps and may start elsewhere now. What is kept of those that are gone is forgotten.
    pub fn lost(&self) -> anyhow::Result<Vec<Id>> {
        let charges = self.store.charges()?;
        if charges.is_empty() {
            // Most hosts keep nothing, and the book may be long.
            return Ok(vec![]);
        }
        let own = self.knowledge.key();
        let known = self.knowledge.read(|book| {
            let kept =
                view::vms(book).into_iter().filter(|vm| view::keeper(book, vm.id) == Some(own)).map(|vm| vm.id).collect::<BTreeSet<_>>();
            // By the word of the domain that it was kept for: what others say is gone may come back, and what was granted must be known then.
            let is_ours = |writer: &Key| book.domain_of(writer).is_some_and(|domain| book.own_domain() == Some(domain));
            let gone = book.of_kind(Kind::VM).filter(|record| record.body.is_none() && is_ours(&record.key.writer));
            let gone = gone.map(|record| record.key.id).collect::<BTreeSet<_>>();
            (kept, gone)
        });
        let Some((kept, gone)) = known else { return Ok(vec![]) };
        let mut lost = vec![];
        for (vm, charge) in charges {
            if gone.contains(&vm) && !kept.contains(&vm) {
                self.store.forget_charge(&vm)?;
                lock(&self.promises).forget(vm);
            } else if kept.contains(&vm) && self.may_restart(&charge, vm) {
                lost.push(vm);
            }
        }
        Ok(lost)
    }

    fn may_restart(&self, charge: &Charge, vm: Id) -> bool {
        lease::may_restart(charge, &lock(&self.promises), vm, facts::boot_time(), TERMS)
    }

    /// Grants a lost VM to a host; none where its holder has asked meanwhile.
    pub fn grant(&self, vm: Id, to: Key) -> anyhow::Result<Option<Charge>> {
        let granted = self.store.change_charge(&vm, |charge| match charge {
            Some(charge) if self.may_restart(charge, vm) => {
                // If the order is lost, the next one waits as if it had been obeyed.
                lock(&self.promises).note(vm, facts::boot_time(), TERMS);
                Ok(lease::grant(charge, to))
            }
            _ => Err(()),
        });
        Ok(granted?.ok())
    }
}
