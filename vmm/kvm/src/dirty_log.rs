//! KVM's dirty log: which pages the guest's CPUs wrote since the last time it was taken.
//!
//! It runs with "manual protect": GET copies the bitmap, CLEAR forgets the bits it is given and write-protects those pages
//! again. A page written between the two keeps its bit's meaning, since the caller copies pages after taking the log: clear,
//! then copy. "Initially set" makes the first take report every page, and so a start costs nothing; who moves a machine
//! intersects that with [`crate::Ram::populated`].

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1};
use kvm_ioctls::VmFd;
use rebec_bits::BitSet;
use rebec_layout::PAGE_BYTES;
use vmm_sys_util::{errno, ioctl::ioctl_with_ref, ioctl_iowr_nr};

use crate::{
    Machine,
    error::{self, Result},
    machine::Slot,
};

ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// Words of the bitmap that one CLEAR covers (64 Ki pages, 256 MiB): KVM holds its MMU lock over each, and vCPUs wait for it.
const CLEAR_WORDS: usize = 1024;

impl Machine {
    /// Starts to log what the guest's CPUs write.
    pub fn dirty_log_start(&self) -> Result<()> {
        self.set_slot_flags(KVM_MEM_LOG_DIRTY_PAGES)
    }

    /// Moves the log into `pages`. The first time after a start it holds every page.
    pub fn dirty_log_take(&self, pages: &mut BitSet) -> Result<()> {
        for slot in &self.slots {
            let bytes = (slot.pages * PAGE_BYTES) as usize;
            let words = self.vm.get_dirty_log(slot.number, bytes).map_err(error::machine("get the dirty log"))?;
            pages.union_words(slot.first_page, &words);
            for (index, chunk) in words.chunks(CLEAR_WORDS).enumerate() {
                if chunk.iter().any(|word| *word != 0) {
                    clear(&self.vm, slot, (index * CLEAR_WORDS) as u64 * 64, chunk)?;
                }
            }
        }
        Ok(())
    }

    /// Ends the log and forgets what it holds.
    pub fn dirty_log_stop(&self) -> Result<()> {
        self.set_slot_flags(0)
    }
}

/// Clears the bits that are set in `words`, of which the first stands for `first_page` of the slot, a multiple of 64.
fn clear(vm: &VmFd, slot: &Slot, first_page: u64, words: &[u64]) -> Result<()> {
    // KVM takes multiples of 64 pages, except at the slot's end.
    let num_pages = (words.len() as u64 * 64).min(slot.pages - first_page) as u32;
    let dirty_bitmap = words.as_ptr().cast_mut().cast();
    let request = kvm_clear_dirty_log {
        slot: slot.number,
        num_pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap },
    };
    // SAFETY: KVM reads one bit per page from `words`, which has that many and outlives the call; it writes nothing there.
    let result = unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &request) };
    if result == 0 { Ok(()) } else { Err(error::machine("clear the dirty log")(errno::Error::last())) }
}
