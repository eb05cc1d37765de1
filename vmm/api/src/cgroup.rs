//! What a control group (version 2) is told of a VM's processors: by whoever may write there, which the VM itself may not.

use std::str::FromStr;

/// The time over which a quota is reckoned, in microseconds: the kernel's own choice.
const PERIOD_US: u64 = 100_000;

/// The greatest share of the processors that the kernel takes.
pub const CPU_WEIGHT_MAX: u32 = 10_000;

/// Time of the host's processors, in percent of one; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuQuota(pub u32);

/// Not a percentage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quota `{0}`: expected percent of one processor from 1% to 100000%, as in 150%, or none")]
pub struct CpuQuotaError(String);

impl CpuQuota {
    /// Most that is taken: a thousand processors.
    pub const PERCENT_MAX: u32 = 100_000;

    /// For the file `cpu.max`.
    pub fn cpu_max(self) -> String {
        match self.0 {
            0 => format!("max {PERIOD_US}"),
            percent => format!("{} {PERIOD_US}", u64::from(percent) * PERIOD_US / 100),
        }
    }
}

impl FromStr for CpuQuota {
    type Err = CpuQuotaError;

    fn from_str(text: &str) -> Result<Self, CpuQuotaError> {
        if text == "none" {
            return Ok(Self(0));
        }
        let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let percent = digits.and_then(|digits| digits.parse().ok()).filter(|percent| (1..=Self::PERCENT_MAX).contains(percent));
        percent.map(Self).ok_or_else(|| CpuQuotaError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_a_percentage_of_one_processor() {
        for (text, line) in [("150%", "150000 100000"), ("1%", "1000 100000"), ("none", "max 100000"), ("100000%", "100000000 100000")] {
            assert_eq!(text.parse::<CpuQuota>().unwrap().cpu_max(), line);
        }
        for text in ["", "%", "150", "0%", "-1%", "+1%", "1.5%", "100001%", "99999999999%"] {
            assert!(text.parse::<CpuQuota>().is_err(), "{text}");
        }
    }
}
