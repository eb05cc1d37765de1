//! What a VM may take of its host, as users say and see it. Its home writes it into its record; the host that holds it takes that over, at once or when it
//! starts the VM again (`vm::disks`), and so does each host that it moves to.

use std::sync::Arc;

use rebec_api::{
    ApiError, ErrorCode,
    vm::{SetVm, VmLimits},
};
use rebec_book::{
    key::Id,
    record::{LimitsBody, VmBody},
};
use rebec_vmm_api::{CPU_WEIGHT_MAX, CpuQuota, MemorySize};

use super::{Orders, disks};

/// As its home, has a VM's record say this, and its host take it over. Memory that its host has no room for is not promised: the record says again what it
/// said before.
pub async fn set(orders: &Arc<Orders>, id: Id, wish: &SetVm) -> Result<(), ApiError> {
    let mut before = None;
    let write = |body: &mut VmBody| {
        before = Some(body.limits.as_ref().and_then(|limits| limits.memory_bytes));
        changed(body, wish)
    };
    let name = disks::write(orders, id, write)?;
    let is_refused = |error: &ApiError| error.code == ErrorCode::Refused && wish.memory_bytes.is_some();
    let told = disks::tell(orders, id, |error| if is_refused(&error) { error } else { disks::later(&name, error) });
    match told.await {
        Err(error) if is_refused(&error) => {
            disks::write(orders, id, |body| {
                if let (Some(limits), Some(before)) = (&mut body.limits, before) {
                    limits.memory_bytes = before;
                }
                Ok(())
            })?;
            Err(ApiError { message: format!("VM {name}: its memory stays as it is: {}", error.message), ..error })
        }
        told => told,
    }
}

/// Refuses what no control group takes.
pub fn check(wish: &SetVm) -> Result<(), String> {
    if wish.cpu_quota_percent.is_some_and(|percent| percent > CpuQuota::PERCENT_MAX) {
        return Err(format!("a quota of {} %: at most {}", wish.cpu_quota_percent.unwrap_or_default(), CpuQuota::PERCENT_MAX));
    }
    if wish.cpu_weight.is_some_and(|weight| weight > CPU_WEIGHT_MAX) {
        return Err(format!("a weight of {}: at most {CPU_WEIGHT_MAX}", wish.cpu_weight.unwrap_or_default()));
    }
    if let Some(error) = wish.memory_bytes.and_then(|bytes| MemorySize::from_bytes(bytes).err()) {
        return Err(error.to_string());
    }
    if *wish == SetVm::default() {
        return Err("nothing is to be set".into());
    }
    Ok(())
}

/// Changes a record.
pub fn changed(body: &mut VmBody, wish: &SetVm) -> Result<(), ApiError> {
    let memory = wish.memory_bytes.map(|bytes| memory(body, bytes)).transpose()?;
    let mut limits = body.limits.take().unwrap_or_default();
    fn take<T: Copy + Default + PartialEq>(limit: &mut Option<T>, wish: Option<T>) {
        if let Some(value) = wish {
            *limit = Some(value).filter(|value| *value != T::default());
        }
    }
    take(&mut limits.cpu_quota_percent, wish.cpu_quota_percent);
    take(&mut limits.cpu_weight, wish.cpu_weight);
    take(&mut limits.net_bits, wish.net_bits);
    take(&mut limits.disk_requests, wish.disk_requests);
    take(&mut limits.disk_bytes, wish.disk_bytes);
    if let Some(memory) = memory {
        limits.memory_bytes = memory;
    }
    body.limits = (*limits != LimitsBody::default()).then_some(limits);
    Ok(())
}

/// What its record says of so much memory.
fn memory(body: &VmBody, bytes: u64) -> Result<Option<u64>, ApiError> {
    let refuse = |what: String| Err(ApiError::new(ErrorCode::Refused, format!("VM {}: {what}", body.name)));
    let Some(max) = body.memory_max_bytes() else {
        return refuse("its memory stays as it is: it was created without --memory-max".into());
    };
    if !(body.memory_bytes..=max).contains(&bytes) {
        return refuse(format!(
            "{} MiB of memory: it was created with {} and may have {}",
            bytes >> 20,
            body.memory_bytes >> 20,
            max >> 20
        ));
    }
    Ok(Some(bytes).filter(|bytes| *bytes > body.memory_bytes))
}

