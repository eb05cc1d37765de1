//! The pool's demo as a test: three machines from the appliance's image, two domains by tickets, a working VM moves within and
//! between the domains, and every verdict is right.

use rebec_lab::demo::{Options, pool};

#[test]
fn a_vm_moves_through_a_pool_of_two_domains_while_it_works() {
    let options = Options { local: false, two_vmms: false, accel: None, vmm: None, image: None, moves: 3, streams: 2, json: None };
    let (report, views) = pool::tell(&options).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(report.is_right(), "{report}{views}");
    for name in ["a1", "a2", "b1", "web", "client"] {
        assert!(views.contains(name), "{views}");
    }
}
