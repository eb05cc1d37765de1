//! `rebec simulate`, which needs no agent.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, ValueEnum};
use rebec_pool::trade::policy::Reclaim;

use super::values::Span;

/// Most machines of one domain.
const MACHINES_MAX: u32 = 1 << 20;

/// Options of `simulate`.
#[derive(Args, Debug)]
pub struct SimulateOptions {
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
        let names: Vec<&str> = self.domains.iter().map(|domain| domain.name.as_str()).collect();
        match names.iter().enumerate().find(|(at, name)| names[..*at].contains(*name)) {
            Some((_, name)) => Err(format!("--domain {name} is given twice; give each domain a name of its own")),
            None => Ok(()),
        }
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
