//! Stock Debian kernels on real KVM: they boot in every form and with every count of vCPUs, see what the machine is made of,
//! hear of its power button, and turn it off and restart it, by a triple fault too. Cloud images boot too, by what their own disks say, and upgrade their kernels.
//!
//! Two lab machines for the whole file, since one takes longer to boot than a VM in it; they share the work. The guests' initramfs says
//! what the kernel sees of its processors, devices and clocks as `fact NAME VALUE` and then does what `rebec.do` names.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rebec_lab::{
    artifacts::{self, Artifact},
    channel::client::Job,
    cloud::{self, Layout},
    initramfs::Initramfs,
    modules,
    progress::say,
    provision::{self, Kernel},
    qemu::{Lab, LabConfig, Machine, Shape, image::Share, upgrade::Upgrade, vm},
};

/// How long a VM may take from exec to its end: five times what two busy cores were seen to need for 16 vCPUs.
const DEADLINE: Duration = Duration::from_secs(300);
/// How long a machine that boots VMs may take to press a button.
const PRESS_DEADLINE: Duration = Duration::from_secs(60);
const CMDLINE: &str = "console=ttyS0 loglevel=7 panic=-1 mitigations=off audit=0 random.trust_cpu=on";

const OFF: &str = "rebec.do=off";

const INIT: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
fact() { echo fact $*; }
fact release $(uname -r)
cd /sys/devices/system/cpu
fact online $(cat online)
for cpu in cpu[0-9]*; do
    fact $cpu $(cat $cpu/topology/physical_package_id $cpu/topology/core_id $cpu/topology/thread_siblings_list)
done
fact siblings $(cat cpu0/topology/core_siblings_list)
fact apicids $(grep '^apicid' /proc/cpuinfo | sed 's/.*: //')
fact clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
fact timers $(grep -c 'Clock Event Device: lapic' /proc/timer_list)
fact functions $(ls /sys/bus/pci/devices | wc -l)
fact serial $(cat /sys/bus/pnp/devices/00:00/resources | grep -o 'irq.*')
for word in $(cat /proc/cmdline); do
    case $word in rebec.do=*) order=${word#*=};; esac
done
fact end
[ $order = ask ] && read order
case $order in
    off) poweroff -f;;
    reboot) reboot -f;;
    button)
        mount -t devtmpfs dev /dev
        for module in $(cat /modules/list); do insmod $module; done
        mkdir -p /etc/acpi/PWRF
        printf '#!/bin/sh\\necho fact button pressed\\npoweroff -f\\n' > /etc/acpi/PWRF/00000080
        chmod +x /etc/acpi/PWRF/00000080
        fact listens
        acpid -d
        ;;
esac
sleep 1000
";

/// What the kernel says when something of the machine is not as it should be.
const COMPLAINTS: &[&str] = &[
    "Firmware Bug",
    "FW_BUG",
    "BIOS bug",
    "ACPI Error",
    "ACPI BIOS Error",
    "ACPI Warning",
    "8254 timer not connected",
    "IO-APIC + timer",
    "trying to set up timer",
    "TSC synchronization",
    // "due to TSCs unsynchronized" is Linux 6.1's guess about every AMD machine with several CPUs and no invariant TSC, and no test.
    "check_tsc_sync_source failed",
    "soft lockup",
    "rcu_preempt detected",
    "hpet",
    "not responding",
    "do_boot_cpu failed",
    "Kernel panic",
    "Oops",
    "BUG:",
    "WARNING:",
];

struct Guest<'a> {
    kernel: &'a str,
    vcpus: u8,
    memory: &'a str,
    words: &'a str,
}

impl Guest<'_> {
    fn control(&self) -> String {
        format!("/run/{}-{}-{}.sock", self.kernel, self.vcpus, self.words.replace('.', "-"))
    }
}

/// A VM under way, what it has said so far, and when it must be over.
struct Running {
    job: Job,
    said: String,
    errors: String,
    end: Instant,
}

