//! The bench guest: a machine's worth of memory, network and disk load in one small program.
//!
//! It boots by PVH, leaves CPL 0 after some hundred instructions (`boot.s`), and then polls: no interrupts, no HLT, no allocation after the
//! start. What it does is chosen by the kernel command line (`options.rs`), what it says on COM1 is made for programs
//! (`docs/formats/bench-guest.md` describes both). It is not a model of an operating system: it exists to load a VMM and to notice any wrong byte.

#![cfg_attr(not(test), no_std, no_main)]

mod bridge;
mod console;
mod cpu;
mod disk;
mod entropy;
mod memory;
mod net;
mod nonsense;
mod options;
mod pattern;
mod plug;
mod start;
mod tcp;
mod virtio;
mod wire;

use core::{arch::global_asm, fmt::Write as _, panic::PanicInfo};

use bridge::Bridge;
use console::{Console, Direct};
use cpu::Clock;
use disk::Disk;
use entropy::Entropy;
use memory::{Load, Memory};
use net::Port;
use nonsense::Nonsense;
use options::{Button, DISKS_MAX, NETS_MAX, Options, Taking};
use plug::Plug;
use virtio::{Device, DeviceKind};

global_asm!(include_str!("boot.s"));

/// Longest time without a look at the serial port's input.
const INPUT_US: u64 = 10_000;

/// What boot.s asked CPUID, leaf and subleaf, in its order.
const CPUID_ASKED: [(u32, u32); 7] = [(1, 0), (7, 0), (0xd, 0), (0xd, 1), (0x8000_0001, 0), (0x8000_0008, 0), (0x4000_0001, 0)];

unsafe extern "C" {
    static image_end: u8;
    static cpuid_answers: [[u32; 4]; CPUID_ASKED.len()];
}

/// What boot.s calls at CPL 3, with what PVH and CPUID said.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64, declared_khz: u64, pvclock: u64) -> ! {
    let mut console = Console::new();
    // SAFETY: boot.s passes on what the VMM put in ebx, and nothing is filled yet.
    let start = unsafe { start::read(start_info, (&raw const image_end).addr() as u64) };
    let outcome = start.and_then(|start| {
        let options = Options::parse(start.cmdline).map_err(|word| {
            say!(&mut console, "error option `{word}` is not understood");
            "nothing was done"
        })?;
        let khz =
            [options.tsc_khz, declared_khz, if pvclock == 1 { cpu::tsc_khz_of_pvclock() } else { 0 }].into_iter().find(|khz| *khz != 0);
        let clock = Clock::new(khz.ok_or("the time stamp counter's rate is unknown: say tsc_khz=N")?);
        say!(
            &mut console,
            "rebec-bench 1 tsc_khz={} memory_bytes={}",
            clock.khz(),
            start.areas.iter().map(|area| area.end - area.start).sum::<u64>()
        );
        if options.cpuid {
            // SAFETY: boot.s filled it before it came here, and nothing writes it again.
            let answers = unsafe { &*&raw const cpuid_answers };
            for ((leaf, subleaf), [eax, ebx, ecx, edx]) in CPUID_ASKED.iter().zip(answers) {
                say!(&mut console, "cpuid {leaf:x}.{subleaf:x} {eax:x} {ebx:x} {ecx:x} {edx:x}");
            }
        }
        let devices = Devices::new(&options, Memory::new(start.areas), &mut console)?;
        Ok(Guest { options, clock, devices, beats: 0, due: Due::default(), last_turn_us: 0, stall_us_max: 0 })
    });
    match outcome {
        Ok(mut guest) => guest.run(&mut console),
        Err(what) => {
            say!(&mut console, "error {what}");
            console.flush();
            cpu::power_off()
        }
    }
}

/// All that bears load.
struct Devices {
    load: Load,
    ports: [Option<Port>; NETS_MAX],
    bridge: Option<Bridge>,
    disks: [Option<Disk>; DISKS_MAX],
    entropy: Option<Entropy>,
    plug: Option<Plug>,
    nonsense: Option<Nonsense>,
}

