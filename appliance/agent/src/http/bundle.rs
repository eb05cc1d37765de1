//! `GET /v1/support-bundle`: what somebody needs who is asked why this host or a VM of it does not do what it should, as a tar file.
//! It holds no key, ticket or token, and no kernel command line: those may carry passwords.

use std::sync::Arc;

use anyhow::{Context, Result};
use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use rebec_host::said;
use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use super::{answer::Failure, pools, shown};
use crate::{agent::Agent, chance::now_s, facts, logs, screen, tokens, vm::LocalVm};

/// Of each text of a VM, its end.
const TAIL_BYTES: u64 = 64 << 10;
/// VMs whose texts are in it; all are in the list.
const VMS_MAX: usize = 64;
/// Of the kernel's messages, the last.
const KERNEL_BYTES_MAX: usize = 256 << 10;
/// Longest message of the kernel (Documentation/ABI/testing/dev-kmsg).
const MESSAGE_BYTES_MAX: usize = 8 << 10;
/// Messages that are read: more than the kernel's ring holds.
const MESSAGES_MAX: usize = 100_000;
/// What stands in the place of a secret.
const LEFT_OUT: &str = "[left out]";

/// `GET /v1/support-bundle`
pub async fn show(State(agent): State<Arc<Agent>>) -> Result<Response, Failure> {
    let bytes = tokio::task::spawn_blocking(move || bundle(&agent)).await.map_err(anyhow::Error::from)??;
    let headers =
        [(header::CONTENT_TYPE, "application/x-tar"), (header::CONTENT_DISPOSITION, "attachment; filename=\"rebec-support.tar\"")];
    Ok((headers, bytes).into_response())
}

fn bundle(agent: &Agent) -> Result<Vec<u8>> {
    let mut bundle = Bundle { tar: tar::Builder::new(vec![]), time: now_s() };
    bundle.text("version.txt", &format!("rebec {}\n{}\n", env!("CARGO_PKG_VERSION"), kernel_version()))?;
    bundle.json("host.json", &screen::screen(&agent.screen))?;
    bundle.json("facts.json", &Facts::of(agent))?;
    bundle.json("pool.json", &pools::pool_status(agent))?;
    bundle.json("jobs.json", &agent.jobs.all())?;
    let lists = agent.knowledge.read(|book| {
        let mut images = shown::images(book);
        images.iter_mut().filter(|image| !image.cmdline.is_empty()).for_each(|image| image.cmdline = LEFT_OUT.to_owned());
        (shown::domains(book), shown::hosts(agent, book), shown::vms(agent, book), shown::lans(book), images)
    });
    if let Some((domains, hosts, vms, lans, images)) = lists {
        bundle.json("domains.json", &domains)?;
        bundle.json("hosts.json", &hosts)?;
        bundle.json("vms.json", &vms)?;
        bundle.json("lans.json", &lans)?;
        bundle.json("images.json", &images)?;
    }
    bundle.text("agent.log", &logs::tail())?;
    bundle.text("kernel.log", &kernel_messages())?;
    for vm in agent.vms.all().iter().take(VMS_MAX) {
        bundle.vm(vm)?;
    }
    bundle.tar.into_inner().context("support bundle")
}

struct Bundle {
    tar: tar::Builder<Vec<u8>>,
    time: u64,
}

impl Bundle {
    fn json(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        self.text(name, &serde_json::to_string_pretty(value)?)
    }

