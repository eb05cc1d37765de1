//! A person with a cloud image, on a lab machine: the image is imported, a VM runs from it, its guest installs another kernel and reboots, and that kernel
//! runs. All by `rebec`, with an agent of its own.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Machine, machine::ORDER_DEADLINE};
use crate::{channel::client::Job, cloud::Layout};

/// Where the share has the program.
pub const PROGRAM: &str = "/share/bin/rebec";
/// How long a guest may take from its reset to its shell: five times what two busy cores were seen to need.
const BOOT_DEADLINE: Duration = Duration::from_secs(240);
/// How long an import of a small disk may take, judgement included.
const IMPORT_DEADLINE: Duration = Duration::from_secs(120);

/// What a machine is to do.
pub struct Upgrade<'a> {
    /// Who published the image.
    pub layout: Layout,
    /// The image in the machine.
    pub image: &'a str,
    /// The release of the kernel that the image starts.
    pub old: &'a str,
    /// Of the one that its guest installs.
    pub new: &'a str,
}

/// An agent that runs for one story.
struct Agent<'a> {
    machine: &'a Machine,
    job: Job,
}

impl<'a> Agent<'a> {
    /// Nothing of an earlier story on the machine is in its state folder.
    fn start(machine: &'a Machine, layout: Layout) -> Result<Self> {
        let vmm = super::vm::PROGRAM;
        let state = format!("/work/state-{layout:?}");
        machine.shell(&format!("mkdir -p /run/rebec {state}"))?;
        let job = machine.start(&[PROGRAM, "agent", "--state", &state, "--vmm", vmm, "--name", machine.name(), "--memory", "1G"])?;
        let agent = Self { machine, job };
        let answers = format!("n=0; until {PROGRAM} pool status; do n=$((n+1)); [ $n -gt 200 ] && exit 1; sleep 0.2; done >/dev/null 2>&1");
        let up = machine.check(&["sh", "-c", &answers], ORDER_DEADLINE);
        up.with_context(|| format!("the agent does not answer: {}", agent.last_words()))?;
        Ok(agent)
    }

    fn rebec(&self, words: &[&str], deadline: Duration) -> Result<String> {
        let done = self.machine.check(&[&[PROGRAM], words].concat(), deadline);
        done.with_context(|| format!("the agent's last words: {}", self.last_words()))
    }

    fn last_words(&self) -> String {
        let said = String::from_utf8_lossy(&self.job.take_errors()).into_owned();
        said.lines().rev().take(8).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

/// A console, and what was seen of it.
struct Console {
    job: Job,
    said: String,
}

impl Console {
    /// Waits for words that were not there before.
    fn wait(&mut self, words: &str, deadline: Duration) -> Result<()> {
        let (from, end) = (self.said.len(), Instant::now() + deadline);
        loop {
            let over = self.job.ended()?;
            self.job.wait_output(Duration::from_millis(200));
            self.said += &String::from_utf8_lossy(&self.job.take_output());
            let new = &self.said[from..];
            // A word that is still being printed is not over.
            let whole = &new[..new.rfind('\n').map_or(0, |end| end + 1)];
            if whole.contains(words) {
                return Ok(());
            }
            let errors = || String::from_utf8_lossy(&self.job.take_errors()).into_owned();
            ensure!(over.is_none() && Instant::now() < end, "{words:?} did not come; console: {new} {}", errors());
        }
    }

    /// Asks the guest how large its disk is.
    fn expect_size(&mut self, bytes: u64) -> Result<()> {
        self.type_line("echo sectors $(cat /sys/block/vda/size) end")?;
        self.wait(&format!("\nsectors {} end", bytes / 512), ORDER_DEADLINE).context("the size of the guest's disk")
    }

    fn type_line(&self, line: &str) -> Result<()> {
        self.job.send(format!("{line}\n").as_bytes())
    }
}

impl Upgrade<'_> {
    /// Does it.
    pub fn tell(&self, machine: &Machine) -> Result<()> {
        let agent = Agent::start(machine, self.layout)?;
        let Self { old, new, .. } = self;
        agent.rebec(&["pool", "init", "lab", "--domain", "home"], ORDER_DEADLINE)?;
        agent.rebec(&["image", "import", "cloud", self.image], IMPORT_DEADLINE)?;
        let shown = agent.rebec(&["image", "show", "cloud"], ORDER_DEADLINE)?;
        ensure!(shown.contains(old), "what would start is not shown: {shown}");
        agent.rebec(&["vm", "run", "web", "--image", "cloud", "--memory", "256M", "--disk-size", "1G"], ORDER_DEADLINE)?;
        let mut console = Console { job: machine.start(&[PROGRAM, "vm", "console", "web"])?, said: String::new() };
        console.wait(&format!("up {old} saved"), BOOT_DEADLINE)?;
        console.type_line("upgrade")?;
        console.wait("\nupgraded", ORDER_DEADLINE)?;
        // By init, with everything unmounted; or at once, with a journal that was never closed.
        console.type_line(if self.layout == Layout::Debian { "reboot" } else { "reboot -f" })?;
        console.wait(&format!("up {new} upgraded"), BOOT_DEADLINE)?;
        // Its disk is larger than its image's, and grows while the guest uses it.
        console.expect_size(1 << 30)?;
        agent.rebec(&["vm", "resize-disk", "web", "3G"], ORDER_DEADLINE)?;
        console.expect_size(3 << 30)?;
        console.type_line("poweroff -f")?;
        machine.shell(&format!("until {PROGRAM} vm rm web; do sleep 0.5; done"))?;
        Ok(())
    }
}
