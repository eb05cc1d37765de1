//! One direction of a link between two machines: rate, delay, loss, cut. A pure engine; time is an argument.
//!
//! A frame waits for the frames before it to pass at the link's rate, then travels for the delay. What would wait longer
//! than the queue holds is dropped at its tail, as a router does.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a frame may wait for its turn before it is dropped: a little over one round trip of the demo's link.
const QUEUE_MAX: Duration = Duration::from_millis(30);
/// Most frames that travel or wait at once, whatever the rate.
const FRAMES_MAX: usize = 65_536;

/// What a link is like. The default is as fast as it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// Bits per second in millions; none is unlimited.
    pub rate_mbit: Option<u32>,
    /// One-way delay.
    pub delay: Duration,
    /// Frames lost in a million.
    pub loss_ppm: u32,
    /// Nothing passes.
    pub cut: bool,
}

/// What passed a link, and what did not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Frames taken up.
    pub frames: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// Lost by chance or by a cut.
    pub lost: u64,
    /// Dropped because the queue was full.
    pub overflowed: u64,
}

/// One direction.
pub struct Link {
    shape: Shape,
    passed: Passed,
    /// When the last frame taken up has passed the narrow place.
    free_at: Option<Instant>,
    travelling: VecDeque<(Instant, Arc<[u8]>)>,
    chance: u64,
}

impl Link {
    /// A link; `seed` decides which frames chance takes.
    pub fn new(shape: Shape, seed: u64) -> Self {
        Self { shape, passed: Passed::default(), free_at: None, travelling: VecDeque::new(), chance: seed | 1 }
    }

    /// Changes what the link is like. What travels already arrives, unless the link is cut.
    pub fn reshape(&mut self, shape: Shape) {
        self.shape = shape;
        if shape.cut {
            self.passed.lost += self.travelling.len() as u64;
            self.travelling.clear();
            self.free_at = None;
        }
    }

    /// What the link is like.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Counters since the start.
    pub fn passed(&self) -> Passed {
        self.passed
    }

    /// Takes up a frame, or drops it.
    pub fn offer(&mut self, now: Instant, frame: &Arc<[u8]>) {
        if self.shape.cut || self.unlucky() {
            self.passed.lost += 1;
            return;
        }
        let start = self.free_at.map_or(now, |free| free.max(now));
        if start.duration_since(now) > QUEUE_MAX || self.travelling.len() >= FRAMES_MAX {
            self.passed.overflowed += 1;
            return;
        }
        let bits = frame.len() as u64 * 8;
        let takes = self.shape.rate_mbit.map_or(Duration::ZERO, |rate| Duration::from_nanos(bits * 1000 / u64::from(rate.max(1))));
        let passed_at = start + takes;
        self.free_at = Some(passed_at);
        self.passed.frames += 1;
        self.passed.bytes += frame.len() as u64;
        self.travelling.push_back((passed_at + self.shape.delay, Arc::clone(frame)));
    }

    /// The next frame that has arrived.
    pub fn arrived(&mut self, now: Instant) -> Option<Arc<[u8]>> {
        let (due, _) = self.travelling.front()?;
        (*due <= now).then(|| self.travelling.pop_front().map(|(_, frame)| frame))?
    }

    /// When the next frame arrives.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.travelling.front().map(|(due, _)| *due)
    }

    fn unlucky(&mut self) -> bool {
        if self.shape.loss_ppm == 0 {
            return false;
        }
        // xorshift64: even enough for losses, and a seed replays them.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % 1_000_000 < u64::from(self.shape.loss_ppm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: usize) -> Arc<[u8]> {
        vec![0; bytes].into()
    }

    #[test]
    fn frames_arrive_in_order_after_rate_and_delay() {
        let start = Instant::now();
        let mut link = Link::new(Shape { rate_mbit: Some(100), delay: Duration::from_millis(10), ..Shape::default() }, 1);
        link.offer(start, &frame(1250));
        link.offer(start, &frame(1250));
        // 10,000 bits at 100 Mbit/s are 100 us.
        assert_eq!(link.next_deadline(), Some(start + Duration::from_micros(10_100)));
        assert!(link.arrived(start + Duration::from_micros(10_099)).is_none());
        assert!(link.arrived(start + Duration::from_micros(10_100)).is_some());
        assert!(link.arrived(start + Duration::from_micros(10_199)).is_none());
        assert!(link.arrived(start + Duration::from_micros(10_200)).is_some());
        assert_eq!(link.passed(), Passed { frames: 2, bytes: 2500, lost: 0, overflowed: 0 });
    }

    #[test]
    fn a_full_queue_drops_and_a_cut_link_loses() {
        let start = Instant::now();
        let mut link = Link::new(Shape { rate_mbit: Some(1), ..Shape::default() }, 1);
        for _ in 0..100 {
            link.offer(start, &frame(1250));
        }
        assert_eq!(link.passed().frames, 4);
        link.reshape(Shape { cut: true, ..Shape::default() });
        link.offer(start, &frame(1250));
        assert_eq!(link.passed().lost, 5);
        assert_eq!(link.next_deadline(), None);
    }

    #[test]
    fn chance_takes_its_share() {
        let start = Instant::now();
        let mut link = Link::new(Shape { loss_ppm: 100_000, ..Shape::default() }, 7);
        for _ in 0..10_000 {
            link.offer(start, &frame(60));
            link.arrived(start);
        }
        assert!((800..1200).contains(&link.passed().lost), "{:?}", link.passed());
    }
}
