//! Programs of others, bounded: a scheduler's command may hang, end with an error, or print without an end.

use std::{process::Stdio, time::Duration};

use rebec_pool::trade::queue::BYTES_MAX;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
};

/// Of what a program says on its standard error, the first line is told, up to here.
const WORDS_MAX: usize = 200;
/// So much of it is looked at.
const SAID_MAX: u64 = 64 << 10;

/// Runs a program, without a shell, and returns what it printed.
///
/// # Errors
/// One line: what is wrong, and with which program.
pub async fn answer(words: &[String], time: Duration) -> Result<String, String> {
    let (name, arguments) = words.split_first().ok_or("no program")?;
    let mut command = Command::new(name);
    // A group of its own: what it has started ends with it.
    command.args(arguments).process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
    let group = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else { return Err(format!("{name}: it has no output")) };
    let work = async {
        let (printed, said) = tokio::join!(read(stdout, BYTES_MAX as u64), read(stderr, SAID_MAX));
        let printed = printed?;
        if printed.len() > BYTES_MAX {
            return Ok(Err(format!("it printed more than {} MiB", BYTES_MAX >> 20)));
        }
        Ok::<_, std::io::Error>(Ok((printed, said.unwrap_or_default(), child.wait().await?)))
    };
    let ended = tokio::time::timeout(time, work).await;
    if let (true, Some(group)) = (!matches!(ended, Ok(Ok(Ok(_)))), group) {
        // It may have ended by itself meanwhile.
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap_or_default();
    }
    let ended = ended.map_err(|_| format!("{name}: no answer in {} s", time.as_secs_f32()))?;
    let (printed, said, status) = ended.map_err(|error| format!("{name}: {error}"))?.map_err(|why| format!("{name}: {why}"))?;
    if !status.success() {
        return Err(format!("{name}: it ended with {status}{}", first_line(&said)));
    }
    String::from_utf8(printed).map_err(|_| format!("{name}: what it printed is no text"))
}

/// One byte more than is allowed tells that there was more; the pipe is closed then, and the program ends or is ended.
async fn read(from: impl AsyncRead + Unpin, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![];
    from.take(most + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

fn first_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let line: String = line.chars().filter(|letter| !letter.is_control()).take(WORDS_MAX).collect();
    if line.is_empty() { line } else { format!(": {line}") }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn run(script: &str, time: Duration) -> Result<String, String> {
        let words = ["sh", "-c", script].map(str::to_owned);
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(answer(&words, time))
    }

    #[test]
    fn what_a_program_does_is_told_in_one_line() {
        let long = Duration::from_secs(60);
        assert_eq!(run("printf 7", long), Ok("7".into()));
        for (script, says) in [
            ("echo 'slurm: cannot\tcontact' >&2; echo more >&2; exit 3", "sh: it ended with exit status: 3: slurm: cannotcontact"),
            ("kill -9 $$", "sh: it ended with signal: 9 (SIGKILL)"),
            ("printf '\\377'", "sh: what it printed is no text"),
            ("cat /dev/zero", "sh: it printed more than 64 MiB"),
            ("yes >&2", "sh: it ended with"),
        ] {
            let told = run(script, long).unwrap_err();
            assert!(told.contains(says) && !told.contains('\n') && told.len() < 300, "{script}: {told}");
        }
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_all_that_it_started() {
        let began = Instant::now();
        let mark = tempfile();
        // The second process would write its mark after the first is gone.
        let told = run(&format!("(sleep 2; echo late > {mark}) & sleep 60"), Duration::from_millis(300)).unwrap_err();
        assert!(told.contains("no answer in 0.3 s") && began.elapsed() < Duration::from_secs(20), "{told}");
        std::thread::sleep(Duration::from_millis(2500));
        assert!(!std::path::Path::new(&mark).exists(), "what it started lives on");
        assert!(answer_of_none().contains("no program"));
    }

    fn answer_of_none() -> String {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(answer(&[], Duration::ZERO)).unwrap_err()
    }

    fn tempfile() -> String {
        std::env::temp_dir().join(format!("rebec-elastic-{}", std::process::id())).display().to_string()
    }
}
