//! `rebec` as its users run it: command lines against an agent that answers what the test wants, and what comes out.

#![expect(clippy::unwrap_used, reason = "tests and their helpers")]

mod agent;
mod remote;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
};

use agent::{Agent, Reply, ended};
use nix::sys::termios::{LocalFlags, tcgetattr};
use serde_json::{Value, json};

fn ok(body: &Value) -> Reply {
    Reply::Json(200, body.to_string())
}

fn missing() -> Reply {
    Reply::Json(404, json!({"code": "not-found", "message": "nothing is there"}).to_string())
}

fn vm(state: &str, host: &str) -> Value {
    json!({
        "name": "web", "id": "00", "state": state, "reason": "for host b1 to take it up", "host": host, "domain": "alpha", "epoch": 1,
        "image": "debian", "memory_bytes": 536_870_912, "vcpus": 1, "home": "a1", "on_host_loss": "hold", "created": 0, "pid": 0,
        "nics": [{"lan": "office", "mac": "52:54:00:00:00:01", "address": "10.5.0.2"}],
    })
}

fn job(state: &str, phase: &str) -> Value {
    json!({"id": "j1", "what": "move vm web", "state": state, "progress": {"phase": phase, "done_bytes": 0, "total_bytes": 0}})
}

fn events(jobs: &[Value]) -> Reply {
    Reply::Events(jobs.iter().map(|job| format!("event: job\ndata: {job}\n\n")).collect())
}

fn report(outcome: &str) -> Value {
    json!({
        "outcome": outcome, "reason": "b1 has no room", "total_ms": 4210, "downtime_ms": 87, "wire_bytes": 1_048_576, "rounds": 2,
        "streams": 1, "pages": {}, "clusters": {}, "memory_bytes": 536_870_912, "disk_bytes": 0,
    })
}

