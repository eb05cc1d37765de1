//! Asks of parts, at their import, what a start would ask of them: `rebec-vmm judge`, sealed, by the code that starts VMs.

use std::{path::Path, process::Stdio, time::Duration};

use rebec_api::{ApiError, ErrorCode};
use rebec_book::key::Digest;
use rebec_vmm_api::judgement::Judgement;

use super::Depot;
use crate::handover::Handover;

/// A kernel is unpacked in a second, a disk is read within a budget; a machine under load takes its time.
pub(super) const TIME_MAX: Duration = Duration::from_secs(60);

/// Judges a kernel, a disk or both, which are here; a refusal says why, and what to do.
pub async fn judge(vmm: &Path, depot: &Depot, kernel: Option<&Digest>, disk: Option<&Digest>) -> Result<Judgement, ApiError> {
    let failed = |why: String| ApiError::new(ErrorCode::Failed, format!("judge what was sent: {why}"));
    let mut handover = Handover::default();
    let mut command = tokio::process::Command::new(vmm);
    command.arg("judge");
    for (option, part) in [("--kernel", kernel), ("--disk", disk)] {
        if let Some(part) = part {
            command.arg(option).arg(handover.open(&depot.path(part)).map_err(|error| failed(format!("{error:#}")))?);
        }
    }
    let input = handover.send().map_err(|error| failed(format!("{error:#}")))?;
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let work = async { command.spawn()?.wait_with_output().await };
    let ended = tokio::time::timeout(TIME_MAX, work).await.map_err(|_| failed(format!("no answer within {} s", TIME_MAX.as_secs())))?;
    let ended = ended.map_err(|error| failed(error.to_string()))?;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr);
        let why = said.lines().rev().find_map(|line| line.strip_prefix("rebec-vmm: "));
        let why = why.ok_or_else(|| failed(format!("rebec-vmm ended with {}: {}", ended.status, said.trim())))?;
        return Err(ApiError::new(ErrorCode::BadRequest, without_paths(why, depot, [kernel, disk])));
    }
    serde_json::from_slice(&ended.stdout).map_err(|error| failed(format!("its answer: {error}")))
}

/// Whoever sent a file does not know it by where it lies here.
fn without_paths(why: &str, depot: &Depot, parts: [Option<&Digest>; 2]) -> String {
    parts.into_iter().flatten().fold(why.to_owned(), |why, part| {
        let path = depot.path(part);
        let path = path.canonicalize().unwrap_or(path);
        why.replace(&format!(" {}", path.display()), "")
    })
}
