//! A Debian system on a machine of the lab: this host's own files, which it sees through a layer of its own and cannot change, booted by their
//! systemd in namespaces, as a container is. For what only a system has: packages that are installed, services that are started.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    Machine,
    lab::{expect, tail_of},
    vmm::SHORT,
};
use crate::command::Program;

/// Where the files that it is given lie in it.
pub const FILES: &str = "/rebec-lab";
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
const POLL: Duration = Duration::from_millis(50);

/// Gives it a control group of its own, waits for its end, and takes the group away. In a mount namespace of its own.
const AROUND: &str = r#"set -e
mount --make-rprivate /
mkdir -p "$SCENE"
mount -t tmpfs tmpfs "$SCENE"
mkdir "$SCENE/group" "$SCENE/own" "$SCENE/work" "$SCENE/root"
mount -t cgroup2 cgroup2 "$SCENE/group"
mkdir "$SCENE/group/$NAME"
echo $$ > "$SCENE/group/$NAME/cgroup.procs"
unshare --mount --pid --ipc --uts --cgroup --fork --kill-child sh -ec "$WITHIN" || true
echo $$ > "$SCENE/group/cgroup.procs"
find "$SCENE/group/$NAME" -depth -type d -exec rmdir {} +
"#;

/// Becomes its first process. What the kernel has only once is read-only, by which systemd knows that it is not its own.
const WITHIN: &str = r#"
mount -t overlay overlay -o "lowerdir=/,upperdir=$SCENE/own,workdir=$SCENE/work" "$SCENE/root"
cp -r "$FILES" "$SCENE/root$PLACE"
cd "$SCENE/root"
mount -t proc proc proc
mount -o bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
rm -f etc/fstab etc/machine-id
tr -d - < proc/sys/kernel/random/uuid > etc/machine-id
hostname "$NAME"
pivot_root . mnt
umount -l /mnt
exec env -i container=rebec-lab PATH="$WITHIN_PATH" /lib/systemd/systemd --system --unit=basic.target
"#;

/// A booted system. Dropped, it is killed, with all that runs in it.
pub struct Debian {
    child: Child,
    /// Its first process, as this host numbers it.
    first: i32,
}

impl Debian {
    /// Boots one on a machine, with the files of a folder at [`FILES`]; returns when systemd is ready.
    pub fn boot(machine: &Machine, files: &Path) -> Result<Self> {
        let (scene, log) = (machine.evidence().join("debian"), machine.evidence().join("debian.log"));
        let log_file = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", AROUND]).env("SCENE", scene).env("WITHIN", WITHIN).env("FILES", files);
        command.env("PLACE", FILES).env("WITHIN_PATH", PATH);
        command.env("NAME", format!("rebec-lab-{}", std::process::id()));
        command.stdin(Stdio::null()).stdout(log_file.try_clone()?).stderr(log_file);
        let child = machine.spawn(command)?;
        let mut debian = Self { child, first: 0 };
        let until = Instant::now() + SHORT;
        while !debian.is_up()? {
            expect(debian.child.try_wait()?.is_none() && Instant::now() < until, || {
                format!("systemd does not come up: {}", tail_of(&log))
            })?;
            thread::sleep(POLL);
        }
        Ok(debian)
    }

    fn is_up(&mut self) -> Result<bool> {
        if self.first == 0 {
            // The shell around it, `unshare`, and the first process.
            let Some(first) = child_of(self.child.id().cast_signed()).and_then(child_of) else { return Ok(false) };
            if fs::read_to_string(format!("/proc/{first}/comm")).is_ok_and(|name| name.trim() == "systemd") {
                self.first = first;
            }
        }
        Ok(self.first != 0 && self.run(&["systemctl", "is-active", "basic.target"]).is_ok())
    }

    /// Runs a program in it, as root, and returns what it printed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let enter = Program::new("nsenter").args(["--target", &self.first.to_string(), "--all", "--", "env", "-i", "HOME=/root"]);
        let path = format!("PATH={PATH}");
        enter.arg(path).args(words).deadline(SHORT).output().with_context(|| words.join(" "))
    }

    /// The processes in it that run a program of this name, as it numbers them.
    pub fn processes(&self, name: &str) -> Result<Vec<u32>> {
        // It ends with an error when there are none.
        let found = self.run(&["sh", "-c", &format!("pgrep -x {name} || true")])?;
        found.split_whitespace().map(|pid| pid.parse().with_context(|| format!("pgrep said {pid}"))).collect()
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let ended = match self.first {
            0 => self.child.kill().is_ok(),
            first => kill(Pid::from_raw(first), Signal::SIGKILL).is_ok(),
        };
        // Nobody is left to tell.
        if ended {
            self.child.wait().ok();
        }
    }
}

fn child_of(process: i32) -> Option<i32> {
    fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?.split_whitespace().next()?.parse().ok()
}
