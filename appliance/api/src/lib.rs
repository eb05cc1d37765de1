//! What a host's agent and those around it say to each other: the HTTP API's types, and the file a status screen is drawn from.
//!
//! Words only: nothing here opens, runs or decides.

pub mod screen;
