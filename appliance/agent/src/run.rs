//! `rebec agent`: opens what the agent owns, starts what it does, and ends in order. VMs run on.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rebec_book::{
    Body, Key,
    key::{Id, Name},
    record::{Kind, id_of_key},
    view::{self, parts_id},
};
use rebec_links::Addressing;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    agent::Agent,
    depot::Depot,
    descriptors, exchange, facts,
    http::{self, Caller, serve, tls},
    identity::Identity,
    later::Later,
    logs, machine,
    mesh::{
        Door, Mesh, bulk,
        versions::{self, Answerer},
    },
    pool, screen,
    store::Store,
    upkeep,
    vm::{Want, adopt, grants, keeper, lease, ports, stop},
};

/// Between two looks whether the host's own facts have changed.
const FACTS_PERIOD: Duration = Duration::from_secs(2);
/// What is being written to the disk at the agent's end has so long.
const END_TIME: Duration = Duration::from_secs(2);

/// Where others reach an agent when nobody says otherwise.
pub const MESH_PORT: u16 = 7116;

/// What the user says.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything that survives.
    pub state: PathBuf,
    /// The API's Unix socket.
    pub socket: PathBuf,
    /// The mesh's UDP port.
    pub port: u16,
    /// The API's TCP port; 0 where it is only on the Unix socket.
    pub api_port: u16,
    /// `rebec-vmm`.
    pub vmm: PathBuf,
    /// The name this host would like.
    pub name: Option<String>,
    /// The address that its mesh endpoint has, and its ports if it is IPv4.
    pub address: Option<IpAddr>,
    /// Memory that VMs may have, where it is not all but what the host keeps.
    pub memory_bytes: Option<u64>,
    /// Whether the state folder survives a reboot.
    pub durable: bool,
    /// The status screen's file.
    pub screen: Option<PathBuf>,
    /// Whether the agent brings the machine's links up: an address with its gateway, or by DHCP.
    pub links: Option<Addressing>,
    /// Whether the agent keeps the machine's clock: by these time servers or, where it is told of none, by those that DHCP names.
    pub time: Option<Vec<IpAddr>>,
    /// A ticket to join with when this host belongs to no pool.
    pub ticket: Option<String>,
    /// What is otherwise in the version that the lab plays.
    pub later: Option<Later>,
}

/// Runs until a signal ends it.
///
/// # Errors
/// When something it needs cannot be opened.
pub fn run(options: Options) -> Result<()> {
    logs::begin();
    descriptors::raise();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start the runtime")?;
    let ended = runtime.block_on(serve(options));
    // What waits for a move or an arrival would hold the agent's end up for as long as that takes.
    runtime.shutdown_timeout(END_TIME);
    ended
}

async fn serve(options: Options) -> Result<()> {
    std::fs::create_dir_all(&options.state).with_context(|| format!("create {}", options.state.display()))?;
    let state = options.state.canonicalize().context("the state folder's path")?;
    let options = Options { state, ..options };
    let store = Store::open(&options.state)?;
    let identity = Identity::open(&options.state)?;
    let depot = Depot::open(&options.state)?;
    let mesh = Mesh::open(identity.host().clone(), options.port).await?;
    let mesh = match options.later {
        Some(later) => mesh.speaking(later.peer),
        None => mesh,
    };
    let agent = Agent::new(options, identity, store, mesh, depot)?;
    log::info!("host {} ({}), state in {}", agent.own_name(), agent.key().short(), agent.options.state.display());
    // Before the pool is told of anything else.
    if let Err(error) = http::audit::look_back(&agent).await {
        log::error!("audit: {error:#}");
    }
    adopt::all(&agent).await?;
    publish_host(&agent);
    pool::joined(&agent);
    let router = http::router(agent.clone());
    let asked = agent.clone();
    // Who is let in and has not said so yet is a member too: it is about to.
    let is_member = move |key: &Key| asked.book(|book| book.dead(key).is_none() && book.claims(key).next().is_some());
    let named = agent.clone();
    let answerer = Answerer { speaks: agent.mesh.speaks(), rebec: agent.rebec(), name: Arc::new(move || named.own_name()) };
    let door = Door::new(versions::between_hosts(router.clone(), answerer), Caller::Host, move |key| is_member(key) == Some(true));
    let (accepting, mesh_door) = (agent.clone(), door.clone());
    tokio::spawn(async move { accepting.mesh.accept(mesh_door).await });
    let listener = bulk::listen(agent.mesh.port())?;
    tokio::spawn(bulk::serve(listener, agent.mesh.bulk.acceptor()?, door));
    machine::keep(&agent);
    if agent.options.api_port > 0 {
        let (listener, acceptor) = (tls::listen(agent.options.api_port)?, tls::acceptor(&agent)?);
        tokio::spawn(tls::run(agent.clone(), listener, acceptor, router.clone(), serve::LIMITS));
    }
    tokio::spawn(exchange::run(agent.clone()));
    tokio::spawn(ports::run(agent.clone()));
    tokio::spawn(lease::run(agent.clone()));
    tokio::spawn(keeper::run(agent.clone()));
    tokio::spawn(watch_facts(agent.clone()));
    tokio::spawn(upkeep::run(agent.clone()));
    tokio::spawn(upkeep::watch_room(agent.clone()));
    tokio::spawn(upkeep::watch_list(agent.clone()));
    let audited = agent.clone();
    tokio::spawn(async move { audited.audit.keep().await });
    if let Some(later) = agent.options.later {
        tokio::spawn(play(agent.clone(), later));
    }
    if let Some(path) = agent.options.screen.clone() {
        tokio::spawn(screen::run(agent.clone(), path));
    }
    if let Some(ticket) = agent.options.ticket.clone() {
        tokio::spawn(pool::join_unattended(agent.clone(), ticket));
    }
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        ended = serve::unix(&agent.options.socket, router, agent.key()) => ended?,
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    agent.mesh.close().await;
    if tokio::time::timeout(END_TIME, agent.audit.settle()).await.is_err() {
        log::warn!("audit: the disk is too slow; the last decisions may be missing");
    }
    Ok(())
}

