//! CPU models on the local KVM: what a guest is shown, and where it may go.

use anyhow::{Result, ensure};
use rebec_lab::netlab::{NetLab, Vmm, VmmConfig, guest, processor::Processor, vmm::SHORT};

/// Whether the guest sees what its model says. The guests of a software KVM ask the processor itself; its VMM says so.
fn is_hidden(vmm: &Vmm) -> bool {
    !vmm.said().contains("this host's KVM shows its guest more of the processor")
}

/// CPUID as the guest printed it: leaf and subleaf, then EAX, EBX, ECX, EDX.
fn shown(vmm: &Vmm, leaf: &str) -> Result<Vec<u32>> {
    let line = vmm.console.wait(&format!("cpuid {leaf} "), SHORT)?.text;
    line.split_ascii_whitespace().skip(2).map(|word| Ok(u32::from_str_radix(word, 16)?)).collect()
}

#[test]
fn a_guest_reads_its_model_and_goes_where_the_model_is() -> Result<()> {
    const AVX: u32 = 1 << 28;
    let mut lab = NetLab::start("local-cpu", &["a", "b"])?;
    let host = Processor::here()?;
    let lesser = host.lesser()?;
    let with = |cpu: &str| -> Result<VmmConfig> {
        Ok(VmmConfig { cpu: Some(cpu.to_owned()), ..guest::config("64M", "fill=text:1 cpuid=1 stats_ms=0")? })
    };
    for (number, level) in ["x86-64-v2", "x86-64-v3", "x86-64-v4"].into_iter().enumerate() {
        let config = with(level)?;
        if host.level.as_str() >= level && host.level.starts_with("x86") {
            let mut vmm = Vmm::run(&lab.machines[0], level, &config)?;
            let (one, xsave, state) = (shown(&vmm, "1.0")?, shown(&vmm, "d.0")?, [0, 7, 0xe7][number]);
            let is_so = (one[2] & AVX != 0) == (number > 0) && xsave[0] == state;
            ensure!(is_so || !is_hidden(&vmm), "{level}: {one:x?} {xsave:x?}");
            vmm.console.send(b"q")?;
            ensure!(vmm.wait(SHORT)?.success());
        } else {
            let mut refused = Vmm::run(&lab.machines[0], level, &config)?;
            ensure!(!refused.wait(SHORT)?.success() && refused.said().contains("this host lacks CPU feature "), "{}", refused.said());
        }
    }

    // A guest of what all hosts have goes to a lesser one and stays what it is there, also when it resets.
    let vm = Vmm::run(&lab.machines[0], "vm", &with(&lesser)?)?;
    vm.console.wait("hb ", SHORT)?;
    let (seven, state) = (shown(&vm, "7.0")?, shown(&vm, "d.0")?);
    ensure!(seven[2] == 0 && state[0] & !3 == 0 || !is_hidden(&vm), "{seven:x?} {state:x?}");
    ensure!(vm.status(&lab.machines[0])?.cpu.is_some_and(|cpu| cpu.model == lesser), "its status names another model");
    let there = Vmm::receive(&lab.machines[1], "there", 7000, &with(&lesser)?)?;
    vm.migrate(&lab.machines[0], &lab.machines[1], 7000, &[])?.check()?;
    there.console.wait("hb ", SHORT)?;
    // Back to one that would give it more: it is shown the same as before.
    let mut back = Vmm::receive(&lab.machines[0], "back", 7001, &VmmConfig { cpu: None, ..with("host")? })?;
    there.migrate(&lab.machines[1], &lab.machines[0], 7001, &[])?.check()?;
    back.console.wait("hb ", SHORT)?;
    ensure!(back.status(&lab.machines[0])?.cpu.is_some_and(|cpu| cpu.model == lesser), "its model did not come along");
    let mark = back.console.mark();
    back.console.send(b"r")?;
    back.console.wait_after(mark, "ready", SHORT)?;
    ensure!(shown(&back, "7.0")?[2] == 0 || !is_hidden(&back), "after its reset it was shown {:x?}", shown(&back, "7.0")?);
    back.console.send(b"q")?;
    ensure!(back.wait(SHORT)?.success());

    // One that was shown its host's own does not go there, and hears why.
    let mut vm = Vmm::run(&lab.machines[0], "host", &with("host")?)?;
    vm.console.wait("hb ", SHORT)?;
    let _there = Vmm::receive(&lab.machines[1], "lesser", 7002, &with(&lesser)?)?;
    let refused = vm.migrate(&lab.machines[0], &lab.machines[1], 7002, &[])?;
    let reason = refused.report.reason.unwrap_or_default();
    ensure!(reason.contains("this host's CPU lacks what the VM may use: CPU feature "), "{reason}");
    vm.console.wait_after(vm.console.mark(), "hb ", SHORT)?;
    vm.console.send(b"q")?;
    ensure!(vm.wait(SHORT)?.success());
    lab.succeeded();
    Ok(())
}
