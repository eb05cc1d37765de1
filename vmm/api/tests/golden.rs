//! Lines of the control socket as each version writes them (`golden/control-vN.txt`): a VMM outlives its agent, so a later agent reads these
//! from VMMs of the version before, and they from it. A line that is there is never changed.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fmt::Debug;

use rebec_vmm_api::control::{Hello, Request, Response, VmState};
use serde::{Serialize, de::DeserializeOwned};

const KEPT: &str = include_str!("golden/control-v1.txt");

/// Reads a line, and writes it as it was.
fn kept<T: Serialize + DeserializeOwned + Debug>(line: &str) -> T {
    let value: T = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    assert_eq!(serde_json::to_string(&value).unwrap(), line);
    value
}

#[test]
fn lines_that_were_kept_are_read_and_written_as_they_were() {
    let mut lines = 0;
    for line in KEPT.lines() {
        let (what, line) = line.split_once(' ').unwrap();
        match what {
            "hello" => assert_eq!(kept::<Hello>(line).agree(), Ok(1)),
            "request" => assert_eq!(Request::read(line.as_bytes()).unwrap(), kept::<Request>(line)),
            "answer" => {
                let answer: Response = kept(line);
                assert!(!format!("{answer:?}").contains(&format!("{:?}", VmState::Other)), "{line}");
            }
            other => panic!("{other}: what is kept is a hello, a request or an answer"),
        }
        lines += 1;
    }
    assert_eq!(lines, 38, "something that was kept is not there any more");
}