impl Running {
    /// Waits until the console has shown `text` this many times.
    fn wait(&mut self, text: &str, times: usize) -> Result<()> {
        while self.said.matches(text).count() < times {
            let over = self.job.ended()?.is_some();
            self.listen();
            if self.said.matches(text).count() >= times {
                break;
            }
            ensure!(!over && Instant::now() < self.end, "{text:?} did not come {times} times: {}", self.last_words());
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<i32> {
        loop {
            let ended = self.job.ended()?;
            self.listen();
            if let Some(code) = ended {
                return Ok(code);
            }
            ensure!(Instant::now() < self.end, "the VM does not end: {}", self.last_words());
        }
    }

    fn listen(&mut self) {
        self.job.wait_output(Duration::from_millis(500));
        self.said += &String::from_utf8_lossy(&self.job.take_output());
        self.errors += &String::from_utf8_lossy(&self.job.take_errors());
    }

    fn must_not_complain(&self) -> Result<()> {
        let complaints: Vec<&str> = self.said.lines().filter(|line| COMPLAINTS.iter().any(|bad| line.contains(bad))).collect();
        ensure!(complaints.is_empty(), "the kernel complains: {complaints:#?}");
        Ok(())
    }

    fn last_words(&self) -> String {
        let last: Vec<&str> = self.said.lines().rev().take(12).collect();
        format!("{}\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"), self.errors)
    }

    fn facts(&self) -> BTreeMap<String, String> {
        let said = without_kernel(&self.said);
        let facts = said.lines().filter_map(|line| line.trim_end().strip_prefix("fact "));
        facts.map(|fact| fact.split_once(' ').unwrap_or((fact, ""))).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

/// What programs said: the kernel's messages, which may come in the middle of their lines, are cut out.
fn without_kernel(said: &str) -> String {
    let is_stamp = |stamp: &str| stamp.contains('.') && stamp.chars().all(|c| c == ' ' || c == '.' || c.is_ascii_digit());
    let (mut own, mut rest) = (String::new(), said);
    while let Some((before, after)) = rest.split_once('[') {
        own += before;
        rest = match after.split_once("] ") {
            Some((stamp, message)) if is_stamp(stamp) => message.split_once('\n').map_or("", |(_, rest)| rest),
            _ => {
                own.push('[');
                after
            }
        };
    }
    own + rest
}

#[test]
fn a_fact_is_whole_if_the_kernel_speaks_in_the_middle_of_it() {
    let said = "fact a 1\n[    1.2] x\nfact release 6.1[   25.439133] hrtimer: [x] took 14 ns\n.0\nfact b [7]\n";
    assert_eq!(without_kernel(said), "fact a 1\nfact release 6.1.0\nfact b [7]\n");
}

fn start(machine: &Machine, guest: &Guest<'_>) -> Result<Running> {
    let kernel = format!("/share/kernels/{}", guest.kernel);
    let (vcpus, cmdline) = (guest.vcpus.to_string(), format!("{CMDLINE} {}", guest.words));
    let control = guest.control();
    let argv = [
        [vm::PROGRAM, "run", "--kernel", &kernel, "--initramfs", "/share/facts.cpio", "--cmdline", &cmdline],
        ["--memory", guest.memory, "--vcpus", &vcpus, "--serial", "stdio", "--control", &control],
    ];
    let argv = argv.concat();
    let job = machine.start(&argv)?;
    Ok(Running { job, said: String::new(), errors: String::new(), end: Instant::now() + DEADLINE })
}

/// Boots a guest that turns itself off, and checks what it saw.
fn boots(machine: &Machine, guest: &Guest<'_>, release: &str) -> Result<()> {
    let began = Instant::now();
    let mut vm = start(machine, guest)?;
    let code = vm.finish()?;
    say("qemu-boot", format_args!("{} with {} vCPUs ended after {:.1} s", guest.kernel, guest.vcpus, began.elapsed().as_secs_f64()));
    ensure!(code == 0, "exit code {code}: {}", vm.last_words());
    ensure!(vm.errors.is_empty(), "a VM that ended well leaves words on stderr: {}", vm.errors);
    vm.must_not_complain()?;

    let facts = vm.facts();
    let fact = |name: &str| facts.get(name).map(String::as_str).unwrap_or_default();
    let last = guest.vcpus - 1;
    let all = if last == 0 { "0".to_owned() } else { format!("0-{last}") };
    let mut expected: Vec<(String, String)> = vec![
        ("release".into(), release.into()),
        ("online".into(), all.clone()),
        ("siblings".into(), all),
        ("apicids".into(), (0..=last).map(|id| id.to_string()).collect::<Vec<_>>().join(" ")),
        ("clocksource".into(), "kvm-clock".into()),
        // The entropy source is the only device of this machine.
        ("functions".into(), "1".into()),
        ("serial".into(), "irq 4".into()),
        ("timers".into(), guest.vcpus.to_string()),
    ];
    expected.extend((0..=last).map(|cpu| (format!("cpu{cpu}"), format!("0 {cpu} {cpu}"))));
    let wrong: Vec<_> =
        expected.iter().filter(|(name, value)| fact(name) != value).map(|(name, value)| (name, value, fact(name))).collect();
    ensure!(wrong.is_empty(), "name, expected, seen: {wrong:#?}\n{}", vm.last_words());
    Ok(())
}

/// A guest that asks for a reset runs again in the same process; then it is told over its serial port to turn itself off.
fn restarts(machine: &Machine, guest: &Guest<'_>) -> Result<()> {
    let mut vm = start(machine, guest)?;
    vm.wait("fact end", 1)?;
    vm.job.send(b"reboot\n")?;
    vm.wait("fact end", 2)?;
    vm.job.send(b"off\n")?;
    let code = vm.finish()?;
    ensure!(code == 0 && vm.errors.is_empty(), "exit code {code}: {}", vm.last_words());
    Ok(())
}

/// A guest whose user space listens to the power button turns itself off when that is pressed.
fn obeys(machine: &Machine, guest: &Guest<'_>) -> Result<()> {
    let mut vm = start(machine, guest)?;
    vm.wait("fact listens", 1)?;
    // Whoever listens begins after the guest's last word; what comes before that is heard by nobody.
    while !vm.said.contains("fact button pressed") {
        ensure!(vm.job.ended()?.is_none() && Instant::now() < vm.end, "the button is not heard: {}", vm.last_words());
        machine.check(&[vm::PROGRAM, "ctl", &guest.control(), "power-button"], PRESS_DEADLINE)?;
        vm.listen();
    }
    let code = vm.finish()?;
    ensure!(code == 0 && vm.errors.is_empty(), "exit code {code}: {}", vm.last_words());
    ensure!(vm.said.contains("fact button pressed"), "it ended otherwise: {}", vm.last_words());
    vm.must_not_complain()?;
    Ok(())
}

/// What one VM is started for.
enum Story<'a> {
    Boots(Guest<'a>, &'a str),
    Restarts(Guest<'a>),
    Obeys(Guest<'a>),
    Upgrades(Upgrade<'a>),
}

impl Story<'_> {
    fn tell(&self, machine: &Machine) -> Result<()> {
        match self {
            Self::Boots(guest, release) => boots(machine, guest, release),
            Self::Restarts(guest) => restarts(machine, guest),
            Self::Obeys(guest) => obeys(machine, guest),
            Self::Upgrades(upgrade) => {
                let began = Instant::now();
                upgrade.tell(machine)?;
                say("qemu-boot", format_args!("{self} after {:.1} s", began.elapsed().as_secs_f64()));
                Ok(())
            }
        }
    }
}

impl fmt::Display for Story<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boots(guest, _) | Self::Restarts(guest) | Self::Obeys(guest) => {
                write!(f, "{} with {} vCPUs, {}", guest.kernel, guest.vcpus, guest.words)
            }
            Self::Upgrades(upgrade) => write!(f, "{:?}'s image from {} to {}", upgrade.layout, upgrade.old, upgrade.new),
        }
    }
}

fn write_initramfs(path: &Path, kernel: &Kernel) -> Result<()> {
    let mut tree = Initramfs::with_busybox()?;
    tree.modules("modules", modules::closure(kernel, &["button", "evdev"])?);
    tree.program("init", INIT);
    tree.write(path)
}

#[test]
fn stock_kernels_boot_in_every_form_and_end_as_they_ask() -> Result<()> {
    let provisions = provision::provision()?;
    let folder = tempfile::tempdir().context("create a folder for the initramfs")?;
    let initramfs = folder.path().join("facts.cpio");
    write_initramfs(&initramfs, &provisions.guest)?;
    let kernels = [("13", &provisions.guest), ("12", &provisions.guest_12), ("generic", &provisions.lab)];
    let program = artifacts::build(Artifact::Vmm)?;
    let mut share = Share::default().with("bin/rebec-vmm", &program).with("facts.cpio", &initramfs);
    share = share.with("bin/rebec", &artifacts::build(Artifact::Rebec)?);
    for (name, layout) in [("debian", Layout::Debian), ("rocky", Layout::Rocky)] {
        let image = folder.path().join(name);
        cloud::write(&image, layout, &provisions.guest_12, &provisions.guest)?;
        share = share.with(&format!("images/{name}.raw"), &image);
    }
    for (name, kernel) in kernels {
        share = share.with(&format!("kernels/{name}.elf"), &kernel.elf).with(&format!("kernels/{name}.bzimage"), &kernel.bzimage);
    }
    let link = Shape::default();
    let config = LabConfig { name: "qemu-boot", machines: &["a", "b"], accel: None, memory_mib: 4352, share, link, devices: &[] };
    let mut lab = Lab::start(&provisions, &config)?;
    lab.check_kvm()?;

    let [release, release_12, release_generic] = kernels.map(|(_, kernel)| kernel.release.as_str());
    let guest = |kernel, vcpus, memory, words| Guest { kernel, vcpus, memory, words };
    let upgrade = |layout, image| Story::Upgrades(Upgrade { layout, image, old: release_12, new: release });
    let stories = Mutex::new(vec![
        // By a triple fault, which its command line says is no crash. One that is a crash: `local_boot`.
        Story::Restarts(guest("13.elf", 1, "256M", "rebec.do=ask reboot=t")),
        Story::Boots(guest("12.bzimage", 1, "256M", OFF), release_12),
        Story::Boots(guest("13.bzimage", 2, "256M", OFF), release),
        Story::Boots(guest("13.elf", 1, "256M", OFF), release),
        Story::Obeys(guest("13.elf", 1, "256M", "rebec.do=button")),
        Story::Restarts(guest("13.elf", 2, "256M", "rebec.do=ask")),
        Story::Boots(guest("12.elf", 4, "256M", OFF), release_12),
        Story::Boots(guest("generic.bzimage", 2, "3584M", OFF), release_generic),
        upgrade(Layout::Rocky, "/share/images/rocky.raw"),
        upgrade(Layout::Debian, "/share/images/debian.raw"),
        // Last in the list is first to go: it takes the longest.
        Story::Boots(guest("13.elf", 16, "512M", OFF), release),
    ]);
    let wrong = Mutex::new(Vec::new());
    let next = || stories.lock().ok()?.pop();
    thread::scope(|scope| {
        for machine in &lab.machines {
            scope.spawn(|| {
                while let Some(story) = next() {
                    let told = story.tell(machine).with_context(|| format!("{story} on machine {}", machine.name()));
                    if let (Err(error), Ok(mut wrong)) = (told, wrong.lock()) {
                        say("qemu-boot", format_args!("{error:#}"));
                        wrong.push(format!("{error:#}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    lab.succeeded();
    Ok(())
}
