//! What people read of trade between domains.

use rebec_api::trade::{AccountLine, ContractInfo, PlanInfo, PolicyInfo, Reason, VmWhy};

use super::{
    printable, size,
    table::{pairs, table},
    until, utc,
};

/// `policy show`.
pub fn policy(policy: &PolicyInfo) -> String {
    let Some(broker) = &policy.broker else {
        return format!(
            "domain {} has no policy: VMs of other domains come if there is room; `rebec policy set FILE` sets one\n",
            printable(&policy.domain)
        );
    };
    let lends = if policy.by_contract { "by contract alone" } else { "without contracts" };
    let facts = pairs(&[("domain", policy.domain.clone()), ("broker", broker.clone()), ("lends", lends.to_owned())]);
    match &policy.text {
        Some(text) => format!("{facts}\n{}\n", text.lines().map(printable).collect::<Vec<_>>().join("\n")),
        None => format!("{facts}\nthe file is at the broker's host\n"),
    }
}

/// `contract ls`.
pub fn contracts(contracts: &[ContractInfo], now: u64) -> String {
    let row = |contract: &ContractInfo| {
        let id: String = contract.id.chars().take(8).collect();
        let state = match (&contract.owner, contract.deadline) {
            (Some(owner), Some(deadline)) => format!("{}, {owner} {}", contract.state, until(deadline, now)),
            (None, Some(deadline)) if contract.state == "active" => format!("active, ends {}", until(deadline, now)),
            _ => contract.state.clone(),
        };
        let (lender, borrower) = (contract.lender.clone(), contract.borrower.clone());
        let memory = size(contract.memory_bytes);
        [id, state, lender, borrower, contract.host.clone(), memory, contract.reclaim.clone(), contract.guests.join(",")]
    };
    let rows: Vec<_> = contracts.iter().map(row).collect();
    table(["ID", "STATE", "LENDER", "BORROWER", "HOST", "MEMORY", "BACK BY", "VMS"], &rows)
}

/// `contract show`.
pub fn contract(contract: &ContractInfo) -> String {
    let any = |names: &[String]| if names.is_empty() { "any".to_owned() } else { names.join(", ") };
    let mut lines = vec![
        ("id", contract.id.clone()),
        ("state", format!("{}: {}", contract.state, contract.why)),
        ("acts next", contract.owner.clone().unwrap_or_default()),
        ("until then", contract.deadline.map(utc).unwrap_or_default()),
        ("lender", contract.lender.clone()),
        ("borrower", contract.borrower.clone()),
        ("host", contract.host.clone()),
        ("gives", format!("{} vCPUs, {} of memory", contract.vcpus, size(contract.memory_bytes))),
        ("price", format!("{} thousandths an hour", contract.price_milli)),
        ("from", utc(contract.from)),
        ("until", contract.until.map_or_else(|| "it is called back".to_owned(), utc)),
        ("notice", format!("{} s", contract.notice_s)),
        ("back by", contract.reclaim.clone()),
        ("LANs", any(&contract.lans)),
        ("VMs", any(&contract.vms)),
        ("runs", contract.guests.join(", ")),
    ];
    for (number, word) in contract.words.iter().enumerate() {
        let lost = if word.wasted_s > 0 { format!("; {} s of work lost", word.wasted_s) } else { String::new() };
        let name = if number == 0 { "said" } else { "" };
        lines.push((name, format!("{} {}, {}: {}{lost}", utc(word.at), word.by, word.what, word.why)));
    }
    pairs(&lines)
}

/// `plan`.
pub fn plan(plan: &PlanInfo) -> String {
    let reasons = |reasons: &[Reason]| reasons.iter().map(|it| [it.what.clone(), it.reason.clone()]).collect::<Vec<_>>();
    let offered = format!("{}: {}", plan.offered, plan.offered_why);
    let mut text = pairs(&[("broker", plan.broker.clone()), ("machines that others may ask for", offered)]);
    text += &format!("\n{}", table(["IS DONE", "BECAUSE"], &reasons(&plan.steps)));
    text += &format!("\n{}", table(["IS NOT", "BECAUSE"], &reasons(&plan.refusals)));
    text
}

/// `why`.
pub fn why(why: &VmWhy) -> String {
    why.why.iter().map(|sentence| printable(sentence) + "\n").collect()
}

/// `account`.
pub fn account(lines: &[AccountLine]) -> String {
    let hours = |seconds: u64| format!("{}.{:02}", seconds / 3600, seconds % 3600 * 100 / 3600);
    let row = |line: &AccountLine| {
        let id: String = line.contract.chars().take(8).collect();
        let settled = match line.settled {
            None => "holds",
            Some(true) => "by both",
            Some(false) => "not by both",
        };
        let cost = format!("{}.{:03}", line.cost_milli / 1000, line.cost_milli % 1000);
        [line.month.clone(), id, line.kind.clone(), line.other.clone(), hours(line.seconds), cost, hours(line.wasted_s), settled.to_owned()]
    };
    let rows: Vec<_> = lines.iter().map(row).collect();
    table(["MONTH", "CONTRACT", "KIND", "WITH", "HOURS", "COST", "LOST", "SETTLED"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_and_costs_are_told_in_parts_of_one() {
        let line = AccountLine {
            month: "2026-12".into(),
            contract: "0123456789abcdef".into(),
            kind: "lent".into(),
            other: "alpha".into(),
            seconds: 5400,
            cost_milli: 1030,
            wasted_s: 36,
            settled: Some(true),
        };
        let text = account(&[line]);
        assert_eq!(text.lines().nth(1), Some("2026-12  01234567  lent  alpha  1.50   1.030  0.01  by both"), "{text}");
    }
}
