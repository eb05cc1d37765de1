//! Where fuzzing begins: each target's good inputs, made by the code that writes them in earnest, so that they follow its formats.

use std::{fs, path::Path, process};

/// The variable that asks a target to write its seeds into a folder instead of fuzzing.
pub const VARIABLE: &str = "REBEC_FUZZ_SEEDS";

/// Writes the seeds and ends the process, if the environment asks for it. Called by each binary before libFuzzer begins.
pub fn write_if_asked(seeds: fn() -> Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os(VARIABLE) else { return };
    match write(Path::new(&folder), &seeds()) {
        Ok(()) => process::exit(0),
        Err(error) => {
            eprintln!("write seeds into {}: {error}", folder.display());
            process::exit(1);
        }
    }
}

fn write(folder: &Path, seeds: &[Vec<u8>]) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(folder.join(format!("seed-{number:02}")), seed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::*;

    /// A target, by its name: what it does with an input, and where it begins.
    type Case = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

    const TARGETS: [Case; 10] = [
        ("wire", wire::run, wire::seeds),
        ("pool", pool::run, pool::seeds),
        ("records", records::run, records::seeds),
        ("saved", saved::run, saved::seeds),
        ("rings", rings::run, rings::seeds),
        ("frames", frames::run, frames::seeds),
        ("kernel", kernel::run, kernel::seeds),
        ("bootable", bootable::run, bootable::seeds),
        ("disk", disk::run, disk::seeds),
        ("texts", texts::run, texts::seeds),
    ];

    #[test]
    fn every_seed_is_survived_whole_cut_and_damaged() {
        for (name, run, seeds) in TARGETS {
            run(&[]);
            for (number, seed) in seeds().into_iter().enumerate() {
                println!("{name} {number}");
                run(&seed);
                run(&seed[..seed.len() / 2]);
                let mut damaged = seed;
                for at in (0..damaged.len()).step_by(damaged.len() / 7 + 1) {
                    damaged[at] ^= 0x41;
                }
                run(&damaged);
            }
        }
    }

    #[test]
    fn seeds_are_written_where_they_are_asked_for() {
        let folder = std::env::temp_dir().join(format!("rebec-fuzz-seeds-{}", std::process::id()));
        seeds::write(&folder, &[vec![1], vec![2, 3]]).unwrap();
        assert_eq!(std::fs::read(folder.join("seed-01")).unwrap(), [2, 3]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
