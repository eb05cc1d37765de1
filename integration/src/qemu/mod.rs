//! The QEMU lab: machines with real kernels and real KVM, joined by shaped links.
//!
//! ```text
//! accel     which acceleration this host can give: KVM if nesting works, else emulation with SVM
//! image     what lab machines boot: one initramfs for all, and a shared folder as a disk
//! machine   one QEMU process, its agent, its console; ended by Drop
//! tsc       the frequency that emulated machines cannot measure on a busy host
//! switch    frames between machines, over `-netdev stream` sockets, and the links' rate, delay, loss and cuts
//! pcap      what crossed the switch, for whoever looks into a failure
//! lab       machines, switch and a folder of evidence as one value
//! vm        rebec-vmm in a machine, with the options users have
//! pool      appliances: `rebec` in a machine, tickets typed at its console
//! firmware  machines that boot the appliance's ISO as spare hardware does
//! upgrade   a VM of a cloud image whose guest installs another kernel
//! orders    what the workload in a VM is told over its serial port
//! ```

pub mod accel;
pub mod firmware;
pub mod image;
pub mod lab;
pub mod link;
pub mod machine;
pub mod orders;
pub mod pcap;
pub mod pool;
pub mod switch;
pub mod tsc;
pub mod upgrade;
pub mod vm;

pub use accel::Accel;
pub use lab::{Lab, LabConfig, System};
pub use link::Shape;
pub use machine::Machine;
pub use orders::Orders;
pub use vm::{Vm, VmSpec};
