//! Answers of schedulers: recorded, made up and hostile ones.

use proptest::prelude::*;

use super::*;

const SQUEUE_12: &str = include_str!("golden/squeue-22.05.json");
const SQUEUE_13: &str = include_str!("golden/squeue-24.11.json");
const NO_CONTROLLER_12: &str = include_str!("golden/squeue-22.05-no-controller.json");

fn demand(queued: u32, running: u32, widest: u32) -> Result<Demand, String> {
    Ok(Demand { queued, running, widest })
}

/// Recorded from the programs of Debian 12 and 13: a job that runs, two that wait, an array of which three may run at once, and jobs that are held,
/// wait for their time or for another.
#[test]
fn what_squeue_says_is_read_in_both_forms() {
    // A job of two machines, and six tasks of an array, three at once.
    assert_eq!(read(SQUEUE_12), demand(5, 0, 2));
    // A job that runs on both processors of a machine, one that wants a processor, and three tasks at once.
    assert_eq!(read(SQUEUE_13), demand(4, 1, 1));
    // Where jobs share machines of two processors, four small ones want two machines.
    let shared = |partition: Option<&str>| Shape { cpus: 2, partition: partition.map(str::to_owned) };
    assert_eq!(read_as(SQUEUE_13, &shared(None)), demand(2, 1, 1));
    assert_eq!(read_as(SQUEUE_13, &shared(Some("main"))), demand(2, 1, 1));
    assert_eq!(read_as(SQUEUE_13, &shared(Some("other"))), demand(0, 0, 0));
    for empty in [include_str!("golden/squeue-22.05-empty.json"), include_str!("golden/squeue-24.11-empty.json")] {
        assert_eq!(read(empty), demand(0, 0, 0));
    }
}

/// Slurm 22.05 ends well without its controller, and says that there are no jobs. It is not so.
#[test]
fn a_queue_that_slurm_could_not_see_is_not_an_empty_one() {
    assert_eq!(read(NO_CONTROLLER_12), Err("the scheduler says: Failed while looking for jobs: Unspecified error".into()));
}

#[test]
fn both_forms_of_squeue_say_the_same() {
    let old = r#"{"meta": {}, "jobs": [{"job_id": 1, "job_state": "PENDING", "node_count": 2}, {"job_state": "RUNNING", "node_count": 1}, {"job_state": "COMPLETED", "node_count": 9}]}"#;
    let new = r#"{"jobs": [{"job_state": ["PENDING"], "node_count": {"set": true, "infinite": false, "number": 2}}, {"job_state": ["RUNNING", "COMPLETING"], "node_count": {"number": 1}}], "errors": []}"#;
    assert_eq!((read(old), read(new)), (demand(2, 1, 2), demand(2, 1, 2)));
    assert_eq!(read(r#"{"queued": 3, "widest": 2, "nodes": []}"#), demand(3, 0, 2));
    assert_eq!(read(r#"{"queued": 0}"#), demand(0, 0, 0));
}

#[test]
fn jobs_of_htcondor_are_counted() {
    let queue = r#"[{"ClusterId": 1, "JobStatus": 1, "RequestCpus": 1}, {"JobStatus": 1, "RequestCpus": "\/Expr(Cpus)\/"}, {"JobStatus": 2, "RequestCpus": 2},
        {"JobStatus": 5, "RequestCpus": 1}, {"JobStatus": 4}, {"JobStatus": 1, "JobUniverse": 11, "MaxHosts": 3}]"#;
    assert_eq!(read(queue), demand(5, 1, 3));
    assert_eq!(read_as(queue, &Shape { cpus: 4, partition: None }), demand(3, 1, 3));
    assert_eq!(read("[]"), demand(0, 0, 0));
    // Recorded from Debian 13's: two jobs of one processor and one of four wait, one is held.
    let recorded = include_str!("golden/condor_q-23.9.json");
    assert_eq!(read(recorded), demand(3, 0, 1));
    assert_eq!(read_as(recorded, &Shape { cpus: 4, partition: None }), demand(2, 0, 1));
}

#[test]
fn garbage_is_told_as_such() {
    for (text, says) in [
        ("", "no JSON"),
        ("slurm_load_jobs error: Unable to contact slurm controller", "no JSON"),
        ("{}", "neither `jobs`"),
        ("7", "an answer of a scheduler"),
        ("[7]", "invalid type"),
        (r#"{"jobs": 7}"#, "a list of jobs"),
        (r#"{"jobs": [{"node_count": 1}]}"#, "job 0 of the answer has no `job_state`"),
        (r#"{"jobs": [{"job_state": "PENDING", "node_count": -1}]}"#, "has no `node_count`"),
        (r#"{"jobs": [{"job_state": "PENDING", "node_count": {"set": false, "number": 0}}]}"#, "has no `node_count`"),
        (r#"[{"ClusterId": 1}]"#, "job 0 of the answer has no `JobStatus`"),
        (r#"{"queued": -1}"#, "`queued` is no number"),
        (r#"{"queued": 4294967296}"#, "`queued` is no number"),
        (r#"{"queued": 1} {"queued": 2}"#, "no JSON"),
        (r#"{"queued": 1"#, "no JSON"),
        (r#"{"jobs": [], "errors": [{}]}"#, "the scheduler says: something went wrong"),
    ] {
        let told = read(text).unwrap_err();
        assert!(told.contains(says) && !told.contains('\n'), "{text}: {told}");
    }
    let deep = "[".repeat(100_000);
    assert!(read(&deep).unwrap_err().contains("no JSON"));
}

proptest! {
    /// Whatever stands there, and wherever an answer was cut or changed, it is demand or one line.
    #[test]
    fn hostile_answers_are_read_or_refused_in_a_line(at in 0usize..60_000, byte in any::<u8>(), which in 0usize..3, cut in any::<bool>()) {
        let golden = [SQUEUE_12, SQUEUE_13, NO_CONTROLLER_12][which];
        let mut bytes = golden.as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        if cut {
            bytes.truncate(at);
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Err(why) = read_as(&text, &Shape { cpus: 4, partition: None }) {
            prop_assert!(!why.contains('\n') && why.len() < 600, "{}", why);
        }
    }
}
