//! The kernel command line, parsed once. Pure: text in, [`Options`] or the word that was not understood out.
//!
//! `docs/formats/bench-guest.md` describes every option.

use super::pattern::Kind;

/// Most regions of memory, network ports and disks that can be told apart.
pub const REGIONS_MAX: usize = 8;
/// Most network ports.
pub const NETS_MAX: usize = 4;
/// Most disks.
pub const DISKS_MAX: usize = 4;

/// How much of something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Of all that is usable.
    Percent(u64),
    /// What is left.
    Rest,
}

/// How a region is dirtied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Not at all.
    None,
    /// 8 bytes of a random page at a time.
    Words,
    /// 64 bytes of a random page at a time.
    Lines,
    /// A whole random page at a time, with incompressible content.
    Pages,
    /// A store of the value that is already there.
    Silent,
}

impl Work {
    /// Words that one write changes.
    pub fn granule(self) -> usize {
        match self {
            Self::Words | Self::Silent | Self::None => 1,
            Self::Lines => 8,
            Self::Pages => super::pattern::PAGE_WORDS,
        }
    }
}

/// `fill=` and `dirty=` for one region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionOptions {
    /// What it holds.
    pub kind: Kind,
    /// Where its content starts from.
    pub seed: u64,
    /// How large it is.
    pub amount: Amount,
    /// How it is dirtied.
    pub work: Work,
    /// Writes a second.
    pub rate: u64,
    /// Bytes from its start that are dirtied; 0 is all.
    pub working_set: u64,
}

/// `netN=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NetOptions {
    /// Own address; 0 leaves the port alone.
    pub ip: u32,
    /// Whom to send to.
    pub peer: u32,
    /// The peer's station, or zero to ask by ARP.
    pub peer_mac: [u8; 6],
    /// Open a connection to the peer and send TSO-size segments of the stream.
    pub tso: bool,
    /// Send 60-byte datagrams.
    pub small: bool,
    /// Send an echo request every 10 ms.
    pub ping: bool,
    /// Bytes of the stream, then the end of it; 0 is no end.
    pub bytes: u64,
    /// Datagrams a second; 0 is as many as go.
    pub rate: u64,
    /// Millions of bits of the stream a second; 0 is as many as go.
    pub mbit: u64,
}

/// `blkN=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskOptions {
    /// Write, flush and verify.
    pub load: bool,
    /// First look through what earlier runs left.
    pub scan: bool,
    /// Bytes from the disk's start that are used; 0 is all.
    pub size: u64,
    /// Writes a second; 0 is as many as go.
    pub rate: u64,
    /// Read blocks at random, and nothing else.
    pub read: bool,
    /// Requests at once; 0 is 16.
    pub depth: u64,
    /// Queues that they are spread over; 0 is one.
    pub queues: u64,
}

/// Most requests at once, and most queues.
pub const DEPTH_MAX: u64 = 32;
pub const QUEUES_MAX: u64 = 4;

/// What a press of the power button comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Button {
    /// Nobody listens.
    Deaf,
    /// Power-off.
    Off,
    /// It is heard, and nothing comes of it.
    Ignored,
}

/// What the guest does with the room for more memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taking {
    /// Nothing.
    Nothing,
    /// It takes in and gives back what it is asked to.
    Willing,
    /// The same, after it has asked for what it may not have.
    Lies,
}

/// All that the command line says.
pub struct Options {
    /// Tells the content of this VM from that of others.
    pub vm: u64,
    /// Rate of the time stamp counter, or 0 to find it out.
    pub tsc_khz: u64,
    /// Between heartbeats; 0 is none.
    pub heartbeat_ms: u64,
    /// Between lines of counters; 0 is none.
    pub stats_ms: u64,
    /// Between checks of all memory; 0 is only on request.
    pub check_ms: u64,
    /// Power off after so long; 0 is never.
    pub run_ms: u64,
    /// What a press of the power button comes to.
    pub button: Button,
    /// Read and print bytes of the entropy device.
    pub rng: bool,
    /// Print what CPUID said when it began.
    pub cpuid: bool,
    /// Hand frames on between the first two network ports.
    pub bridge: bool,
    /// What comes of a room for more memory.
    pub taking: Taking,
    /// Seed of nonsense for every register; 0 is none.
    pub nonsense: u64,
    /// The machine is QEMU's q35 and not Rebec's.
    pub q35: bool,
    /// Memory.
    pub regions: [Option<RegionOptions>; REGIONS_MAX],
    /// Network ports in the order of their slots.
    pub nets: [NetOptions; NETS_MAX],
    /// Disks in the order of their slots.
    pub disks: [DiskOptions; DISKS_MAX],
}

