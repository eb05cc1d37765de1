//! What `cargo lab` can be told to do, one file each.
//!
//! ```text
//! check   form: formatting, lints, documentation, and the rules in `tidy`
//! test    behaviour: every test of the repository
//! fuzz    hostile bytes, made up for a bounded time
//! bench   the figures that have targets
//! sim     a thousand hosts in one process
//! boot    one VM in one lab machine, for whoever works on the VMM
//! image   the appliance's image, and the lock of what it is made of
//! clean   away with what the lab has made
//! ```
//! `steps` tells at the end of `check` and `test` where the time went.
//! `demo` has a folder of its own.

pub mod bench;
pub mod boot;
pub mod check;
pub mod clean;
pub mod fuzz;
pub mod image;
pub mod sim;
pub mod steps;
pub mod test;
pub mod tidy;
