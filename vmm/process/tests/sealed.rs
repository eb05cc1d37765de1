//! The sandbox, proved on the real binary: `rebec-vmm seal-self-test` seals itself as a VM does and tries what it must not be
//! able to do; these tests read what happened, and look at the sealed process from outside.

#![expect(clippy::unwrap_used, reason = "tests and their helpers")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

/// Nothing here takes a second on an idle machine.
const DEADLINE: Duration = Duration::from_secs(20);
/// A descriptor that whoever starts the process leaves open by mistake.
const INHERITED: u8 = 9;
/// A user that is not root and owns nothing.
const NOBODY: u32 = 65534;

/// The unsealed process. Its child does not outlive it.
struct Parent(Child);

impl Drop for Parent {
    fn drop(&mut self) {
        // It has ended already, unless a test failed.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A sealed process that has reported and waits to be told how to end.
struct Sealed {
    parent: Parent,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    report: Value,
    socket: PathBuf,
    _tcp: TcpListener,
    _folder: tempfile::TempDir,
}

#[derive(Clone, Copy, PartialEq)]
enum User {
    /// Whoever runs the tests; root in CI.
    Own,
    /// Nobody special.
    Unprivileged,
}

fn start(user: User) -> Sealed {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = folder.path().join("socket");
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("exec {INHERITED}</dev/null; exec \"$0\" \"$@\""));
    match user {
        User::Unprivileged if geteuid().is_root() => {
            // The build folder may be closed to other users. Another process makes the copy: a descriptor open for writing here
            // could be inherited by a process that another test starts, and then the copy could not be run.
            let copy = folder.path().join("rebec-vmm");
            assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_rebec-vmm")).arg(&copy).status().unwrap().success());
            command.arg(copy).uid(NOBODY).gid(NOBODY);
        }
        _ => _ = command.arg(env!("CARGO_BIN_EXE_rebec-vmm")),
    }
    command.arg("seal-self-test").arg("--listen").arg(&socket).arg("--tcp").arg(tcp.local_addr().unwrap().to_string());
    let mut parent = Parent(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let input = parent.0.stdin.take().unwrap();
    let mut output = BufReader::new(parent.0.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    if line.is_empty() {
        let mut said = String::new();
        parent.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        panic!("the process did not seal itself: {said}");
    }
    let report = serde_json::from_str(&line).unwrap();
    line.clear();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "listed\n");
    Sealed { parent, input, output, report, socket, _tcp: tcp, _folder: folder }
}

impl Sealed {
    fn parent_pid(&self) -> Pid {
        Pid::from_child(&self.parent.0)
    }

    /// The sealed process itself, by the number that the host knows it by.
    fn child_pid(&self) -> Pid {
        let parent = self.parent.0.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap()).unwrap()
    }

    fn end(mut self) -> (ExitStatus, String, String) {
        drop(self.input);
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.parent.0.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < DEADLINE, "the process does not end");
            std::thread::yield_now();
        };
        let (mut out, mut err) = (String::new(), String::new());
        self.output.read_to_string(&mut out).unwrap();
        self.parent.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert!(!self.socket.exists(), "the parent removes the socket");
        (status, out, err)
    }
}

