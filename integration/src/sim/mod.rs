//! What `cargo lab sim` measures: a pool of a thousand books and gossip engines, and a large book (`integration/gossip`), beside their targets.

mod measure;

pub use measure::{exchange, measure, measure_book};
pub use rebec_lab_gossip::{Plan, resident};
