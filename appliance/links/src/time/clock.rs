//! The clock that is kept right: a seam, because a machine that runs a test keeps its own time.

use std::{
    io,
    time::{Duration, SystemTime},
};

use clock_steering::{Clock as _, LeapIndicator, TimeOffset, unix::UnixClock};

use super::{
    discipline::Correction,
    message::{Nanos, nanos},
};

/// A clock.
pub trait Clock {
    /// What it says.
    fn now(&self) -> Nanos;

    /// Corrects it.
    fn correct(&self, correction: &Correction) -> io::Result<()>;

    /// Takes notice that it is right but for `error`.
    fn vouch(&self, error: Duration) -> io::Result<()>;
}

/// The machine's clock; correcting it needs CAP_SYS_TIME.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Nanos {
        match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => nanos(since),
            Err(before) => -nanos(before.duration()),
        }
    }

    fn correct(&self, correction: &Correction) -> io::Result<()> {
        let clock = UnixClock::CLOCK_REALTIME;
        clock.disable_kernel_ntp_algorithm()?;
        if let Some(step) = correction.step {
            let (seconds, nanos) = (step.div_euclid(1_000_000_000), step.rem_euclid(1_000_000_000));
            let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
            clock.step_clock(TimeOffset { seconds: seconds.try_into().map_err(out_of_range)?, nanos: nanos as u32 })?;
        }
        clock.set_frequency(correction.rate_ppm)?;
        Ok(())
    }

    fn vouch(&self, error: Duration) -> io::Result<()> {
        let clock = UnixClock::CLOCK_REALTIME;
        // The kernel keeps the battery-backed clock right as long as it takes its own for synchronised (adjtimex(2), STA_UNSYNC).
        clock.error_estimate_update(error, error)?;
        Ok(clock.set_leap_seconds(LeapIndicator::NoWarning)?)
    }
}
