//! What came of a simulation, beside its targets.

use std::time::Duration;

use anyhow::Result;
use rebec_lab_gossip::{Account, Course, HEAD_BYTES, KINDS, Plan, REST, resident, world};

use crate::{
    figure::{Figure, Target},
    progress::say,
};

/// Hosts that are named of those that sent most.
const NAMED: usize = 5;

/// Simulates and measures.
pub fn measure(plan: &Plan) -> Result<(Vec<Figure>, String)> {
    let course = rebec_lab_gossip::run(plan, |line| say("sim", line))?;
    let alone = resident::measure(course.pool, course.largest, course.records.iter())?;
    let seconds = plan.seconds as f64;
    let mut figures = of_spread(&course);
    figures.push(figure(
        "largest book of a host",
        "MB",
        alone.book_bytes as f64 / 1e6,
        Target::AtMost(64.0),
        &format!("resident memory that it takes in a process of its own; {} records", alone.records),
    ));
    figures.extend(of_accounts(&course.busy, seconds, course.proof));
    let idle = sorted(course.idle.iter().map(|account| account.bytes as f64 / REST.as_secs_f64() / 1e3));
    figures.push(figure(
        "sent a second where nothing changes, median",
        "kB/s",
        idle.get(idle.len() / 2).copied().unwrap_or_default(),
        Target::None,
        &format!(
            "the same, after the changes; the hostile host goes on. The worst sent {:.1} kB/s",
            idle.last().copied().unwrap_or_default()
        ),
    ));
    let seconds_of = |time: Option<Duration>| time.map_or(f64::INFINITY, |time| time.as_secs_f64());
    figures.push(figure(
        "lost host is known in its domain, last",
        "s",
        seconds_of(course.noticed_at_home),
        Target::AtMost(10.0),
        "the last host of its domain that noticed",
    ));
    figures.push(figure(
        "lost host is known elsewhere, last",
        "s",
        seconds_of(course.noticed),
        Target::AtMost(60.0),
        "7 s and two turns of all domains, and what its own domain took",
    ));
    figures.push(figure(
        "living hosts of the own domain taken for silent",
        "%",
        course.wrongly_silent * 100.0,
        Target::AtMost(0.1),
        "of all pairs, at the end of the changes",
    ));
    figures.push(figure(
        "the simulation",
        "s",
        course.took.as_secs_f64(),
        Target::None,
        &format!("on the clock, for {:.0} s of {} hosts", course.simulated.as_secs_f64(), plan.hosts),
    ));
    Ok((figures, hot_spots(&course.busy, seconds)))
}

/// Who sent most, and what most of it was.
fn hot_spots(accounts: &[Account], seconds: f64) -> String {
    let mut text = String::from("hot spots, while records are written:\n");
    let mut kinds: Vec<(usize, usize, &str)> = (KINDS.iter().enumerate())
        .map(|(kind, name)| {
            let all = accounts.iter().map(|account| account.told[kind]);
            let (messages, bytes) = all.fold((0, 0), |(messages, bytes), told| (messages + told.messages, bytes + told.bytes));
            (bytes + messages * HEAD_BYTES, messages, *name)
        })
        .collect();
    kinds.sort_unstable_by(|a, b| b.cmp(a));
    let a_host = |count: usize| count as f64 / accounts.len().max(1) as f64 / seconds;
    for (bytes, messages, name) in kinds.iter().filter(|(bytes, ..)| *bytes > 0) {
        text += &format!("  {name}: {:.2} kB/s a host in {:.2} messages\n", a_host(*bytes) / 1e3, a_host(*messages));
    }
    let connections: usize = accounts.iter().map(|account| account.connection_bytes).sum();
    text += &format!("  new connections and tries of silent hosts: {:.2} kB/s a host\n", a_host(connections) / 1e3);
    let mut hosts: Vec<&Account> = accounts.iter().collect();
    hosts.sort_by_key(|account| std::cmp::Reverse(account.bytes));
    for account in hosts.into_iter().take(NAMED) {
        let most = KINDS.iter().zip(&account.told).max_by_key(|(_, told)| told.bytes + told.messages * HEAD_BYTES);
        let (name, told) = most.map(|(name, told)| (*name, *told)).unwrap_or_default();
        text += &format!(
            "  host {} of domain {}: {:.1} kB/s, of that {:.1} for connections and {:.1} in {:.1} messages `{name}`\n",
            account.host,
            account.domain,
            account.bytes as f64 / seconds / 1e3,
            account.connection_bytes as f64 / seconds / 1e3,
            (told.bytes + told.messages * HEAD_BYTES) as f64 / seconds / 1e3,
            told.messages as f64 / seconds,
        );
    }
    text
}

fn figure(name: &str, unit: &'static str, measured: f64, target: Target, how: &str) -> Figure {
    Figure { name: name.into(), unit, measured, target, peers: vec![], how: how.into() }
}

fn of_spread(Course { spread, .. }: &Course) -> Vec<Figure> {
    let missing = spread.iter().filter(|time| time.is_none()).count();
    let times = sorted(spread.iter().map(|time| time.map_or(f64::INFINITY, |time| time.as_secs_f64())));
    let how = format!(
        "from its writing to its being in the last book of a host that answers and whose domain it concerns; {} records",
        times.len()
    );
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    vec![
        figure("record is everywhere, median", "s", at(50), Target::AtMost(5.0), &how),
        figure("record is everywhere, 90 of 100", "s", at(90), Target::None, &how),
        figure("record is everywhere, worst", "s", at(100), Target::AtMost(5.0), &how),
        figure("records that are missing somewhere", "", missing as f64, Target::AtMost(0.0), "10 s after the last was written"),
    ]
}

