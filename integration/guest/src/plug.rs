//! virtio-mem, polled: the guest takes in and gives back what it is asked to, from the start of the room upwards, and knows what every page that it has should
//! hold. Or it lies, and counts what is refused.

use crate::{
    console::Console,
    memory::Memory,
    options::Taking,
    pattern, say,
    virtio::{Device, Piece, Queue},
};

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE.
const INACCESSIBLE: u64 = 1 << 1;
const PLUG: u64 = 0;
const UNPLUG: u64 = 1;
const REQUEST_BYTES: u32 = 24;
const ANSWER_BYTES: u32 = 10;
/// Blocks of one request, so that the beats go on between two.
const BLOCKS_AT_ONCE: u64 = 16;
const PAGE_BYTES: u64 = 4096;
/// Where the configuration says the size of a block, where the room is, how large, and what is asked.
const BLOCK_AT: u64 = 0;
const START_AT: u64 = 16;
const ROOM_AT: u64 = 24;
const ASKED_AT: u64 = 48;

/// The device and what the guest has of its room.
pub struct Plug {
    device: Device,
    queue: Queue,
    words: &'static mut [u64],
    salt: u64,
    block: u64,
    start: u64,
    room: u64,
    /// Bytes from the start of the room on.
    taken: u64,
    /// What is asked for, and how much of it.
    doing: Option<(u64, u64)>,
    /// The last wish that was met or refused.
    told: u64,
    bad: u64,
}

impl Plug {
    /// Finds the room; lies at once, if it is to.
    pub fn new(device: Device, taking: Taking, vm: u64, memory: &mut Memory, console: &mut Console) -> Result<Self, &'static str> {
        device.begin(INACCESSIBLE)?;
        let queue = device.queue(0, 16, memory)?;
        let words = memory.take_words(PAGE_BYTES).ok_or("no memory for requests")?;
        device.go();
        let wide = |at: u64| u64::from(device.config32(at)) | u64::from(device.config32(at + 4)) << 32;
        let (block, start, room) = (wide(BLOCK_AT), wide(START_AT), wide(ROOM_AT));
        let mut plug = Self { device, queue, words, salt: pattern::mix(vm), block, start, room, taken: 0, doing: None, told: 0, bad: 0 };
        if taking == Taking::Lies {
            plug.lie(console);
        }
        Ok(plug)
    }

    /// Looks at what is asked, at one answer, and at its pages.
    pub fn turn(&mut self, console: &mut Console) {
        if let Some((kind, bytes)) = self.doing {
            let Some(answer) = self.answer() else { return };
            self.doing = None;
            match (kind, answer) {
                (PLUG, 0) => {
                    self.fill(self.taken, bytes);
                    self.taken += bytes;
                }
                (_, 0) => self.taken -= bytes,
                _ => return self.tell(console, "refused"),
            }
        }
        let asked = self.asked();
        let most = BLOCKS_AT_ONCE * self.block;
        if self.taken < asked {
            self.ask(PLUG, self.start + self.taken, (asked - self.taken).min(most));
        } else if self.taken > asked {
            let bytes = (self.taken - asked).min(most);
            self.bad += self.wrong(self.taken - bytes, bytes);
            self.ask(UNPLUG, self.start + self.taken - bytes, bytes);
        } else if self.told != asked {
            self.tell(console, "done");
        }
    }

    /// Holds every page that it has against what it should hold.
    pub fn check(&mut self, console: &mut Console) {
        // What it is giving back is no more its own.
        while self.doing.is_some() {
            self.turn(console);
        }
        self.bad += self.wrong(0, self.taken);
        say!(console, "mem check {} pages={} bad={}", if self.bad == 0 { "ok" } else { "failed" }, self.taken / PAGE_BYTES, self.bad);
    }

    /// Goes where it may not.
    pub fn trespass(&self) {
        let beyond = (self.start + self.taken) as *mut u64;
        // SAFETY: mapped, and nobody's; the machine is expected to end here.
        unsafe { beyond.write_volatile(1) };
    }

    fn asked(&self) -> u64 {
        // It is asked for less than the room, which has fewer than 2^52 bytes: a change between both reads is seen as a wish and seen again.
        u64::from(self.device.config32(ASKED_AT)) | u64::from(self.device.config32(ASKED_AT + 4)) << 32
    }

    fn tell(&mut self, console: &mut Console, how: &str) {
        self.told = self.asked();
        say!(console, "mem {how} asked={} taken={} bad={}", self.told, self.taken, self.bad);
    }

    fn ask(&mut self, kind: u64, address: u64, bytes: u64) {
        self.request(kind, address, bytes / self.block);
        self.doing = Some((kind, bytes));
    }

    fn request(&mut self, kind: u64, address: u64, blocks: u64) {
        let request = self.words.as_ptr() as u64;
        self.words[..3].copy_from_slice(&[kind, address, blocks]);
        self.words[8] = u64::MAX;
        let pieces = [
            Piece { address: request, bytes: REQUEST_BYTES, device_writes: false },
            Piece { address: request + 64, bytes: ANSWER_BYTES, device_writes: true },
        ];
        self.queue.offer(0, &pieces);
        self.queue.kick();
    }

    /// The type of an answer, if there is one.
    fn answer(&mut self) -> Option<u64> {
        self.queue.done()?;
        // SAFETY: the device is done with it; volatile, because it wrote there.
        Some(unsafe { (&raw const self.words[8]).read_volatile() } & 0xffff)
    }

    fn page(&self, offset: u64) -> (*mut u64, u64) {
        let address = self.start + offset;
        (address as *mut u64, pattern::mix(address ^ self.salt))
    }

    fn fill(&mut self, from: u64, bytes: u64) {
        for offset in (from..from + bytes).step_by(PAGE_BYTES as usize) {
            let (page, word) = self.page(offset);
            // SAFETY: in a block that was taken in, and which nobody else uses.
            unsafe { page.write_volatile(word) };
        }
    }

    fn wrong(&self, from: u64, bytes: u64) -> u64 {
        let pages = (from..from + bytes).step_by(PAGE_BYTES as usize).map(|offset| self.page(offset));
        // SAFETY: as in `fill`.
        pages.filter(|(page, word)| unsafe { page.read_volatile() } != *word).count() as u64
    }

    fn lie(&mut self, console: &mut Console) {
        let (start, end) = (self.start, self.start + self.room);
        let lies = [
            (PLUG, start, self.room / self.block),
            (PLUG, start, 0),
            (PLUG, start + 4096, 1),
            (PLUG, end, 1),
            (PLUG, end - self.block, 2),
            (PLUG, 0, 1),
            (PLUG, u64::MAX - self.block + 1, 0xffff),
            (UNPLUG, start, 1),
            (UNPLUG, 0, 1),
            (3, end, 1),
            (9, start, 1),
            (0xffff, u64::MAX, u64::MAX),
        ];
        let mut refused = 0;
        for (kind, address, blocks) in lies {
            self.request(kind, address, blocks);
            let answer = loop {
                if let Some(answer) = self.answer() {
                    break answer;
                }
            };
            refused += u64::from(answer != 0);
        }
        say!(console, "mem lies={} refused={refused}", lies.len());
    }
}
