//! The server as clients see it: over socket pairs and a real socket, with an owner that answers as the machine would.

use std::{
    io::{BufRead, BufReader, IoSlice, Read, Write},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::mpsc::{Receiver, sync_channel},
    time::Instant,
};

use rebec_devices::PlainThreads;
use rebec_vmm_api::control::{Answer, DESCRIPTORS_MAX, LINE_BYTES_MAX, Progress, ResponseBody};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::*;

/// Nothing here may take longer, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

struct Fixture {
    path: std::path::PathBuf,
    requests: Receiver<ControlRequest>,
    server: Server,
    _folder: tempfile::TempDir,
}

fn serve() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let (sender, requests) = sync_channel(CONNECTIONS_MAX);
    let (server, newcomers) = Server::bind(&path).unwrap().serve(Arc::new(PlainThreads), sender).unwrap();
    heard::listen(&PlainThreads, vec![Box::new(newcomers)]).unwrap();
    Fixture { path, requests, server, _folder: folder }
}

/// A server whose owner answers everything with "done".
fn serve_willing() -> Fixture {
    let mut fixture = serve();
    let (_, none) = sync_channel(1);
    let requests = std::mem::replace(&mut fixture.requests, none);
    std::thread::spawn(move || requests.into_iter().for_each(|request: ControlRequest| request.reply.send(ResponseBody::Ok(Answer::Done))));
    fixture
}

