//! The next version of Rebec as far as its neighbours can tell: the same libraries, told to speak one number more everywhere and to say
//! what this version does not know. Called `vmm-later` it is the VMM, and otherwise the agent and its command line. The lab alone has it.
//!
//! | where | what it adds |
//! |---|---|
//! | every body of a record | fields at the end; to a VM whose name begins with `needs`, a word that who runs it must know |
//! | the book | a record of kind 900 |
//! | questions between hosts | `/internal/later`; speaks 1-2 |
//! | saved state | a part that may be left out; from version 5 of moves on, one that may not |
//! | the control socket | speaks 1-2 |

mod grow;

use std::{path::Path, process::ExitCode};

use rebec_agent::Later;
use rebec_book::record::Kind;
use rebec_vmm_api::Versions;

/// What it is called.
const REBEC: &str = "0.2.0";
/// In every record of the kind that others do not know.
const SAYING: &[u8] = b"\x81\x78\x1dkept by those who know it not";

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == "vmm-later") {
        rebec_vmm::play(rebec_vmm::Later {
            rebec: REBEC,
            control: Versions::new(1, 2),
            moves: Versions::new(4, 5),
            save: grow::saved,
            restore: grow::understood,
        });
        return rebec_vmm::main();
    }
    let later = Later {
        rebec: REBEC,
        peer: Versions::new(1, 2),
        moves: Versions::new(4, 5),
        body: grow::body,
        kind: (Kind(900), SAYING),
        question: "/internal/later",
    };
    rebec_cli::main_as(std::env::args_os(), Some(later))
}
