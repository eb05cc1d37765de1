//! How the host talks to the agent in a lab machine. The frames are `rebec_lab_agent`'s; `client` is the host's side.

pub mod client;

pub use rebec_lab_agent::{Frame, Kind, PAYLOAD_BYTES_MAX, PORT_NAME, PathOnly, Put, Run};
