//! Disks over temporary files: content, backing chains, sizes, extents, hostile headers.
use super::*;

#[test]
fn placeholder_compiles() {
    fn shareable<T: Send + Sync>() {}
    shareable::<Disk>();
}