struct Caller {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

fn connect(fixture: &Fixture) -> Caller {
    let stream = UnixStream::connect(&fixture.path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let lines = BufReader::new(stream.try_clone().unwrap());
    Caller { stream, lines }
}

/// Connected, hello read.
fn greeted(fixture: &Fixture) -> Caller {
    let mut caller = connect(fixture);
    assert_eq!(caller.line(), format!("{{\"rebec\":\"{}\",\"protocol\":1,\"from\":1}}", env!("CARGO_PKG_VERSION")));
    caller
}

impl Caller {
    fn say(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
    }

    fn pass(&mut self, text: &str, descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX * 2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        sendmsg(&self.stream, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::empty()).unwrap();
    }

    /// The next line; empty at the end of the connection.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

#[test]
fn a_request_is_answered_with_its_id() {
    let fixture = serve_willing();
    let mut caller = greeted(&fixture);
    caller.say("{\"id\":41,\"do\":\"pause\"}\n{\"id\":42,\"do\":\"resume\"}\n");
    assert_eq!(caller.line(), r#"{"id":41,"ok":"done"}"#);
    assert_eq!(caller.line(), r#"{"id":42,"ok":"done"}"#);
}

#[test]
fn a_move_brings_its_connections_and_hears_progress() {
    let fixture = serve();
    let mut caller = greeted(&fixture);
    let (mut far, near) = UnixStream::pair().unwrap();
    caller.pass("{\"id\":1,\"do\":\"migrate\",\"streams\":2}\n", &[near.as_fd(), near.as_fd(), near.as_fd()]);
    drop(near);
    let request = fixture.requests.recv_timeout(DEADLINE).unwrap();
    assert!(matches!(request.command, Command::Migrate(options) if options.streams == 2));
    assert_eq!(request.descriptors.len(), 3);
    let progress =
        Progress { phase: "rounds".into(), round: 1, remaining_units: 2, total_units: 3, wire_bytes: 4, applied_mbit: 5, predicted_ms: 6 };
    request.reply.send(ResponseBody::Progress(progress));
    assert!(caller.line().starts_with(r#"{"id":1,"progress":{"phase":"rounds","round":1"#));
    UnixStream::from(request.descriptors.into_iter().nth(2).unwrap()).write_all(b"through").unwrap();
    let mut text = [0; 7];
    far.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"through");
    request.reply.send(ResponseBody::Ok(Answer::Done));
    assert_eq!(caller.line(), r#"{"id":1,"ok":"done"}"#);
}

#[test]
fn a_move_with_the_wrong_descriptors_never_reaches_the_owner() {
    let fixture = serve();
    let mut caller = greeted(&fixture);
    let (one, _other) = UnixStream::pair().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    caller.say("{\"id\":1,\"do\":\"migrate\",\"streams\":1}\n");
    assert!(caller.line().contains("0 descriptors came with a move that needs 2"));
    caller.pass("{\"id\":2,\"do\":\"migrate\",\"streams\":1}\n", &[one.as_fd(), null.as_fd()]);
    assert!(caller.line().contains("descriptor 1 of the move is not a stream socket"));
    caller.pass("{\"id\":5,\"do\":\"migrate\",\"streams\":1}\n", &[one.as_fd(); 3]);
    assert!(caller.line().contains("3 descriptors came with a move that needs 2"));
    caller.pass("{\"id\":3,\"do\":\"migrate\",\"streams\":0}\n", &[one.as_fd()]);
    assert!(caller.line().contains("streams 0"));
    caller.pass("{\"id\":4,\"do\":\"status\"}\n", &[one.as_fd()]);
    assert!(caller.line().contains("takes none"));
    assert!(fixture.requests.try_recv().is_err());
}

#[test]
fn too_many_descriptors_end_the_connection_and_none_leaks() {
    let fixture = serve();
    let mut caller = greeted(&fixture);
    let (mut far, near) = UnixStream::pair().unwrap();
    caller.pass("{\"id\":1,\"do\":\"migrate\",\"streams\":16}\n", &[near.as_fd(); DESCRIPTORS_MAX + 1]);
    drop(near);
    assert!(caller.line().contains("descriptors"));
    assert_eq!(caller.line(), "");
    far.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(far.read(&mut [0]).unwrap(), 0, "every passed copy is closed");
}

#[test]
fn a_broken_line_is_refused_and_the_next_one_is_heard() {
    let fixture = serve_willing();
    let mut caller = greeted(&fixture);
    let deep = "[".repeat(10_000);
    for bad in ["", "null", "{", "{\"id\":1}", "{\"id\":-1,\"do\":\"status\"}", "\u{0}\u{1}", deep.as_str()] {
        caller.say(format!("{bad}\n"));
        let line = caller.line();
        assert!(line.starts_with(r#"{"id":0,"error":{"code":"bad_request""#), "{bad:.20}: {line}");
    }
    // A newer program's request, and one that says that more than its words is meant.
    for unknown in ["{\"id\":5,\"do\":\"fly\"}", "{\"id\":5,\"do\":\"pause\",\"height\":3,\"must\":[\"height\"]}"] {
        caller.say(format!("{unknown}\n"));
        let line = caller.line();
        assert!(line.starts_with(r#"{"id":5,"error":{"code":"not_known""#), "{unknown}: {line}");
    }
    caller.say("\n{\"id\":7,\"do\":\"status\",\"height\":3}\n");
    caller.line();
    assert_eq!(caller.line(), r#"{"id":7,"ok":"done"}"#);
}

#[test]
fn garbage_at_any_byte_of_a_request_harms_nobody() {
    let fixture = serve_willing();
    let good = b"{\"id\":1,\"do\":\"fdb-add\",\"mac\":\"52:54:00:00:00:01\",\"endpoint\":\"10.0.0.2:4789\"}\n";
    let mut caller = greeted(&fixture);
    for position in 0..good.len() - 1 {
        for garbage in [0, b'"', b'}', 0x80, 0xff] {
            let mut line = good.to_vec();
            line[position] = garbage;
            caller.say(&line);
            let answer = caller.line();
            assert!(answer.contains("\"error\"") || answer.contains("\"ok\""), "byte {position} as {garbage}: {answer}");
        }
    }
    // A cut at any byte ends that connection alone.
    for cut in 0..good.len() - 1 {
        let mut cut_short = greeted(&fixture);
        cut_short.say(&good[..cut]);
        cut_short.stream.shutdown(Shutdown::Write).unwrap();
        let last = cut_short.line();
        assert_eq!(last.contains("in the middle of a line"), cut > 0, "cut at {cut}: {last}");
    }
    caller.say(good);
    assert_eq!(caller.line(), r#"{"id":1,"ok":"done"}"#);
}

#[test]
fn an_endless_line_ends_the_connection() {
    let fixture = serve();
    let mut caller = greeted(&fixture);
    let flood = vec![b' '; LINE_BYTES_MAX + 2];
    // The server may hang up before all of it is written.
    caller.stream.write_all(&flood).ok();
    assert!(caller.line().contains("longer than"));
}

#[test]
fn a_newcomer_takes_the_place_of_the_longest_idle() {
    let fixture = serve_willing();
    let mut idle: Vec<Caller> = (0..CONNECTIONS_MAX).map(|_| greeted(&fixture)).collect();
    idle[0].say("{\"id\":1,\"do\":\"status\"}\n");
    idle[0].line();
    // `finish` also makes sure that the server has noted the answer before the newcomer comes.
    fixture.server.finish();
    let mut newcomer = greeted(&fixture);
    newcomer.say("{\"id\":2,\"do\":\"status\"}\n");
    assert_eq!(newcomer.line(), r#"{"id":2,"ok":"done"}"#);
    assert_eq!(idle[1].line(), "", "the longest idle was let go");
    idle[0].say("{\"id\":3,\"do\":\"status\"}\n");
    assert_eq!(idle[0].line(), r#"{"id":3,"ok":"done"}"#, "the one that spoke lately stayed");
}

#[test]
fn clients_that_wait_for_the_owner_keep_their_places() {
    let fixture = serve();
    let mut waiting: Vec<Caller> = (0..CONNECTIONS_MAX).map(|_| greeted(&fixture)).collect();
    waiting.iter_mut().for_each(|caller| caller.say("{\"id\":1,\"do\":\"status\"}\n"));
    let requests: Vec<ControlRequest> = (0..CONNECTIONS_MAX).map(|_| fixture.requests.recv_timeout(DEADLINE).unwrap()).collect();
    let mut newcomer = connect(&fixture);
    assert!(newcomer.line().contains(r#""code":"busy""#));
    drop(requests);
    for caller in &mut waiting {
        assert!(caller.line().contains("the VM ended before it answered"));
    }
}

#[test]
fn a_client_that_never_reads_does_not_hold_up_the_owner_or_others() {
    let fixture = serve();
    let mut deaf = greeted(&fixture);
    deaf.say("{\"id\":1,\"do\":\"status\"}\n");
    let request = fixture.requests.recv_timeout(DEADLINE).unwrap();
    let long = "x".repeat(10_000);
    let began = Instant::now();
    for round in 0..10_000 {
        let progress =
            Progress { phase: long.clone(), round, remaining_units: 0, total_units: 0, wire_bytes: 0, applied_mbit: 0, predicted_ms: 0 };
        request.reply.send(ResponseBody::Progress(progress));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "the owner was held up");
    let mut other = greeted(&fixture);
    other.say("{\"id\":2,\"do\":\"status\"}\n");
    fixture.requests.recv_timeout(DEADLINE).unwrap().reply.send(ResponseBody::Ok(Answer::Done));
    assert_eq!(other.line(), r#"{"id":2,"ok":"done"}"#);
}

#[test]
fn a_donated_connection_belongs_to_the_owner() {
    let fixture = serve();
    let mut donor = greeted(&fixture);
    donor.say("{\"id\":9,\"do\":\"donate\"}\n");
    let request = fixture.requests.recv_timeout(DEADLINE).unwrap();
    let mut stream = request.reply.hand_over().unwrap();
    stream.write_all(b"digest\n").unwrap();
    assert_eq!(donor.line(), r#"{"id":9,"ok":"done"}"#);
    assert_eq!(donor.line(), "digest");
    donor.say("{\"id\":10,\"do\":\"stop\"}\n");
    let mut raw = [0; 5];
    stream.read_exact(&mut raw).unwrap();
    assert_eq!(&raw, b"{\"id\"", "the server reads no more of it");
    // Newcomers cannot evict what is no longer the server's.
    let _others: Vec<Caller> = (0..=CONNECTIONS_MAX).map(|_| greeted(&fixture)).collect();
    stream.write_all(b"still here\n").unwrap();
    assert_eq!(donor.line(), "still here");
}

#[test]
fn a_refused_donor_goes_on_as_an_ordinary_client() {
    let fixture = serve();
    let mut caller = greeted(&fixture);
    caller.say("{\"id\":1,\"do\":\"donate\"}\n{\"id\":2,\"do\":\"status\"}\n");
    assert!(caller.line().contains("donate must be the last line"));
    fixture.requests.recv_timeout(DEADLINE).unwrap().reply.send(ResponseBody::Ok(Answer::Done));
    assert_eq!(caller.line(), r#"{"id":2,"ok":"done"}"#);
    caller.say("{\"id\":3,\"do\":\"donate\"}\n");
    drop(fixture.requests.recv_timeout(DEADLINE).unwrap());
    assert!(caller.line().starts_with(r#"{"id":3,"error":"#));
    caller.say("{\"id\":4,\"do\":\"status\"}\n");
    fixture.requests.recv_timeout(DEADLINE).unwrap().reply.send(ResponseBody::Ok(Answer::Done));
    assert_eq!(caller.line(), r#"{"id":4,"ok":"done"}"#);
}

#[test]
fn after_the_end_of_the_vm_clients_are_told() {
    let fixture = serve();
    let mut caller = greeted(&fixture);
    drop(fixture.requests);
    caller.say("{\"id\":1,\"do\":\"status\"}\n");
    assert!(caller.line().contains("the VM has ended"));
    assert_eq!(caller.line(), "");
}
