//! Descriptors that are handed over, on the real binary: they are used as files are, and no name leads beyond them.

#![expect(clippy::unwrap_used, reason = "tests and their helpers")]

use std::{
    fs::File,
    io::IoSlice,
    mem::MaybeUninit,
    net::UdpSocket,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::{Command, Stdio},
};

use rebec_devices::disk::{BackingName, Disk, ImageFormat};
use rebec_vmm_api::handle::HANDED_MAX;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Standard input over which these come.
fn hand_over(descriptors: &[BorrowedFd<'_>]) -> Stdio {
    let (near, far) = UnixStream::pair().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDED_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    sendmsg(&near, &[IoSlice::new(&[0])], &mut control, SendFlags::empty()).unwrap();
    OwnedFd::from(far).into()
}

/// What the program says when it fails, or nothing.
fn said(arguments: &[&str], input: Stdio, output: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rebec-vmm"));
    command.args(arguments).stdin(input).stdout(File::create(output).unwrap()).stderr(Stdio::piped());
    let ended = command.spawn().unwrap().wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.success(), said.is_empty(), "{said}");
    said
}

#[test]
fn a_file_is_the_same_handed_over_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("base"), [7; 1 << 20]).unwrap();
    assert_eq!(said(&["digests", path("base").to_str().unwrap()], Stdio::null(), &path("named")), "");
    let base = File::open(path("base")).unwrap();
    assert_eq!(said(&["digests", "fd:0"], hand_over(&[base.as_fd()]), &path("handed")), "");
    let digests = |name: &str| std::fs::read(path(name)).unwrap();
    assert!(!digests("named").is_empty());
    assert_eq!(digests("named"), digests("handed"));
}

#[test]
fn names_inside_an_image_that_is_handed_over_lead_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let secret = path("secret");
    std::fs::write(&secret, [7; 1 << 20]).unwrap();
    let image = File::options().read(true).write(true).create_new(true).open(path("image.qcow2")).unwrap();
    let backing = BackingName { name: secret.display().to_string(), format: Some(ImageFormat::Raw) };
    Disk::create_qcow2("image.qcow2", &image, 1 << 20, Some(&backing)).unwrap();

    assert_eq!(said(&["digests", path("image.qcow2").to_str().unwrap()], Stdio::null(), &path("out")), "", "its owner may follow them");
    let refusal = said(&["digests", "fd:0"], hand_over(&[image.as_fd()]), &path("out"));
    assert!(refusal.contains(&format!("its backing image {} was not given", secret.display())), "{refusal}");
    assert_eq!(std::fs::metadata(path("out")).unwrap().len(), 0);
}

#[test]
fn what_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let kernel = File::open(env!("CARGO_BIN_EXE_rebec-vmm")).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let net = "vni=1,mac=52:54:00:00:00:01,local=127.0.0.1:1,socket=fd:1";
    let both = [kernel.as_fd(), socket.as_fd()];
    for (arguments, handed, names) in [
        (vec!["digests", "fd:1"], &both[..1], "fd:1: 1 descriptors came over standard input"),
        (vec!["digests", "fd:0"], &both[1..], "neither a regular file nor a block device"),
        (vec!["run", "--kernel", "fd:0", "--net", net], &both, "is not bound to UDP 127.0.0.1:1"),
        (vec!["run", "--kernel", "fd:0", "--disk", "fd:1"], &both, "neither a regular file nor a block device"),
        (vec!["run", "--kernel", "fd:0", "--disk", "fd:0"], &both, "fd:0 is given twice"),
        (vec!["run", "--kernel", "fd:0", "--ledger", "fd:1"], &[kernel.as_fd(), kernel.as_fd()], "not open for reading and writing"),
    ] {
        let refusal = said(&arguments, hand_over(handed), &out);
        assert!(refusal.contains(names) && refusal.lines().count() == 1, "{arguments:?}: {refusal}");
    }
    let refusal = said(&["digests", "fd:0"], Stdio::null(), &out);
    assert!(refusal.contains("fd:0: no descriptor came over standard input: it is no socket"), "{refusal}");
}
