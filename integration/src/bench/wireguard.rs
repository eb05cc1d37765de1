//! A user-space WireGuard between the lab's two machines: boringtun's own program, built from its published crate, told its keys over its socket.

use std::{
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{command::Program, netlab::NetLab, paths};

const VERSION: &str = "0.7.1";
/// A build on a busy machine.
const BUILD_DEADLINE: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(10);
/// Secret and public keys of this bench alone.
const KEYS: [[&str; 2]; 2] = [
    [
        "1111111111111111111111111111111111111111111111111111111111111111",
        "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13",
    ],
    [
        "2222222222222222222222222222222222222222222222222222222222222222",
        "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20",
    ],
];
const PORT: u16 = 51_820;

/// Both ends; their processes end with it.
pub struct Tunnel {
    ends: Vec<Child>,
}

impl Tunnel {
    /// The address of an end, 1 or 2.
    pub fn address(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 9, 0, number)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        for end in &mut self.ends {
            end.kill().ok();
            end.wait().ok();
        }
    }
}

/// Builds the program, if that was not done before.
fn program() -> Result<PathBuf> {
    let root = paths::lab().join("boringtun");
    let program = root.join("bin/boringtun-cli");
    if !program.exists() {
        Program::new("cargo")
            .args(["install", "--quiet", "--locked", "--version", VERSION, "--root"])
            .arg(&root)
            .arg("boringtun-cli")
            .deadline(BUILD_DEADLINE)
            .quiet()
            .context("build boringtun")?;
    }
    Ok(program)
}

/// Starts both ends and gives each the other's key.
pub fn start(lab: &NetLab) -> Result<Tunnel> {
    let program = program()?;
    let mut tunnel = Tunnel { ends: Vec::new() };
    for (own, machine) in lab.machines.iter().take(2).enumerate() {
        // Its socket's place is the same in every network namespace, so its name is not.
        let device = format!("wgb{}x{own}", std::process::id() % 100_000);
        let mut command = Command::new(&program);
        command.args([&device, "--foreground", "--disable-drop-privileges"]);
        tunnel.ends.push(machine.spawn({
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        })?);
        let far = lab.machines[1 - own].address();
        let peer =
            format!("public_key={}\nendpoint={far}:{PORT}\nreplace_allowed_ips=true\nallowed_ip=10.9.0.{}/32\n", KEYS[1 - own][1], 2 - own);
        configure(&device, &format!("set=1\nprivate_key={}\nlisten_port={PORT}\n{peer}\n", KEYS[own][0]))?;
        machine.ip(&["addr", "add", &format!("10.9.0.{}/24", own + 1), "dev", &device])?;
        machine.ip(&["link", "set", &device, "mtu", "1420", "up"])?;
    }
    Ok(tunnel)
}

fn configure(device: &str, words: &str) -> Result<()> {
    let path = Path::new("/var/run/wireguard").join(format!("{device}.sock"));
    let start = Instant::now();
    let mut socket = loop {
        match UnixStream::connect(&path) {
            Ok(socket) => break socket,
            Err(error) if start.elapsed() >= SHORT => return Err(error).with_context(|| format!("connect to {}", path.display())),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    socket.set_read_timeout(Some(SHORT))?;
    socket.write_all(words.as_bytes())?;
    let (mut answer, mut chunk) = (String::new(), [0; 256]);
    while !answer.ends_with("\n\n") {
        let count = socket.read(&mut chunk)?;
        ensure!(count > 0, "boringtun closed its socket after `{answer}`");
        answer += &String::from_utf8_lossy(&chunk[..count]);
    }
    ensure!(answer.contains("errno=0"), "boringtun said `{}`", answer.trim());
    Ok(())
}
