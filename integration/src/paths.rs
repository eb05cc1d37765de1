//! Where the lab keeps things: everything below `target/lab` of the workspace, whatever directory cargo builds in.

use std::path::PathBuf;

/// The root of the repository.
pub fn workspace() -> PathBuf {
    let integration = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    integration.parent().map_or(integration.clone(), PathBuf::from)
}

/// Everything the lab makes; `cargo lab clean` removes it.
pub fn lab() -> PathBuf {
    workspace().join("target/lab")
}

/// Downloads and what is unpacked from them, named by digest.
pub fn cache() -> PathBuf {
    lab().join("cache")
}

/// Images made of kernels and our own programs.
pub fn images() -> PathBuf {
    lab().join("images")
}

/// Evidence of runs: one folder each, kept when something failed.
pub fn runs() -> PathBuf {
    lab().join("runs")
}
