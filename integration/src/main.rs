//! `cargo lab`.
use rebec_lab::{
    channel,
    qemu::{Lab, LabConfig, Shape, image::Share},
};
fn main() -> anyhow::Result<()> {
    let p = rebec_lab::provision::provision()?;
    let lab = Lab::start(
        &p,
        &LabConfig {
            name: "proto",
            machines: &["a", "b"],
            accel: None,
            memory_mib: 2048,
            vcpus: 2,
            share: Share::default().with("x/y", std::path::Path::new("/etc/hostname")),
            link: Shape { rate_mbit: Some(100), delay: std::time::Duration::from_millis(10), ..Shape::default() },
        },
    )?;
    lab.check_kvm()?;
    println!("{}", lab.machines[0].shell("uname -a; ls -l /dev/kvm /share /share/x; dmesg | tail -5; ping -c 5 10.0.0.2; cat /sys/devices/system/clocksource/clocksource0/current_clocksource; free -m")?);
    for _ in 0..5 {
        println!("{:?}", lab.machines[1].clock_offset()?);
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
    println!("{:?}", lab.set_clocks()?);
    Ok(())
}
