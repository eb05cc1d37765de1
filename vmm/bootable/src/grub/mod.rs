//! What GRUB would start: its configuration is a script, of which the part that says so is run, over the files of the disk alone.
//!
//! `script` parses the language, `run` carries it out, `menu` follows `default` through the menu that comes of it, `environment` is the
//! file `grubenv` and the conditions of `test`. Nothing is displayed, loaded or saved: commands that would do so say that they did.

mod environment;
mod menu;
mod run;
mod script;

pub use menu::{choose, read};
#[cfg(test)]
pub use script::parse;