/// What a new VM's record says of the most memory that it may come to have.
pub fn memory_max(max: Option<u64>, memory_bytes: u64) -> Result<Option<Box<LimitsBody>>, String> {
    let Some(max) = max else { return Ok(None) };
    MemorySize::from_bytes(max).map_err(|error| error.to_string())?;
    if max < memory_bytes {
        return Err(format!("at most {} MiB of memory, and {} to begin with", max >> 20, memory_bytes >> 20));
    }
    Ok(Some(LimitsBody { memory_max_bytes: Some(max), ..LimitsBody::default() }.into()))
}

/// As people see it.
pub fn shown(body: &VmBody) -> VmLimits {
    let LimitsBody { cpu_quota_percent, cpu_weight, net_bits, disk_requests, disk_bytes, memory_bytes, memory_max_bytes } =
        *body.limits.clone().unwrap_or_default();
    VmLimits { cpu_quota_percent, cpu_weight, net_bits, disk_requests, disk_bytes, memory_bytes, memory_max_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::disks::tests::vm;

    #[test]
    fn what_is_left_out_stays_and_zero_lifts_a_limit() {
        let mut body = vm();
        let wish = SetVm { cpu_quota_percent: Some(150), net_bits: Some(200_000_000), ..SetVm::default() };
        changed(&mut body, &wish).unwrap();
        changed(&mut body, &SetVm { disk_requests: Some(5000), ..SetVm::default() }).unwrap();
        let expected =
            VmLimits { cpu_quota_percent: Some(150), net_bits: Some(200_000_000), disk_requests: Some(5000), ..VmLimits::default() };
        assert_eq!(shown(&body), expected);
        changed(&mut body, &SetVm { net_bits: Some(0), cpu_quota_percent: Some(0), disk_requests: Some(0), ..SetVm::default() }).unwrap();
        assert_eq!(body.limits, None);
    }

    #[test]
    fn memory_is_promised_as_it_is_asked_for_and_no_more_than_may_be() {
        let mut body = vm();
        let gib = body.memory_bytes;
        let wish = |bytes| SetVm { memory_bytes: Some(bytes), ..SetVm::default() };
        let refused = changed(&mut body, &wish(2 * gib)).unwrap_err();
        assert!(refused.message.contains("created without --memory-max"), "{refused}");
        assert_eq!(memory_max(None, gib), Ok(None));
        assert!(memory_max(Some(gib - 1), gib).is_err() && memory_max(Some(gib / 2), gib).is_err());
        body.limits = memory_max(Some(4 * gib), gib).unwrap();
        assert_eq!((body.granted_bytes(), body.memory_max_bytes()), (gib, Some(4 * gib)), "what may come is promised to nobody");
        changed(&mut body, &wish(2 * gib)).unwrap();
        assert_eq!((body.granted_bytes(), shown(&body).memory_bytes), (2 * gib, Some(2 * gib)));
        for bytes in [gib / 2, 5 * gib] {
            assert!(changed(&mut body, &wish(bytes)).unwrap_err().message.contains("may have 4096"), "{bytes}");
        }
        changed(&mut body, &wish(gib)).unwrap();
        assert_eq!((body.granted_bytes(), shown(&body).memory_bytes, body.memory_max_bytes()), (gib, None, Some(4 * gib)));
    }

    #[test]
    fn what_no_group_takes_is_refused() {
        for wish in [
            SetVm::default(),
            SetVm { cpu_quota_percent: Some(100_001), ..SetVm::default() },
            SetVm { cpu_weight: Some(10_001), ..SetVm::default() },
            SetVm { memory_bytes: Some(1), ..SetVm::default() },
        ] {
            assert!(check(&wish).is_err(), "{wish:?}");
        }
        assert!(check(&SetVm { cpu_weight: Some(10_000), ..SetVm::default() }).is_ok());
    }
}
