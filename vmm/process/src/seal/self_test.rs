//! `rebec-vmm seal-self-test` (hidden): seals itself as a VM would, and tries what the sandbox forbids.
//!
//! ```text
//! all layers but the list of system calls    tries everything, prints what happened as one JSON object
//! the list too                               hears one line on standard input: how to end, or what to try as a thread of which name
//! ```
//! The first shows that the lower layers hold by themselves; what the list forbids ends the process, so that takes a process each.
//! `tests/sealed.rs` reads, tells, and looks at the process from outside.

use std::{
    fs::{self, File},
    io::{self, BufRead, Read, Write},
    net::{TcpStream, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::fs::FileExt as _,
        unix::net::{SocketAddr, UnixStream},
    },
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::Context;
use nix::sched::{CloneFlags, unshare};
use rebec_cpu::Model;
use rebec_devices::Threads as _;
use rebec_kvm::{Machine, Ram};
use rustix::{
    net::{RecvAncillaryBuffer, RecvFlags, SocketAddrUnix, recvmsg},
    process::{DumpableBehavior, Resource, dumpable_behavior, geteuid, getpid, getppid, getrlimit},
    thread::{CapabilitySet, capabilities, capability_is_in_bounding_set, no_new_privs},
};
use serde_json::{Map, Value, json};

use super::{SealOptions, seal_but_for_calls};
use crate::{
    cli::SealSelfTest,
    listen::{listen, remove},
    threads::ServiceThreads,
};

/// Everything that must fail, and how it did.
pub fn run(options: &SealSelfTest) -> anyhow::Result<ExitCode> {
    let (listener, _file) = listen(&options.listen)?;
    let mut opened_before = File::open("/proc/self/status").context("open a file before sealing")?;
    let ram = Ram::new(1 << 20)?;
    let path = options.listen.clone();
    let (mut sealed, lists) = seal_but_for_calls(SealOptions { at_end: vec![Box::new(move || remove(&path))] })?;

    let report = json!({
        "errors": forbidden(options),
        "pid": getpid().as_raw_nonzero().get(),
        "parent_visible": getppid().is_some(),
        "uid": geteuid().as_raw(),
        "capabilities": held_capabilities()?,
        "no_new_privs": no_new_privs()?,
        "dumpable": dumpable_behavior()? != DumpableBehavior::NotDumpable,
        "core_limit": getrlimit(Resource::Core).maximum,
        "opened_before_reads": opened_before.read(&mut [0; 16])? > 0,
    });
    let mut out = io::stdout().lock();
    writeln!(out, "{report}")?;
    lists.enforce()?;
    writeln!(out, "listed")?;
    out.flush()?;
    drop(out);

    // A descriptor from before sealing goes on working: answer one connection.
    std::thread::Builder::new().name("self-test".into()).spawn(move || {
        if let Ok((mut stream, _)) = listener.accept() {
            stream.write_all(b"sealed\n").ok();
        }
    })?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    match line.trim().split_once(' ') {
        Some(("exit", code)) => Ok(ExitCode::from(code.parse::<u8>().context("exit code")?)),
        Some((thread, what)) => attempt(thread, what.to_owned(), opened_before, &ram).map(|()| ExitCode::SUCCESS),
        None => {
            let ending = sealed.stop.read();
            println!("stopped: {ending:?}");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Tries one thing as a thread of this name, with that thread's list, and prints how it went. The process may not outlive it.
fn attempt(thread: &str, what: String, file: File, ram: &Ram) -> anyhow::Result<()> {
    let ram = ram.clone();
    let body = move || match act(&what, file, &ram) {
        Ok(()) => println!("{what}: done"),
        Err(error) => println!("{what}: {error:#}"),
    };
    ServiceThreads.spawn(thread, Box::new(body))?.join().map_err(|_| anyhow::anyhow!("{thread}: panicked"))
}

/// Each begins with the system call that it is about, where no other is needed before.
fn act(what: &str, file: File, ram: &Ram) -> anyhow::Result<()> {
    match what {
        "open a file" => File::open("/").map(drop)?,
        "make a folder" => fs::create_dir("/new")?,
        "make a socket" => UdpSocket::bind("0.0.0.0:0").map(drop)?,
        "connect" => rustix::net::connect(&file, &SocketAddrUnix::new("/socket")?)?,
        "run a program" => Command::new("/bin/true").status().map(drop)?,
        "make a user namespace" => unshare(CloneFlags::CLONE_NEWUSER)?,
        "become root" => rustix::thread::set_thread_uid(rustix::process::Uid::ROOT)?,
        "signal a process" => rustix::process::test_kill_process(getpid())?,
        "ask a terminal" => rustix::termios::tcgetattr(&file).map(drop)?,
        "make a thread" => drop(std::thread::Builder::new().spawn(|| ())?.join()),
        "receive descriptors" => recvmsg(&file, &mut [], &mut RecvAncillaryBuffer::default(), RecvFlags::DONTWAIT).map(drop)?,
        "write into a file" => file.write_all_at(b"x", 0)?,
        "make memory for a guest" => Ram::new(1 << 20).map(drop)?,
        "make a machine" => Machine::create(file, ram, 1, &Model::Host).map(drop)?,
        "panic" => panic!("on purpose"),
        "abort" => std::process::abort(),
        _ => anyhow::bail!("nobody knows what that is"),
    }
    Ok(())
}

/// The name of each forbidden thing with its error, or null where it worked.
fn forbidden(options: &SealSelfTest) -> Value {
    let mut tried = Map::new();
    let mut tell = |what: &str, result: io::Result<()>| {
        tried.insert(what.to_owned(), result.err().map_or(Value::Null, |error| error.to_string().into()));
    };
    for path in ["/", ".", "..", "/proc", "/proc/self/status", "/etc/passwd", "/dev/null", "/dev/kvm", "/sys", "/tmp"] {
        tell(&format!("open {path}"), File::open(path).map(drop));
    }
    tell("create a file", File::create("/new").map(drop));
    tell("create a folder", fs::create_dir("/new"));
    tell("list the root", fs::read_dir("/").map(drop));
    tell("connect by TCP", TcpStream::connect_timeout(&options.tcp, Duration::from_secs(2)).map(drop));
    tell("send by UDP", UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"x", options.tcp)).map(drop));
    tell("connect to its own socket by path", UnixStream::connect(&options.listen).map(drop));
    let hidden = SocketAddr::from_abstract_name(b"rebec-self-test").and_then(|address| UnixStream::connect_addr(&address));
    tell("connect to an abstract socket", hidden.map(drop));
    tell("make a user namespace", unshare(CloneFlags::CLONE_NEWUSER).map_err(io::Error::from));
    tell("make a mount namespace", unshare(CloneFlags::CLONE_NEWNS).map_err(io::Error::from));
    tell("run a program", Command::new("/bin/true").status().map(drop));
    tell("become root", rustix::thread::set_thread_uid(rustix::process::Uid::ROOT).map_err(io::Error::from));
    Value::Object(tried)
}

fn held_capabilities() -> io::Result<Value> {
    let own = capabilities(None)?;
    let bounding = (0..u64::BITS)
        .filter(|number| capability_is_in_bounding_set(CapabilitySet::from_bits_retain(1 << number)).unwrap_or(false))
        .fold(0, |set, number| set | 1_u64 << number);
    Ok(json!({
        "effective": own.effective.bits(),
        "permitted": own.permitted.bits(),
        "inheritable": own.inheritable.bits(),
        "bounding": bounding,
    }))
}
