//! A stand-in for the `rebec` program, to boot images without it: PID 1 and module loader are the real ones, `agent` only writes a
//! screen and waits, `pool join` only answers. Two tickets do more: `rebec-end` ends the agent, `rebec-off` asks PID 1 to power off.

use std::{fs, path::Path, time::Duration};

use rebec_api::screen::{Join, Kvm, Screen};

fn main() {
    rebec_init::take_over();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let after = |name: &str| words.iter().skip_while(|word| *word != name).nth(1).cloned();
    match words.first().map(String::as_str) {
        Some("agent") => agent(after("--screen"), after("--join-file"), words.join(" ")),
        Some("pool") => join(words.last().map_or("", String::as_str)),
        _ => eprintln!("usage: init agent --screen FILE | init pool join TICKET"),
    }
}

const END: &str = "/run/rebec/end";

fn join(ticket: &str) {
    println!("joined pool example by a ticket of {} letters", ticket.len());
    let done = match ticket {
        "rebec-end" => fs::write(END, ""),
        "rebec-off" => nix::sys::signal::kill(nix::unistd::Pid::from_raw(1), nix::sys::signal::Signal::SIGUSR1).map_err(Into::into),
        _ => Ok(()),
    };
    if let Err(error) = done {
        println!("{ticket}: {error}");
    }
}

fn agent(screen: Option<String>, ticket: Option<String>, words: String) {
    println!("stand-in: {words}");
    let kvm = match Path::new("/dev/kvm").exists() {
        true => Kvm::Ready,
        false => Kvm::Absent { reason: "no /dev/kvm; switch virtualisation on in the firmware".to_owned() },
    };
    let adapters: Vec<String> =
        fs::read_dir("/sys/class/net").into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    println!("stand-in: adapters {}", adapters.join(" "));
    let join = match ticket.and_then(|path| fs::read_to_string(path).ok()) {
        Some(ticket) => Join::Joining { what: format!("with a ticket of {} letters", ticket.trim().len()) },
        None => Join::Alone,
    };
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let said = Screen {
        version,
        host,
        fingerprint: "0123456789abcdef".repeat(4),
        addresses: Vec::new(),
        api: None,
        clock: None,
        kvm,
        join,
        vms: 0,
    };
    if let (Some(path), Ok(text)) = (screen, serde_json::to_string(&said)) {
        let fresh = format!("{path}.new");
        if fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path)).is_err() {
            eprintln!("stand-in: cannot write {path}");
        }
    }
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    println!("stand-in: ready at {} s", uptime.split_whitespace().next().unwrap_or_default());
    while fs::remove_file(END).is_err() {
        std::thread::sleep(Duration::from_millis(200));
    }
    std::process::exit(3);
}
