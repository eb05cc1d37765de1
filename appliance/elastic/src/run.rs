//! The driver: asks scheduler and agent, lets the engines decide, and carries out what they say. Steps go side by side, one a node.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    time::{Duration, Instant},
};

use rebec_api::{
    host::{HostInfo, HostState},
    job::{Job, JobState},
    pool::PoolStatus,
    trade::ContractInfo,
    vm::{NewVm, OnHostLoss, StopVm, VmInfo, VmState as Said},
};
use rebec_cli::{
    args::AgentOptions,
    client::{Answer, Client, path},
    client_of,
};
use rebec_pool::trade::{demand::Demand, plan::Because};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    config::{Config, Nodes},
    demand::{Output, Watch},
    fleet::{Fleet, Kind, Machine, Node, Step, Vm, VmState, World, kind_of},
    scheduler::Scheduler,
};

/// Between two looks at the agent, where the scheduler is asked less often.
const LOOK: Duration = Duration::from_secs(2);
/// Between two looks at a job of the agent.
const JOB_LOOK: Duration = Duration::from_millis(100);
/// A job of the agent that takes longer is left alone; the next look finds what came of it.
const JOB_TIME: Duration = Duration::from_secs(900);
/// What failed is not tried again before this.
const AGAIN: Duration = Duration::from_secs(5);
/// Steps that are under way at once.
const STEPS_MAX: usize = 16;

/// Runs until it fails to begin.
///
/// # Errors
/// The agent's address or key is no such thing.
pub async fn run(config: &Config, agent: &AgentOptions) -> Result<(), String> {
    let client = client_of(agent).await?;
    let mut driver = Driver {
        config,
        client,
        began: Instant::now(),
        watch: Watch::new(config.demand),
        fleet: config.nodes.as_ref().map(|nodes| Fleet::new(nodes.terms.clone())),
        nodes: None,
        underway: JoinSet::new(),
        busy: BTreeSet::new(),
        rests: BTreeMap::new(),
        said: BTreeMap::new(),
    };
    let mut ask_at = Duration::ZERO;
    let ended = ended();
    tokio::pin!(ended);
    loop {
        let now = driver.now();
        if now >= ask_at {
            ask_at = now + config.every;
            driver.ask().await;
        }
        driver.watch.tick(driver.now());
        driver.tell().await;
        driver.look().await;
        let wait = ask_at.saturating_sub(driver.now()).min(if driver.fleet.is_some() { LOOK } else { config.every });
        tokio::select! {
            () = sleep(wait) => {}
            Some(done) = driver.underway.join_next() => driver.done(done.unwrap_or_else(|error| Done::lost(&error))),
            () = &mut ended => return Ok(()),
        }
    }
}

/// A service manager's or a person's word to end.
async fn ended() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        },
        // Without them the signals end the process as they would.
        _ => std::future::pending().await,
    }
}

struct Driver<'a> {
    config: &'a Config,
    client: Client,
    began: Instant,
    watch: Watch,
    fleet: Option<Fleet>,
    /// What the scheduler said of its nodes last; none where it did not answer.
    nodes: Option<Vec<Node>>,
    underway: JoinSet<Done>,
    /// Nodes and hosts about which something is under way.
    busy: BTreeSet<String>,
    /// What failed, until when it is left alone.
    rests: BTreeMap<String, Duration>,
    /// What was said last about something, so that it is said once.
    said: BTreeMap<String, String>,
}

/// What came of a step.
struct Done {
    step: Step,
    result: Result<(), String>,
}

impl Done {
    fn lost(error: &tokio::task::JoinError) -> Self {
        Self { step: Step::Forget(String::new()), result: Err(format!("a step ended: {error}")) }
    }
}

