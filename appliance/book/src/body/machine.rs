//! What a VM's machine is beside its size: the CPU model that its guest is shown, and what it may take of its host.

use minicbor::{Decode, Encode};

use super::VmBody;

/// Of [`VmBody::must`]: its guest is shown a CPU model ([`VmBody::cpu`]); a host that does not know it would show its own processor.
pub const CPU_MODEL: &str = "cpu-model";
/// Longest name or set of a CPU model or of a host's features.
pub(super) const CPU_BYTES_MAX: usize = 2560;

/// What a VM's guest is shown of a processor.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct CpuBody {
    /// What its user asked for.
    #[n(0)]
    pub asked: String,
    /// The model, as `rebec-vmm --cpu` takes it: fixed when the VM was created, whatever hosts come and go.
    #[n(1)]
    pub model: String,
}

/// What a VM may take of its host at most; none is no limit. Each may be changed while it runs. A host that does not know one does not hold it to that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct LimitsBody {
    /// Time of the host's processors, in percent of one.
    #[n(0)]
    pub cpu_quota_percent: Option<u32>,
    /// Its share of them where others want them too, 1 to 10,000; none is 100 for each of its processors.
    #[n(1)]
    pub cpu_weight: Option<u32>,
    /// Bits a second of each NIC, each way.
    #[n(2)]
    pub net_bits: Option<u64>,
    /// Requests a second of each disk.
    #[n(3)]
    pub disk_requests: Option<u64>,
    /// Bytes a second of each disk.
    #[n(4)]
    pub disk_bytes: Option<u64>,
    /// Memory that it may have now; none is what it begins with ([`VmBody::memory_bytes`]).
    #[n(5)]
    pub memory_bytes: Option<u64>,
    /// Most that this may become while it runs; without it, it stays as it is. For life. It is promised to nobody before it is asked for.
    #[n(6)]
    pub memory_max_bytes: Option<u64>,
}

impl VmBody {
    /// Has it have this CPU model, which whoever runs it has to know.
    pub fn set_cpu(&mut self, cpu: CpuBody) {
        self.must.get_or_insert_default().push(CPU_MODEL.to_owned());
        self.cpu = Some(cpu.into());
    }

    /// Memory that it may have now, which its host has promised it.
    pub fn granted_bytes(&self) -> u64 {
        self.memory_bytes.max(self.limits.as_ref().and_then(|limits| limits.memory_bytes).unwrap_or_default())
    }

    /// Most memory that it may come to have, where that changes while it runs.
    pub fn memory_max_bytes(&self) -> Option<u64> {
        self.limits.as_ref().and_then(|limits| limits.memory_max_bytes)
    }

    pub(super) fn has_sound_machine(&self) -> bool {
        self.cpu.as_ref().is_none_or(|cpu| cpu.asked.len().max(cpu.model.len()) <= CPU_BYTES_MAX)
    }
}
