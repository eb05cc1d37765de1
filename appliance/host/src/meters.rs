//! What the kernel counts of this machine, of a process, and of a VM's control group, as families for monitoring.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rebec_vmm_api::metrics::Family;

/// What tasks wait for (Documentation/accounting/psi.rst).
const RESOURCES: [&str; 3] = ["cpu", "io", "memory"];

/// What a process has taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Taken {
    /// Of the processors, in seconds.
    pub cpu_s: f64,
    /// Memory of its own that is in RAM, what it shares among it.
    pub resident_bytes: u64,
}

/// What a process has taken; none if it has gone.
pub fn taken(pid: u32) -> Option<Taken> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let ticks = ticks(&stat)?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let cpu_s = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    Some(Taken { cpu_s, resident_bytes: pages.saturating_mul(rustix::param::page_size() as u64) })
}

/// Of the processors, in user and kernel mode: fields 14 and 15 (proc_pid_stat(5)). The second is a name that may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()?.saturating_add(next()?))
}

/// Descriptors that this process has open.
pub fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// How long tasks of this machine have waited for what they need; nothing where the kernel does not count that.
pub fn machine_pressure() -> Family {
    let family =
        Family::counter("rebec_host_pressure_seconds_total", "Time in which some, or all, tasks of the machine waited for a resource.");
    pressures(family, |resource| Path::new("/proc/pressure").join(resource))
}

/// What is counted of a VM's control group; nothing of what the kernel does not count.
pub fn of_group(group: &Path) -> Vec<Family> {
    let stat = fs::read_to_string(group.join("cpu.stat")).unwrap_or_default();
    let held = fs::read_to_string(group.join("memory.current")).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let second = |field: &str| number(&stat, field).map(|us| us as f64 / 1e6);
    let throttled =
        Family::counter("rebec_vm_cpu_throttled_seconds_total", "Time for which the VM's quota of the processors kept it waiting.");
    let memory = Family::gauge("rebec_vm_host_memory_bytes", "Memory of the host that the VM takes, files that it reads among it.");
    let pressure = Family::counter("rebec_vm_pressure_seconds_total", "Time in which some, or all, tasks of the VM waited for a resource.");
    vec![
        second("throttled_usec").into_iter().fold(throttled, |family, s| family.with(&[], s)),
        held.into_iter().fold(memory, |family, bytes| family.with(&[], bytes as f64)),
        pressures(pressure, |resource| group.join(format!("{resource}.pressure"))),
    ]
}

fn pressures(mut family: Family, file: impl Fn(&str) -> PathBuf) -> Family {
    for resource in RESOURCES {
        let text = fs::read_to_string(file(resource)).unwrap_or_default();
        for (tasks, us) in waited(&text) {
            family.add(&[("resource", resource), ("tasks", tasks)], us as f64 / 1e6);
        }
    }
    family
}

/// By `some` and `full`, in microseconds.
fn waited(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (tasks, rest) = line.split_once(' ')?;
        let total = rest.split_whitespace().find_map(|word| word.strip_prefix("total="))?;
        Some((tasks, total.parse().ok()?))
    })
}

/// The number of a line that begins with a word.
fn number(text: &str, word: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let stat = "7 (a) b) ( c) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 9 9 20 0 1 0 12 1 1";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("7 (cut) S 1"), None);
        let psi = "some avg10=0.00 avg60=0.10 avg300=0.00 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\nfuller\n";
        assert_eq!(waited(psi).collect::<Vec<_>>(), [("some", 1_500_000), ("full", 7)]);
        assert_eq!(number("usage_usec 5\nthrottled_usec 12\n", "throttled_usec"), Some(12));
        assert_eq!(number("throttled_usecs 12\n", "throttled_usec"), None);
    }

    #[test]
    fn a_process_has_taken_something_and_one_that_is_gone_nothing() {
        let own = taken(std::process::id()).unwrap();
        assert!(own.resident_bytes > 100_000 && own.cpu_s >= 0.0, "{own:?}");
        assert_eq!(taken(u32::MAX), None);
        assert!(open_descriptors() > 2);
    }

    #[test]
    fn a_group_is_counted_as_far_as_its_files_are_there() {
        let group = tempfile::tempdir().unwrap();
        assert!(of_group(group.path()).iter().all(|family| family.samples.is_empty()));
        fs::write(group.path().join("cpu.stat"), "usage_usec 9\nnr_throttled 1\nthrottled_usec 2500000\n").unwrap();
        fs::write(group.path().join("memory.current"), "4096\n").unwrap();
        fs::write(group.path().join("io.pressure"), "some avg10=0 total=3000000\nfull avg10=0 total=0\n").unwrap();
        let text = rebec_vmm_api::metrics::text(&of_group(group.path()));
        for line in [
            "rebec_vm_cpu_throttled_seconds_total 2.5",
            "rebec_vm_host_memory_bytes 4096",
            "rebec_vm_pressure_seconds_total{resource=\"io\",tasks=\"some\"} 3",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
