//! What guests of the lab run: work whose every step can be checked afterwards.
//!
//! A process owns the serial console and takes orders from it, one JSON object a line (`words`); orders start a TCP
//! transfer with a running checksum (`transfer`), pings that remember every silence (`ping`), self-describing blocks on
//! a disk (`disk`), a pattern in memory (`memory`) and a clock watcher (`clock`). `report` tells what happened. Nothing
//! here knows of VMMs or moves: the work must not notice them.

pub mod clock;
pub mod console;
pub mod disk;
pub mod memory;
pub mod pattern;
pub mod ping;
pub mod transfer;
pub mod words;