#[test]
fn a_move_is_followed_through_a_cut_and_reported() {
    let agent = Agent::start(|line, _, before| match (line, before) {
        ("GET /v1/vms/web", 0) => ok(&vm("running", "a1")),
        ("GET /v1/vms/web", _) => ok(&vm("running", "b1")),
        ("POST /v1/vms/web/move", _) => Reply::Json(202, job("running", "").to_string()),
        ("GET /v1/jobs/j1/events", 0) => events(&[job("running", "round 1")]),
        ("GET /v1/jobs/j1/events", _) => {
            let mut done = job("done", "");
            done["result"] = report("moved");
            events(&[job("running", "round 2"), done])
        }
        ("GET /v1/jobs/j1", _) => ok(&job("running", "round 1")),
        _ => missing(),
    });
    let (code, out, talk) = agent.rebec("vm move web --to b1 --streams 2");
    assert_eq!(code, 0, "{talk}");
    assert_eq!(
        out,
        "vm web moved from a1 to b1\n  took  4.2 s, paused for 87 ms\n  sent  1 MiB for 512 MiB of memory (2 rounds, 1 stream)\n"
    );
    assert!(talk.starts_with("move vm web: round 1\n"), "{talk}");
    let asked = agent.asked();
    assert!(asked.contains(&r#"POST /v1/vms/web/move {"host":"b1","streams":2}"#.to_owned()), "{asked:?}");
    let (_, out, _) = agent.rebec("vm move web --detach");
    assert_eq!(out, "j1\n");
}

#[test]
fn each_end_of_a_move_has_its_exit_code() {
    for (outcome, state, expected, words) in [
        ("waiting", "waiting", 4, "vm `web` waits: for host b1 to take it up"),
        ("failed", "running", 1, "vm `web` stays on a1: b1 has no room"),
        ("refused", "running", 1, "no host has room\n  a2: full\n  b1: no KVM\n"),
        ("refused", "waiting", 4, "vm `web` waits"),
    ] {
        let agent = Agent::start(move |line, _, _| match line {
            "GET /v1/vms/web" => ok(&vm(state, "a1")),
            "POST /v1/vms/web/move" if outcome == "refused" => {
                let refusal = json!({"code": "refused", "message": "no host has room", "details": ["a2: full", "b1: no KVM"]});
                Reply::Json(422, refusal.to_string())
            }
            "POST /v1/vms/web/move" => {
                let mut done = job("done", "");
                done["result"] = report(outcome);
                Reply::Json(202, done.to_string())
            }
            _ => missing(),
        });
        let (code, out, talk) = agent.rebec("vm move web");
        assert_eq!((code, out.as_str()), (expected, ""), "{talk}");
        assert!(talk.contains(words), "{talk}");
    }
}

#[test]
fn a_job_that_fails_prints_its_reasons() {
    let agent = Agent::start(|line, body, _| match line {
        "POST /v1/vms" => {
            assert!(body.contains(r#""memory_bytes":1073741824"#) && body.contains(r#""lans":["office"]"#), "{body}");
            Reply::Json(202, job("running", "").to_string())
        }
        "GET /v1/jobs/j1/events" => {
            let mut failed = job("failed", "");
            failed["error"] = json!({"code": "refused", "message": "vm `web` fits nowhere", "details": ["a1: 100 MiB free"]});
            events(&[failed])
        }
        _ => missing(),
    });
    let (code, out, talk) = agent.rebec("vm run web --image debian --memory 1G --lan office");
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(talk, "rebec: vm `web` fits nowhere\n  a1: 100 MiB free\n");
}

#[test]
fn a_job_that_the_agent_has_forgotten_is_told_as_such() {
    let agent = Agent::start(|line, _, before| match (line, before) {
        ("POST /v1/vms", _) => Reply::Json(202, job("running", "").to_string()),
        ("GET /v1/jobs/j1/events", 0) => events(&[job("running", "starting")]),
        _ => missing(),
    });
    let (code, _, talk) = agent.rebec("vm run web --image debian");
    assert_eq!(code, 1);
    assert!(talk.contains("the agent has started anew"), "{talk}");
}

#[test]
fn nobody_there_is_exit_code_three_and_nonsense_two() {
    let rebec = |words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rebec"));
        ended(command.args(words.split_whitespace()).env_remove("REBEC_SOCKET").output().unwrap())
    };
    let (code, out, talk) = rebec("--socket /nowhere/s vm ls");
    assert_eq!((code, out.as_str()), (3, ""));
    assert!(talk.contains("/nowhere/s") && talk.contains("systemctl status rebec") && talk.lines().count() == 1, "{talk}");
    let (code, _, talk) = rebec("vm ls --host-url http://a --fingerprint 00");
    assert_eq!((code, talk.lines().count()), (2, 1), "{talk}");
    let (code, out, _) = rebec("--version");
    assert_eq!((code, out.starts_with("rebec 0.")), (0, true));
}

#[test]
fn whoever_stops_reading_does_no_harm() {
    let closed = || std::io::pipe().unwrap().1;
    let run =
        |words: &[&str]| Command::new(env!("CARGO_BIN_EXE_rebec")).args(words).stdout(closed()).stderr(closed()).status().unwrap().code();
    assert_eq!(run(&["--help"]), Some(1));
    assert_eq!(run(&["completion", "bash"]), Some(1));
    assert_eq!(run(&["fly"]), Some(2));
    assert_eq!(run(&["--socket", "/nowhere/s", "vm", "ls"]), Some(3));
}

#[test]
fn lists_are_tables_or_json_and_empty_ones_say_what_to_do() {
    let agent = Agent::start(|line, _, _| match line {
        "GET /v1/vms" => ok(&json!([vm("running", "a1")])),
        "GET /v1/lans" => ok(&json!([])),
        _ => missing(),
    });
    let (code, out, talk) = agent.rebec("vm ls");
    assert_eq!((code, talk.as_str()), (0, ""));
    assert!(out.starts_with("NAME  STATE    HOST") && out.contains("\nweb   running  alpha/a1"), "{out}");
    let (_, out, _) = agent.rebec("vm ls --json");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()[0]["name"], "web");
    let (code, out, talk) = agent.rebec("lan ls");
    assert_eq!((code, out.as_str(), talk.as_str()), (0, "", "no LANs; `rebec lan create NAME` makes one\n"));
    assert_eq!(agent.rebec("lan ls --json").1, "[]\n");
}

#[test]
fn a_ticket_goes_alone_to_standard_output_and_in_from_standard_input() {
    let agent = Agent::start(|line, body, _| match line {
        "POST /v1/hosts/invite" => {
            assert_eq!(body, r#"{"uses":1,"valid_s":1800}"#);
            ok(&json!({"ticket": "rebec1abc", "id": "i1", "expires": 9_999_999_999_u64, "uses": 1}))
        }
        "POST /v1/pool/join" => ok(&Value::Null),
        "GET /v1/pool" => ok(&json!({"pool": "lab", "key": "00", "host": "a2", "domain": "alpha", "domains": 1, "hosts": 2,
            "hosts_reachable": 2, "vms": 0, "join": "member of pool lab, domain alpha"})),
        _ => missing(),
    });
    let (code, out, talk) = agent.rebec("host invite --valid 30m");
    assert_eq!((code, out.as_str()), (0, "rebec1abc\n"), "{talk}");
    assert!(talk.contains("rebec pool join") && !talk.contains("rebec1abc"), "{talk}");
    let mut joining = agent.spawn("pool join -");
    joining.stdin.take().unwrap().write_all(out.as_bytes()).unwrap();
    let (code, out, talk) = ended(joining.wait_with_output().unwrap());
    assert_eq!((code, out.as_str(), talk.as_str()), (0, "", "host a2 belongs to pool lab, domain alpha\n"));
    assert!(agent.asked().contains(&r#"POST /v1/pool/join {"ticket":"rebec1abc"}"#.to_owned()));
}

#[test]
fn an_import_sends_each_file_and_then_names_them() {
    let agent = Agent::start(|line, body, _| match line {
        "GET /v1/images" => ok(&json!([])),
        "PUT /v1/parts" => ok(&json!({"digest": blake3::hash(body.as_bytes()).to_hex().as_str(), "bytes": body.len()})),
        "POST /v1/images" => {
            let mut made: Value = serde_json::from_str(body).unwrap();
            for (name, value) in [("held_by", json!(["a1"])), ("vms", json!(0)), ("disk_bytes", json!(0))] {
                made[name] = value;
            }
            ok(&made)
        }
        _ => missing(),
    });
    let folder = agent.socket().parent().unwrap().to_owned();
    std::fs::write(folder.join("kernel"), "kernel").unwrap();
    std::fs::write(folder.join("disk"), "disk").unwrap();
    let (code, _, talk) = agent.rebec("image import debian --kernel kernel --disk gone");
    assert_eq!((code, talk.as_str(), agent.asked().len()), (1, "rebec: gone: No such file or directory (os error 2)\n", 0));
    let (code, _, talk) = agent.rebec("image import debian --kernel kernel --disk disk --cmdline quiet");
    assert_eq!(code, 0, "{talk}");
    assert!(talk.contains("image debian is imported (10 B)"), "{talk}");
    let named = agent.asked().last().unwrap().clone();
    assert!(named.contains(&blake3::hash(b"disk").to_hex().to_string()) && named.contains(r#""cmdline":"quiet""#), "{named}");
}

#[test]
fn a_part_that_arrived_damaged_is_not_made_an_image() {
    let agent = Agent::start(|line, body, _| match line {
        "GET /v1/images" => ok(&json!([])),
        "PUT /v1/parts" => ok(&json!({"digest": "00".repeat(32), "bytes": body.len()})),
        _ => missing(),
    });
    std::fs::write(agent.socket().with_file_name("kernel"), "kernel").unwrap();
    let (code, _, talk) = agent.rebec("image import debian --kernel kernel");
    assert_eq!(code, 1);
    assert!(talk.contains("what arrived is not what was sent"), "{talk}");
    assert!(agent.asked().iter().all(|asked| !asked.starts_with("POST")));
}

#[test]
fn a_console_comes_back_after_a_move_and_ends_with_its_vm() {
    let agent = Agent::start(|line, _, before| match (line, before) {
        ("GET /v1/vms/web/console", 0) => Reply::Stream("on a1\n"),
        ("GET /v1/vms/web/console", 2) => Reply::Stream("on b1\n"),
        ("GET /v1/vms/web/console", _) => Reply::Json(409, json!({"code": "conflict", "message": "vm `web` is not here"}).to_string()),
        // Asked for after each console that was refused.
        ("GET /v1/vms/web", 0..=2) => ok(&vm("moving", "a1")),
        ("GET /v1/vms/web", _) => ok(&vm("stopped", "b1")),
        _ => missing(),
    });
    let (code, out, talk) = agent.rebec("vm console web");
    assert_eq!((code, out.as_str()), (0, "on a1\non b1\n"), "{talk}");
    assert!(talk.contains("Ctrl-] leaves it") && talk.contains("the VM has stopped (for host b1 to take it up)"), "{talk}");
}

#[test]
fn keys_go_to_the_console_until_the_one_that_leaves() {
    let agent = Agent::start(|line, _, _| match line {
        "GET /v1/vms/web/console" => Reply::Echo(1_000_000),
        "GET /v1/vms/web" => ok(&vm("running", "a1")),
        _ => missing(),
    });
    let mut sitting = agent.spawn("vm console web");
    let (mut keys, mut screen) = (sitting.stdin.take().unwrap(), sitting.stdout.take().unwrap());
    keys.write_all(b"ls\x03\n").unwrap();
    let mut echoed = [0; 5];
    screen.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b">ls\x03\n");
    keys.write_all(b"\x1dlost").unwrap();
    let (code, _, talk) = ended(sitting.wait_with_output().unwrap());
    assert_eq!(code, 0);
    assert!(talk.ends_with("console of vm web: left\n"), "{talk}");
    assert_eq!(agent.asked().iter().filter(|asked| asked.contains("console")).count(), 1);
}

#[test]
fn a_terminal_is_raw_at_the_console_and_given_back_however_it_ends() {
    for end in ["key", "-TERM", "-HUP", "-INT"] {
        let agent = Agent::start(|line, _, _| match line {
            "GET /v1/vms/web/console" => Reply::Echo(1_000_000),
            "GET /v1/vms/web" => ok(&vm("running", "a1")),
            _ => missing(),
        });
        let terminal = nix::pty::openpty(None, None).unwrap();
        let before = tcgetattr(&terminal.slave).unwrap();
        assert!(before.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG));
        let mut sitting = agent.spawn_at("vm console web", terminal.slave.try_clone().unwrap().into());
        let mut greeting = [0];
        sitting.stdout.as_mut().unwrap().read_exact(&mut greeting).unwrap();
        let during = tcgetattr(&terminal.slave).unwrap();
        assert!(!during.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG));
        if end == "key" {
            nix::unistd::write(&terminal.master, b"\x1d").unwrap();
        } else {
            assert!(Command::new("kill").arg(end).arg(sitting.id().to_string()).status().unwrap().success());
        }
        let (code, _, talk) = ended(sitting.wait_with_output().unwrap());
        assert_eq!(code, 0, "{end}: {talk}");
        assert_eq!(tcgetattr(&terminal.slave).unwrap(), before, "{end}");
    }
}

#[test]
fn a_forwarded_port_reaches_the_guest_and_survives_a_refusal() {
    let agent = Agent::start(|line, _, before| match (line, before) {
        ("GET /v1/vms/web", _) => ok(&vm("running", "a1")),
        ("GET /v1/vms/web/forward/22", 0) => {
            Reply::Json(502, json!({"code": "unreachable", "message": "vm `web`: port 22 is closed"}).to_string())
        }
        ("GET /v1/vms/web/forward/22", _) => Reply::Echo(4),
        _ => missing(),
    });
    let mut forwarding = agent.spawn("vm forward web 22");
    let mut address = String::new();
    BufReader::new(forwarding.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
    let mut said = String::new();
    for expected in ["", ">ping"] {
        let mut stream = TcpStream::connect(address.trim()).unwrap();
        // The first connection is refused and closed, before or after these bytes.
        drop(stream.write_all(b"ping"));
        said.clear();
        drop(stream.read_to_string(&mut said));
        assert_eq!(said, expected);
    }
    let interrupt = Command::new("kill").arg("-INT").arg(forwarding.id().to_string()).stdout(Stdio::null()).status().unwrap();
    assert!(interrupt.success());
    let (code, _, talk) = ended(forwarding.wait_with_output().unwrap());
    assert_eq!(code, 0);
    assert!(talk.contains("port 22 is closed"), "{talk}");
}

#[test]
fn completion_manual_pages_and_a_support_bundle() {
    let agent = Agent::start(|line, _, _| match line {
        "GET /v1/support-bundle" => Reply::Json(200, "tar".to_owned()),
        _ => missing(),
    });
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = agent.rebec(&format!("completion {shell}"));
        assert!(code == 0 && out.contains("declare-dead"), "{shell}");
    }
    let folder = agent.socket().with_file_name("man");
    let (code, _, talk) = agent.rebec("man man");
    assert_eq!(code, 0, "{talk}");
    assert!(std::fs::read_to_string(folder.join("rebec-vm-move.1")).unwrap().contains("bandwidth"));
    let (code, out, talk) = agent.rebec("support-bundle --out b.tar");
    assert_eq!((code, out.as_str()), (0, ""), "{talk}");
    assert_eq!(std::fs::read_to_string(agent.socket().with_file_name("b.tar")).unwrap(), "tar");
    assert_eq!(agent.rebec("support-bundle --out -").1, "tar");
    let (code, _, talk) = agent.rebec("support-bundle --out /nowhere/b.tar");
    assert_eq!((code, talk.contains("/nowhere/b.tar")), (1, true), "{talk}");
}
