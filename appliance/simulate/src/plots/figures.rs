//! What is plotted of a setup, each with the numbers that it is drawn from.
//!
//! | file | shows |
//! |---|---|
//! | `completion` | mean completion time of each domain: alone, and shared with each way of reclamation |
//! | `machines-NAME` | a domain's machines over time: owned, at work for it with what it has borrowed and lent, and what its jobs run on |
//! | `traded` | machines lent by each domain over time |
//! | `interval` | mean completion time shared, as a part of that alone, by the brokers' interval |
//! | `wasted` | work lost to reclamation by the brokers' interval, for each way |

use rebec_pool::trade::policy::{Modes, Reclaim};

use super::chart::{Chart, Series};
use crate::{
    outcome::{DomainOutcome, Outcome},
    simulation::{Seen, Setup, simulate},
};

/// Intervals that are compared.
const INTERVALS: [(u64, &str); 6] = [(900, "15 min"), (1800, "30 min"), (3600, "1 h"), (7200, "2 h"), (21_600, "6 h"), (86_400, "24 h")];
/// Over time, so many means at most.
const BUCKETS_MAX: u64 = 60;
const DAY: u64 = 86_400;

/// One plot.
#[derive(Debug, Clone)]
pub struct Figure {
    /// The names of its files, without what comes after the point.
    pub name: String,
    /// The picture.
    pub svg: String,
    /// Its numbers, a place a line.
    pub csv: String,
}

/// Runs what the plots compare, and draws them. `told` hears how many of the runs are done.
pub fn figures(setup: &Setup, told: &mut dyn FnMut(usize, usize)) -> Vec<Figure> {
    let runs = 1 + Reclaim::ALL.len() * INTERVALS.len();
    let mut done = 0;
    let mut run = |setup: &Setup, seen: &mut dyn FnMut(Seen)| {
        let outcome = simulate(setup, seen);
        done += 1;
        told(done, runs);
        outcome
    };
    let mut samples = vec![];
    run(setup, &mut |seen| {
        if let Seen::Sample { now_s, domain, running, lent, borrowed, .. } = seen {
            samples.push(Sample { now_s, domain, values: [running as f64, f64::from(lent), f64::from(borrowed)] });
        }
    });
    let by: Vec<(Reclaim, Vec<Outcome>)> = Reclaim::ALL
        .into_iter()
        .map(|mode| {
            let at = |(interval_s, _)| run(&Setup { interval_s, ..agreeing(setup, mode) }, &mut |_| {});
            (mode, INTERVALS.into_iter().map(at).collect())
        })
        .collect();
    let mut figures = vec![completion(setup, &by)];
    figures.extend(over_time(setup, &samples));
    figures.extend([interval(setup, &by), wasted(&by)]);
    figures
}

/// The same domains, all of which take machines back in one way.
fn agreeing(setup: &Setup, mode: Reclaim) -> Setup {
    let mut setup = setup.clone();
    for domain in &mut setup.domains {
        domain.policy.lending.reclaim.value = Modes(vec![mode]);
        domain.policy.borrowing.survives.value = Modes(vec![mode]);
    }
    setup
}

fn names(setup: &Setup) -> Vec<String> {
    setup.domains.iter().map(|domain| domain.name.clone()).collect()
}

fn of_each<'a>(setup: &'a Setup, outcome: &'a Outcome) -> impl Iterator<Item = &'a DomainOutcome> {
    setup.domains.iter().filter_map(|domain| outcome.domains.get(&domain.name))
}

