//! What only instructions can do: ports, device registers, the time stamp, the ends of a machine.
//!
//! All of it runs at CPL 3: the TSS's bitmap opens every port, and device registers are ordinary addresses.

use core::arch::asm;

/// PM1a status and enable, at the start of the same block.
const PM1A_STATUS: u16 = 0x600;
const PM1A_ENABLE: u16 = 0x602;
/// PWRBTN_STS and PWRBTN_EN.
const POWER_BUTTON: u16 = 1 << 8;
/// PM1a control: the VMM's `rebec_layout` puts it here and the FADT names it.
const PM1A_CONTROL: u16 = 0x604;
/// SLP_EN with sleep type 5, which the DSDT's `_S5` package names.
const SLEEP_OFF: u16 = 1 << 13 | 5 << 10;
/// The FADT's reset register.
const RESET: u16 = 0x608;

/// Writes one byte to a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: a port write reaches a device model only; no device of this machine writes memory that Rust owns.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

/// Writes two bytes to a port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as for `out8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) }
}

/// Writes four bytes to a port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as for `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) }
}

/// Reads one byte from a port.
pub fn in8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: a port read changes nothing but the register it returns in.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}

/// Reads two bytes from a port.
pub fn in16(port: u16) -> u16 {
    let value: u16;
    // SAFETY: as for `in8`.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nostack, preserves_flags)) }
    value
}

/// Reads four bytes from a port.
pub fn in32(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as for `in8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags)) }
    value
}

/// The time stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: CR4.TSD is never set, so the instruction is allowed at every level and only returns a number.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Reads a 32-bit device register, by one plain load that every emulator decodes.
pub fn register_read(address: u64) -> u32 {
    let value: u32;
    // SAFETY: callers pass addresses in the device window, which no Rust object occupies.
    unsafe { asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)) }
    value
}

/// Writes a 32-bit device register. What the device will see through it is written before: the asm is a compiler barrier, stores of this
/// machine keep their order.
pub fn register_write(address: u64, value: u32) {
    // SAFETY: as for `register_read`.
    unsafe { asm!("mov dword ptr [{0}], {1:e}", in(reg) address, in(reg) value, options(nostack, preserves_flags)) }
}

/// Reads a register of 8 bits.
pub fn register_read8(address: u64) -> u8 {
    let value: u8;
    // SAFETY: as for `register_read`.
    unsafe { asm!("mov {0}, byte ptr [{1}]", out(reg_byte) value, in(reg) address, options(nostack, preserves_flags)) }
    value
}

/// Reads a register of 16 bits.
pub fn register_read16(address: u64) -> u16 {
    let value: u16;
    // SAFETY: as for `register_read`.
    unsafe { asm!("mov {0:x}, word ptr [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)) }
    value
}

/// Writes a register of 8 bits.
pub fn register_write8(address: u64, value: u8) {
    // SAFETY: as for `register_read`.
    unsafe { asm!("mov byte ptr [{0}], {1}", in(reg) address, in(reg_byte) value, options(nostack, preserves_flags)) }
}

/// Writes a register of 16 bits.
pub fn register_write16(address: u64, value: u16) {
    // SAFETY: as for `register_read`.
    unsafe { asm!("mov word ptr [{0}], {1:x}", in(reg) address, in(reg) value, options(nostack, preserves_flags)) }
}

/// Wants to hear of the power button.
pub fn listen_to_button() {
    out16(PM1A_ENABLE, POWER_BUTTON);
}

/// Whether the power button was pressed since the last look.
pub fn button_was_pressed() -> bool {
    let pressed = in16(PM1A_STATUS) & POWER_BUTTON != 0;
    if pressed {
        out16(PM1A_STATUS, POWER_BUTTON);
    }
    pressed
}

/// Ends the machine through ACPI.
pub fn power_off() -> ! {
    out16(PM1A_CONTROL, SLEEP_OFF);
    halt()
}

/// Restarts the machine through the FADT's reset register.
pub fn reset() -> ! {
    out8(RESET, 1);
    halt()
}

/// Asks for a restart without an end, as fast as it can.
pub fn reset_storm() -> ! {
    loop {
        out8(RESET, 1);
    }
}

/// A fault that nothing handles: the processor shuts down.
pub fn triple_fault() -> ! {
    // SAFETY: without an IDT the invalid opcode becomes a triple fault; no instruction after it runs.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// The machine has been told to end: nothing is left to do but wait for it.
fn halt() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// What KVM writes at `pvclock` (Linux's pvclock_vcpu_time_info).
#[repr(C)]
struct PvClock {
    version: u32,
    pad: u32,
    tsc_timestamp: u64,
    system_time: u64,
    multiplier: u32,
    shift: i8,
    flags: u8,
    unused: [u8; 2],
}

unsafe extern "C" {
    static pvclock: PvClock;
}

/// The counter's rate in kHz as KVM's clock page tells it, or 0 if the page was never written.
pub fn tsc_khz_of_pvclock() -> u64 {
    // SAFETY: boot.s defines the page and gave its address to KVM, which only writes plain numbers: any bytes are valid.
    let (multiplier, shift) = unsafe { ((&raw const pvclock.multiplier).read_volatile(), (&raw const pvclock.shift).read_volatile()) };
    if multiplier == 0 {
        return 0;
    }
    let khz = (1_000_000_u64 << 32) / u64::from(multiplier);
    if shift < 0 { khz << shift.unsigned_abs().min(31) } else { khz >> shift.min(31) }
}

/// A clock that counts microseconds from the start of the guest.
#[derive(Clone, Copy)]
pub struct Clock {
    start: u64,
    khz: u64,
}

impl Clock {
    /// Starts at zero.
    pub fn new(khz: u64) -> Self {
        Self { start: tsc(), khz: khz.max(1) }
    }

    /// The counter's rate.
    pub fn khz(&self) -> u64 {
        self.khz
    }

    /// Microseconds since the start.
    pub fn now_us(&self) -> u64 {
        // 128 bits: the product passes 64 after less than two hours.
        (u128::from(tsc().wrapping_sub(self.start)) * 1000 / u128::from(self.khz)) as u64
    }
}

// The compiler calls these by name and a program without a libc must bring them.

/// Copies forward; the regions do not overlap.
///
/// # Safety
/// Both regions are valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller promises both regions; the direction flag is clear by the ABI.
    unsafe { asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") count => _, options(nostack, preserves_flags)) }
    to
}

/// Copies regions that may overlap.
///
/// # Safety
/// Both regions are valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: copying forward reads every byte before it is overwritten.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: `to` lies inside `from`'s region: copying backward reads every byte before it is overwritten; the flag is restored.
    unsafe {
        asm!("std", "rep movsb", "cld",
            inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _,
            inout("rcx") count => _, options(nostack));
    }
    to
}

/// Fills with one byte.
///
/// # Safety
/// The region is valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller promises the region; the direction flag is clear by the ABI.
    unsafe { asm!("rep stosb", inout("rdi") to => _, in("al") byte as u8, inout("rcx") count => _, options(nostack, preserves_flags)) }
    to
}

/// Compares bytes.
///
/// # Safety
/// Both regions are valid for `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    let mut at = 0;
    while at < count {
        // SAFETY: `at` is below `count`, for which the caller promises both regions; volatile, or the loop becomes a call of itself.
        let (a, b) = unsafe { (left.add(at).read_volatile(), right.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
        at += 1;
    }
    0
}

/// As `memcmp`, of which only equality matters.
///
/// # Safety
/// As for `memcmp`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise is the same.
    unsafe { memcmp(left, right, count) }
}
