//! `rebec agent`: what the program that runs on every host is told.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;
use rebec_cpu::Model;
use rebec_vmm_api::MemorySize;

/// Options of `agent`.
#[derive(Args, Debug)]
pub struct ServeOptions {
    /// Folder for everything that survives a restart: keys, records, disks, images
    #[arg(long, value_name = "DIR", default_value = "/var/lib/rebec")]
    pub state: PathBuf,
    /// UDP port that other hosts reach this one at
    #[arg(long, value_name = "N", default_value_t = rebec_agent::MESH_PORT)]
    pub port: u16,
    /// TCP port of the API, with TLS; 0 leaves only the Unix socket
    #[arg(long, value_name = "N", default_value_t = rebec_api::API_PORT)]
    pub api_port: u16,
    /// Address that other hosts use, and LANs if it is IPv4 [default: other hosts all of them, LANs the first of IPv4]
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Name in the pool [default: the machine's host name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Memory that VMs may have, all together [default: all but 256 MiB]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,
    /// The most that VMs are given of this host's processor, so that what starts here can go to lesser hosts
    #[arg(long, value_name = "host|x86-64-v2|x86-64-v3|x86-64-v4|only:SET", default_value = "host")]
    pub cpu_max: Model,
    /// The program that runs one VM
    #[arg(long, value_name = "FILE", default_value = "rebec-vmm")]
    pub vmm: PathBuf,
    /// File with a ticket to join with, if this host belongs to no pool
    #[arg(long, value_name = "FILE")]
    pub join_file: Option<PathBuf>,
    /// State is lost at a reboot: say so to the pool
    #[arg(long)]
    pub volatile: bool,
    /// Keep the status screen's file here
    #[arg(long, value_name = "FILE")]
    pub screen: Option<PathBuf>,
    /// Bring the machine's network links up: DHCP, or --ip
    #[arg(long)]
    pub bring_up_links: bool,
    /// A fixed address in place of DHCP
    #[arg(long, value_name = "ADDRESS/LENGTH[,GATEWAY][@LINK]", requires = "bring_up_links")]
    pub ip: Option<rebec_agent::Addressing>,
    /// VLANs to be on in place of what links carry without a tag
    #[arg(long, value_name = "NUMBER[@LINK]", value_delimiter = ',', requires = "bring_up_links")]
    pub vlan: Vec<rebec_agent::Vlan>,
    /// Keep the machine's clock right, by time servers that DHCP names
    #[arg(long)]
    pub keep_time: bool,
    /// Time servers in place of those that DHCP names
    #[arg(long, value_name = "ADDRESS[,ADDRESS]", value_delimiter = ',', requires = "keep_time")]
    pub ntp: Vec<IpAddr>,
}
