//! Where files end, and what that means for a disk on them.

use super::*;

#[test]
fn a_file_that_becomes_shorter_is_an_error_and_not_zeros() {
    let (raw, base, layer) =
        (raw_file(&vec![7; MIB as usize]), raw_file(&vec![8; MIB as usize]), qcow2_file(MIB, Some(("base", ImageFormat::Raw))));
    let own = qcow2_file(MIB, None);
    open(&own, &[]).write_at(0, &[9; 4096]).unwrap();
    for (disk, shrinks) in [(open(&raw, &[]), &raw), (open(&layer, &[&base]), &base), (open(&own, &[]), &own)] {
        let mut buffer = [0; 512];
        disk.read_at(0, &mut buffer).unwrap();
        disk.write_at(8192, &[1; 512]).unwrap();
        disk.flush().unwrap();
        let bytes = shrinks.metadata().unwrap().len();
        shrinks.set_len(bytes / 2).unwrap();
        for error in [disk.read_at(0, &mut buffer).unwrap_err(), disk.flush().unwrap_err()] {
            assert!(error.to_string().contains("a file of it was made shorter while it was in use"), "{error}");
        }
        shrinks.set_len(bytes).unwrap();
        disk.read_at(0, &mut buffer).unwrap();
    }
}

#[test]
fn what_lies_behind_the_end_of_the_file_is_not_written_beside_imago() {
    let file = qcow2_file(MIB, None);
    {
        let disk = open(&file, &[]);
        disk.write_at(0, &[7; 65_536]).unwrap();
        disk.flush().unwrap();
    }
    file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
    let disk = open(&file, &[]);
    let (lease, mut parts) = (disk.lease(), vec![]);
    let mut is_direct = |offset, writes| disk.parts(&lease, offset, 4096, writes, &mut parts).unwrap();
    assert!(is_direct(0, true) && is_direct(65_536 - 4096, false));
    assert!(!is_direct(65_536 - 4096, true));
    disk.write_at(65_536 - 4096, &[8; 4096]).unwrap();
    assert!(is_direct(65_536 - 4096, true), "imago knows of it now");
}