    /// Everything passes here, and leaves its secrets.
    fn text(&mut self, name: &str, text: &str) -> Result<()> {
        let text = without_secrets(text);
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o600);
        header.set_mtime(self.time);
        header.set_size(text.len() as u64);
        self.tar
            .append_data(&mut header, format!("rebec-support/{name}"), text.as_bytes())
            .with_context(|| format!("support bundle: {name}"))
    }

    /// Under its id: a name may hold anything.
    fn vm(&mut self, vm: &LocalVm) -> Result<()> {
        let id = vm.id();
        for file in ["vmm.log.1", "vmm.log", "console.log.1", "console.log"] {
            if let Ok(tail) = said::tail_of(&vm.folder.join(file), TAIL_BYTES) {
                self.text(&format!("vms/{id}/{file}"), &tail)?;
            }
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Facts {
    cpus: u32,
    memory_bytes: u64,
    disk_bytes: u64,
    disk_free_bytes: u64,
    no_kvm: Option<String>,
    addresses: Vec<std::net::IpAddr>,
    boot_id: String,
    durable: bool,
    parts: usize,
}

impl Facts {
    fn of(agent: &Agent) -> Self {
        let (disk_bytes, disk_free_bytes) = agent.host.disk_bytes();
        Self {
            cpus: facts::cpus(),
            memory_bytes: agent.host.memory_bytes(),
            disk_bytes,
            disk_free_bytes,
            no_kvm: facts::no_kvm(),
            addresses: facts::addresses(),
            boot_id: facts::boot_id(),
            durable: agent.bulletin.is_durable(),
            parts: agent.host.depot.list().len(),
        }
    }
}

fn kernel_version() -> String {
    let uname = rustix::system::uname();
    [uname.sysname(), uname.release(), uname.version(), uname.machine()].map(|word| word.to_string_lossy()).join(" ")
}

/// What the kernel said last, where this process may read it.
fn kernel_messages() -> String {
    let opened = rustix::fs::open("/dev/kmsg", OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let kmsg = match opened {
        Ok(kmsg) => kmsg,
        Err(error) => return format!("/dev/kmsg: {error}\n"),
    };
    let mut text = String::new();
    let mut message = vec![0; MESSAGE_BYTES_MAX];
    for _ in 0..MESSAGES_MAX {
        match rustix::io::read(&kmsg, &mut message) {
            Ok(count) => text.push_str(&String::from_utf8_lossy(&message[..count])),
            // Overwritten meanwhile: the next is there.
            Err(rustix::io::Errno::PIPE) => {}
            Err(_) => break,
        }
        if text.len() > 2 * KERNEL_BYTES_MAX {
            let cut = text.ceil_char_boundary(text.len() - KERNEL_BYTES_MAX);
            text.drain(..cut);
        }
    }
    text
}

/// What is shorter is a word about a secret, or too little of one.
const SECRET_BYTES_MIN: usize = 16;

/// A text without tickets, tokens and kernel command lines, which kernels print and which may carry either.
fn without_secrets(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut is_broken = false;
    for line in text.split_inclusive('\n') {
        // A secret that the end of a line has broken goes on in the next.
        let goes_on = line.bytes().take_while(u8::is_ascii_alphanumeric).count();
        let rest = if is_broken && goes_on >= SECRET_BYTES_MIN {
            clean.push_str(LEFT_OUT);
            &line[goes_on..]
        } else {
            line
        };
        let without = line_without_secrets(rest);
        is_broken = without.trim_end().ends_with(LEFT_OUT) || rest.len() < line.len() && rest.trim_end().is_empty();
        clean.push_str(&without);
    }
    clean
}

fn line_without_secrets(line: &str) -> String {
    const CMDLINE: &str = "command line:";
    let lower = line.to_ascii_lowercase();
    if let Some(at) = lower.find(CMDLINE) {
        let end = if line.ends_with('\n') { "\n" } else { "" };
        return format!("{} {LEFT_OUT}{end}", &line[..at + CMDLINE.len()]);
    }
    let mut clean = String::with_capacity(line.len());
    let mut at = 0;
    while let Some(found) =
        ["rebec1", tokens::PREFIX].iter().filter_map(|prefix| Some((at + lower[at..].find(prefix)?, prefix.len()))).min()
    {
        let (start, prefix) = found;
        let rest = &line[start + prefix..];
        let length = rest.bytes().take_while(u8::is_ascii_alphanumeric).count();
        clean.push_str(&line[at..start]);
        // Shorter ones are words about tickets.
        clean.push_str(if length >= SECRET_BYTES_MIN { LEFT_OUT } else { &line[start..start + prefix + length] });
        at = start + prefix + length;
    }
    clean + &line[at..]
}