fn completion(setup: &Setup, by: &[(Reclaim, Vec<Outcome>)]) -> Figure {
    let hour = INTERVALS.iter().position(|(interval_s, _)| *interval_s == 3600).unwrap_or_default();
    let alone = |outcome: &Outcome| of_each(setup, outcome).map(|domain| domain.mean_completion_alone_h).collect();
    let mut series: Vec<Series> =
        by.first().map(|(_, outcomes)| Series { name: "alone".into(), values: alone(&outcomes[hour]) }).into_iter().collect();
    series.extend(by.iter().map(|(mode, outcomes)| Series {
        name: mode.to_string(),
        values: of_each(setup, &outcomes[hour]).map(|domain| domain.mean_completion_h).collect(),
    }));
    let title = "Mean completion time, alone and shared, by reclamation".into();
    figure("completion", Chart { title, x: "domain", y: "hours from submission to end", places: names(setup), series, bars: true })
}

fn interval(setup: &Setup, by: &[(Reclaim, Vec<Outcome>)]) -> Figure {
    let part = |domain: &DomainOutcome| 100.0 + domain.change_percent();
    let series = setup.domains.iter().flat_map(|domain| {
        by.iter().map(|(mode, outcomes)| Series {
            name: format!("{}, {mode}", domain.name),
            values: outcomes.iter().filter_map(|outcome| outcome.domains.get(&domain.name)).map(part).collect(),
        })
    });
    let title = "Mean completion time by the brokers' interval".into();
    let places = INTERVALS.map(|(_, name)| name.to_owned()).to_vec();
    figure(
        "interval",
        Chart {
            title,
            x: "between two decisions of the brokers",
            y: "shared, in % of alone",
            places,
            series: series.collect(),
            bars: false,
        },
    )
}

fn wasted(by: &[(Reclaim, Vec<Outcome>)]) -> Figure {
    let sum = |outcome: &Outcome| outcome.domains.values().map(|domain| domain.wasted_node_h).sum();
    let series = by.iter().map(|(mode, outcomes)| Series { name: mode.to_string(), values: outcomes.iter().map(sum).collect() });
    let title = "Work lost to reclamation, all domains".into();
    let places = INTERVALS.map(|(_, name)| name.to_owned()).to_vec();
    figure(
        "wasted",
        Chart { title, x: "between two decisions of the brokers", y: "node-hours", places, series: series.collect(), bars: true },
    )
}

/// Machines at a time: those that work, are lent, are borrowed.
struct Sample {
    now_s: u64,
    domain: usize,
    values: [f64; 3],
}

fn over_time(setup: &Setup, samples: &[Sample]) -> Vec<Figure> {
    let end_s = samples.iter().map(|sample| sample.now_s).max().unwrap_or_default();
    let days = (end_s / DAY + 1).div_ceil(BUCKETS_MAX);
    // Weeks look like weeks.
    let days = if days > 1 { days.next_multiple_of(7) } else { 1 };
    let bucket_s = days * DAY;
    let buckets = usize::try_from(end_s / bucket_s + 1).unwrap_or(1);
    let places: Vec<String> = (0..buckets as u64).map(|bucket| (bucket * days).to_string()).collect();
    let y = if days == 1 { "machines, mean of a day" } else { "machines, mean of a week" };
    let (mut figures, mut lent) = (vec![], vec![]);
    for (number, domain) in setup.domains.iter().enumerate() {
        let [running, gone, come] = means(samples.iter().filter(|sample| sample.domain == number), bucket_s, buckets);
        let owned = f64::from(domain.machines);
        let at_work = gone.iter().zip(&come).map(|(gone, come)| owned - gone + come).collect();
        let series = [("owned", vec![owned; buckets]), ("own - lent + borrowed", at_work), ("its jobs run on", running)];
        let series = series.map(|(name, values)| Series { name: name.into(), values }).to_vec();
        let title = format!("Machines of {}", domain.name);
        figures
            .push(figure(&format!("machines-{}", domain.name), Chart { title, x: "day", y, places: places.clone(), series, bars: false }));
        lent.push(Series { name: format!("lent by {}", domain.name), values: gone });
    }
    let title = "Machines lent".into();
    figures.push(figure("traded", Chart { title, x: "day", y, places, series: lent, bars: false }));
    figures
}

