//! The transport by itself.
