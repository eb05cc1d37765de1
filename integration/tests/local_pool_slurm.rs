//! Debian's own Slurm has its nodes from a pool.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Result, ensure};
use rebec_lab::{
    artifacts::{self, Artifact},
    demo::trade::set_policy,
    netlab::{
        NetLab,
        agents::{Agents, SOON, eventually},
        slurm::Slurm,
    },
    provision,
};

/// Debian's own Slurm, its controller and what runs jobs; only the guest's part, to start `slurmd -Z`, is played here.
#[test]
fn slurms_real_queue_gets_a_node_and_loses_it_whoever_dies_in_between() -> Result<()> {
    let files = provision::slurm::ensure()?;
    let program = artifacts::build(Artifact::Elastic)?;
    let lab = NetLab::start("local-pool-slurm", &["a1", "c1", "n1"])?;
    let mut agents = Agents::start_on(lab, 1, |_| ())?;
    agents.found(&["alpha"])?;
    agents.furnish()?;
    let a1 = &agents.hosts[0];
    set_policy(&agents, a1, "")?;
    let [controller, physical, guest] = &agents.lab.machines[..] else { unreachable!("three machines were asked for") };
    let mut slurm = Slurm::begin(controller, &files)?;
    let nodes = |slurm: &Slurm| slurm.run(&["sinfo", "--noheader", "--Node", "--format", "%N %t"]);
    // A machine of the cluster that is none of the pool's.
    slurm.join(physical, "c1", "CPUs=1 RealMemory=64 Feature=own")?;
    eventually("c1 is a node", SOON, || Ok(nodes(&slurm)?.contains("c1 idle")))?;

    let config = agents.lab.evidence().join("elastic.toml");
    let before = slurm.enter().iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
    fs::write(
        &config,
        format!(
            "[scheduler]\nkind = \"slurm\"\nevery = \"200ms\"\npatience = \"10s\"\nbefore = [{before}]\n[demand]\nfall = \"0s\"\n\
             [nodes]\nimage = \"bench\"\nlan = \"office\"\nmemory = \"32M\"\ncmdline = \"stats_ms=0 fill=zero\"\nown = 1\nidle = \"100ms\"\n"
        ),
    )?;
    let elastic = Elastic::start(&agents, &program, &config)?;
    let job = |seconds: &str| slurm.run(&["sbatch", "--output=/dev/null", "--chdir=/tmp", "--wrap", &format!("sleep {seconds}")]);
    job("600")?;
    job("600")?;
    eventually("the second job has a node's VM", SOON, || Ok(a1.vm("node-own-1")?["state"] == "running"))?;
    slurm.join(guest, "node-own-1", "CPUs=1 RealMemory=32 Feature=own")?;
    eventually("the node runs a job", SOON, || Ok(nodes(&slurm)?.contains("node-own-1 alloc")))?;

    // Slurm writes down what it knows every few seconds; what it has not written a killed controller forgets.
    let written = "cd /var/spool/slurm && grep -q node-own-1 node_state && grep -q node-own-1 job_state";
    eventually("Slurm has written down node and job", SOON, || Ok(slurm.run(&["sh", "-c", written]).is_ok()))?;
    // Without its controller nothing is known, and nothing is done.
    slurm.kill_controller()?;
    eventually("it is said", SOON, || Ok(elastic.said().contains("slurm_load_jobs error: Unable to contact slurm controller")))?;
    ensure!(a1.vm("node-own-1")?["state"] == "running", "a silent scheduler is no reason to end a node");
    slurm.restart(controller)?;
    eventually("it is heard again", SOON, || Ok(elastic.said().contains("the queue is told again")))?;

    slurm.run(&["scancel", "--user=root"])?;
    eventually("the node is gone", SOON, || Ok(!a1.knows("vm", "node-own-1")? && !nodes(&slurm)?.contains("node-own-1")))?;
    // Its own job takes a moment to go.
    eventually("what is none of the pool's is as it was", SOON, || Ok(nodes(&slurm)?.contains("c1 idle")))?;
    for words in ["wants 1 machines", "node node-own-1 is drained", "VM node-own-1 is removed", "node node-own-1 is forgotten"] {
        ensure!(elastic.said().contains(words), "not said: {words}: {}", elastic.said());
    }
    drop((elastic, slurm));
    agents.succeeded();
    Ok(())
}

/// A running `rebec-elastic`, as root at the first host's socket.
struct Elastic {
    child: Child,
    log: PathBuf,
}

impl Elastic {
    fn start(agents: &Agents, program: &Path, config: &Path) -> Result<Self> {
        let log = agents.lab.evidence().join("elastic.log");
        let mut command = Command::new(program);
        command.arg("--socket").arg(agents.hosts[0].socket()).arg("run").arg(config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        Ok(Self { child: agents.lab.machines[0].spawn(command)?, log })
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Elastic {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
