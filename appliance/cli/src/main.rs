//! `rebec`: the program's door. What it does lives in the library; as a machine's PID 1 it is `rebec init`.

use std::process::ExitCode;

fn main() -> ExitCode {
    rebec_init::take_over();
    rebec_cli::main(std::env::args_os())
}
