//! `rebec simulate`, which needs no agent.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand, ValueEnum};
use rebec_pool::trade::policy::Reclaim;
use rebec_simulate::spot::Plan;

use super::values::Span;

/// Latest end of a job.
const DEADLINE_S_MAX: u64 = 400 * 86_400;
/// Most machines of one domain.
const MACHINES_MAX: u32 = 1 << 20;

/// `rebec simulate ...`
#[derive(Subcommand, Debug)]
pub enum SimulateCommand {
    /// What it is worth that a VM moves when its machine is withdrawn: cost and lateness of jobs with a deadline, on machines that come and go
    Spot(SpotOptions),
}

/// Options of `simulate spot`.
#[derive(Args, Debug)]
pub struct SpotOptions {
    /// Traces of when a cheap machine was to be had, one a zone: JSON, packed by gzip or not
    #[arg(value_name = "FILE", required = true, value_hint = clap::ValueHint::FilePath)]
    pub traces: Vec<PathBuf>,
    /// A job's work [default: 24h]
    #[arg(long, value_name = "TIME")]
    pub work: Option<Span>,
    /// When it has to be done [default: 30h]
    #[arg(long, value_name = "TIME")]
    pub deadline: Option<Span>,
    /// A machine that is never withdrawn costs so many times a cheap one [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub price: Option<u32>,
    /// Lost when a job begins, or begins again from its last checkpoint [default: 12m]
    #[arg(long, value_name = "TIME")]
    pub restart: Option<Span>,
    /// Lost when a VM moves [default: 5s]
    #[arg(long = "move", value_name = "TIME")]
    pub move_time: Option<Span>,
    /// From the word that a machine is withdrawn until it is; a VM that takes longer to move is ended [default: 2m]
    #[arg(long, value_name = "TIME")]
    pub notice: Option<Span>,
    /// Jobs in each zone, which begin at times spread over the trace [default: 200]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub jobs: Option<u32>,
}

/// Options of `simulate`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct SimulateOptions {
    /// Another question than that of trade
    #[command(subcommand)]
    pub other: Option<SimulateCommand>,
    /// A domain: its name, its trace in the Standard Workload Format, packed by gzip or not, its machines, and its policy if it has one
    #[arg(long = "domain", value_name = "NAME=FILE,cpus=N[,policy=FILE]", required = true)]
    pub domains: Vec<DomainFrom>,
    /// Take machines back in this way alone, whatever the policies say
    #[arg(long, value_name = "HOW")]
    pub reclaim: Option<ReclaimName>,
    /// Between two decisions of the brokers
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub interval: Span,
    /// Whose turn it is first among brokers is drawn by this
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Plot what came of it into this folder, as SVG and CSV
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
    /// From a loan until its machine takes work [default: 40s]
    #[arg(long, value_name = "TIME")]
    pub boot: Option<Span>,
    /// From the end of a VM until its machine is the lender's [default: 16s]
    #[arg(long, value_name = "TIME")]
    pub halt: Option<Span>,
    /// By how much work takes longer in a VM [default: 15]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub slowdown: Option<u32>,
    /// How long the move of a VM takes, the first of those that move together [default: 5s]
    #[arg(long = "move", value_name = "TIME")]
    pub move_first: Option<Span>,
    /// And each after it [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub move_next: Option<Span>,
}

impl SimulateOptions {
    /// Names are what results are known by.
    pub fn check(&self) -> Result<(), String> {
        if let Some(SimulateCommand::Spot(options)) = &self.other {
            return options.check();
        }
        let names: Vec<&str> = self.domains.iter().map(|domain| domain.name.as_str()).collect();
        match names.iter().enumerate().find(|(at, name)| names[..*at].contains(*name)) {
            Some((_, name)) => Err(format!("--domain {name} is given twice; give each domain a name of its own")),
            None => Ok(()),
        }
    }
}

