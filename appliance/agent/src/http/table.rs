//! The table of the API for users: each line is a route and its place in the OpenAPI document.

use rebec_api::{
    audit::{AuditRow, AuditVerdict},
    host::{DeclareDead, DrainHost, HostInfo, HostVerdict, RoadInfo, SetHost, SetRole},
    image::{ImageInfo, NewImage, Part},
    job::Job,
    lan::{LanInfo, NewLan, SetLan, VmTraffic},
    pool::{DomainInfo, DomainKey, InitPool, Invitation, Invite, Invited, JoinPool, PoolStatus},
    token::{CreatedToken, NewToken, Token},
    trade::{AccountLine, ContractInfo, Demand, NewContract, PlanInfo, PolicyInfo, Proposed, RecallContract, SetPolicy, VmWhy},
    user::{NewUser, User},
    vm::{MoveVm, NewVm, ResizeDisk, SetVm, StopVm, VmDisk, VmInfo},
};
use rebec_book::{authority::Command, record::Kind};
use utoipa::openapi::{
    path::HttpMethod::{Delete, Get, Post, Put},
    schema::Type,
};

use super::{
    audit, bundle, capture, disks, hosts, images, jobs, lans, metrics,
    openapi::{self, Row, row},
    placing, pools, roads, set, streams, tokens, trade, traffic, users, vms,
};

const TEXT: &str = "text/plain; charset=utf-8";
const PCAPNG: &str = "application/x-pcapng";
const TAR: &str = "application/x-tar";
const EVENTS: &str = "text/event-stream";

/// All of `/v1`.
pub fn rows() -> Vec<Row> {
    [pool_rows(), host_rows(), thing_rows(), vm_rows(), trade_rows(), own_rows()].into_iter().flatten().collect()
}

fn pool_rows() -> Vec<Row> {
    vec![
        row(Command::PoolShow, Get, "/v1/pool", "How this host stands with its pool", pools::status).answers::<PoolStatus>(),
        row(Command::PoolInit, Post, "/v1/pool", "Found a pool and its first domain", pools::init)
            .takes::<InitPool>()
            .answers::<PoolStatus>(),
        row(Command::PoolJoin, Post, "/v1/pool/join", "Join a pool by a ticket", pools::join).takes::<JoinPool>().answers::<PoolStatus>(),
        row(Command::PoolLeave, Post, "/v1/pool/leave", "Leave the pool; VMs must have gone", pools::leave).answers::<PoolStatus>(),
        row(Command::DomainList, Get, "/v1/domains", "Domains of the pool", pools::domains).lists::<DomainInfo>(),
        row(
            Command::DomainKeyExport,
            Post,
            "/v1/domain-key/export",
            "The root key of this host's domain, for a place of its own",
            pools::export_key,
        )
        .answers::<DomainKey>(),
        row(Command::DomainKeyImport, Post, "/v1/domain-key/import", "Give this host the root key of its domain", pools::import_key)
            .takes::<DomainKey>(),
        row(Command::DomainInvite, Post, "/v1/domains/invite", "Invite a host that founds a domain", pools::invite_domain)
            .takes::<Invite>()
            .answers::<Invited>(),
        row(Command::InvitationList, Get, "/v1/invitations", "Invitations that are open", pools::invitations).lists::<Invitation>(),
        row(Command::InvitationRevoke, Delete, "/v1/invitations/{id}", "Revoke an invitation", pools::revoke),
    ]
}

fn host_rows() -> Vec<Row> {
    vec![
        row(Command::HostList, Get, "/v1/hosts", "Hosts of the pool", hosts::list).lists::<HostInfo>(),
        row(Command::HostInvite, Post, "/v1/hosts/invite", "Invite hosts to this host's domain", pools::invite_host)
            .takes::<Invite>()
            .answers::<Invited>(),
        row(Command::HostShow, Get, "/v1/hosts/{name}", "One host", hosts::show).about(Kind::MEMBER).answers::<HostInfo>(),
        row(Command::HostRoads, Get, "/v1/hosts/{name}/roads", "How a host reaches the others, asked of that host", roads::show)
            .about(Kind::MEMBER)
            .lists::<RoadInfo>(),
        row(Command::HostDrain, Post, "/v1/hosts/{name}/drain", "Let a host take no more VMs, or take them again", hosts::drain)
            .about(Kind::MEMBER)
            .takes::<DrainHost>()
            .answers::<HostInfo>(),
        row(
            Command::HostDeclareDead,
            Post,
            "/v1/hosts/{name}/declare-dead",
            "Say that a host does not run and will not",
            hosts::declare_dead,
        )
        .about(Kind::MEMBER)
        .takes::<DeclareDead>()
        .answers::<HostInfo>(),
        row(Command::HostSetRole, Post, "/v1/hosts/{name}/role", "Say what root at a host may do in its domain", hosts::set_role)
            .about(Kind::MEMBER)
            .takes::<SetRole>()
            .answers::<HostInfo>(),
        row(Command::HostSet, Post, "/v1/hosts/{name}/set", "Give a host labels, or take them from it", placing::set_host)
            .about(Kind::MEMBER)
            .takes::<SetHost>()
            .answers::<HostInfo>(),
    ]
}