impl Driver<'_> {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    async fn ask(&mut self) {
        let prefix = self.config.nodes.as_ref().map_or("", |nodes| nodes.terms.name.as_str());
        let answer = self.config.scheduler.ask(prefix).await;
        let (demand, nodes, others) = match answer {
            Ok(answer) => (Ok(answer.demand), Some(answer.nodes), if self.fleet.is_some() { answer.others } else { 0 }),
            Err(why) => (Err(why), None, 0),
        };
        self.nodes = nodes;
        self.watch.handle(self.now(), demand, others);
    }

    async fn tell(&mut self) {
        while let Some(output) = self.watch.poll_output() {
            match output {
                Output::Say(words) => say(&words),
                Output::Tell(demand) => {
                    let Demand { queued, running, widest } = demand;
                    let valid_s = Some(u32::try_from(self.config.demand.keep.as_secs()).unwrap_or(u32::MAX));
                    let wish = rebec_api::trade::Demand { queued, running, widest, valid_s };
                    match self.client.post(&path(&["demand"]), &wish).await {
                        Ok(_) => {
                            self.watch.told(self.now(), demand);
                            self.said.remove("demand");
                        }
                        Err(error) => self.say_once("demand", format!("the broker is not told: {error}")),
                    }
                }
            }
        }
    }

    async fn look(&mut self) {
        let (Some(nodes), true) = (&self.config.nodes, self.fleet.is_some()) else { return };
        let world = match self.world(nodes).await {
            Ok(world) => world,
            Err(why) => return self.say_once("agent", why),
        };
        self.said.remove("agent");
        let now = self.now();
        let Some(fleet) = &mut self.fleet else { return };
        let plan = fleet.look(now, &world);
        for no in plan.refusals {
            self.say_once(&format!("no {}", no.what), format!("{}: {}", no.what, no.reason.split("; again in").next().unwrap_or_default()));
        }
        self.rests.retain(|_, until| *until > now);
        for step in plan.steps {
            self.begin(nodes, step);
        }
    }

    /// All that is known of machines, VMs and nodes.
    async fn world(&self, nodes: &Nodes) -> Result<World, String> {
        let asked = |error: rebec_cli::client::ClientError| error.to_string();
        let status: PoolStatus = self.client.get(&path(&["pool"])).await.map_err(asked)?;
        let own = status.domain.ok_or("this host belongs to no domain yet")?;
        let contracts: Vec<ContractInfo> = self.client.get(&path(&["contracts"])).await.map_err(asked)?;
        let hosts: Vec<HostInfo> = self.client.get(&path(&["hosts"])).await.map_err(asked)?;
        let vms: Vec<VmInfo> = self.client.get(&path(&["vms"])).await.map_err(asked)?;
        let binds = |contract: &&ContractInfo| matches!(contract.state.as_str(), "signed" | "active" | "recalled");
        let is_lent = |host: &str| contracts.iter().filter(binds).any(|contract| contract.lender == own && contract.host == host);
        let fits = |host: &&HostInfo| host.domain == own && host.state == HostState::Ready && host.no_kvm.is_none() && !is_lent(&host.name);
        let machine = |host: &str, kind| Machine { host: host.to_owned(), kind };
        let mut machines: Vec<Machine> = hosts.iter().filter(fits).map(|host| machine(&host.name, Kind::Own)).collect();
        let lent_to_us = |contract: &&ContractInfo| contract.borrower == own && contract.state == "active";
        machines.extend(contracts.iter().filter(lent_to_us).map(|contract| machine(&contract.host, Kind::Borrowed)));
        let vms = vms.into_iter().filter(|vm| kind_of(&nodes.terms.name, &vm.name).is_some());
        let vms = vms.map(|vm| Vm { name: vm.name, host: vm.host, state: how(vm.state) }).collect();
        let wanted = self.watch.held(self.now()).map(|demand| demand.queued.saturating_add(demand.running));
        Ok(World { wanted, machines, vms, nodes: self.nodes.clone() })
    }

    fn begin(&mut self, nodes: &Nodes, step: Because<Step>) {
        let Because { what: step, reason } = step;
        let host = if let Step::Create { host, .. } = &step { Some(host.clone()) } else { None };
        let about = [Some(step.node().to_owned()), host];
        let is_busy = about.iter().flatten().any(|about| self.busy.contains(about));
        if is_busy || self.underway.len() >= STEPS_MAX || self.rests.contains_key(&said_of(&step)) {
            return;
        }
        say(&format!("{}: {reason}", said_of(&step)));
        self.busy.extend(about.into_iter().flatten());
        let (client, scheduler) = (self.client.clone(), self.config.scheduler.clone());
        let wish = if let Step::Create { name, host, kind } = &step { Some(new_vm(nodes, name, host, *kind)) } else { None };
        self.underway.spawn(async move {
            let result = carry_out(&client, &scheduler, &step, &reason, wish).await;
            Done { step, result }
        });
    }

    fn done(&mut self, done: Done) {
        let now = self.now();
        self.busy.remove(done.step.node());
        if let Step::Create { host, .. } = &done.step {
            self.busy.remove(host);
        }
        let what = said_of(&done.step);
        match done.result {
            Ok(()) => {
                self.said.remove(&what);
                // What it changed is not in what the scheduler said before.
                if !matches!(done.step, Step::Create { .. } | Step::Remove(_)) {
                    self.rests.insert(what, now + self.config.every);
                }
            }
            Err(why) => {
                if let (Some(fleet), Step::Create { host, .. }) = (&mut self.fleet, &done.step) {
                    fleet.failed(now, host);
                }
                self.rests.insert(what.clone(), now + AGAIN);
                self.say_once(&what, format!("{what}: {why}"));
            }
        }
    }

    fn say_once(&mut self, about: &str, words: String) {
        if self.said.get(about) != Some(&words) {
            say(&words);
            self.said.insert(about.to_owned(), words);
        }
    }
}

