//! What a VM may take of its host, as users say and see it. Its home writes it into its record; the host that holds it takes that over, at once or when it
//! starts the VM again (`vm::disks`), and so does each host that it moves to.

use rebec_api::vm::{SetVm, VmLimits};
use rebec_book::record::{LimitsBody, VmBody};
use rebec_vmm_api::{CPU_WEIGHT_MAX, CpuQuota};

/// Refuses what no control group takes.
pub fn check(wish: &SetVm) -> Result<(), String> {
    if wish.cpu_quota_percent.is_some_and(|percent| percent > CpuQuota::PERCENT_MAX) {
        return Err(format!("a quota of {} %: at most {}", wish.cpu_quota_percent.unwrap_or_default(), CpuQuota::PERCENT_MAX));
    }
    if wish.cpu_weight.is_some_and(|weight| weight > CPU_WEIGHT_MAX) {
        return Err(format!("a weight of {}: at most {CPU_WEIGHT_MAX}", wish.cpu_weight.unwrap_or_default()));
    }
    if *wish == SetVm::default() {
        return Err("nothing is to be set".into());
    }
    Ok(())
}

/// Changes a record.
pub fn changed(body: &mut VmBody, wish: &SetVm) {
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
    body.limits = (*limits != LimitsBody::default()).then_some(limits);
}

/// As people see it.
pub fn shown(body: &VmBody) -> VmLimits {
    let LimitsBody { cpu_quota_percent, cpu_weight, net_bits, disk_requests, disk_bytes } = *body.limits.clone().unwrap_or_default();
    VmLimits { cpu_quota_percent, cpu_weight, net_bits, disk_requests, disk_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::disks::tests::vm;

    #[test]
    fn what_is_left_out_stays_and_zero_lifts_a_limit() {
        let mut body = vm();
        let wish = SetVm { cpu_quota_percent: Some(150), net_bits: Some(200_000_000), ..SetVm::default() };
        changed(&mut body, &wish);
        changed(&mut body, &SetVm { disk_requests: Some(5000), ..SetVm::default() });
        let expected =
            VmLimits { cpu_quota_percent: Some(150), net_bits: Some(200_000_000), disk_requests: Some(5000), ..VmLimits::default() };
        assert_eq!(shown(&body), expected);
        changed(&mut body, &SetVm { net_bits: Some(0), cpu_quota_percent: Some(0), disk_requests: Some(0), ..SetVm::default() });
        assert_eq!(body.limits, None);
    }

    #[test]
    fn what_no_group_takes_is_refused() {
        for wish in [
            SetVm::default(),
            SetVm { cpu_quota_percent: Some(100_001), ..SetVm::default() },
            SetVm { cpu_weight: Some(10_001), ..SetVm::default() },
        ] {
            assert!(check(&wish).is_err(), "{wish:?}");
        }
        assert!(check(&SetVm { cpu_weight: Some(10_000), ..SetVm::default() }).is_ok());
    }
}