impl Options {
    /// Reads the whole line; an error is the word at fault.
    pub fn parse(line: &str) -> Result<Self, &str> {
        let mut options = Self {
            vm: 0,
            tsc_khz: 0,
            heartbeat_ms: 10,
            stats_ms: 1000,
            check_ms: 0,
            run_ms: 0,
            button: Button::Deaf,
            rng: false,
            cpuid: false,
            bridge: false,
            taking: Taking::Nothing,
            nonsense: 0,
            q35: false,
            regions: [None; REGIONS_MAX],
            nets: [NetOptions::default(); NETS_MAX],
            disks: [DiskOptions::default(); DISKS_MAX],
        };
        // Twice, because what is dirtied must have been filled, in whatever order the line says it.
        for word in line.split_ascii_whitespace() {
            if let Some(value) = word.strip_prefix("fill=") {
                options.fills(value).ok_or(word)?;
            }
        }
        for word in line.split_ascii_whitespace() {
            options.word(word).ok_or(word)?;
        }
        Ok(options)
    }

    fn word(&mut self, word: &str) -> Option<()> {
        let (key, value) = word.split_once('=')?;
        match key {
            // The VMM says so to whatever starts from a disk or may take in memory, and looks how its guest resets; this guest has one console and
            // resets as it is told.
            "console" | "reboot" | "memhp_default_state" | "memory_hotplug.online_policy" => {}
            "vm" => self.vm = value.parse().ok()?,
            "tsc_khz" => self.tsc_khz = value.parse().ok()?,
            "heartbeat_ms" => self.heartbeat_ms = value.parse().ok()?,
            "stats_ms" => self.stats_ms = value.parse().ok()?,
            "check_ms" => self.check_ms = value.parse().ok()?,
            "run_ms" => self.run_ms = value.parse().ok()?,
            "button" => {
                self.button = match value {
                    "off" => Button::Off,
                    "ignore" => Button::Ignored,
                    _ => return None,
                }
            }
            "rng" => self.rng = value == "1",
            "cpuid" => self.cpuid = value == "1",
            "bridge" => self.bridge = value == "1",
            "mem" => {
                self.taking = match value {
                    "take" => Taking::Willing,
                    "lie" => Taking::Lies,
                    _ => return None,
                }
            }
            "nonsense" => self.nonsense = value.parse().ok()?,
            "machine" => self.q35 = value == "q35",
            "fill" => {}
            "dirty" => value.split(',').try_for_each(|item| self.dirty(item))?,
            _ => {
                if let Some(number) = key.strip_prefix("net") {
                    *self.nets.get_mut(number.parse::<usize>().ok()?)? = net(value)?;
                } else {
                    *self.disks.get_mut(key.strip_prefix("blk")?.parse::<usize>().ok()?)? = disk(value)?;
                }
            }
        }
        Some(())
    }

    /// `KIND[:SEED[:AMOUNT]],...`
    fn fills(&mut self, value: &str) -> Option<()> {
        for (slot, item) in value.split(',').enumerate() {
            let mut parts = item.split(':');
            let kind = match parts.next()? {
                "zero" => Kind::Zero,
                "random" => Kind::Random,
                "text" => Kind::Text,
                "shared" => Kind::Shared,
                _ => return None,
            };
            let seed = parts.next().map_or(Some(0), |text| text.parse().ok())?;
            let amount = parts.next().map_or(Some(Amount::Rest), amount)?;
            let region = RegionOptions { kind, seed, amount, work: Work::None, rate: 0, working_set: 0 };
            *self.regions.get_mut(slot)? = Some(region);
            if parts.next().is_some() {
                return None;
            }
        }
        Some(())
    }