impl SpotOptions {
    /// What is given, and what stands for the rest.
    pub fn plan(&self) -> Plan {
        let usual = Plan::default();
        let or = |given: Option<Span>, usual: u64| given.map_or(usual, |given| given.0);
        Plan {
            work_s: or(self.work, usual.work_s),
            deadline_s: or(self.deadline, usual.deadline_s),
            price: self.price.unwrap_or(usual.price),
            restart_s: or(self.restart, usual.restart_s),
            move_s: or(self.move_time, usual.move_s),
            notice_s: or(self.notice, usual.notice_s),
            jobs: self.jobs.map_or(usual.jobs, |jobs| jobs as usize),
        }
    }

    /// A job that nothing could end in time tells nothing of who is late.
    fn check(&self) -> Result<(), String> {
        let plan = self.plan();
        if plan.work_s.saturating_add(plan.restart_s) > plan.deadline_s {
            return Err("--deadline comes before --work and one --restart are done on any machine; give a later one".into());
        }
        if plan.deadline_s > DEADLINE_S_MAX {
            return Err(format!("--deadline is at most {} days", DEADLINE_S_MAX / 86_400));
        }
        Ok(())
    }
}

/// How a lent machine comes back.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReclaimName {
    /// Its VM is ended
    Kill,
    /// It comes back when the work on it has ended
    Wait,
    /// Its VM moves
    Migrate,
}

impl From<ReclaimName> for Reclaim {
    fn from(name: ReclaimName) -> Self {
        match name {
            ReclaimName::Kill => Self::Kill,
            ReclaimName::Wait => Self::Wait,
            ReclaimName::Migrate => Self::Migrate,
        }
    }
}

/// A domain on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainFrom {
    /// Its name: a part of files' names too.
    pub name: String,
    /// Its trace.
    pub trace: PathBuf,
    /// Its machines.
    pub machines: u32,
    /// Its policy's file.
    pub policy: Option<PathBuf>,
}

impl FromStr for DomainFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let how = || "expected NAME=FILE,cpus=N as in kth=KTH-SP2.swf.gz,cpus=100".to_owned();
        let (name, rest) = text.split_once('=').ok_or_else(how)?;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if name.is_empty() || name.len() > 63 || !name.bytes().all(fits) {
            return Err("a domain's name has letters, digits, - and _".into());
        }
        let mut parts = rest.split(',');
        let trace = parts.next().filter(|trace| !trace.is_empty()).ok_or_else(how)?;
        let (mut machines, mut policy) = (None, None);
        for part in parts {
            match part.split_once('=') {
                Some(("cpus", number)) if machines.is_none() => {
                    let number = number.parse().ok().filter(|number| (1..=MACHINES_MAX).contains(number));
                    machines = Some(number.ok_or_else(|| format!("cpus is a number from 1 to {MACHINES_MAX}"))?);
                }
                Some(("policy", file)) if policy.is_none() && !file.is_empty() => policy = Some(file.into()),
                _ => return Err(format!("`{part}`: after the trace there are cpus=N and policy=FILE, each once")),
            }
        }
        let machines = machines.ok_or_else(|| format!("how many processors has {name}? Add cpus=N"))?;
        Ok(Self { name: name.into(), trace: trace.into(), machines, policy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_a_name_a_trace_and_its_processors() {
        let domain: DomainFrom = "kth=/t/k=1.swf.gz,policy=p.toml,cpus=100".parse().unwrap();
        let expected = DomainFrom { name: "kth".into(), trace: "/t/k=1.swf.gz".into(), machines: 100, policy: Some("p.toml".into()) };
        assert_eq!(domain, expected);
        for (text, told) in [
            ("kth", "NAME=FILE"),
            ("kth=", "NAME=FILE"),
            ("=a,cpus=1", "name"),
            ("../x=a,cpus=1", "name"),
            ("a=b", "how many processors"),
            ("a=b,cpus=0", "cpus is a number"),
            ("a=b,cpus=2000000", "cpus is a number"),
            ("a=b,cpus=1,cpus=2", "each once"),
            ("a=b,cpus=1,color=2", "`color=2`"),
        ] {
            let said = text.parse::<DomainFrom>().unwrap_err();
            assert!(said.contains(told), "{text}: {said}");
        }
    }
}