fn of_accounts(accounts: &[Account], seconds: f64, proof: Duration) -> Vec<Figure> {
    let rate = |of: fn(&Account) -> usize| sorted(accounts.iter().map(|account| of(account) as f64 / seconds));
    let bytes = rate(|account| account.bytes);
    let middle = accounts.len() / 2;
    let part = |of: fn(&Account) -> usize| rate(of)[middle];
    let how = format!(
        "with 150 bytes of headers a message and handshakes; a median host: {:.1} kB/s in {:.0} messages, {:.1} kB/s for connections, {:.1} kB/s headers; {:.1} records/s that were known, {:.1} refused",
        part(|account| account.message_bytes) / 1e3,
        part(|account| account.messages),
        part(|account| account.connection_bytes) / 1e3,
        part(|account| account.messages) * 0.15,
        part(|account| account.twice),
        part(|account| account.refused),
    );
    let worst = accounts.iter().max_by_key(|account| account.bytes).copied().unwrap_or_default();
    let how_worst = format!(
        "the host that sent most: {:.1} kB/s in {:.0} messages, {:.1} kB/s for connections",
        worst.message_bytes as f64 / seconds / 1e3,
        worst.messages as f64 / seconds,
        worst.connection_bytes as f64 / seconds / 1e3,
    );
    let busy = sorted(accounts.iter().filter_map(|account| Some(account.busy?.as_secs_f64() / seconds * 1e3)));
    let proofs = part(|account| account.proofs) * proof.as_secs_f64() * 1e3;
    let how_busy = format!(
        "processor milliseconds in a second, of each eighth host: engine, book and codec; records that several books share were decoded and their signatures looked at once, which would be {:.2} ms more ({:.0} records/s of {:.0} us)",
        proofs,
        part(|account| account.proofs),
        proof.as_secs_f64() * 1e6
    );
    vec![
        figure("sent a second, median host", "kB/s", bytes[middle] / 1e3, Target::AtMost(20.0), &how),
        figure("sent a second, worst host", "kB/s", bytes[bytes.len() - 1] / 1e3, Target::AtMost(20.0), &how_worst),
        figure("work a second, median host", "ms", busy[busy.len() / 2] + proofs, Target::AtMost(20.0), &how_busy),
        figure("work a second, worst host", "ms", busy[busy.len() - 1] + proofs, Target::None, "the host that worked most"),
    ]
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The exchange of 100 hosts, as a row beside others.
pub fn exchange() -> Result<Figure> {
    let plan = Plan { seed: 1, hosts: 100, domains: 4, vms: 10, silent_percent: 0, changes_s: 5, seconds: 20 };
    let course = rebec_lab_gossip::run(&plan, |line| say("bench", line))?;
    let seconds = plan.seconds as f64;
    let shares = course.busy.iter().filter_map(|account| {
        let proofs = course.proof.as_secs_f64() * account.proofs as f64;
        Some((account.busy?.as_secs_f64() + proofs) / seconds * 100.0)
    });
    let shares = sorted(shares);
    let how = format!(
        "processor time of the real engine, book and encoding of one in eight of 100 hosts in one process, with the signatures of what was new, in {seconds:.0} s of virtual time with five records a second and a hostile member; the host that worked most, a median one {:.2} %. Without the carrying: QUIC, HTTP and the store",
        shares.get(shares.len() / 2).copied().unwrap_or_default()
    );
    Ok(figure("exchange of 100 hosts", "%", shares.last().copied().unwrap_or(f64::INFINITY), Target::AtMost(1.0), &how))
}

/// A book of 100,000 records.
pub fn measure_book(seed: u64) -> Result<Vec<Figure>> {
    let plan = |hosts, vms| Plan { seed, hosts, domains: 20, vms, silent_percent: 0, changes_s: 0, seconds: 0 };
    let found = |plan: Plan| -> Result<resident::Found> {
        let world = world::make(&plan)?;
        resident::measure(world.pool, world.hosts[0].key, world.records.iter())
    };
    let (small, large) = (found(plan(1000, 10))?, found(plan(1000, 48))?);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let of = format!("{} records, {} of them VMs and as many that say where they are", large.records, large.vms);
    Ok(vec![
        figure("100,000 records: vm show", "ms", ms(large.show), Target::AtMost(10.0), &of),
        figure(
            "100,000 records: resident",
            "MiB",
            mib(large.process_bytes),
            Target::AtMost(120.0),
            &format!("the whole process that has the book; {of}"),
        ),
        figure(
            "100,000 records: the book alone",
            "MiB",
            mib(large.book_bytes),
            Target::None,
            &format!("{} bytes a record", large.book_bytes / large.records as u64),
        ),
        figure("100,000 records: vm ls of 48,000", "ms", ms(large.list + large.json + large.parse), Target::None, "the same"),
        figure(
            "vm ls of 10,000",
            "ms",
            ms(small.list + small.json + small.parse),
            Target::AtMost(150.0),
            &format!(
                "found in a book of {} records {:.0} ms, written as JSON {:.0}, read from it {:.0}; without the way between agent and command and the table",
                small.records,
                ms(small.list),
                ms(small.json),
                ms(small.parse)
            ),
        ),
        figure("take in one record", "us", large.restore.as_secs_f64() * 1e6, Target::None, "without its signature"),
    ])
}
