//! How long a plan takes for a pool of 1,000 hosts, 10,000 VMs and 50 domains: its world laid from a book, and a place found for every VM anew. Prints a
//! name and a number a line; `cargo lab bench trade` judges them.

#[path = "../tests/made/mod.rs"]
mod made;

use std::time::Instant;

use made::{Chance, Made, NOW, Shape};
use rebec_book::view;
use rebec_pool::place::{Now, Want, World, plan};

const SHAPE: Shape = Shape { domains: 50, hosts: 1000, vms: 10_000, lent_of: 5, vm_mib: 2048 };
const RUNS: usize = 5;

fn main() {
    let made = Made::new(SHAPE, 7);
    let mut best = [f64::INFINITY; 2];
    let mut plans = vec![];
    for _ in 0..RUNS {
        let begun = Instant::now();
        let world = World::of(&made.book, NOW, |_| 1 << 30, |_| Now { answers: true, ..Now::default() });
        let laid = begun.elapsed();
        let wants = wants(&made, &world);
        let begun = Instant::now();
        let made_plan = plan(&world, &wants, 7);
        let planned = begun.elapsed();
        for (best, time) in best.iter_mut().zip([laid, planned]) {
            *best = best.min(time.as_secs_f64() * 1e3);
        }
        plans.push((made_plan, wants.len()));
    }
    let (first, wanted) = &plans[0];
    let reasons: usize = first.refusals.iter().map(|refusal| refusal.why.len()).sum();
    let unanswered = wanted - first.steps.len() - first.refusals.len() + first.refusals.iter().filter(|no| no.why.is_empty()).count();
    let differs = plans.iter().filter(|(other, _)| other != first).count();
    println!("plan-lay-ms {}\nplan-ms {}\nplan-both-ms {}", best[0], best[1], best[0] + best[1]);
    println!("plan-placed {}\nplan-refused {}\nplan-reasons {reasons}", first.steps.len(), first.refusals.len());
    println!("plan-unanswered {unanswered}\nplan-differs {differs}");
}

/// Every VM is to go elsewhere; of a hundred one is too large for any host.
fn wants(made: &Made, world: &World<'_>) -> Vec<Want> {
    let mut chance = Chance(7);
    let want = |(vm, _): &(_, _)| {
        let want = world.want_of(*vm).unwrap_or_default();
        let leaves = view::holder(&made.book, *vm).map(|at| at.host);
        let memory_bytes = if chance.below(100) == 0 { 1 << 40 } else { want.memory_bytes };
        Want { leaves, memory_bytes, ..want }
    };
    made.vms.iter().map(want).collect()
}
