//! Traces of clusters in the Standard Workload Format, version 2.2 (Parallel Workloads Archive): 18 numbers a line, `;` begins a comment, -1 is unknown.
//!
//! ```text
//! field  1      2       3     4    5          8          9          11
//!        number submit  wait  run  processors requested: processors time   status
//! ```
//! Of a job count when it was submitted, how long it ran, on how many processors, and the time that its user asked for. Files are strangers' bytes: lines,
//! numbers, jobs and unpacked bytes have limits, and an error names the line.

use std::io::{BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// More than any trace of the archive has, packed or not.
const BYTES_MAX: u64 = 1 << 29;
/// Lines of all kinds.
const LINES_MAX: usize = JOBS_MAX + 1_000_000;
/// Longest line; a job's is about 100 bytes.
const LINE_MAX: u64 = 16 * 1024;
/// Jobs of one trace.
const JOBS_MAX: usize = 4_000_000;
/// Fields of a job's line.
const FIELDS: usize = 18;
/// Times, in seconds: more than thirty years.
const TIME_MAX: i64 = 1 << 30;
/// A trace's beginning, in seconds since 1970, is before the year 4000.
const BEGINS_MAX: u64 = 1 << 36;
/// Processors of one job.
const WIDTH_MAX: i64 = 1 << 24;
/// The first bytes of what gzip has packed.
pub(crate) const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A job as it was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// When, in seconds from the first.
    pub submit_s: u64,
    /// How long it runs on a machine.
    pub run_s: u64,
    /// How long its user said it would at most: what the scheduler plans by.
    pub asked_s: u64,
    /// Processors, all at once.
    pub width: u32,
}

/// A cluster's jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// In order of submission.
    pub jobs: Vec<Job>,
    /// Lines of jobs that never ran, or of which it is unknown on how many processors or how long.
    pub never_ran: usize,
    /// When the trace begins, in seconds since 1970, if it says so.
    pub begins: Option<u64>,
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// One line is not as it should be.
    #[error("line {line}: {what}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The bytes do not come.
    #[error("line {line}: {source}")]
    Read {
        /// From 1.
        line: usize,
        /// Why.
        source: std::io::Error,
    },
    /// There is no job.
    #[error("no job in it that ran; is it a trace in the Standard Workload Format?")]
    Empty,
}

/// Reads a trace, packed by gzip or not.
///
/// # Errors
/// The first line that is wrong.
pub fn read(from: impl Read) -> Result<Trace, TraceError> {
    let mut from = BufReader::new(from);
    let start = from.fill_buf().map_err(|source| TraceError::Read { line: 1, source })?;
    if start.starts_with(&GZIP) { read_lines(BufReader::new(MultiGzDecoder::new(from))) } else { read_lines(from) }
}

fn read_lines(from: impl BufRead) -> Result<Trace, TraceError> {
    let mut from = from.take(BYTES_MAX);
    let (mut trace, mut text, mut line) = (Trace::default(), Vec::new(), 0_usize);
    loop {
        line += 1;
        text.clear();
        let read = from.by_ref().take(LINE_MAX).read_until(b'\n', &mut text).map_err(|source| TraceError::Read { line, source })?;
        let wrong = |what: String| TraceError::Line { line, what };
        if read == 0 {
            if from.limit() == 0 {
                return Err(wrong(format!("more than {} MiB", BYTES_MAX >> 20)));
            }
            break;
        }
        if text.len() as u64 == LINE_MAX && text.last() != Some(&b'\n') {
            return Err(wrong(format!("longer than {LINE_MAX} bytes")));
        }
        if line > LINES_MAX {
            return Err(wrong(format!("more than {LINES_MAX} lines")));
        }
        let text = String::from_utf8_lossy(&text);
        match text.trim() {
            "" => {}
            comment if comment.starts_with(';') => header(comment, &mut trace),
            job => match parse(job).map_err(wrong)? {
                Some(_) if trace.jobs.len() == JOBS_MAX => return Err(wrong(format!("more than {JOBS_MAX} jobs"))),
                Some(job) => trace.jobs.push(job),
                None => trace.never_ran += 1,
            },
        }
    }
    let Some(first) = trace.jobs.iter().map(|job| job.submit_s).min() else { return Err(TraceError::Empty) };
    for job in &mut trace.jobs {
        job.submit_s -= first;
    }
    // Jobs of one second stay as they stand.
    trace.jobs.sort_by_key(|job| job.submit_s);
    trace.begins = trace.begins.map(|begins| begins.saturating_add(first));
    Ok(trace)
}

fn header(comment: &str, trace: &mut Trace) {
    let value = comment.trim_start_matches(';').trim().strip_prefix("UnixStartTime:");
    if let Some(begins) = value.and_then(|value| value.trim().parse().ok()).filter(|begins| *begins < BEGINS_MAX) {
        trace.begins = Some(begins);
    }
}