impl Devices {
    fn new(options: &Options, mut memory: Memory, console: &mut Console) -> Result<Self, &'static str> {
        let mut ports = [const { None }; NETS_MAX];
        if options.nets.iter().any(|net| net.ip != 0) {
            let stream = net::stream_bytes(&mut memory)?;
            let mut found = Device::all(DeviceKind::Net);
            for (number, (port, net)) in ports.iter_mut().zip(&options.nets).enumerate() {
                let device = found.next();
                if net.ip != 0 {
                    *port = Some(Port::new(number, device.ok_or("a network port is absent")?, *net, stream, &mut memory)?);
                }
            }
        }
        let bridge = if options.bridge { Some(Bridge::new(&mut memory)?) } else { None };
        let mut disks = [const { None }; DISKS_MAX];
        let (mut ours, mut theirs) = (Device::all(DeviceKind::Block), Device::disks_of_q35());
        for (number, (disk, wanted)) in disks.iter_mut().zip(&options.disks).enumerate().filter(|_| options.nonsense == 0) {
            let device = if options.q35 { theirs.next() } else { ours.next() };
            if wanted.load || wanted.scan || wanted.read {
                *disk = Some(Disk::new(number, device.ok_or("a disk is absent")?, *wanted, options.vm, &mut memory)?);
            }
        }
        let entropy = match Device::all(DeviceKind::Entropy).next().filter(|_| options.rng) {
            Some(device) => Some(Entropy::new(device, &mut memory)?),
            None if options.rng => return Err("an entropy device is absent"),
            None => None,
        };
        let plug = match Device::all(DeviceKind::Mem).next().filter(|_| options.taking != Taking::Nothing) {
            Some(device) => Some(Plug::new(device, options.taking, options.vm, &mut memory, console)?),
            None if options.taking != Taking::Nothing => return Err("a device for memory is absent"),
            None => None,
        };
        let nonsense = if options.nonsense == 0 { None } else { Some(Nonsense::new(options.nonsense, &mut memory)?) };
        Ok(Self { load: Load::new(memory, options)?, ports, bridge, disks, entropy, plug, nonsense })
    }

    fn turn(&mut self, now_us: u64, console: &mut Console) {
        self.load.dirty(now_us);
        self.load.check(now_us, console);
        self.ports.iter_mut().flatten().for_each(|port| port.turn(now_us, console));
        self.bridge.iter_mut().for_each(Bridge::turn);
        self.disks.iter_mut().flatten().for_each(|disk| disk.turn(now_us, console));
        self.entropy.iter_mut().for_each(|entropy| entropy.turn(console));
        self.plug.iter_mut().for_each(|plug| plug.turn(console));
        self.nonsense.iter_mut().for_each(Nonsense::turn);
    }

    fn begin_check(&mut self, now_us: u64) {
        self.load.begin_check(now_us);
        self.disks.iter_mut().flatten().for_each(Disk::begin_check);
    }
}

/// When what happens every so often happens next.
#[derive(Default)]
struct Due {
    beat_us: u64,
    input_us: u64,
    stats_us: u64,
    check_us: u64,
}

/// The main loop and its clockwork.
struct Guest {
    options: Options,
    clock: Clock,
    devices: Devices,
    beats: u64,
    due: Due,
    last_turn_us: u64,
    stall_us_max: u64,
}

impl Guest {
    fn run(&mut self, console: &mut Console) -> ! {
        let began_us = self.clock.now_us();
        console.flush();
        self.devices.load.fill();
        let now_us = self.clock.now_us();
        say!(console, "ready pages={} fill_ms={}", self.devices.load.pages(), (now_us - began_us) / 1000);
        self.due.check_us = now_us + self.options.check_ms * 1000;
        self.due.stats_us = now_us + self.options.stats_ms * 1000;
        self.last_turn_us = now_us;
        if self.options.button != Button::Deaf {
            cpu::listen_to_button();
        }
        loop {
            let now_us = self.clock.now_us();
            self.stall_us_max = self.stall_us_max.max(now_us - self.last_turn_us);
            self.last_turn_us = now_us;
            self.devices.turn(now_us, console);
            self.clockwork(now_us, console);
            console.turn();
        }
    }

