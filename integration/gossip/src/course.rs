//! A pool from its beginning to the loss of some hosts, and what came of it.

use std::time::{Duration, Instant};

use anyhow::Result;
use rebec_book::{Key, Signed};

use crate::{Plan, host::Account, pool::Pool};

/// Hosts find each other, and who is silent.
const SETTLE: Duration = Duration::from_secs(25);
/// What was written last gets everywhere.
pub const REST: Duration = Duration::from_secs(10);
/// Hosts that are lost in the end, and how long the others have to notice.
pub const LOST: usize = 10;
const NOTICED_FOR: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What came of it.
pub struct Course {
    /// Of each record that was written how long it took to everybody whom it concerns; none where it is still missing somewhere.
    pub spread: Vec<Option<Duration>>,
    /// What hosts that answer and are honest took while records were written.
    pub busy: Vec<Account>,
    /// The same where nothing changed, in [`REST`].
    pub idle: Vec<Account>,
    /// Of the pairs of living hosts of one domain, those where one takes the other for silent.
    pub wrongly_silent: f64,
    /// When the last host of its own domain noticed that a host was lost; none where some did not.
    pub noticed_at_home: Option<Duration>,
    /// The same of all hosts.
    pub noticed: Option<Duration>,
    /// What reading and proving one record takes.
    pub proof: Duration,
    /// The pool.
    pub pool: Key,
    /// The host with the largest book.
    pub largest: Key,
    /// What is in that.
    pub records: Vec<Signed>,
    /// Virtual time.
    pub simulated: Duration,
    /// And real.
    pub took: Duration,
}

/// Simulates, and says how far it is.
pub fn run(plan: &Plan, say: impl Fn(String)) -> Result<Course> {
    let begun = Instant::now();
    let mut pool = Pool::new(*plan)?;
    let proof = pool.proved.time / pool.proved.count.max(1);
    let largest = pool.living().into_iter().max_by_key(|number| pool.hosts[*number].book.len()).unwrap_or_default();
    say(format!("{} hosts, {} records at most", plan.hosts, pool.hosts[largest].book.len()));
    pool.loose();
    pool.run(SETTLE, 0)?;
    pool.accounts();
    say(format!("settled; {} changes a second for {} s", plan.changes_s, plan.seconds));
    pool.run(Duration::from_secs(plan.seconds), plan.changes_s)?;
    let busy = pool.accounts();
    let wrongly_silent = wrongly_silent(&pool);
    pool.run(REST, 0)?;
    let spread = pool.spread();
    pool.accounts();
    pool.run(REST, 0)?;
    let idle = pool.accounts();
    say(format!("{LOST} hosts are lost"));
    let (noticed_at_home, noticed) = lose(&mut pool)?;
    let took = begun.elapsed();
    say(format!("simulated {:.0} s in {:.0} s", pool.now().as_secs_f64(), took.as_secs_f64()));
    let host = &pool.hosts[largest];
    Ok(Course {
        spread,
        busy,
        idle,
        wrongly_silent,
        noticed_at_home,
        noticed,
        proof,
        pool: host.book.pool(),
        largest: host.key,
        records: host.book.all().cloned().collect(),
        simulated: pool.now(),
        took,
    })
}

fn wrongly_silent(pool: &Pool) -> f64 {
    let living = pool.living();
    let pairs = living.iter().flat_map(|by| living.iter().map(move |of| (&pool.hosts[*by], &pool.hosts[*of])));
    let fellows: Vec<_> = pairs.filter(|(by, of)| by.site == of.site && by.key != of.key).collect();
    let wrong = fellows.iter().filter(|(by, of)| by.engine.silence(pool.now(), &of.key).is_some()).count();
    wrong as f64 / fellows.len().max(1) as f64
}

/// When the last host of the own domain noticed, and the last of all. Domain 0 is left out: in it the hostile host says that all are there.
fn lose(pool: &mut Pool) -> Result<(Option<Duration>, Option<Duration>)> {
    let lost: Vec<usize> = pool.living().into_iter().filter(|number| pool.hosts[*number].site != 0).step_by(7).take(LOST).collect();
    for number in &lost {
        pool.hosts[*number].is_silent = true;
    }
    let begun = pool.now();
    let (mut own, mut all) = (None, None);
    while pool.now() < begun + NOTICED_FOR && all.is_none() {
        pool.run(LOOK_EVERY, 0)?;
        let hosts = &pool.hosts;
        let living = pool.living();
        let notice = |is_own: bool| {
            living.iter().all(|by| {
                let concerned = lost.iter().filter(|of| !is_own || hosts[**of].site == hosts[*by].site);
                concerned.into_iter().all(|of| hosts[*by].engine.silence(pool.now(), &hosts[*of].key).is_some())
            })
        };
        let passed = pool.now() - begun;
        own = own.or_else(|| notice(true).then_some(passed));
        all = notice(false).then_some(passed);
    }
    Ok((own, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small pool with all that the large one has; `cargo lab sim` is that. Its hostile host is one of 120, not of 1,000, so that each of the
    /// others has eight times as much of it.
    #[test]
    fn a_record_is_soon_where_it_belongs_and_nobody_says_too_much() {
        let plan = Plan { seed: 1, hosts: 120, domains: 4, vms: 10, silent_percent: 20, changes_s: 3, seconds: 20 };
        let course = run(&plan, |line| println!("{line}")).unwrap();
        let spread = course.spread.iter().map(|time| time.map_or(f64::INFINITY, |time| time.as_secs_f64()));
        let worst = spread.fold(0.0, f64::max);
        assert!(course.spread.len() > 50 && worst <= 5.0, "{worst} s to the last host whom it concerns");
        let sent = |accounts: &[Account], seconds: f64| {
            let mut rates: Vec<f64> = accounts.iter().map(|account| account.bytes as f64 / seconds / 1e3).collect();
            rates.sort_by(f64::total_cmp);
            (rates[rates.len() / 2], rates[rates.len() - 1])
        };
        let (busy, idle) = (sent(&course.busy, plan.seconds as f64), sent(&course.idle, REST.as_secs_f64()));
        assert!(busy.0 <= 20.0 && busy.1 <= 30.0, "{busy:?} kB/s: median and worst host");
        assert!(idle.0 <= 15.0, "{idle:?} kB/s where nothing changes");
        assert_eq!(course.wrongly_silent, 0.0);
        let seconds = |time: Option<Duration>| time.map_or(u64::MAX, |time| time.as_secs());
        assert!(seconds(course.noticed_at_home) <= 10 && seconds(course.noticed) <= 60);
    }
}