/// Tells the pool what this host is, if that is news.
pub fn publish_host(agent: &Arc<Agent>) {
    let Some(body) = pool::host_body(agent) else { return };
    exchange::feel(agent);
    say(agent, Kind::HOST, id_of_key(&agent.key()), Some(Body::Host(body.into())));
    let parts = pool::parts_bodies(agent);
    let told = (0..).take_while(|number| agent.book(|book| book.get(Kind::PARTS, parts_id(*number), agent.key()).is_some()) == Some(true));
    for number in 0..u16::try_from(told.count().max(parts.len())).unwrap_or(u16::MAX) {
        say(agent, Kind::PARTS, parts_id(number), parts.get(usize::from(number)).cloned().map(Body::Parts));
    }
}

/// Writes a record if it says something else than the last.
fn say(agent: &Agent, kind: Kind, id: Id, body: Option<Body>) {
    let news = agent.book(|book| book.get(kind, id, agent.key()) != body.as_ref());
    if news == Some(true)
        && let Err(error) = agent.publish(kind, id, body)
    {
        log::error!("{error}");
    }
}

/// Addresses, room and KVM change without anybody saying so.
async fn watch_facts(agent: Arc<Agent>) {
    let mut known = facts::addresses();
    loop {
        tokio::time::sleep(FACTS_PERIOD).await;
        let now = facts::addresses();
        if now != known {
            log::info!("addresses: {now:?}");
            known = now;
        }
        publish_host(&agent);
        grants::tidy(&agent);
        agent.knowledge.forget_unconcerned();
        obey(&agent).await;
    }
}

/// A host that was declared dead and is not runs nothing any more: its VMs may run elsewhere by now. What others have is not kept here.
async fn obey(agent: &Arc<Agent>) {
    let dead = agent.book(|book| book.dead(&agent.key()).map(str::to_owned)).flatten();
    let Some(reason) = dead else { return };
    for vm in agent.local_vms() {
        let taken =
            agent.book(|book| view::holder(book, vm.id()).filter(|at| at.host != agent.key() && at.epoch > vm.kept().epoch)).flatten();
        if let Some(at) = taken {
            let why = format!("host {} has it at epoch {} since this host was declared dead", agent.name_of(&at.host), at.epoch);
            lease::withdraw(agent, &vm, vm.kept().epoch, &why);
        } else if vm.want() == Want::Running {
            log::error!("vm {}: ended, because this host was declared dead: {reason}", vm.name());
            if let Err(error) = stop::stop(agent, &vm, Duration::ZERO, None).await {
                log::error!("{error}");
            }
        }
    }
}

/// Plays a later version: writes its record, and asks its question again and again.
async fn play(agent: Arc<Agent>, later: Later) {
    let mut written = false;
    loop {
        tokio::time::sleep(FACTS_PERIOD).await;
        let (kind, body) = later.kind;
        written = written || agent.publish_bytes(kind, Name([0; 16]), body).is_ok();
        for peer in agent.peers() {
            match agent.mesh.ask::<_, serde_json::Value>(&peer, later.question, &()).await {
                Ok(answer) => log::info!("later: host {} answers {answer}", peer.name),
                Err(error) => log::info!("later: {:?}: {error}", error.code),
            }
        }
    }
}
