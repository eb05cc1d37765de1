//! Three machines boot the appliance's image, one of them with a wrong clock, and become a pool of two domains by tickets; a VM goes through all of
//! them and comes back. Then an agent is killed under ten VMs, the link between the domains is cut for a minute during a move, a host loses its power,
//! machines that find their tickets on the command line and on a USB stick take its place, and one is switched off by its button.

use anyhow::Result;
use rebec_lab::demo::{Options, pool::Short};

#[test]
fn machines_boot_the_image_and_their_pool_survives_what_befalls_it() -> Result<()> {
    let options = Options {
        other: None,
        local: false,
        short: true,
        two_vmms: false,
        accel: None,
        vmm: None,
        image: None,
        moves: 3,
        streams: 2,
        json: None,
    };
    let mut pool = Short::boot(&options)?;
    pool.clock_is_wrong()?;
    pool.join()?;
    pool.travel()?;
    let views = pool.views()?;
    for name in ["a1", "a2", "b1", "alpha", "beta", "web"] {
        assert!(views.contains(name), "{views}");
    }
    println!("{views}");
    pool.agent_restarts()?;
    pool.link_is_cut()?;
    pool.host_dies()?;
    pool.machines_join_by_themselves()?;
    pool.machine_is_switched_off()?;
    pool.succeeded();
    Ok(())
}