/// Means over time in each bucket: what was seen holds until it is seen anew.
fn means<'a>(samples: impl Iterator<Item = &'a Sample>, bucket_s: u64, buckets: usize) -> [Vec<f64>; 3] {
    let mut sums = [vec![0.0; buckets], vec![0.0; buckets], vec![0.0; buckets]];
    let mut last = (0, [0.0; 3]);
    for sample in samples {
        let (mut from, values) = last;
        while from < sample.now_s {
            let bucket = from / bucket_s;
            let to = sample.now_s.min((bucket + 1) * bucket_s);
            for (sums, value) in sums.iter_mut().zip(values) {
                sums[usize::try_from(bucket).unwrap_or_default().min(buckets - 1)] += value * (to - from) as f64;
            }
            from = to;
        }
        last = (sample.now_s, sample.values);
    }
    let end_s = last.0;
    for sums in &mut sums {
        for (bucket, sum) in sums.iter_mut().enumerate() {
            let seen_s = end_s.saturating_sub(bucket as u64 * bucket_s).min(bucket_s);
            *sum /= seen_s.max(1) as f64;
        }
    }
    sums
}

fn figure(name: &str, chart: Chart) -> Figure {
    // A field that a comma or a quote would break is quoted (RFC 4180).
    let quoted = |text: &str| if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() };
    let heads: Vec<String> = std::iter::once(chart.x).chain(chart.series.iter().map(|series| series.name.as_str())).map(quoted).collect();
    let mut csv = heads.join(",") + "\n";
    for (at, place) in chart.places.iter().enumerate() {
        csv += &quoted(place);
        for series in &chart.series {
            csv += &format!(",{:.4}", series.values.get(at).copied().unwrap_or_default());
        }
        csv += "\n";
    }
    Figure { name: name.to_owned(), svg: chart.svg(), csv }
}

#[cfg(test)]
mod tests {
    use rebec_pool::trade::policy::Policy;

    use super::*;
    use crate::{
        Costs, DomainSetup,
        made::{self, Like},
    };

    #[test]
    fn every_plot_has_its_picture_and_its_numbers() {
        let domain = |name: &str, machines, load_percent| {
            let trace = made::trace(Like { jobs: 300, machines, load_percent, seed: 5 });
            DomainSetup { name: name.into(), trace, machines, policy: Policy::default() }
        };
        let setup = Setup { domains: vec![domain("a", 8, 90), domain("b", 32, 30)], costs: Costs::default(), interval_s: 3600, seed: 1 };
        let mut runs = vec![];
        let figures = figures(&setup, &mut |done, of| runs.push((done, of)));
        assert_eq!((runs.len(), runs.last()), (19, Some(&(19, 19))));
        let names: Vec<&str> = figures.iter().map(|figure| figure.name.as_str()).collect();
        assert_eq!(names, ["completion", "machines-a", "machines-b", "traded", "interval", "wasted"]);
        for figure in &figures {
            let rows: Vec<&str> = figure.csv.lines().collect();
            let fields = |row: &str| row.replace(", ", "").split(',').count();
            assert!(rows.len() > 2 && rows.iter().all(|row| fields(row) == fields(rows[0])), "{}:\n{}", figure.name, figure.csv);
            assert!(!figure.svg.contains("NaN"), "{}", figure.svg);
        }
        assert!(figures[0].csv.starts_with("domain,alone,migrate,kill,wait\na,"), "{}", figures[0].csv);
    }

    #[test]
    fn means_are_over_time() {
        let sample = |now_s, value| Sample { now_s, domain: 0, values: [value, 0.0, 0.0] };
        let samples = [sample(0, 4.0), sample(5, 8.0), sample(12, 1.0), sample(15, 0.0)];
        let [means, ..] = means(samples.iter(), 10, 2);
        assert_eq!(means, [6.0, (2.0 * 8.0 + 3.0) / 5.0]);
    }
}
