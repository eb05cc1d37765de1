//! Captures of several ports as one file: each is a pcapng of its own with one interface, and here they become interfaces of one section.
//!
//! ```text
//! from each port    section header | interface description | packet ... | statistics
//! into the file     section header | description of port 0 | packet 0 ... | description of port 1 | packet 1 | packet 0 ... | statistics 0 | statistics 1
//! ```
//! Only lengths and interface numbers are looked at; what a block says is the port's affair.

/// A block longer than this is none of a port's: 256 KiB of a frame, and what stands around it.
const BLOCK_BYTES_MAX: usize = 300 << 10;
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

/// What came is no pcapng of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what the agent sent is no capture: is it of another version?")]
pub struct NoCapture;

/// How many frames one port saw, and how many of them the file lacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Wanted.
    pub seen: u64,
    /// Lost on their way into the file.
    pub lost: u64,
}

/// The file as it grows.
#[derive(Debug, Default)]
pub struct File {
    has_section: bool,
    interfaces: u32,
}

/// One port's part of it.
#[derive(Debug, Default)]
pub struct Part {
    rest: Vec<u8>,
    interface: Option<u32>,
    counted: Option<Counted>,
}

impl Part {
    /// Takes in what came of the port, and adds the blocks that are whole to the file's bytes.
    pub fn push(&mut self, file: &mut File, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NoCapture> {
        self.rest.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(&[a, b, c, d, e, f, g, h]) = self.rest[at..].first_chunk::<8>() {
            let (kind, length) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]) as usize);
            if length % 4 != 0 || !(12..=BLOCK_BYTES_MAX).contains(&length) {
                return Err(NoCapture);
            }
            let Some(block) = self.rest.get(at..at + length) else { break };
            let start = out.len();
            match (kind, self.interface) {
                (SECTION, _) if file.has_section => {}
                (SECTION, _) => {
                    out.extend_from_slice(block);
                    file.has_section = true;
                }
                (INTERFACE, None) if file.has_section => {
                    out.extend_from_slice(block);
                    self.interface = Some(file.interfaces);
                    file.interfaces += 1;
                }
                (PACKET | STATISTICS, Some(interface)) if length >= 24 => {
                    out.extend_from_slice(block);
                    out[start + 8..start + 12].copy_from_slice(&interface.to_le_bytes());
                    if kind == STATISTICS {
                        self.counted = Some(counted(block));
                    }
                }
                _ => return Err(NoCapture),
            }
            at += length;
        }
        self.rest.drain(..at);
        Ok(())
    }

    /// What its last block said; none where it was cut off before.
    pub fn counted(&self) -> Option<Counted> {
        self.counted
    }
}

/// Options 4 and 5 of a statistics block.
fn counted(block: &[u8]) -> Counted {
    let (mut counted, mut at) = (Counted::default(), 20);
    while let Some(&[a, b, c, d]) = block.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        let (code, length) = (u16::from_le_bytes([a, b]), usize::from(u16::from_le_bytes([c, d])));
        let number = block.get(at + 4..).and_then(|rest| rest.first_chunk::<8>()).map_or(0, |number| u64::from_le_bytes(*number));
        match code {
            0 => break,
            4 => counted.seen = number,
            5 => counted.lost = number,
            _ => {}
        }
        at += 4 + length.next_multiple_of(4);
    }
    counted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let length = (12 + body.len() as u32).to_le_bytes();
        [&kind.to_le_bytes()[..], &length, body, &length].concat()
    }

    fn port(mark: u8, seen: u64, lost: u64) -> Vec<u8> {
        let statistics = [&[0; 12][..], &[4, 0, 8, 0], &seen.to_le_bytes(), &[5, 0, 8, 0], &lost.to_le_bytes(), &[0; 4]].concat();
        [
            block(SECTION, &[mark; 16]),
            block(INTERFACE, &[mark; 8]),
            block(PACKET, &[&[0; 4][..], &[mark; 24]].concat()),
            block(STATISTICS, &statistics),
        ]
        .concat()
    }

    /// Kind, interface and a byte of each block.
    fn blocks(mut bytes: &[u8]) -> Vec<(u32, u8, u8)> {
        let mut blocks = vec![];
        while let Some((head, _)) = bytes.split_first_chunk::<8>() {
            let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
            blocks.push((u32::from_le_bytes([head[0], head[1], head[2], head[3]]), bytes[8], bytes[12]));
            bytes = &bytes[length..];
        }
        blocks
    }

    #[test]
    fn ports_become_interfaces_of_one_section() {
        let (mut file, mut parts, mut out) = (File::default(), [Part::default(), Part::default()], vec![]);
        for (part, bytes) in parts.iter_mut().zip([port(7, 10, 2), port(9, 3, 0)]) {
            part.push(&mut file, &bytes, &mut out).unwrap();
        }
        let expected = [(SECTION, 7, 7), (1, 7, 7), (6, 0, 7), (5, 0, 0), (1, 9, 9), (6, 1, 9), (5, 1, 0)];
        assert_eq!(blocks(&out), expected);
        assert_eq!(parts.map(|part| part.counted()), [Some(Counted { seen: 10, lost: 2 }), Some(Counted { seen: 3, lost: 0 })]);
    }

    #[test]
    fn what_is_no_capture_is_refused() {
        for wrong in [block(PACKET, &[0; 28]), block(9, &[0; 8]), [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff].to_vec(), block(INTERFACE, &[0; 8])]
        {
            assert_eq!(Part::default().push(&mut File::default(), &wrong, &mut vec![]), Err(NoCapture));
        }
    }

    proptest! {
        #[test]
        fn pieces_however_they_are_cut_make_the_same_file(cuts in prop::collection::vec(1_usize..60, 1..40)) {
            let bytes = port(7, 10, 2);
            let (mut file, mut part, mut out, mut at) = (File::default(), Part::default(), vec![], 0);
            for cut in cuts {
                let end = (at + cut).min(bytes.len());
                part.push(&mut file, &bytes[at..end], &mut out).unwrap();
                at = end;
            }
            part.push(&mut file, &bytes[at..], &mut out).unwrap();
            prop_assert_eq!(out, bytes);
        }

        #[test]
        fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _result = Part::default().push(&mut File::default(), &bytes, &mut vec![]);
            let mut block = block(STATISTICS, &bytes);
            block.truncate(block.len() / 4 * 4);
            let _counted = counted(&block);
        }
    }
}
