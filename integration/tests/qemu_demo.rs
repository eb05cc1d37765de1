//! The demo as a test: two moves of a working VM between two machines, with stock kernels on real KVM, and every verdict right.

use rebec_lab::demo::{Options, story};

#[test]
fn a_vm_moves_there_and_back_while_it_works() {
    let options = Options {
        other: None,
        local: false,
        short: false,
        two_vmms: true,
        accel: None,
        vmm: None,
        image: None,
        moves: 2,
        streams: 2,
        json: None,
    };
    let report = story::tell(&options).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(report.is_right(), "{report}");
}
