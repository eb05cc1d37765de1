//! Prints what `rebec-boot` makes of a kernel file: `cargo run --release -p rebec-boot --example inspect -- FILE...`
//!
//! One line of `key=value` pairs for a file that can be booted; otherwise the reason on stderr and exit code 1.

use std::{error::Error, fs::File, process::ExitCode, time::Instant};

use rebec_boot::{BootConfig, GuestRam, KernelImage, load};
use vm_memory::GuestAddress;

/// Room for any stock kernel.
const RAM_BYTES: u64 = 512 << 20;

fn main() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for path in std::env::args().skip(1) {
        if let Err(error) = inspect(&path) {
            eprint!("kernel {path}: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn inspect(path: &str) -> Result<(), Box<dyn Error>> {
    let file = File::open(path)?;
    let start = Instant::now();
    let kernel = KernelImage::from_file(&file)?;
    let unpack_s = start.elapsed().as_secs_f64();

    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES as usize)])?;
    let start = Instant::now();
    load(&ram, RAM_BYTES, &BootConfig { kernel: &kernel, initramfs: None, cmdline: "console=ttyS0", vcpus: 1 })?;
    let load_s = start.elapsed().as_secs_f64();

    println!(
        "file={path} format=\"{}\" file_bytes={} elf_bytes={} segments={} end={:#x} entry={:#x} unpack_s={unpack_s:.3} load_s={load_s:.3}",
        kernel.format(),
        file.metadata()?.len(),
        kernel.elf_bytes(),
        kernel.segments().len(),
        kernel.end(),
        kernel.entry(),
    );
    Ok(())
}
