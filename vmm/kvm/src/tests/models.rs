//! CPU models on this host's KVM: what a vCPU is given is what the model says, and what was saved under a model goes to every machine of that model.

use rebec_cpu::{Features, Level, Model};
use rebec_vmm_saved::SavedMachine;

use super::guest::{machine, machine_shown};
use crate::{CpuModel, Machine, Ram, Vcpu, host_cpuid, open_kvm};

/// What this host gives, and less: without CPUID 7.0 ECX, and nothing in the XSAVE area but x87 and SSE.
fn own_and_lesser() -> (Features, Features) {
    let own = Features::of(&host_cpuid(open_kvm().unwrap()).unwrap());
    let text = own.to_string();
    let [maker, sizes, words, _] = text.split(':').collect::<Vec<_>>().try_into().unwrap();
    let mut words: Vec<&str> = words.split('.').collect();
    words[3] = "0";
    let lesser: Features = format!("{maker}:{sizes}:{}:", words.join(".")).parse().unwrap();
    assert_ne!(own, lesser, "this host has too little for this test");
    (own, lesser)
}

/// The guests of a software KVM ask the processor itself, whatever KVM is told (docs/notes/kvm.md).
fn does_as_told() -> bool {
    let (_ram, _machine, mut vcpus) = machine(1 << 20, 1);
    let mut cut = vcpus[0].cpuid.clone();
    cut.iter_mut().filter(|entry| entry.function == 1).for_each(|entry| entry.ecx = 0);
    vcpus[0].set_cpuid(&cut).unwrap();
    vcpus[0].seen_beyond().unwrap().is_empty()
}

fn moves(from: (&Machine, &mut [Vcpu]), ram: &Ram, to: &Model) -> crate::Result<()> {
    let (source, vcpus) = from;
    let mut saved = SavedMachine::default();
    source.save(&mut saved).unwrap();
    let part = vcpus[0].save().unwrap();
    let (target, mut moved) = machine_shown(ram, 1, to);
    target.restore_clock(&mut saved).unwrap();
    moved[0].restore(part)
}

#[test]
fn a_guest_is_shown_its_model_and_no_more() {
    let (own, lesser) = own_and_lesser();
    let ram = Ram::new(1 << 20).unwrap();
    for (model, expected) in [(Model::Host, &own), (Model::Only(lesser.clone().into()), &lesser)] {
        let (machine, vcpus) = machine_shown(&ram, 2, &model);
        assert_eq!(machine.cpu_model().features(), *expected, "{model}");
        assert_eq!(CpuModel::of(&vcpus[1], false).unwrap().features(), *expected, "{model}");
        if does_as_told() {
            assert_eq!(vcpus[1].seen_beyond().unwrap(), Vec::<String>::new(), "{model}");
        }
    }
    for level in Level::ALL {
        match Machine::create(open_kvm().unwrap(), &ram, 1, &Model::Level(level)) {
            Ok(machine) => {
                let features = machine.cpu_model().features();
                assert_eq!(Level::of(&features), Some(level));
                assert!(!features.names().iter().any(|name| ["arch_capabilities", "invariant_tsc", "gfni"].contains(&name.as_str())));
            }
            Err(error) => {
                let lacks = level.lacks(&own).join(", ");
                assert!(!lacks.is_empty() && error.to_string().contains(&lacks), "{error}");
            }
        }
    }
}

#[test]
fn state_of_a_lesser_model_goes_to_lesser_hosts_and_the_hosts_own_does_not() {
    let (_, lesser) = own_and_lesser();
    let model = Model::Only(lesser.into());
    let (ram, source, mut vcpus) = machine(1 << 20, 1);
    let error = moves((&source, &mut vcpus), &ram, &model).unwrap_err().to_string();
    assert!(error.contains("this host gives no guest CPU feature "), "{error}");
    let (source, mut vcpus) = machine_shown(&ram, 1, &model);
    for target in [&model, &Model::Host] {
        moves((&source, &mut vcpus), &ram, target).unwrap();
    }
}