/// The numbers of a line that count here, and none if the job never ran.
fn parse(line: &str) -> Result<Option<Job>, String> {
    let mut fields = [-1_i64; FIELDS];
    let mut count = 0;
    for word in line.split_whitespace() {
        if let Some(field) = fields.get_mut(count) {
            *field = number(word).ok_or_else(|| format!("field {}: `{}` is not a number", count + 1, shortened(word)))?;
        }
        count += 1;
    }
    if count != FIELDS {
        return Err(format!("{count} fields, and a job has {FIELDS}"));
    }
    let [_, submit, _, run, got, _, _, wanted, asked, ..] = fields;
    let within = |name: &str, value: i64, least: i64, most: i64| {
        if (least..=most).contains(&value) { Ok(value) } else { Err(format!("{name}: {value} is not between {least} and {most}")) }
    };
    let submit = within("field 2, time of submission", submit, 0, TIME_MAX)?;
    let run = within("field 4, run time", run, i64::MIN, TIME_MAX)?;
    let width = within("fields 5 and 8, processors", if got > 0 { got } else { wanted }, i64::MIN, WIDTH_MAX)?;
    let asked = within("field 9, requested time", asked, i64::MIN, TIME_MAX)?;
    if run < 0 || width <= 0 {
        return Ok(None);
    }
    let (submit_s, run_s, asked_s) =
        (submit.unsigned_abs(), run.unsigned_abs(), if asked > 0 { asked.unsigned_abs() } else { run.unsigned_abs() });
    let width = u32::try_from(width).map_err(|_| format!("{width} processors"))?;
    Ok(Some(Job { submit_s, run_s, asked_s: asked_s.max(1), width }))
}

/// Some logs have fractions; they are cut off.
fn number(word: &str) -> Option<i64> {
    if let Ok(number) = word.parse() {
        return Some(number);
    }
    let (whole, fraction) = word.split_once('.')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if digits(fraction) && !whole.is_empty() { whole.parse().ok() } else { None }
}

fn shortened(word: &str) -> String {
    word.chars().take(20).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    fn line(submit: i64, run: i64, got: i64, wanted: i64, asked: i64) -> String {
        format!("1 {submit} 5 {run} {got} -1 -1 {wanted} {asked} -1 1 1 1 -1 -1 -1 -1 -1\n")
    }

    fn refusal(text: &str) -> String {
        read(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn jobs_are_read_and_put_in_order() {
        let text = format!("; UnixStartTime: 1000\n;\n{}\n{}{}", line(70, 9, 4, -1, 60), line(50, 0, -1, 8, -1), line(60, -1, 4, 4, 60));
        let trace = read(text.as_bytes()).unwrap();
        let expected = [Job { submit_s: 0, run_s: 0, asked_s: 1, width: 8 }, Job { submit_s: 20, run_s: 9, asked_s: 60, width: 4 }];
        assert_eq!((trace.jobs.as_slice(), trace.never_ran, trace.begins), (expected.as_slice(), 1, Some(1050)));

        let mut packed = GzEncoder::new(vec![], Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        assert_eq!(read(packed.finish().unwrap().as_slice()).unwrap(), trace);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let right = line(1, 1, 1, 1, 1);
        for (wrong, told) in [
            ("1 2 3\n".to_owned(), "line 2: 3 fields, and a job has 18"),
            (right.trim().to_owned() + " 5\n", "line 2: 19 fields"),
            (right.replace("-1 1 1 1", "-1 x 1 1"), "line 2: field 11: `x` is not a number"),
            (line(-7, 1, 1, 1, 1), "line 2: field 2, time of submission: -7"),
            (line(1, 1 << 31, 1, 1, 1), "line 2: field 4, run time"),
            (line(1, 1, 1 << 30, 1, 1), "line 2: fields 5 and 8, processors"),
            ("9".repeat(30_000), "line 2: longer than 16384 bytes"),
            (line(1, 1, 1, 1, 1).replace("1 1 1", "99999999999999999999 1 1"), "line 2: field"),
        ] {
            let said = refusal(&(right.clone() + &wrong));
            assert!(said.starts_with(told), "{said}");
        }
        let packed = |text: &[u8]| {
            let mut packed = GzEncoder::new(vec![], Compression::fast());
            packed.write_all(text).unwrap();
            packed.finish().unwrap()
        };
        let said = read(packed(&b"\n".repeat(LINES_MAX + 1)).as_slice()).unwrap_err().to_string();
        assert_eq!(said, "line 5000001: more than 5000000 lines");
        assert!(refusal("; nothing\n").starts_with("no job in it"));
        assert!(refusal(&line(1, -1, 4, 4, 4)).starts_with("no job in it"));
        assert!(read([0x1f, 0x8b, 8, 0, 0].as_slice()).unwrap_err().to_string().starts_with("line 1: "));
    }

    #[test]
    fn fractions_are_cut_off() {
        assert_eq!(
            (number("5.9"), number("-1"), number("5.x"), number(".5"), number("1e3"), number("nan")),
            (Some(5), Some(-1), None, None, None, None)
        );
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            drop(read(bytes.as_slice()));
        }
    }
}