fn thing_rows() -> Vec<Row> {
    vec![
        row(Command::PartPut, Put, "/v1/parts", "Put a file into the depot", images::put_part).takes_file().answers::<Part>(),
        row(Command::ImageList, Get, "/v1/images", "Images of the pool", images::list).lists::<ImageInfo>(),
        row(Command::ImageCreate, Post, "/v1/images", "Make an image of parts", images::create).takes::<NewImage>().answers::<ImageInfo>(),
        row(Command::ImageRemove, Delete, "/v1/images/{name}", "Remove an image", images::remove).about(Kind::IMAGE),
        row(Command::LanList, Get, "/v1/lans", "LANs of the pool", lans::list).lists::<LanInfo>(),
        row(Command::LanCreate, Post, "/v1/lans", "Make a LAN", lans::create).takes::<NewLan>().answers::<LanInfo>(),
        row(Command::LanShow, Get, "/v1/lans/{name}", "One LAN and its ports", lans::show).about(Kind::LAN).answers::<LanInfo>(),
        row(Command::LanSet, Post, "/v1/lans/{name}/set", "Change what a LAN's ports may pass", lans::set)
            .about(Kind::LAN)
            .takes::<SetLan>()
            .answers::<LanInfo>(),
        row(Command::LanRemove, Delete, "/v1/lans/{name}", "Remove a LAN that no VM is on", lans::remove).about(Kind::LAN),
    ]
}

fn vm_rows() -> Vec<Row> {
    vec![
        row(Command::VmList, Get, "/v1/vms", "VMs of the pool", vms::list).lists::<VmInfo>(),
        row(Command::VmCreate, Post, "/v1/vms", "Run a new VM; the job's result is the VM", vms::create).takes::<NewVm>().begins_job(),
        row(Command::VmExplain, Post, "/v1/explain", "Where a VM would go, and what each host says; none is run", placing::explain)
            .takes::<NewVm>()
            .lists::<HostVerdict>(),
        row(Command::VmShow, Get, "/v1/vms/{name}", "One VM", vms::show).about(Kind::VM).answers::<VmInfo>(),
        row(Command::VmRemove, Delete, "/v1/vms/{name}", "Remove a stopped VM and its disk", vms::remove).about(Kind::VM),
        row(Command::VmStart, Post, "/v1/vms/{name}/start", "Start a VM from its disk", vms::start).about(Kind::VM).begins_job(),
        row(
            Command::VmStop,
            Post,
            "/v1/vms/{name}/stop",
            "Ask a VM's guest to power itself off, and cut its power if it does not",
            vms::stop,
        )
        .about(Kind::VM)
        .takes::<StopVm>()
        .begins_job(),
        row(Command::VmMove, Post, "/v1/vms/{name}/move", "Move a running VM; the job's result is the report", vms::depart)
            .about(Kind::VM)
            .takes::<MoveVm>()
            .begins_job(),
        row(Command::VmResizeDisk, Post, "/v1/vms/{name}/resize-disk", "Make a disk of a VM larger, while it runs or not", disks::resize)
            .about(Kind::VM)
            .takes::<ResizeDisk>()
            .answers::<VmInfo>(),
        row(Command::VmSet, Post, "/v1/vms/{name}/set", "Change what a VM may take of its host, while it runs or not", set::set)
            .about(Kind::VM)
            .takes::<SetVm>()
            .answers::<VmInfo>(),
        row(Command::VmDiskAdd, Post, "/v1/vms/{name}/disks", "Give a stopped VM another disk", disks::add)
            .about(Kind::VM)
            .takes::<VmDisk>()
            .answers::<VmInfo>(),
        row(
            Command::VmDiskRemove,
            Delete,
            "/v1/vms/{name}/disks/{disk}",
            "Take a disk from a stopped VM, with what is on it",
            disks::remove,
        )
        .about(Kind::VM)
        .answers::<VmInfo>(),
        row(Command::VmTraffic, Get, "/v1/vms/{name}/traffic", "Whom a VM talks to on its LANs, lately", traffic::show)
            .about(Kind::VM)
            .answers::<VmTraffic>(),
        row(Command::VmCapture, Get, "/v1/vms/{name}/capture", "What passes a port of a VM from now on, as pcapng", capture::show)
            .about(Kind::VM)
            .query("net", "The NIC, by its MAC; the first where none is said", Type::String)
            .query("filter", "Which frames, as in `tcp and port 80`; all where nothing is said", Type::String)
            .query("seconds", "For how long; 60 where nothing is said", Type::Integer)
            .query("max_bytes", "How much at most; 64 MiB where nothing is said", Type::Integer)
            .streams(PCAPNG),
        row(Command::VmLogs, Get, "/v1/vms/{name}/logs", "The console's text", streams::logs)
            .about(Kind::VM)
            .query("tail", "Only the last bytes, this many", Type::Integer)
            .query("follow", "Go on with what the guest says next", Type::Boolean)
            .streams(TEXT),
        row(Command::VmConsole, Get, "/v1/vms/{name}/console", "The console itself", streams::console).about(Kind::VM).upgrades(),
        row(Command::VmForward, Get, "/v1/vms/{name}/forward/{port}", "A TCP connection into the guest", streams::reach)
            .about(Kind::VM)
            .upgrades(),
    ]
}

