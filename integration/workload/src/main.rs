//! Workload.
use std::io::BufRead as _;
fn main() {
    println!("workload runs");
    for line in std::io::stdin().lock().lines() { println!("echo {line:?}"); }
}
