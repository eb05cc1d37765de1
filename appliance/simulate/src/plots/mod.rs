//! Plots of a simulation, as SVG, and their numbers as CSV.
//!
//! `figures` runs what is to be compared and makes tables and charts of it; `chart` draws. Files are the caller's.

mod chart;
mod figures;

pub use figures::{Figure, figures};
