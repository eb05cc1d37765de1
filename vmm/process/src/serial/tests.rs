//! Each backend from the guest's side and from the user's side.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::mpsc::channel,
    time::{Duration, Instant},
};

use rebec_devices::PlainThreads;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

fn start(config: Option<&SerialConfig>) -> Console {
    Backend::open(config).unwrap().start(&PlainThreads, Box::new(|| {})).unwrap()
}

fn connect(path: &std::path::Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn read_exactly(stream: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_file_is_appended_to_and_complete_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    std::fs::write(&path, "before\n").unwrap();
    let console = start(Some(&SerialConfig::File(path.clone())));
    let mut output = console.output();
    for _ in 0..1000 {
        output.write_all(b"line\n").unwrap();
    }
    console.finish();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("before\n{}", "line\n".repeat(1000)));
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let error = Backend::open(Some(&SerialConfig::File("/no/such/folder/log".into()))).err().unwrap();
    assert!(error.to_string().contains("/no/such/folder/log"));
}

#[test]
fn a_socket_carries_bytes_both_ways_and_keeps_what_came_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial");
    let console = start(Some(&SerialConfig::Unix(path.clone())));
    console.output().write_all(b"early ").unwrap();
    let mut client = connect(&path);
    assert_eq!(read_exactly(&mut client, 6), b"early ");
    console.output().write_all(b"late").unwrap();
    assert_eq!(read_exactly(&mut client, 4), b"late");

    // Input typed before anybody listens is not lost.
    client.write_all(b"typed").unwrap();
    let (sender, typed) = channel();
    console.set_sink(move |bytes| {
        sender.send(bytes.to_vec()).unwrap();
        bytes.len()
    });
    assert_eq!(typed.recv_timeout(DEADLINE).unwrap(), b"typed");
}

#[test]
fn output_that_a_vanished_client_did_not_take_waits_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial");
    let console = start(Some(&SerialConfig::Unix(path.clone())));
    let mut listener_only = connect(&path);
    listener_only.shutdown(std::net::Shutdown::Write).unwrap();
    console.output().write_all(b"still heard").unwrap();
    assert_eq!(read_exactly(&mut listener_only, 11), b"still heard");
    drop(listener_only);
    console.output().write_all(b"nobody is here").unwrap();
    assert_eq!(read_exactly(&mut connect(&path), 14), b"nobody is here");
}

#[test]
fn the_last_to_connect_has_the_port() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial");
    let console = start(Some(&SerialConfig::Unix(path.clone())));
    let mut first = connect(&path);
    console.output().write_all(b"1").unwrap();
    assert_eq!(read_exactly(&mut first, 1), b"1");
    let mut second = connect(&path);
    assert_eq!(first.read(&mut [0]).unwrap(), 0, "the first is let go");
    console.output().write_all(b"2").unwrap();
    assert_eq!(read_exactly(&mut second, 1), b"2");
}

#[test]
fn a_reader_that_stalls_costs_old_bytes_and_never_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial");
    let console = start(Some(&SerialConfig::Unix(path.clone())));
    let mut client = connect(&path);
    let mut output = console.output();
    let began = Instant::now();
    for number in 0..200_000 {
        output.write_all(format!("{number:09}\n").as_bytes()).unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(10), "writing waited for the reader");
    output.write_all(b"end\n").unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"end\n") {
        let mut chunk = [0; 4096];
        let count = client.read(&mut chunk).unwrap();
        assert!(count > 0, "the port closed");
        text.extend_from_slice(&chunk[..count]);
    }
    assert!(text.len() < 2_000_000, "something was dropped");
    assert!(text.ends_with(b"000199999\nend\n"), "the newest stayed");
}

/// A paste of any length, with line ends of all kinds and characters of several bytes wherever the pieces are cut, arrives as it was sent at a guest that
/// takes seven bytes at a time; and meanwhile a megabyte comes back.
#[test]
fn a_long_paste_arrives_whole_while_a_megabyte_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial");
    let console = start(Some(&SerialConfig::Unix(path.clone())));
    let paste = "gr\u{fc}\u{df}e, \u{4e16}\u{754c} \r\n\n\r\t\u{1f98a}\u{1b}[31m".repeat(5000);
    let (sender, taken) = channel();
    let waker = console.waker();
    console.set_sink(move |bytes| {
        let count = bytes.len().min(7);
        sender.send(bytes[..count].to_vec()).unwrap();
        // The guest has read it, and has room again.
        waker();
        count
    });
    let mut client = connect(&path);
    let mut typing = client.try_clone().unwrap();
    let text = paste.clone();
    let typed = std::thread::spawn(move || text.as_bytes().chunks(1009).for_each(|piece| typing.write_all(piece).unwrap()));
    let output = "\u{e4}".repeat(1 << 19);
    let shown = std::thread::spawn({
        let (mut screen, output) = (console.output(), output.clone());
        move || {
            for piece in output.as_bytes().chunks(1023) {
                screen.write_all(piece).unwrap();
                // About a megabyte a second: the pace of the guest, and no synchronisation.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let back = read_exactly(&mut client, output.len());
    assert!(back == output.as_bytes(), "something of the output was lost");
    let mut arrived = Vec::new();
    while arrived.len() < paste.len() {
        arrived.extend(taken.recv_timeout(DEADLINE).unwrap());
    }
    assert!(arrived == paste.as_bytes(), "something of the paste was lost");
    typed.join().unwrap();
    shown.join().unwrap();
}

#[test]
fn without_a_backend_output_goes_nowhere_and_the_end_does_not_wait() {
    let console = start(None);
    console.output().write_all(&vec![b'x'; 1 << 20]).unwrap();
    let began = Instant::now();
    console.finish();
    assert!(began.elapsed() < Duration::from_millis(500));
}
