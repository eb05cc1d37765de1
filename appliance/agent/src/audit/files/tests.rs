//! The log on a real disk: bounds, ends that were torn off, an agent that is killed.

use std::{process::Command, time::Duration};

use rebec_book::authority::{Asker, Question};
use rebec_host::durable::cuts;

use super::{super::row::Who, *};

/// Set where a test is the writer that is killed.
const WRITER: &str = "REBEC_TEST_AUDIT_WRITER";
const SMALL: Bounds = Bounds { file_bytes: 1000, files: 3 };

fn entry() -> Entry {
    Entry::new(Who::new(Asker::Nobody, Some("eyes")), &Question::Exchange, Some("no".into()))
}

fn opened(state: &Path, bounds: Bounds) -> Files {
    Files::open(state, bounds).unwrap().0
}

fn verified(files: &Files, known: &[(Head, &'static str)]) -> Result<Head, Wrong> {
    files.verify(known).unwrap().1
}

#[test]
fn rows_are_there_after_a_new_start_and_the_chain_goes_on() {
    let state = tempfile::tempdir().unwrap();
    let mut files = opened(state.path(), BOUNDS);
    assert_eq!(verified(&files, &[]), Ok(Head::NONE));
    files.append(1, [entry(), entry()]).unwrap();
    files.append(2, []).unwrap();
    let head = files.head();
    let mut files = opened(state.path(), BOUNDS);
    assert_eq!(files.head(), head);
    files.append(3, [entry()]).unwrap();
    assert_eq!(verified(&files, &[(head, "the pool was told of")]).unwrap().seq, 3);
    assert_eq!(files.tail(2).unwrap().iter().map(|row| (row.seq, row.time)).collect::<Vec<_>>(), [(2, 1), (3, 3)]);
}

#[test]
fn the_log_stays_within_its_bounds_and_its_chain_is_whole() {
    let state = tempfile::tempdir().unwrap();
    let mut files = opened(state.path(), SMALL);
    for time in 0..200 {
        files.append(time, [entry()]).unwrap();
        if time % 37 == 0 {
            files = opened(state.path(), SMALL);
        }
    }
    let folder = state.path().join("audit");
    let kept = numbers(&folder).unwrap();
    assert_eq!(kept.len(), SMALL.files);
    assert!(kept.iter().all(|number| fs::metadata(path(&folder, *number)).unwrap().len() <= SMALL.file_bytes));
    assert_eq!(verified(&files, &[(Head { seq: 1, ..Head::NONE }, "was dropped")]).unwrap().seq, 200);
    let rows = files.tail(1000).unwrap();
    assert!(rows.len() < 20 && rows.last().unwrap().seq == 200);
    // The oldest was on its way out.
    let from = fs::read(folder.join("from")).unwrap();
    let first = fs::read(path(&folder, kept[0])).unwrap();
    let last = last_row(&path(&folder, kept[0])).unwrap().unwrap();
    durable::replace(&folder.join("from"), format!("{} {}\n", last.seq, last.hash).as_bytes()).unwrap();
    let files = opened(state.path(), SMALL);
    assert_eq!((files.numbers.len(), verified(&files, &[]).unwrap().seq), (SMALL.files - 1, 200));
    fs::write(path(&folder, kept[0]), first).unwrap();
    fs::write(folder.join("from"), from).unwrap();
    fs::remove_file(path(&folder, kept[1])).unwrap();
    assert!(verified(&opened(state.path(), SMALL), &[]).is_err(), "a file is missing");
}

#[test]
fn a_log_that_was_cut_anywhere_starts_and_says_so() {
    let state = tempfile::tempdir().unwrap();
    let mut files = opened(state.path(), BOUNDS);
    files.append(1, [entry(), entry()]).unwrap();
    let path = path(&state.path().join("audit"), 1);
    let whole = fs::read(&path).unwrap();
    let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for keep in 0..whole.len() {
        fs::write(&path, &whole[..keep]).unwrap();
        let (mut files, cut) = Files::open(state.path(), BOUNDS).unwrap();
        assert_eq!(cut.is_some(), keep != 0 && keep != first, "{keep}");
        assert_eq!(files.head().seq, u64::from(keep >= first));
        files.append(2, [entry()]).unwrap();
        verified(&files, &[]).unwrap();
    }
    // Blocks that were never written are zeros.
    for tail in [vec![0; 300], b"{}\n".to_vec(), [&[0; 30][..], b"\n"].concat()] {
        fs::write(&path, [&whole[..], &tail].concat()).unwrap();
        let (files, cut) = Files::open(state.path(), BOUNDS).unwrap();
        assert!(cut.unwrap().contains(&format!("{} bytes", tail.len())));
        assert_eq!(verified(&files, &[]).unwrap().seq, 2);
    }
}

#[test]
fn rows_that_were_taken_off_the_end_are_missed() {
    let state = tempfile::tempdir().unwrap();
    let mut files = opened(state.path(), BOUNDS);
    files.append(1, [entry(), entry()]).unwrap();
    let told = files.head();
    let path = path(&state.path().join("audit"), 1);
    let whole = fs::read_to_string(&path).unwrap();
    let first = whole.lines().next().unwrap().to_owned() + "\n";
    fs::write(&path, &first).unwrap();
    assert_eq!(verified(&files, &[]), Err(Wrong::Missing(2, 2, "this agent wrote")));
    let files = opened(state.path(), BOUNDS);
    assert_eq!(verified(&files, &[(told, "the pool was told of")]), Err(Wrong::Missing(2, 2, "the pool was told of")));
    fs::write(&path, first.replace("eyes", "ears") + whole.lines().nth(1).unwrap() + "\n").unwrap();
    assert_eq!(verified(&opened(state.path(), BOUNDS), &[]), Err(Wrong::Chain(1, 2)));
}

#[test]
fn a_writer_that_is_killed_leaves_a_log_from_which_it_starts() {
    if let Some(state) = std::env::var_os(WRITER) {
        let mut files = opened(Path::new(&state), Bounds { file_bytes: 20_000, files: 4 });
        loop {
            files.append(1, (0..20).map(|_| entry())).unwrap();
        }
    }
    let state = tempfile::tempdir().unwrap();
    let mut before = 0;
    for round in 0..5 {
        let name = "audit::files::tests::a_writer_that_is_killed_leaves_a_log_from_which_it_starts";
        let mut writer = Command::new(std::env::current_exe().unwrap()).args(["--exact", name]).env(WRITER, state.path()).spawn().unwrap();
        let folder = state.path().join("audit");
        let newest = || last_row(&path(&folder, *numbers(&folder).ok()?.last()?)).ok().flatten();
        for _ in 0..2_000 {
            if newest().is_some_and(|head| head.seq > before) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(5 + 7 * round));
        writer.kill().unwrap();
        writer.wait().unwrap();
        let mut files = opened(state.path(), Bounds { file_bytes: 20_000, files: 4 });
        assert!(files.head().seq > before, "nothing was written");
        files.append(2, [entry()]).unwrap();
        before = verified(&files, &[]).unwrap().seq;
    }
}

#[test]
fn whenever_the_power_goes_the_log_opens_and_has_what_was_told() {
    let state = tempfile::tempdir().unwrap();
    let (deeds, told) = cuts::record(|| {
        let mut files = opened(state.path(), SMALL);
        let tell = |time: u64| {
            files.append(time, [entry(), entry(), entry()]).unwrap();
            (cuts::deeds(), files.head())
        };
        (1..16).map(tell).collect::<Vec<_>>()
    });
    assert!(deeds.iter().any(|deed| matches!(deed, durable::Deed::Remove(_))), "no file was full");
    cuts::each(state.path(), &deeds, |at, which, image| {
        let known = told.iter().rfind(|(deeds, _)| *deeds <= at).map_or(Head::NONE, |(_, head)| *head);
        let cut = format!("cut behind deed {at} of {}, image {which}", deeds.len());
        let (mut files, _) = Files::open(image, SMALL).unwrap_or_else(|error| panic!("{cut}: {error:#}"));
        assert_eq!(verified(&files, &[(known, "was told")]), Ok(files.head()), "{cut}");
        assert!(files.head().seq >= known.seq, "{cut}: {} rows are left of {}", files.head().seq, known.seq);
        files.append(99, [entry()]).unwrap();
        assert_eq!(verified(&opened(image, SMALL), &[]), Ok(files.head()), "{cut}");
    });
}
