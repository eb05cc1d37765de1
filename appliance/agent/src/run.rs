//! `rebec agent`: opens what the agent owns, starts what it does, and ends in order. VMs run on.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::Router;
use rebec_book::{Key, key::Name};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    agent::Agent,
    depot::Depot,
    descriptors, facts,
    http::{self, Caller, serve, tls},
    identity::Identity,
    knowledge::Knowledge,
    later::Later,
    logs, machine,
    mesh::{
        Door, Mesh, bulk,
        versions::{self, Answerer},
    },
    options::Options,
    orders::{restart, returns},
    peers::Peers,
    pool, screen,
    store::Store,
    upkeep,
    vm::{adopt, grants, lease, outcast, paths, ports, traffic, underlay},
};

/// Between two looks whether the host's own facts have changed.
const FACTS_PERIOD: Duration = Duration::from_secs(2);
/// What is being written to the disk at the agent's end has so long.
const END_TIME: Duration = Duration::from_secs(2);

/// Where others reach an agent when nobody says otherwise.
pub const MESH_PORT: u16 = 7116;

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
    let agent = Agent::new(options.clone(), identity, store, mesh, depot)?;
    let Agent { host, knowledge, peers, vms, store, audit, bulletin, membership, .. } = &*agent;
    log::info!("host {} ({}), state in {}", knowledge.own_name(), knowledge.key().short(), host.state().display());
    // Before the pool is told of anything else.
    if let Err(error) = http::audit::look_back(&agent).await {
        log::error!("audit: {error:#}");
    }
    adopt::all(vms).await?;
    bulletin.publish();
    pool::joined(membership);
    let router = http::router(agent.clone());
    open_door(&agent, &router)?;
    machine::keep(options.links.map(|addressing| (addressing, options.vlans)), options.time, knowledge, bulletin, &agent.clock);
    if options.api_port > 0 {
        let (listener, acceptor) = (tls::listen(options.api_port)?, tls::acceptor(&agent)?);
        tokio::spawn(tls::run(agent.clone(), listener, acceptor, router.clone(), serve::LIMITS));
    }
    tokio::spawn(peers.clone().run());
    let told = bulletin.clone();
    tokio::spawn(underlay::run(vms.clone(), move || told.publish()));
    tokio::spawn(ports::run(vms.clone()));
    tokio::spawn(paths::run(vms.clone()));
    tokio::spawn(lease::run(vms.clone()));
    tokio::spawn(traffic::run(vms.clone()));
    tokio::spawn(restart::run(agent.orders.clone()));
    tokio::spawn(pool::replace::run(membership.clone()));
    tokio::spawn(returns::run(agent.orders.clone()));
    tokio::spawn(agent.broker.clone().run());
    tokio::spawn(watch_facts(agent.clone()));
    tokio::spawn(upkeep::run(host.clone(), knowledge.clone(), vms.clone()));
    tokio::spawn(upkeep::watch_room(host.clone(), vms.clone()));
    tokio::spawn(upkeep::watch_list(knowledge.clone(), store.clone(), vms.clone()));
    let audited = audit.clone();
    tokio::spawn(async move { audited.keep().await });
    if let Some(later) = options.later {
        tokio::spawn(play(knowledge.clone(), peers.clone(), later));
    }
    if let Some(path) = options.screen {
        tokio::spawn(screen::run(agent.screen.clone(), path));
    }
    if let Some(ticket) = options.ticket {
        tokio::spawn(pool::join_unattended(membership.clone(), ticket));
    }
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        ended = serve::unix(&options.socket, router, knowledge.key()) => ended?,
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    peers.mesh.close().await;
    if tokio::time::timeout(END_TIME, audit.settle()).await.is_err() {
        log::warn!("audit: the disk is too slow; the last decisions may be missing");
    }
    Ok(())
}

/// Lets other hosts in: over the mesh, and by TCP for many bytes.
fn open_door(agent: &Agent, router: &Router) -> Result<()> {
    let Agent { knowledge, peers, .. } = agent;
    let asked = knowledge.clone();
    // Who is let in and has not said so yet is a member too: it is about to.
    let is_member = move |key: &Key| asked.read(|book| book.dead(key).is_none() && book.claims(key).next().is_some());
    let named = knowledge.clone();
    let answerer = Answerer { speaks: peers.mesh.speaks(), rebec: knowledge.rebec(), name: Arc::new(move || named.own_name()) };
    let door = Door::new(versions::between_hosts(router.clone(), answerer), Caller::Host, move |key| is_member(key) == Some(true));
    let (accepting, mesh_door) = (peers.clone(), door.clone());
    tokio::spawn(async move { accepting.mesh.accept(mesh_door).await });
    let listener = bulk::listen(peers.mesh.port())?;
    tokio::spawn(bulk::serve(listener, peers.mesh.bulk.acceptor()?, door));
    Ok(())
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
        agent.bulletin.publish();
        grants::tidy(&agent.vms);
        agent.knowledge.forget_unconcerned();
        outcast::obey(&agent.vms).await;
    }
}

/// Plays a later version: writes its record, and asks its question again and again.
async fn play(knowledge: Arc<Knowledge>, peers: Arc<Peers>, later: Later) {
    let mut written = false;
    loop {
        tokio::time::sleep(FACTS_PERIOD).await;
        let (kind, body) = later.kind;
        written = written || knowledge.publish_bytes(kind, Name([0; 16]), body).is_ok();
        for peer in knowledge.peers() {
            match peers.mesh.ask::<_, serde_json::Value>(&peer, later.question, &()).await {
                Ok(answer) => log::info!("later: host {} answers {answer}", peer.name),
                Err(error) => log::info!("later: {:?}: {error}", error.code),
            }
        }
    }
}
