//! `ctl set`: what devices may do is the VMM's to change, time of processors its control group's. A sealed VMM cannot write there, so that nothing in a
//! VM can lift its limits: this process does, as the user that it runs as may.

use std::{fs, path::Path, process::ExitCode};

use rebec_vmm_api::control::{Answer, Command, DeviceLimits};

use super::{CtlError, client::Client};
use crate::cli::SetTo;

const WHAT: &str = "set";

pub fn run(client: &mut Client, to: &SetTo) -> Result<ExitCode, CtlError> {
    let SetTo { net, disk_iops, disk_bytes, memory, cpu_quota, cpu_weight } = to;
    let files = [cpu_quota.map(|quota| ("cpu.max", quota.cpu_max())), cpu_weight.map(|weight| ("cpu.weight", weight.to_string()))];
    let files: Vec<_> = files.into_iter().flatten().collect();
    if !files.is_empty() {
        let group = client.status()?.cgroup;
        let without = || "set: the VM was started without --cgroup: --cpu-quota and --cpu-weight need one of its own".to_owned();
        write(Path::new(&group.ok_or_else(without).map_err(CtlError::Group)?), &files)?;
    }
    let limits = DeviceLimits {
        net_bits: net.map(|rate| rate.0),
        disk_requests: disk_iops.map(|rate| rate.0),
        disk_bytes: disk_bytes.map(|rate| rate.0),
    };
    if limits != DeviceLimits::default() && client.ask(WHAT, Command::Limits(limits))? != Answer::Done {
        return Err(CtlError::Unexpected { what: WHAT });
    }
    if let Some(memory) = memory
        && client.ask(WHAT, Command::Memory { bytes: memory.bytes() })? != Answer::Done
    {
        return Err(CtlError::Unexpected { what: WHAT });
    }
    Ok(ExitCode::SUCCESS)
}

fn write(group: &Path, files: &[(&str, String)]) -> Result<(), CtlError> {
    for (name, text) in files {
        let path = group.join(name);
        fs::write(&path, text).map_err(|error| CtlError::Group(format!("set: write {text} to {}: {error}", path.display())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_told_and_one_that_is_not_there_is_named() {
        let group = tempfile::tempdir().unwrap();
        write(group.path(), &[("cpu.max", "150000 100000".into()), ("cpu.weight", "200".into())]).unwrap();
        assert_eq!(fs::read_to_string(group.path().join("cpu.weight")).unwrap(), "200");
        let error = write(Path::new("/nowhere"), &[("cpu.max", "max 100000".into())]).unwrap_err().to_string();
        assert!(error.contains("write max 100000 to /nowhere/cpu.max: No such file"), "{error}");
    }
}