fn lines_of(path: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// Everything that holds whoever started it.
fn assert_sealed(sealed: &Sealed) {
    let errors = sealed.report["errors"].as_object().unwrap();
    assert!(errors.len() > 15, "{errors:?}");
    for (what, error) in errors {
        assert!(error.is_string(), "the sealed process could {what}");
    }
    for set in ["effective", "permitted", "inheritable", "bounding"] {
        assert_eq!(sealed.report["capabilities"][set], 0, "{set} capabilities");
    }
    assert_eq!(sealed.report["pid"], 1);
    assert_eq!(sealed.report["parent_visible"], false);
    assert_eq!(sealed.report["no_new_privs"], true);
    assert_eq!(sealed.report["dumpable"], false);
    assert_eq!(sealed.report["core_limit"], 0);
    assert_eq!(sealed.report["opened_before_reads"], true, "what was open stays usable");

    let child = sealed.child_pid().as_raw_nonzero();
    let status = lines_of(&format!("/proc/{child}/status"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
    assert_eq!((status["Seccomp"].as_str(), status["Seccomp_filters"].as_str()), ("2", "2"), "the list, and what hides calls");
    let uid = sealed.report["uid"].to_string();
    assert_eq!(status["Uid"].split_whitespace().collect::<Vec<_>>(), [uid.as_str(); 4]);
}

/// What only root can see of another user's process.
fn assert_own_namespaces(sealed: &Sealed) {
    let child = sealed.child_pid().as_raw_nonzero();
    for kind in ["user", "mnt", "net", "pid", "ipc", "uts"] {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let theirs = fs::read_link(format!("/proc/{child}/ns/{kind}")).unwrap();
        assert_ne!(own, theirs, "{kind} namespace");
    }
    let mounts = fs::read_to_string(format!("/proc/{child}/mounts")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / tmpfs ro,nosuid,nodev,noexec"), "{mounts}");
    assert_eq!(fs::read_dir(format!("/proc/{child}/root")).unwrap().count(), 0, "the root is empty");
    for process in [sealed.parent.0.id(), child.unsigned_abs().get()] {
        assert!(
            fs::read_link(format!("/proc/{process}/fd/2")).is_ok() && fs::read_link(format!("/proc/{process}/fd/{INHERITED}")).is_err()
        );
    }
    let interfaces = fs::read_to_string(format!("/proc/{child}/net/dev")).unwrap();
    let names: Vec<&str> = interfaces.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    assert_eq!(names, ["lo"]);
}

#[test]
fn nothing_outside_is_reachable() {
    let mut sealed = start(User::Own);
    assert_sealed(&sealed);
    assert_own_namespaces(&sealed);
    if geteuid().is_root() {
        let uid = sealed.report["uid"].as_u64().unwrap();
        assert!(uid >= 0x7000_0000, "root's VM has a uid of its own, not {uid}");
        let groups = &lines_of(&format!("/proc/{}/status", sealed.child_pid().as_raw_nonzero()))["Groups"];
        assert_eq!(groups, "", "root's groups are gone");
    }
    sealed.input.write_all(b"exit 0\n").unwrap();
    assert!(sealed.end().0.success());
}

#[test]
fn an_unprivileged_user_gets_the_same_sandbox() {
    let mut sealed = start(User::Unprivileged);
    assert_sealed(&sealed);
    assert_own_namespaces(&sealed);
    sealed.input.write_all(b"exit 0\n").unwrap();
    assert!(sealed.end().0.success());
}

#[test]
fn two_vms_of_root_have_different_uids() {
    let (one, two) = (start(User::Own), start(User::Own));
    if geteuid().is_root() {
        assert_ne!(one.report["uid"], two.report["uid"]);
    }
    for mut sealed in [one, two] {
        sealed.input.write_all(b"exit 0\n").unwrap();
        sealed.end();
    }
}

#[test]
fn a_socket_from_before_answers_after() {
    let mut sealed = start(User::Own);
    let mut client = UnixStream::connect(&sealed.socket).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "sealed\n");
    sealed.input.write_all(b"exit 0\n").unwrap();
    sealed.end();
}

#[test]
fn the_exit_code_is_the_childs() {
    let mut sealed = start(User::Own);
    sealed.input.write_all(b"exit 7\n").unwrap();
    assert_eq!(sealed.end().0.code(), Some(7));
}

#[test]
fn a_signal_to_the_parent_is_a_clean_stop_of_the_child() {
    for (signal, ending) in [(Signal::TERM, "Orderly"), (Signal::INT, "Now"), (Signal::HUP, "Now")] {
        let sealed = start(User::Own);
        kill_process(sealed.parent_pid(), signal).unwrap();
        kill_process(sealed.parent_pid(), signal).unwrap();
        let (status, out, err) = sealed.end();
        assert_eq!((status.code(), out, err), (Some(0), format!("stopped: {ending}\n"), String::new()), "{signal:?}");
    }
}

#[test]
fn the_child_dies_with_its_parent() {
    let mut sealed = start(User::Own);
    let child = sealed.child_pid().as_raw_nonzero();
    sealed.parent.0.kill().unwrap();
    sealed.parent.0.wait().unwrap();
    let began = Instant::now();
    while fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(began.elapsed() < DEADLINE, "the sealed process outlived its parent");
        std::thread::yield_now();
    }
}

#[test]
fn a_killed_child_is_told_and_tidied_up_behind() {
    let sealed = start(User::Own);
    kill_process(sealed.child_pid(), Signal::KILL).unwrap();
    let (status, _, err) = sealed.end();
    assert_eq!(status.code(), Some(1));
    assert_eq!(err, "rebec-vmm: the sealed process was ended by signal 9\n");
}

/// What a list says to an act.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// The process was ended.
    Ended,
    /// It was told that there is no such call.
    Absent,
    /// The kernel carried it out or refused it for a reason of its own.
    Allowed,
}

fn attempt(thread: &str, what: &str) -> Outcome {
    let mut sealed = start(User::Own);
    sealed.input.write_all(format!("{thread} {what}\n").as_bytes()).unwrap();
    let (status, out, err) = sealed.end();
    if status.code() == Some(1) {
        assert_eq!(out, "");
        assert!(err.starts_with("rebec-vmm: the sealed process was ended by signal 31 (SIGSYS): it made a system call"), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        return Outcome::Ended;
    }
    assert!(status.success(), "{err}");
    assert!(out.starts_with(what), "{out}");
    if out.contains("Function not implemented") { Outcome::Absent } else { Outcome::Allowed }
}

#[test]
fn a_call_that_is_on_no_list_ends_the_process() {
    let acts = ["make a folder", "make a socket", "connect", "run a program", "make a user namespace", "become root", "signal a process"];
    for what in acts.into_iter().chain(["ask a terminal"]) {
        assert_eq!(attempt("self-test", what), Outcome::Ended, "{what}");
    }
    // Libraries look around, and find nothing.
    assert_eq!(attempt("self-test", "open a file"), Outcome::Absent);
}

#[test]
fn a_thread_may_only_do_what_its_role_needs() {
    let acts = ["make a thread", "receive descriptors", "write into a file", "make memory for a guest", "make a machine"];
    for (thread, allowed) in [
        ("self-test", acts.to_vec()),
        ("vcpu0", vec![]),
        ("virtio-net", vec!["receive descriptors"]),
        ("virtio-blk", vec!["write into a file"]),
        ("move-0", vec!["write into a file"]),
        ("control-client", vec!["receive descriptors"]),
    ] {
        for what in acts {
            let expected = if allowed.contains(&what) { Outcome::Allowed } else { Outcome::Ended };
            assert_eq!(attempt(thread, what), expected, "{thread}: {what}");
        }
    }
}

#[test]
fn a_panic_is_told_and_an_abort_is_no_forbidden_call() {
    for thread in ["self-test", "vcpu0"] {
        let mut sealed = start(User::Own);
        sealed.input.write_all(format!("{thread} abort\n").as_bytes()).unwrap();
        assert_eq!(sealed.end().2, "rebec-vmm: the sealed process was ended by signal 11\n");

        let mut sealed = start(User::Own);
        sealed.input.write_all(format!("{thread} panic\n").as_bytes()).unwrap();
        let (status, _, err) = sealed.end();
        assert_eq!(status.code(), Some(1));
        assert!(err.contains(&format!("thread '{thread}'")) && err.contains("on purpose") && !err.contains("SIGSYS"), "{err}");
    }
}

/// Runs a shell script with more rights than the VMM gets from it: `$0` is the binary.
fn refused(script: &str, socket: &Path) -> (Option<i32>, String) {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_rebec-vmm")]).arg(socket);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "it ran unsealed");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn without_a_layer_it_refuses_and_says_which() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let run = "exec \"$0\" seal-self-test --listen \"$1\" --tcp 127.0.0.1:1";
    let (code, said) = refused(&format!("echo 0 > /proc/sys/user/max_user_namespaces && {run}"), &socket);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with("rebec-vmm: sandbox: create a user namespace; start as root, or allow"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!socket.exists(), "nothing is left behind");
    let (code, said) = refused(&format!("echo 0 > /proc/sys/user/max_net_namespaces && {run}"), &socket);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with("rebec-vmm: sandbox: create user, mount, network, IPC and UTS namespaces;"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!socket.exists(), "nothing is left behind");
}
