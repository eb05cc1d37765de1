//! `ctl` against the real server, and against peers that are none or break the protocol at any byte.

use std::{
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
};

use rebec_devices::PlainThreads;
use rebec_vmm_api::{
    MoveReport, Outcome, UnitCounts,
    control::{ErrorCode, Progress, ResponseBody, VmState},
};

use super::*;
use crate::{
    cli::MigrateTo,
    control::{CONNECTIONS_MAX, ControlRequest, Server},
};

fn status() -> Status {
    Status {
        state: VmState::Running,
        epoch: 1,
        vm: "0".repeat(32),
        memory_bytes: 1 << 20,
        vcpus: 1,
        disk_bytes: vec![7],
        nets: Vec::new(),
        ledger: false,
        lease_ms: None,
        cpu: None,
        limits: None,
        cgroup: None,
        memory: None,
    }
}

fn report(outcome: Outcome) -> MoveReport {
    MoveReport {
        outcome,
        reason: None,
        total_ms: 1,
        downtime_ms: 1,
        wire_bytes: 1,
        rounds: 1,
        streams: 1,
        pages: UnitCounts::default(),
        clusters: UnitCounts::default(),
        memory_bytes: 1,
        disk_bytes: 1,
    }
}

/// A VM at a socket in a fresh folder, owned by `owner`.
fn vm(owner: impl FnOnce(Receiver<ControlRequest>) + Send + 'static) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let (sender, requests) = sync_channel(CONNECTIONS_MAX);
    let (server, newcomers) = Server::bind(&path).unwrap().serve(Arc::new(PlainThreads), sender).unwrap();
    crate::heard::listen(&PlainThreads, vec![Box::new(newcomers)]).unwrap();
    std::thread::spawn(move || {
        owner(requests);
        server.finish();
    });
    (folder, path)
}

fn ctl(socket: &std::path::Path, request: CtlRequest) -> Result<ExitCode, CtlError> {
    run(&CtlOptions { socket: socket.to_owned(), request })
}

fn migrate_to(to: SocketAddr) -> CtlRequest {
    CtlRequest::Migrate(MigrateTo { to, streams: 2, downtime_max_ms: 300, bandwidth_max_mbit: None })
}

#[test]
fn every_simple_request_reaches_the_owner_in_its_words() {
    let (sender, heard) = std::sync::mpsc::channel();
    let (_folder, path) = vm(move |requests| {
        for request in requests {
            let answer = if request.command == Command::Status { Answer::Status(status()) } else { Answer::Done };
            sender.send(request.command).unwrap();
            request.reply.send(ResponseBody::Ok(answer));
        }
    });
    let (mac, endpoint) = ("52:54:00:00:00:01".parse().unwrap(), "10.0.0.1:4789".parse().unwrap());
    let ip = Some("10.7.0.5".parse().unwrap());
    for (request, command) in [
        (CtlRequest::Status { json: false }, Command::Status),
        (CtlRequest::Status { json: true }, Command::Status),
        (CtlRequest::Pause, Command::Pause),
        (CtlRequest::Resume, Command::Resume),
        (CtlRequest::PowerButton, Command::PowerButton),
        (CtlRequest::Stop, Command::Stop),
        (CtlRequest::Cancel, Command::Cancel),
        (
            CtlRequest::FdbAdd { mac, endpoint, ip: None, name: None, net: None },
            Command::FdbAdd { net: None, mac, endpoint, ip: None, name: None },
        ),
        (
            CtlRequest::FdbAdd { mac, endpoint, ip, name: Some("web".into()), net: Some(mac) },
            Command::FdbAdd { net: Some(mac), mac, endpoint, ip, name: Some("web".into()) },
        ),
        (CtlRequest::FdbRemove { mac, net: None }, Command::FdbRemove { net: None, mac }),
    ] {
        assert_eq!(ctl(&path, request).unwrap(), ExitCode::SUCCESS);
        assert_eq!(heard.recv().unwrap(), command);
    }
}

#[test]
fn a_refusal_carries_the_reason_of_the_vm() {
    let (_folder, path) = vm(|requests| {
        for request in requests {
            let error = ControlError { code: ErrorCode::WrongState, message: "the VM is already paused".into() };
            request.reply.send(ResponseBody::Error(error));
        }
    });
    let error = ctl(&path, CtlRequest::Pause).unwrap_err();
    assert_eq!(error.to_string(), "pause");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the VM is already paused");
}

