//! What came of a simulation, beside its targets.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Plan, host::Account, pool::Pool, resident, world};
use crate::{
    bench::{Figure, Target},
    progress::say,
};

/// Hosts find each other, and who is silent.
const SETTLE: Duration = Duration::from_secs(25);
/// What was written last gets everywhere.
const REST: Duration = Duration::from_secs(10);
/// Hosts that are lost in the end, and how long the others have to notice.
const LOST: usize = 10;
const NOTICED_FOR: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Simulates and measures.
pub fn measure(plan: &Plan) -> Result<Vec<Figure>> {
    let begun = Instant::now();
    let mut pool = Pool::new(*plan)?;
    say("sim", format!("{} hosts, {} records each", plan.hosts, pool.hosts[0].book.len()));
    let proof = pool.proved.time / pool.proved.count.max(1);
    pool.loose();
    pool.run(SETTLE, 0)?;
    empty(&mut pool);
    say("sim", format!("settled; {} changes a second for {} s", plan.changes_s, plan.seconds));
    pool.run(Duration::from_secs(plan.seconds), plan.changes_s)?;
    let accounts: Vec<Account> = pool.living().into_iter().map(|number| pool.hosts[number].account).collect();
    let wrong = wrongly_silent(&pool);
    pool.run(REST, 0)?;
    let spread = pool.spread();
    empty(&mut pool);
    pool.run(REST, 0)?;
    let idle: Vec<Account> = pool.living().into_iter().map(|number| pool.hosts[number].account).collect();
    say("sim", format!("{LOST} hosts are lost"));
    let (own, foreign) = lose(&mut pool)?;
    say("sim", format!("simulated {:.0} s in {:.0} s", pool.now().as_secs_f64(), begun.elapsed().as_secs_f64()));
    let of = pool.living()[0];
    let book = &pool.hosts[of].book;
    let alone = resident::measure(book.pool(), pool.hosts[of].key, book.all())?;
    let mut figures = of_spread(spread);
    figures.push(figure(
        "book of one host",
        "MB",
        alone.book_bytes as f64 / 1e6,
        Target::AtMost(64.0),
        "resident memory that one book of the simulation takes in a process of its own",
    ));
    figures.extend(of_accounts(&accounts, plan.seconds as f64, proof));
    figures.push(figure(
        "sent a second where nothing changes, median",
        "kB/s",
        sorted(idle.iter().map(|account| account.bytes as f64 / REST.as_secs_f64() / 1e3))[idle.len() / 2],
        Target::None,
        "the same, after the changes",
    ));
    figures.push(figure(
        "lost host is known in its domain, last",
        "s",
        own,
        Target::AtMost(10.0),
        "the last host of its domain that noticed",
    ));
    figures.push(figure(
        "lost host is known elsewhere, last",
        "s",
        foreign,
        Target::AtMost(60.0),
        "7 s and two turns of all domains, and what its own domain took",
    ));
    figures.push(figure(
        "living hosts of the own domain taken for silent",
        "%",
        wrong * 100.0,
        Target::AtMost(0.1),
        "of all pairs, at the end of the changes",
    ));
    Ok(figures)
}

fn empty(pool: &mut Pool) {
    for host in &mut pool.hosts {
        host.account = Account::default();
    }
}

fn figure(name: &str, unit: &'static str, measured: f64, target: Target, how: &str) -> Figure {
    Figure { name: name.into(), unit, measured, target, peers: vec![], how: how.into() }
}

fn of_spread(spread: Vec<Option<Duration>>) -> Vec<Figure> {
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
    let busy = sorted(accounts.iter().map(|account| account.busy.as_secs_f64() / seconds * 1e3));
    let proofs = part(|account| account.proofs) * proof.as_secs_f64() * 1e3;
    let how_busy = format!(
        "processor milliseconds in a second: engine, book and codec; records that several books share were decoded and their signatures looked at once, which would be {:.2} ms more ({:.0} records/s of {:.0} us)",
        proofs,
        part(|account| account.proofs),
        proof.as_secs_f64() * 1e6
    );
    vec![
        figure("sent a second, median host", "kB/s", bytes[middle] / 1e3, Target::AtMost(20.0), &how),
        figure("sent a second, worst host", "kB/s", bytes[bytes.len() - 1] / 1e3, Target::AtMost(20.0), &how_worst),
        figure("work a second, median host", "ms", busy[middle] + proofs, Target::AtMost(20.0), &how_busy),
        figure("work a second, worst host", "ms", busy[busy.len() - 1] + proofs, Target::None, "the host that worked most"),
    ]
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Of the pairs of living hosts of one domain, those where one takes the other for silent.
fn wrongly_silent(pool: &Pool) -> f64 {
    let living = pool.living();
    let pairs = living.iter().flat_map(|by| living.iter().map(move |of| (&pool.hosts[*by], &pool.hosts[*of])));
    let fellows: Vec<_> = pairs.filter(|(by, of)| by.site == of.site && by.key != of.key).collect();
    let wrong = fellows.iter().filter(|(by, of)| by.engine.silence(pool.now(), &of.key).is_some()).count();
    wrong as f64 / fellows.len().max(1) as f64
}

/// When the last host of the own domain noticed, and the last of all. Domain 0 is left out: in it the hostile host says that all are there.
fn lose(pool: &mut Pool) -> Result<(f64, f64)> {
    let lost: Vec<usize> = pool.living().into_iter().filter(|number| pool.hosts[*number].site != 0).step_by(7).take(LOST).collect();
    for number in &lost {
        pool.hosts[*number].is_silent = true;
    }
    let begun = pool.now();
    let (mut own, mut foreign) = (f64::INFINITY, f64::INFINITY);
    while pool.now() < begun + NOTICED_FOR && foreign.is_infinite() {
        pool.run(LOOK_EVERY, 0)?;
        let hosts = &pool.hosts;
        let living = pool.living();
        let notices = |is_own: bool| {
            living.iter().all(|by| {
                let concerned = lost.iter().filter(|of| !is_own || hosts[**of].site == hosts[*by].site);
                concerned.into_iter().all(|of| hosts[*by].engine.silence(pool.now(), &hosts[*of].key).is_some())
            })
        };
        let passed = (pool.now() - begun).as_secs_f64();
        own = if own.is_infinite() && notices(true) { passed } else { own };
        foreign = if notices(false) { passed } else { foreign };
    }
    Ok((own, foreign))
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
        figure("100,000 records: vm ls of 48,000", "ms", ms(large.list), Target::None, &of),
        figure(
            "vm ls of 10,000",
            "ms",
            ms(small.list),
            Target::AtMost(150.0),
            &format!("what the API tells of each, found in a book of {} records", small.records),
        ),
        figure("vm ls of 10,000, as JSON", "ms", ms(small.json), Target::None, "on top of that, in this program, which is not optimised"),
        figure("take in one record", "us", large.restore.as_secs_f64() * 1e6, Target::None, "without its signature"),
    ])
}
