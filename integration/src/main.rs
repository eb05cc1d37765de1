//! `cargo lab`.
fn main() -> anyhow::Result<()> {
    let p = rebec_lab::provision::provision()?;
    println!("{:?} {:?} {:?}", p.lab, p.guest, p.guest_12);
    Ok(())
}
