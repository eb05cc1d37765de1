//! Trade between domains: `/v1/policy`, `/v1/contracts`, `/v1/demand`, `/v1/plan`, `/v1/account`, `/v1/vms/{name}/why`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPolicy {
    /// The policy's file (docs/formats/policy.md); an empty one lends and borrows by the defaults.
    pub text: String,
}

/// `GET /v1/policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyInfo {
    /// The domain.
    pub domain: String,
    /// The host where its broker is; none where nobody has set a policy.
    pub broker: Option<String>,
    /// Whether VMs of other domains come by contract alone.
    pub by_contract: bool,
    /// The file, at the broker's host.
    pub text: Option<String>,
}

/// `POST /v1/contracts`: machines of another domain are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewContract {
    /// The domain that is asked.
    pub lender: String,
    /// How many machines, a contract each.
    #[serde(default = "one")]
    pub machines: u32,
    /// Memory of each, at least.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Processors of each, at least.
    #[serde(default)]
    pub vcpus: u32,
    /// LANs that VMs may be on; none named are all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lans: Vec<String>,
    /// VMs that may come; none named are all of the domain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vms: Vec<String>,
}

fn one() -> u32 {
    1
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Proposed {
    /// Contracts that both have signed, and proposals that wait for the lender.
    pub contracts: Vec<ContractInfo>,
    /// What was not agreed, and why.
    pub refusals: Vec<Reason>,
}

/// `POST /v1/contracts/{id}/recall`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecallContract {
    /// Why, for the other side and the books.
    #[serde(default)]
    pub reason: String,
}

/// A contract about one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContractInfo {
    /// Its id; the first digits that no other has mean it too.
    pub id: String,
    /// The domain whose the machine is.
    pub lender: String,
    /// The domain whose VMs run on it.
    pub borrower: String,
    /// The machine.
    pub host: String,
    /// offered, lapsed, signed, active, recalled, ended.
    pub state: String,
    /// Who must act next: `lender` or `borrower`.
    pub owner: Option<String>,
    /// Until when, in seconds since 1970.
    pub deadline: Option<u64>,
    /// Why it is in that state.
    pub why: String,
    /// Virtual processors that its VMs may have together.
    pub vcpus: u32,
    /// Memory that they may have together.
    pub memory_bytes: u64,
    /// Thousandths for an hour.
    pub price_milli: u64,
    /// From when, in seconds since 1970.
    pub from: u64,
    /// Until when; none until it is called back.
    pub until: Option<u64>,
    /// Between a recall and the end.
    pub notice_s: u64,
    /// How the machine comes back: migrate, kill, wait.
    pub reclaim: String,
    /// LANs that VMs may be on; none are all.
    pub lans: Vec<String>,
    /// VMs that may come; none are all.
    pub vms: Vec<String>,
    /// VMs that run under it.
    pub guests: Vec<String>,
    /// What both sides have said of it since.
    pub words: Vec<ContractWord>,
}

/// What a side said of a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContractWord {
    /// `lender` or `borrower`.
    pub by: String,
    /// `recalled` or `ended`.
    pub what: String,
    /// When, by its clock.
    pub at: u64,
    /// Why, with the line of its policy.
    pub why: String,
    /// Work that was lost, in seconds.
    pub wasted_s: u64,
}

/// `POST /v1/demand`: what a domain's work wants, in machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Demand {
    /// By work that waits.
    pub queued: u32,
    /// By work that runs.
    #[serde(default)]
    pub running: u32,
    /// By the widest work that waits.
    #[serde(default)]
    pub widest: u32,
    /// For how long it holds where nothing is said again, in seconds, 1 to 3600; without it, 15 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_s: Option<u32>,
}

impl Demand {
    /// How long demand holds where nobody says.
    pub const VALID_S: u32 = 900;
    /// The longest that may be asked for.
    pub const VALID_S_MAX: u32 = 3600;
}

/// Something that is or is not done, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// What.
    pub what: String,
    /// In words, with the line of the policy that made it.
    pub reason: String,
}

/// `GET /v1/plan`: what the broker would do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanInfo {
    /// The host where the broker is.
    pub broker: String,
    /// Machines that others may ask for.
    pub offered: u32,
    /// Why so many.
    pub offered_why: String,
    /// What is to be done.
    pub steps: Vec<Reason>,
    /// What is not, and why.
    pub refusals: Vec<Reason>,
}

/// `GET /v1/vms/{name}/why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmWhy {
    /// The VM.
    pub vm: String,
    /// Sentences.
    pub why: Vec<String>,
}

/// A line of `GET /v1/account`: a contract in a month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountLine {
    /// As in `2026-12`.
    pub month: String,
    /// The contract.
    pub contract: String,
    /// `lent` or `borrowed`.
    pub kind: String,
    /// The other domain.
    pub other: String,
    /// Seconds of the machine.
    pub seconds: u64,
    /// What they cost, in thousandths.
    pub cost_milli: u64,
    /// Work that was lost, in seconds.
    pub wasted_s: u64,
    /// Whether both sides have said that it ended; none while it holds.
    pub settled: Option<bool>,
}