fn trade_rows() -> Vec<Row> {
    vec![
        row(Command::VmWhy, Get, "/v1/vms/{name}/why", "Why a VM is where it is", trade::why).about(Kind::VM).answers::<VmWhy>(),
        row(Command::PolicyShow, Get, "/v1/policy", "The domain's policy of lending and borrowing", trade::policy).answers::<PolicyInfo>(),
        row(Command::PolicySet, Post, "/v1/policy", "Set the policy, and make this host the domain's broker", trade::set_policy)
            .takes::<SetPolicy>()
            .answers::<PolicyInfo>(),
        row(Command::ContractList, Get, "/v1/contracts", "Contracts with other domains", trade::contracts).lists::<ContractInfo>(),
        row(Command::ContractShow, Get, "/v1/contracts/{id}", "One contract", trade::contract).answers::<ContractInfo>(),
        row(Command::ContractPropose, Post, "/v1/contracts", "Ask another domain for machines", trade::propose)
            .takes::<NewContract>()
            .answers::<Proposed>(),
        row(Command::ContractAccept, Post, "/v1/contracts/{id}/accept", "Sign a proposal that waits for an operator", trade::accept)
            .answers::<ContractInfo>(),
        row(Command::ContractRecall, Post, "/v1/contracts/{id}/recall", "Call a machine back, or give it back", trade::recall)
            .takes::<RecallContract>()
            .answers::<ContractInfo>(),
        row(Command::DemandSet, Post, "/v1/demand", "Say what the domain's work wants, in machines", trade::set_demand).takes::<Demand>(),
        row(Command::TradePlan, Get, "/v1/plan", "What the domain's broker would do now, and what not, with reasons", trade::plan)
            .answers::<PlanInfo>(),
        row(Command::AccountShow, Get, "/v1/account", "What was lent and borrowed, by contract and month", trade::account)
            .lists::<AccountLine>(),
    ]
}

fn own_rows() -> Vec<Row> {
    vec![
        row(Command::UserList, Get, "/v1/users", "Users of this host's domain", users::list).lists::<User>(),
        row(Command::UserAdd, Post, "/v1/users", "Give a key a role in this host's domain", users::add)
            .takes::<NewUser>()
            .answers::<User>(),
        row(Command::UserRemove, Delete, "/v1/users/{name}", "Take a user's role back", users::remove),
        row(Command::TokenList, Get, "/v1/tokens", "Tokens of this host", tokens::list).lists::<Token>(),
        row(Command::TokenCreate, Post, "/v1/tokens", "Make a token, which is shown once", tokens::create)
            .takes::<NewToken>()
            .answers::<CreatedToken>(),
        row(Command::TokenRemove, Delete, "/v1/tokens/{name}", "Remove a token", tokens::remove),
        row(Command::JobList, Get, "/v1/jobs", "Jobs of this host", jobs::list).lists::<Job>(),
        row(Command::JobShow, Get, "/v1/jobs/{id}", "One job, of any host", jobs::show).answers::<Job>(),
        row(Command::JobFollow, Get, "/v1/jobs/{id}/events", "A job as it goes on: events named `job`", jobs::events).streams(EVENTS),
        row(Command::SupportBundle, Get, "/v1/support-bundle", "What helps to find a fault of this host, without secrets", bundle::show)
            .streams(TAR),
        row(Command::HostMetrics, Get, "/v1/metrics", "What this host, its agent and its VMs count, as Prometheus reads it", metrics::show)
            .streams(TEXT),
        row(Command::AuditShow, Get, "/v1/audit", "The last rows of this host's audit log, the oldest first", audit::show)
            .query("tail", "So many rows", Type::Integer)
            .lists::<AuditRow>(),
        row(Command::AuditVerify, Get, "/v1/audit/verify", "Whether the audit log is the one that was written", audit::verify)
            .query("known", "A row that was noted elsewhere, as ROW:HASH", Type::String)
            .answers::<AuditVerdict>(),
        row(Command::ApiShow, Get, "/v1/openapi.json", "This document", openapi::show).streams("application/json"),
    ]
}
