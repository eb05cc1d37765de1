//! Bytes written so that zeros take no room: a disk image is mostly empty.

use std::{fs::File, io, os::unix::fs::FileExt};

/// What a file system keeps or leaves out as one.
const BLOCK_BYTES: u64 = 4096;

/// Writes bytes at a place of a file that has nothing there yet, but for zeros that fill a block as far as these bytes go into it: pieces from a network end
/// anywhere, and the rest of such a block is the next piece's. Whoever has written all sets the file's length.
pub fn write_at(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
    let (mut at, mut run) = (0, 0);
    while at < data.len() {
        let to_boundary = (BLOCK_BYTES - (offset + at as u64) % BLOCK_BYTES) as usize;
        let end = data.len().min(at + to_boundary);
        if data[at..end].iter().all(|byte| *byte == 0) {
            file.write_all_at(&data[run..at], offset + run as u64)?;
            run = end;
        }
        at = end;
    }
    file.write_all_at(&data[run..], offset + run as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn zeros_take_no_room_and_the_rest_is_where_it_was() {
        let mut content = vec![0; 4 << 20];
        content[5] = 1;
        content[1_000_000] = 2;
        content[(3 << 20) - 1] = 3;
        // In pieces that fit no block, as they come from a network.
        for piece in [1, 4095, 4096, 70_001, 4 << 20] {
            let file = tempfile::tempfile().unwrap();
            for (number, bytes) in content.chunks(piece.max(911)).enumerate() {
                write_at(&file, (number * piece.max(911)) as u64, bytes).unwrap();
            }
            file.set_len(content.len() as u64).unwrap();
            let mut read = vec![7; content.len()];
            file.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(read, content);
            assert!(file.metadata().unwrap().blocks() * 512 <= 4 * BLOCK_BYTES, "{piece}");
        }
    }
}