/// One step, by the agent's API or the scheduler's own commands.
async fn carry_out(client: &Client, scheduler: &Scheduler, step: &Step, why: &str, wish: Option<NewVm>) -> Result<(), String> {
    let asked = |error: rebec_cli::client::ClientError| error.to_string();
    match (step, wish) {
        (Step::Create { .. }, Some(wish)) => follow(client, client.post(&path(&["vms"]), &wish).await.map_err(asked)?).await,
        (Step::Remove(name), _) => {
            // Its jobs have ended or are queued again, and its disk goes: there is nothing to end in order.
            let stop = client.post(&path(&["vms", name, "stop"]), &StopVm { timeout_s: 0 }).await;
            if let Ok(answer) = stop {
                follow(client, answer).await?;
            }
            follow(client, client.delete(&path(&["vms", name])).await.map_err(asked)?).await
        }
        (step, _) => scheduler.tell(step, why).await,
    }
}

async fn follow(client: &Client, answer: Answer) -> Result<(), String> {
    let Answer::Job(begun) = answer else { return Ok(()) };
    let until = Instant::now() + JOB_TIME;
    let mut job = begun;
    while job.state == JobState::Running {
        if Instant::now() > until {
            return Err(format!("job {} goes on", job.id));
        }
        sleep(JOB_LOOK).await;
        let id = job.id.clone();
        job = client.get::<Job>(&path(&["jobs", &id])).await.map_err(|error| error.to_string())?;
    }
    match job.error {
        Some(error) if job.state == JobState::Failed => Err(error.message),
        _ => Ok(()),
    }
}

fn new_vm(nodes: &Nodes, name: &str, host: &str, kind: Kind) -> NewVm {
    let fill = |text: &Option<String>| text.as_ref().map(|text| text.replace("{name}", name).replace("{feature}", kind.word()));
    NewVm {
        name: name.to_owned(),
        image: nodes.image.clone(),
        memory_bytes: nodes.memory_bytes,
        memory_max_bytes: None,
        vcpus: nodes.vcpus,
        lans: nodes.lan.iter().cloned().collect(),
        host: Some(host.to_owned()),
        domain: None,
        disk_bytes: None,
        cmdline: fill(&nodes.cmdline),
        hostname: nodes.user_data.as_ref().map(|_| name.to_owned()),
        ssh_keys: vec![],
        user_data: fill(&nodes.user_data),
        on_host_loss: OnHostLoss::Hold,
        cpu: nodes.cpu.clone(),
        labels: vec![],
        host_labels: vec![],
        affinity: vec![],
        anti_affinity: vec![],
    }
}

fn how(state: Said) -> VmState {
    match state {
        Said::Starting => VmState::Starting,
        Said::Running | Said::Paused | Said::Moving | Said::Waiting => VmState::Up,
        Said::Stopped | Said::Failed => VmState::Down,
        Said::Lost => VmState::Lost,
    }
}

fn said_of(step: &Step) -> String {
    match step {
        Step::Create { name, host, .. } => format!("node {name} is made at host {host}"),
        Step::Drain(name) => format!("node {name} is drained"),
        Step::Resume(name) => format!("node {name} takes jobs again"),
        Step::Down(name) => format!("node {name} is set down"),
        Step::Forget(name) => format!("node {name} is forgotten"),
        Step::Remove(name) => format!("VM {name} is removed"),
    }
}

/// A line to the journal.
pub fn say(words: &str) {
    let line: String = words.chars().filter(|letter| !letter.is_control()).collect();
    // Who closed it does not want to hear.
    drop(writeln!(std::io::stderr().lock(), "rebec-elastic: {line}"));
}
