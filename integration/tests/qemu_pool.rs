//! Three machines boot the appliance's image, become a pool of two domains by tickets, and a VM goes through all of them and comes back.

use rebec_lab::demo::{Options, pool};

#[test]
fn machines_boot_the_image_and_a_vm_moves_through_their_pool() {
    let options =
        Options { local: false, work: false, two_vmms: false, accel: None, vmm: None, image: None, moves: 3, streams: 2, json: None };
    let views = pool::tell_shortly(&options).unwrap_or_else(|error| panic!("{error:#}"));
    for name in ["a1", "a2", "b1", "alpha", "beta", "web"] {
        assert!(views.contains(name), "{views}");
    }
    println!("{views}");
}