    /// `REGION:WORK:RATE[:WORKING_SET]`
    fn dirty(&mut self, item: &str) -> Option<()> {
        let mut parts = item.split(':');
        let region = self.regions.get_mut(parts.next()?.parse::<usize>().ok()?)?.as_mut()?;
        region.work = match parts.next()? {
            "words" => Work::Words,
            "lines" => Work::Lines,
            "pages" => Work::Pages,
            "silent" => Work::Silent,
            _ => return None,
        };
        region.rate = parts.next()?.parse().ok()?;
        region.working_set = parts.next().map_or(Some(0), bytes)?;
        Some(())
    }
}

fn net(value: &str) -> Option<NetOptions> {
    let mut net = NetOptions::default();
    for item in value.split(',') {
        let (key, value) = item.split_once('=')?;
        match key {
            "ip" => net.ip = ip(value)?,
            "peer" => net.peer = ip(value)?,
            "peermac" => net.peer_mac = mac(value)?,
            "bytes" => net.bytes = bytes(value)?,
            "rate" => net.rate = value.parse().ok()?,
            "mbit" => net.mbit = value.parse().ok()?,
            "load" => {
                for load in value.split('+') {
                    match load {
                        "tso" => net.tso = true,
                        "small" => net.small = true,
                        "ping" => net.ping = true,
                        _ => return None,
                    }
                }
            }
            _ => return None,
        }
    }
    Some(net)
}

fn disk(value: &str) -> Option<DiskOptions> {
    let mut disk = DiskOptions::default();
    for item in value.split(',') {
        match item.split_once('=').unwrap_or((item, "")) {
            ("load", "") => disk.load = true,
            ("scan", "") => disk.scan = true,
            ("size", value) => disk.size = bytes(value)?,
            ("rate", value) => disk.rate = value.parse().ok()?,
            ("read", "") => disk.read = true,
            ("depth", value) => disk.depth = value.parse().ok().filter(|depth| (1..=DEPTH_MAX).contains(depth))?,
            ("queues", value) => disk.queues = value.parse().ok().filter(|queues| (1..=QUEUES_MAX).contains(queues))?,
            _ => return None,
        }
    }
    Some(disk)
}

fn amount(text: &str) -> Option<Amount> {
    match text.strip_suffix('%') {
        Some(number) => number.parse().ok().filter(|n| *n <= 100).map(Amount::Percent),
        None => bytes(text).map(Amount::Bytes),
    }
}

fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn ip(text: &str) -> Option<u32> {
    let mut address = 0_u32;
    let mut count = 0;
    for part in text.split('.') {
        address = (address << 8) | u32::from(part.parse::<u8>().ok()?);
        count += 1;
    }
    (count == 4).then_some(address)
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut address = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut address {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_line() {
        let line = "dirty=1:lines:40000:64M fill=shared:7:25%,random:9:25%,zero vm=3 net0=ip=10.0.0.1,peer=10.0.0.2,load=tso+ping blk1=load,scan,size=64M,depth=32,queues=2 machine=q35";
        let options = Options::parse(line).unwrap_or_else(|word| panic!("{word}"));
        assert_eq!(options.vm, 3);
        let region = options.regions[1].unwrap();
        assert_eq!((region.work, region.rate, region.working_set), (Work::Lines, 40000, 64 << 20));
        assert_eq!(options.regions[2].unwrap().amount, Amount::Rest);
        assert_eq!(options.nets[0].ip, 0x0a00_0001);
        assert!(options.nets[0].tso && options.nets[0].ping && !options.nets[0].small);
        assert!(options.disks[1].load && options.disks[1].scan && options.disks[1].size == 64 << 20);
        assert!(options.disks[1].depth == 32 && options.disks[1].queues == 2 && options.q35);
    }

    #[test]
    fn the_word_at_fault_is_named() {
        for line in [
            "fill=velvet",
            "blk0=depth=33",
            "blk0=queues=5",
            "dirty=0:words:1",
            "net9=ip=1.2.3.4",
            "colour=blue",
            "blk0=size=1T",
            "net0=ip=1.2.3",
            "button=loud",
            "mem=all",
            "quiet",
        ] {
            assert_eq!(Options::parse(line).err(), Some(line), "{line}");
        }
    }
}
