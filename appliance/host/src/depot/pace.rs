//! Whether a holder sends fast enough to be waited for. No clock of its own.

use std::time::Duration;

use tokio::time::Instant;

/// A holder that sends nothing for so long is left, and its rate is looked at over this time.
pub const WINDOW: Duration = Duration::from_secs(30);
/// What it must send in that time where nobody else could be asked: slower links are none.
pub const FLOOR_BYTES: u64 = 64 << 10;
/// And where somebody could: a host that drips must not keep a part from those who need it.
pub const FLOOR_BYTES_OF_SEVERAL: u64 = 4 << 20;

/// The pace of one holder.
#[derive(Debug)]
pub struct Pace {
    last: Instant,
    began: Instant,
    bytes: u64,
}

impl Pace {
    /// It was asked just now.
    pub fn new(now: Instant) -> Self {
        Self { last: now, began: now, bytes: 0 }
    }

    /// Until when nothing need be decided.
    pub fn deadline(&self) -> Instant {
        self.last.min(self.began) + WINDOW
    }

    /// Bytes have come.
    pub fn came(&mut self, now: Instant, bytes: u64) {
        if bytes > 0 {
            self.last = now;
            self.bytes += bytes;
        }
    }

    /// This host was busy for a while: that is not the holder's fault.
    pub fn was_busy(&mut self, time: Duration) {
        self.last += time;
        self.began += time;
    }

    /// Why it is not waited for, if it is not.
    pub fn too_slow(&mut self, now: Instant, floor: u64) -> Option<String> {
        if now >= self.last + WINDOW {
            return Some(format!("it sent nothing for {} s", WINDOW.as_secs()));
        }
        if now >= self.began + WINDOW {
            if self.bytes < floor {
                return Some(format!("it sent {} bytes in {} s", self.bytes, WINDOW.as_secs()));
            }
            (self.began, self.bytes) = (now, 0);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sent_much_and_then_nothing_is_not_given_a_second_window() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let after = |seconds| start + Duration::from_secs(seconds);
        pace.came(after(1), FLOOR_BYTES_OF_SEVERAL);
        assert_eq!(pace.too_slow(after(30), FLOOR_BYTES_OF_SEVERAL), None);
        assert_eq!(pace.too_slow(after(31), FLOOR_BYTES_OF_SEVERAL).as_deref(), Some("it sent nothing for 30 s"));
    }
}
