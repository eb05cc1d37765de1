//! How a VM is: its VMM is asked, and the book what others say, and its life is told.

use std::sync::Arc;

use rebec_book::{Key, view};
use rebec_host::life::{Input, Life, Said};
use rebec_vmm_api::control::{MemoryStatus, VmState};

use super::{LocalVm, Want};

/// Asks the VMM how its VM is, and the book what others say, and tells its life. What the VMM says of memory that changes, `vm::memory` takes in.
pub async fn at(vm: &Arc<LocalVm>) -> Option<Box<MemoryStatus>> {
    let number = vm.life(Life::vmm)?;
    let mut memory = None;
    match vm.talk(|control| Ok((control.status()?, control.pid()?))).await {
        Ok((status, pid)) => {
            let kept = vm.kept();
            // An agent that came after its VMM's start hears of them here.
            let news = vm.ports_have(&status);
            memory = status.memory;
            let has_lease = status.state != VmState::Running || status.lease_ms != Some(0);
            let unleased = kept.body.keeper.filter(|_| !has_lease).map(|keeper| vm.knowledge.name_of(&keeper));
            let said = Said { vmm: number, state: status.state, epoch: status.epoch, pid, unleased };
            vm.learn(Input::Said(said));
            if news {
                vm.say();
            }
        }
        Err(error) => log::debug!("vm {}: {error:#}", vm.name()),
    }
    hear_others(vm);
    memory
}

/// What the book says about those that the VM is sent by, or to.
fn hear_others(vm: &LocalVm) {
    let kept = vm.kept();
    let is_dead = |host: &Key| vm.knowledge.is_dead(host);
    if let Some(to) = kept.to.filter(|to| vm.life(Life::is_granted) && is_dead(to)) {
        vm.learn(Input::DeclaredDead(to));
    }
    let Some(from) = kept.from.filter(|_| kept.want == Want::Arriving) else { return };
    if is_dead(&from) {
        return vm.learn(Input::DeclaredDead(from));
    }
    // Its source's own word: whom it sends the VM to.
    let sends_elsewhere = |book: &rebec_book::Book| {
        let word = view::claims(book, kept.id).find(|(host, _)| *host == from).map(|(_, seen)| seen.to);
        word.is_some_and(|to| to != Some(vm.knowledge.key()))
    };
    if vm.knowledge.read(sends_elsewhere) == Some(true) {
        vm.learn(Input::NotSent);
    }
}
