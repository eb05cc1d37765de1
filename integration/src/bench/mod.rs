//! Figures that the README may name: each is measured by the command that prints it, beside its target and its peers.

pub mod boot;
