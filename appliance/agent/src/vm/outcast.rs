//! A host that was declared dead and is not.

use std::time::Duration;

use rebec_book::view;

use super::{Vms, Want, lease, stop};

/// It runs nothing any more: its VMs may run elsewhere by now. What others have is not kept here.
pub async fn obey(vms: &Vms) {
    let knowledge = &vms.knowledge;
    let dead = knowledge.read(|book| book.dead(&knowledge.key()).map(str::to_owned)).flatten();
    let Some(reason) = dead else { return };
    for vm in vms.all() {
        let taken = knowledge
            .read(|book| view::holder(book, vm.id()).filter(|at| at.host != knowledge.key() && at.epoch > vm.kept().epoch))
            .flatten();
        if let Some(at) = taken {
            let why = format!("host {} has it at epoch {} since this host was declared dead", knowledge.name_of(&at.host), at.epoch);
            lease::withdraw(&vm, vm.kept().epoch, &why);
        } else if vm.want() == Want::Running {
            log::error!("vm {}: ended, because this host was declared dead: {reason}", vm.name());
            if let Err(error) = stop::stop(&vm, Duration::ZERO, None).await {
                log::error!("{error}");
            }
        }
    }
}
