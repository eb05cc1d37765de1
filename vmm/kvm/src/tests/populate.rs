//! Mapping ahead: all of it where KVM can, nothing where it cannot, and a kick ends it. The guest runs the same afterwards.

use kvm_bindings::kvm_regs;

use super::guest::{Access, DONE_PORT, Recorder, machine, start};
use crate::{Populated, VcpuExit};

const RAM_BYTES: u64 = 16 << 20;

#[test]
fn memory_is_mapped_ahead_where_kvm_can() {
    let (ram, _machine, mut vcpus) = machine(RAM_BYTES, 1);
    let vcpu = &mut vcpus[0];
    let can = vcpu.host.pre_faults;
    println!("KVM_CAP_PRE_FAULT_MEMORY: {can}");
    let before = ram.populated().unwrap();
    let mapped = vcpu.populate(0..ram.pages() + 9).unwrap();
    if can {
        assert_eq!(mapped, Populated::Done);
        let populated = ram.populated().unwrap();
        assert_eq!((populated.len(), populated[0].clone()), (1, 0..ram.pages()));
        vcpu.kicker().kick();
        // A kick before the call shows no signal: only one during it ends it.
        assert_eq!(vcpu.populate(0..1).unwrap(), Populated::Done);
    } else {
        assert_eq!(mapped, Populated::Unsupported);
        assert_eq!(ram.populated().unwrap(), before);
    }
    // mov $7,%al; out %al,$DONE_PORT; jmp .
    let program = [0xb0, 7, 0xe6, DONE_PORT as u8, 0xeb, 0xfe];
    start(&ram, vcpu, &program, kvm_regs::default());
    let bus = Recorder::new(vcpu);
    // The kick above is one that the guest's first run may still report.
    while vcpu.run(&bus).unwrap() == VcpuExit::Interrupted {
        let accesses = bus.take();
        if !accesses.is_empty() {
            assert_eq!(accesses, [Access::PortWrite(DONE_PORT, vec![7])]);
            return;
        }
    }
    panic!("the guest ended");
}
