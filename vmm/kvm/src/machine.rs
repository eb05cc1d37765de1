//! One virtual machine: its memory slots, interrupt chips, timer and vCPUs. The vCPUs leave it for their threads; what stays
//! here belongs to the machine as a whole.

use std::{fs::File, sync::Arc};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rebec_cpu::Model;
use rebec_layout::{KVM_IDENTITY_MAP_ADDRESS, KVM_TSS_ADDRESS, PAGE_BYTES};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    CpuModel, Ram, Vcpu, cpuid,
    error::{self, Error, Result},
    kick,
    saved::clock::GuestClock,
    system::{self, System},
    vcpu::HostParts,
    wires::Wires,
};

/// A virtual machine.
#[derive(Debug)]
pub struct Machine {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) clock: Arc<GuestClock>,
    cpu_model: CpuModel,
    vcpus: Vec<Vcpu>,
    /// KVM writes guest memory through the mapping, which so must outlive the machine.
    ram: Ram,
}

/// A region of guest RAM as KVM knows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub number: u32,
    /// Number of its first page in [`Ram`].
    pub first_page: u64,
    pub pages: u64,
    region: kvm_userspace_memory_region,
}

impl Machine {
    /// Makes a machine on this RAM, whose guest is shown the model. To be called after the process's last fork: a VM belongs to the process that made it.
    pub fn create(kvm: File, ram: &Ram, vcpus: u8, model: &Model) -> Result<Self> {
        let system = System::check(kvm)?;
        if vcpus == 0 || usize::from(vcpus) > system.vcpus_max() {
            return Err(Error::VcpuCount { count: vcpus, max: system.vcpus_max() });
        }
        kick::install_handler()?;
        let vm = system.kvm.create_vm().map_err(error::machine("create it"))?;
        set_up_chips(&vm)?;
        system::enable_manual_dirty_log(&vm)?;
        system::disable_pmu(&system.kvm, &vm)?;
        let slots = memory_slots(ram);
        map_slots(&vm, &slots, 0)?;
        let (clock, vcpus) = make_vcpus(&system, &vm, ram, vcpus, model)?;
        let first = vcpus.first().expect("invariant: the count was checked to be at least one");
        if *model != Model::Host {
            let seen = first.seen_beyond()?;
            if !seen.is_empty() {
                log::warn!("this host's KVM shows its guest more of the processor than its model has: {}", seen.join(", "));
            }
        }
        let cpu_model = CpuModel::of(first, system.can_scale_tsc())?;
        Ok(Self { vm: Arc::new(vm), slots, clock, cpu_model, vcpus, ram: ram.clone() })
    }

    /// What a guest of this machine sees of its CPUs, to be compared before a move.
    pub fn cpu_model(&self) -> &CpuModel {
        &self.cpu_model
    }

    /// The vCPUs, for the threads that will own them; empty the second time.
    pub fn take_vcpus(&mut self) -> Vec<Vcpu> {
        std::mem::take(&mut self.vcpus)
    }

    /// What devices signal through while the machine runs.
    pub fn wires(&self) -> Wires {
        Wires { vm: Arc::clone(&self.vm), _ram: self.ram.clone() }
    }

    /// Has an event raise an interrupt line for a moment (edge).
    pub fn irq(&self, gsi: u32, event: &EventFd) -> Result<()> {
        self.vm.register_irqfd(event, gsi).map_err(error::machine("register an irqfd"))
    }

    /// Changes the flags of all memory slots.
    pub(crate) fn set_slot_flags(&self, flags: u32) -> Result<()> {
        map_slots(&self.vm, &self.slots, flags)
    }
}

/// Tells KVM about all memory.
fn map_slots(vm: &VmFd, slots: &[Slot], flags: u32) -> Result<()> {
    for slot in slots {
        let region = kvm_userspace_memory_region { flags, ..slot.region };
        // SAFETY: the region is a mapping of the `Ram` of which the machine and each of its vCPUs hold a clone.
        unsafe { vm.set_user_memory_region(region) }.map_err(error::machine("set a memory slot"))?;
    }
    Ok(())
}

fn make_vcpus(system: &System, vm: &VmFd, ram: &Ram, count: u8, model: &Model) -> Result<(Arc<GuestClock>, Vec<Vcpu>)> {
    let create = |index: u8| vm.create_vcpu(index.into()).map_err(error::vcpu(index, "create it"));
    let fds = (0..count).map(create).collect::<Result<Vec<_>>>()?;
    let host_khz = fds[0].get_tsc_khz().map_err(error::vcpu(0, "read its TSC rate"))?;
    let clock = Arc::new(GuestClock::new(host_khz));
    let msr_indexes: Arc<[u32]> = system.msr_indexes()?.into();
    let host = HostParts {
        run_bytes: vm.run_size(),
        xsave_bytes: system.xsave_bytes(),
        scales_tsc: system.can_scale_tsc(),
        msr_indexes,
        clock: clock.clone(),
        pre_faults: system.can_pre_fault(),
        ram: ram.clone(),
    };
    let lacks = model.lacks(&system.features()?);
    if !lacks.is_empty() {
        return Err(Error::Model { lacks: lacks.join(", ") });
    }
    let supported = system.supported_cpuid()?;
    let last = ram.page_address(ram.pages() - 1);
    let physical_bits = (u64::BITS - last.raw_value().leading_zeros()) as u8;
    let shown = |index| cpuid::filter(&cpuid::synthesise(&supported, system.cpuid_options(count), index), model, physical_bits);
    let prepare = |(index, fd)| Vcpu::new(fd, index, host.clone(), &shown(index));
    let vcpus = (0..).zip(fds).map(prepare).collect::<Result<Vec<_>>>()?;
    Ok((clock, vcpus))
}

/// The interrupt controllers and the timer, which must be there before the first vCPU.
fn set_up_chips(vm: &VmFd) -> Result<()> {
    vm.set_tss_address(KVM_TSS_ADDRESS as usize).map_err(error::machine("set the TSS address"))?;
    vm.set_identity_map_address(KVM_IDENTITY_MAP_ADDRESS).map_err(error::machine("set the identity map address"))?;
    vm.create_irq_chip().map_err(error::machine("create the interrupt controllers"))?;
    // The speaker's port 0x61 gates the timer that kernels calibrate with; the kernel answers it too.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(error::machine("create the interval timer"))
}

fn memory_slots(ram: &Ram) -> Vec<Slot> {
    let slot = |(number, region): (usize, &vm_memory::GuestRegionMmap<_>)| {
        let start = region.start_addr();
        let first_page = ram.page_of(start).expect("invariant: regions begin inside RAM");
        let own_view = ram.room_pointer().filter(|_| first_page == ram.boot_pages());
        let region = kvm_userspace_memory_region {
            slot: number as u32,
            flags: 0,
            guest_phys_addr: start.raw_value(),
            memory_size: region.len(),
            userspace_addr: own_view.unwrap_or(region.as_ptr() as u64),
        };
        Slot { number: number as u32, first_page, pages: region.memory_size / PAGE_BYTES, region }
    };
    ram.memory().iter().enumerate().map(slot).collect()
}
