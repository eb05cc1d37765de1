//! What `cargo lab sim` measures: a pool of a thousand books and gossip engines (`integration/gossip`), and a large book.
//!
//! ```text
//! measure  what came of a simulation, beside its targets
//! resident one book in a process of its own: what it takes, and how fast it is read
//! ```

mod measure;
pub mod resident;

pub use measure::{measure, measure_book};
pub use rebec_lab_gossip::Plan;
