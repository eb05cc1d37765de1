//! What `cargo lab` can be told to do, one file each.

pub mod boot;
