//! Power cuts while a VM comes, changes and goes: its folder, `vm.json`, its disk and its ledger (`rebec_host::durable`).

use std::{fs, path::Path};

use rebec_book::record::DiskRef;
use rebec_host::{
    disks,
    durable::{self, cuts},
    folders, kept, ledger,
};
use rebec_migrate::ledger::Right;

use super::*;
use crate::vm::{Kept, Want};

/// What has been said by then.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    /// How many deeds had been done.
    deeds: usize,
    /// The epoch that `vm.json` has at least.
    epoch: u64,
    /// Whether it may run here: a VMM has its ledger.
    runs: bool,
    is_gone: bool,
}

#[tokio::test]
async fn whenever_the_power_goes_a_vm_is_as_was_told_or_gone() {
    let bench = Bench::founded().await;
    let (state, id) = (tempfile::tempdir().unwrap(), vm_id(&bench));
    let all = state.path().join("vms");
    let folder = all.join(id.to_string());
    let mut body = vm_body(&bench);
    let part = PartRef { digest: Name([6; 32]), bytes: 1 << 20 };
    body.image.disk = Some(DiskRef { part, qcow2: false, virtual_bytes: 1 << 20 });
    let private = VmPrivate { seed: None, ..vm_private() };
    let vm = |epoch| Kept { epoch, ..Kept::new(id, bench.agent.knowledge.key(), body.clone(), private.clone(), Want::Running) };
    let (deeds, (told, disk)) = cuts::record(|| {
        let (mut told, mut now) = (vec![], Told::default());
        let mut tell = |now: &Told| told.push(Told { deeds: cuts::deeds(), ..*now });
        durable::make_folder(&all).unwrap();
        kept::make_folder(&folder).unwrap();
        for epoch in 1..4 {
            kept::write(&folder, &vm(epoch)).unwrap();
            now.epoch = epoch;
            tell(&now);
        }
        disks::make(&bench.agent.host.depot, &folder, &vm(3)).unwrap();
        kept::write(&folder, &vm(4)).unwrap();
        ledger::begin(&folder, &id, 4).unwrap();
        drop(ledger::open(&folder).unwrap());
        now = Told { epoch: 4, runs: true, ..now };
        tell(&now);
        kept::write(&folder, &vm(5)).unwrap();
        now.epoch = 5;
        tell(&now);
        let disk = fs::read(folder.join("disk.qcow2")).unwrap();
        // While it goes, either is right.
        tell(&Told::default());
        folders::remove(&folder).unwrap();
        tell(&Told { is_gone: true, ..Told::default() });
        (told, disk)
    });
    cuts::each(state.path(), &deeds, |at, which, image| {
        let told = told.iter().rfind(|told| told.deeds <= at).copied().unwrap_or_default();
        let cut = format!("cut behind deed {at} of {}, image {which}", deeds.len());
        comes_up(&image.join("vms"), &id, &told, &disk).unwrap_or_else(|error| panic!("{cut}: {error:#}"));
    });
}

fn comes_up(all: &Path, id: &Id, told: &Told, disk: &[u8]) -> anyhow::Result<()> {
    // As an agent that starts does.
    fs::create_dir_all(all)?;
    folders::sweep(all)?;
    let folder = all.join(id.to_string());
    if !folder.exists() {
        anyhow::ensure!(told.epoch == 0, "its folder is gone");
        return Ok(());
    }
    anyhow::ensure!(!told.is_gone, "it is there again");
    let kept = kept::read(&folder)?;
    anyhow::ensure!(kept.epoch >= told.epoch, "epoch {} of {}", kept.epoch, told.epoch);
    let last = ledger::last(&folder)?;
    anyhow::ensure!(last.is_none_or(|last| last == (Right::Holding, 4)), "its ledger says {last:?}");
    anyhow::ensure!(last.is_some() || !told.runs, "its ledger is lost");
    let layer = fs::read(folder.join("disk.qcow2"));
    anyhow::ensure!(layer.is_ok() || !told.runs, "its disk is lost");
    anyhow::ensure!(layer.is_err() || layer.is_ok_and(|layer| layer == disk), "half of its disk");
    Ok(())
}
