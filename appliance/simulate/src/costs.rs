//! What it costs to lend a machine, to use it and to take it back, in whole seconds.

/// The costs of trade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Costs {
    /// From the loan until the borrower's node takes work.
    pub boot_s: u64,
    /// From the end of the loan until the lender has its machine, where the VM is ended.
    pub halt_s: u64,
    /// By how much work takes longer in a VM.
    pub slowdown_percent: u32,
    /// How long the first VM of those that move together takes.
    pub move_first_s: u64,
    /// And each after it, which is sent only what the first one did not bring.
    pub move_next_s: u64,
    /// How long a VM that moves stands still.
    pub pause_s: u64,
}

impl Default for Costs {
    /// Boot, halt and slowdown are those of VioCluster's evaluation, which are worse than what this project measures: a node's kernel is up in less than a
    /// second, and a VM costs less than 15 % where processors do the work. So a result can be held against theirs, and errs to the careful side.
    /// Moves are this project's (README, *What it costs*): a VM of 1 GiB of mixed content on 1 Gbit/s puts 589 MB on the wire, its like beside it 123 MB,
    /// and the gap of 20 ms is a whole second here.
    fn default() -> Self {
        Self { boot_s: 40, halt_s: 16, slowdown_percent: 15, move_first_s: 5, move_next_s: 1, pause_s: 1 }
    }
}

impl Costs {
    /// How long work takes in a VM.
    pub fn in_vm(&self, work_s: u64) -> u64 {
        (work_s.saturating_mul(100 + u64::from(self.slowdown_percent))).div_ceil(100)
    }

    /// How much work a VM has done after some time.
    pub fn done_in_vm(&self, time_s: u64) -> u64 {
        time_s.saturating_mul(100) / (100 + u64::from(self.slowdown_percent))
    }

    /// When the last of so many VMs that move over one link has arrived.
    pub fn moved_s(&self, vms: usize) -> u64 {
        match vms {
            0 => 0,
            _ => self.move_first_s.saturating_add(self.move_next_s.saturating_mul(vms as u64 - 1)),
        }
    }
}