#[test]
fn a_move_passes_connected_streams_and_exits_with_its_outcome() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = target.local_addr().unwrap();
    for outcome in [Outcome::Moved, Outcome::Failed, Outcome::Waiting] {
        let (_folder, path) = vm(move |requests| {
            for mut request in requests {
                if request.command == Command::Status {
                    request.reply.send(ResponseBody::Ok(Answer::Status(status())));
                    continue;
                }
                for (number, descriptor) in request.descriptors.drain(..).enumerate() {
                    std::net::TcpStream::from(descriptor).write_all(&[u8::try_from(number).unwrap()]).unwrap();
                }
                let progress = Progress {
                    phase: "rounds".into(),
                    round: 1,
                    remaining_units: 1,
                    total_units: 1,
                    wire_bytes: 1,
                    applied_mbit: 1,
                    predicted_ms: 1,
                };
                request.reply.send(ResponseBody::Progress(progress));
                request.reply.send(ResponseBody::Ok(Answer::Moved(report(outcome))));
            }
        });
        assert_eq!(ctl(&path, migrate_to(to)).unwrap(), ExitCode::from(outcome.exit_code()));
        for number in 0..3 {
            let mut byte = [0xff];
            target.accept().unwrap().0.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [number], "connections arrive in the order control, streams");
        }
    }
}

#[test]
fn a_target_that_is_not_there_fails_the_move_and_leaves_the_vm_alone() {
    let (sender, heard) = std::sync::mpsc::channel();
    let (_folder, path) = vm(move |requests| {
        for request in requests {
            sender.send(request.command.clone()).unwrap();
            request.reply.send(ResponseBody::Ok(Answer::Status(status())));
        }
    });
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(ctl(&path, migrate_to(gone)).unwrap(), ExitCode::from(1));
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), [Command::Status]);
}

#[test]
fn a_vm_that_dies_during_a_move_is_no_outcome() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = target.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"{\"rebec\":\"0.1.0\",\"protocol\":1}\n").unwrap();
        let mut byte = [0];
        while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {}
        let answer = serde_json::to_string(&rebec_vmm_api::control::Response { id: 1, body: ResponseBody::Ok(Answer::Status(status())) });
        stream.write_all(format!("{}\n", answer.unwrap()).as_bytes()).unwrap();
        while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {}
    });
    assert!(matches!(ctl(&path, migrate_to(to)), Err(CtlError::NoAnswer { what: "migrate", .. })));
}

#[test]
fn a_donor_connection_is_the_owners_and_a_refusal_is_told() {
    let (_folder, path) = vm(|requests| {
        let mut requests = requests.into_iter();
        let mut stream = requests.next().unwrap().reply.hand_over().unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream.write_all(b"content").unwrap();
        requests.for_each(drop);
    });
    let mut connection = donor_connection(&path).unwrap();
    connection.write_all(b"?").unwrap();
    let mut content = [0; 7];
    connection.read_exact(&mut content).unwrap();
    assert_eq!(&content, b"content");
    assert!(matches!(donor_connection(&path), Err(CtlError::Refused { what: "donate", .. })));
}

#[test]
fn who_is_not_a_vmm_of_this_protocol_is_named() {
    let nobody = tempfile::tempdir().unwrap().path().join("nobody");
    assert!(matches!(ctl(&nobody, CtlRequest::Pause), Err(CtlError::Connect { .. })));
    for (hello, wanted) in [
        ("", "no hello"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "no hello"),
        ("{\"rebec\":\"9.0.0\",\"protocol\":9,\"from\":8}\n", "Rebec 9.0.0) speaks version 8-9 of the control protocol"),
        ("{\"rebec\":\"9.0.0\",\"protocol\":2,\"from\":1,\"colour\":\"red\"}\n", "greeted"),
        ("{\"id\":0,\"error\":{\"code\":\"busy\",\"message\":\"8 connections\"}}\n", "hello"),
    ] {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(hello.as_bytes()).unwrap();
        drop(far);
        let said = match Client::greet(near) {
            Err(Some(error)) => format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()),
            Err(None) => "no hello".into(),
            Ok(_) => "greeted".into(),
        };
        assert!(said.contains(wanted), "{hello}: {said}");
    }
}

#[test]
fn garbage_at_any_byte_of_an_answer_is_an_error_and_no_more() {
    let hello = b"{\"rebec\":\"0.1.0\",\"protocol\":1}\n";
    let answers = [hello.as_slice(), b"{\"id\":1,\"ok\":\"done\"}\n"].concat();
    for position in 0..answers.len() {
        for garbage in [0, b'{', b'9', 0xff] {
            let (near, mut far) = UnixStream::pair().unwrap();
            let mut bytes = answers.clone();
            bytes[position] = garbage;
            far.write_all(&bytes).unwrap();
            far.shutdown(std::net::Shutdown::Write).unwrap();
            if let Ok(mut client) = Client::greet(near) {
                // Some single bytes leave a valid answer (a digit of the version); what counts is that it ends.
                client.ask("pause", Command::Pause).ok();
            }
        }
    }
}
