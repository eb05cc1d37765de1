//! `rebec-vmm`: the program's door. What it does lives in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    rebec_vmm::main()
}