    /// Everything that happens every so often.
    fn clockwork(&mut self, now_us: u64, console: &mut Console) {
        if self.options.heartbeat_ms > 0 && now_us >= self.due.beat_us {
            say!(console, "hb {} {:x}", self.beats, cpu::tsc());
            self.beats += 1;
            // After a stall the rhythm begins anew: beats that were missed show as a gap, not as a burst.
            let period_us = self.options.heartbeat_ms * 1000;
            self.due.beat_us = (self.due.beat_us + period_us).max(now_us + period_us / 2);
        }
        if self.options.check_ms > 0 && now_us >= self.due.check_us {
            self.due.check_us = now_us + self.options.check_ms * 1000;
            self.devices.begin_check(now_us);
        }
        if self.options.stats_ms > 0 && now_us >= self.due.stats_us {
            self.due.stats_us = now_us + self.options.stats_ms * 1000;
            self.stats(now_us, console);
        }
        if now_us >= self.due.input_us {
            self.due.input_us = now_us + INPUT_US;
            if let Some(byte) = console.read() {
                self.command(byte, now_us, console);
            }
            if self.options.button == Button::Off && cpu::button_was_pressed() {
                self.end(console, "power-button", cpu::power_off);
            }
        }
        if self.options.run_ms > 0 && now_us >= self.options.run_ms * 1000 {
            self.end(console, "time", cpu::power_off);
        }
    }

    fn command(&mut self, byte: u8, now_us: u64, console: &mut Console) {
        match byte {
            b'c' => self.devices.begin_check(now_us),
            b'm' => self.devices.plug.iter_mut().for_each(|plug| plug.check(console)),
            b'u' => self.devices.plug.iter().for_each(Plug::trespass),
            b's' => self.stats(now_us, console),
            b'z' => {
                self.stall_us_max = 0;
                self.devices.ports.iter_mut().flatten().for_each(Port::forget_gap);
            }
            b'g' => self.devices.ports.iter_mut().flatten().for_each(Port::stream_again),
            b'q' => self.end(console, "power-off", cpu::power_off),
            b'r' => self.end(console, "reset", cpu::reset),
            b'x' => self.end(console, "reset-storm", cpu::reset_storm),
            b't' => self.end(console, "triple-fault", cpu::triple_fault),
            b'\r' | b'\n' => {}
            _ => say!(console, "error command {byte:#04x} is not understood"),
        }
    }

    fn stats(&mut self, now_us: u64, console: &mut Console) {
        let lost = console.lost;
        say!(
            console,
            "stat ms={} writes={} bad={} stall_us_max={} console_lost={lost}",
            now_us / 1000,
            self.devices.load.writes,
            self.devices.load.bad,
            self.stall_us_max
        );
        self.devices.ports.iter().flatten().for_each(|port| port.say(console));
        self.devices.bridge.iter().for_each(|bridge| bridge.say(console));
        self.devices.disks.iter().flatten().for_each(|disk| disk.say(console));
        self.devices.nonsense.iter().for_each(|nonsense| say!(console, "nonsense steps={}", nonsense.steps));
    }

    fn end(&mut self, console: &mut Console, how: &str, last: fn() -> !) -> ! {
        say!(console, "bye {how}");
        console.flush();
        last()
    }
}

#[cfg_attr(not(test), panic_handler)]
fn panic(info: &PanicInfo<'_>) -> ! {
    writeln!(Direct, "\npanic {info}").unwrap_or(());
    cpu::power_off()
}
