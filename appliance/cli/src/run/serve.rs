//! `rebec agent`: becomes the agent of this host.

use std::{fs, path::PathBuf};

use rebec_agent::{Later, Options};

use crate::{
    args::agent::ServeOptions,
    failure::{Exit, Failure},
};

/// Runs the agent until a signal ends it.
pub fn agent(options: ServeOptions, socket: Option<PathBuf>, later: Option<Later>) -> Exit {
    let ticket = match options.join_file.as_ref().map(fs::read_to_string) {
        None => None,
        Some(Ok(text)) => Some(text),
        // A ticket that is not there yet is no reason for a host to stay silent: its screen and its log say what is missing.
        Some(Err(error)) => {
            eprintln!("rebec agent: --join-file: {error}; join later with `rebec pool join`");
            None
        }
    };
    let run = rebec_agent::run(Options {
        state: options.state,
        socket: socket.unwrap_or_else(|| rebec_api::SOCKET.into()),
        port: options.port,
        api_port: options.api_port,
        vmm: options.vmm,
        name: options.name,
        address: options.address,
        memory_bytes: options.memory.map(rebec_vmm_api::MemorySize::bytes),
        cpu_max: options.cpu_max,
        durable: !options.volatile,
        screen: options.screen,
        vlans: options.vlan,
        links: options.bring_up_links.then(|| options.ip.unwrap_or(rebec_agent::Addressing::Dhcp)),
        time: options.keep_time.then_some(options.ntp),
        ticket,
        later,
    });
    match run {
        Ok(()) => Exit::Done,
        Err(error) => Failure::Here(format!("agent: {error:#}")).tell(),
    }
}
