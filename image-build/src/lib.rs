//! Makes the appliance's image out of two static programs and pinned Debian packages.
//!
//! ```text
//! lock      image-build/lock.toml: name, version and SHA-256 of every package
//! archive   the machine's own apt sources with another suite, in a private apt root with signature checks
//! package   one locked package: from the cache, from the archive, or resolved anew
//! kernel    vmlinuz and modules with modules.dep
//! modules   all of them but a deny list
//! firmware  what cards want from their host, where it is asked for
//! initrd    modules, firmware and programs as archives (cpio) that the kernel unpacks
//! iso       a hybrid ISO around kernel and initrd: BIOS and UEFI, CD and USB disk
//! manifest  what went in, by name, version and digest
//! deb       a Debian package of the two programs, for hosts that already have a system
//! ```
//! The same inputs give the same bytes. `command`, `progress`, `cpio`, `archive`, `lock`, `package` and `kernel` serve the lab too.
//! No mirror is named anywhere: what the machine itself is configured to use is used.

pub mod command;
pub mod progress;

pub mod lock;

pub mod archive;

pub mod package;

pub mod kernel;

pub mod modules;

pub mod cpio;

pub mod firmware;

pub mod initrd;

pub mod iso;

pub mod manifest;

pub mod image;

pub mod deb;
