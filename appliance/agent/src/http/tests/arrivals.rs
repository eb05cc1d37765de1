//! Streams of a move: for the host that sends the VM, and nobody else.

use rebec_api::{ErrorCode, vm::STREAM_UPGRADE};
use rebec_book::Key;
use rebec_host::sockets;

use super::*;
use crate::vm::{Kept, LocalVm, Want};

async fn ask(bench: &Bench, caller: Caller) -> (u16, Vec<u8>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    tokio::spawn(serve::connection(far, router(bench.agent.clone()), caller, serve::LIMITS.head));
    let request = Request::get(format!("/internal/arrivals/{}/stream", vm_id(bench))).header("host", "a1");
    let request = request.header("connection", "upgrade").header("upgrade", STREAM_UPGRADE);
    exchange(near, request.body(Body::empty()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn only_the_host_that_sends_a_vm_reaches_the_vmm_that_waits_for_it() {
    let bench = Bench::founded().await;
    let own = bench.agent.knowledge.key();
    let folder = rebec_host::kept::folder(bench.agent.host.state(), &vm_id(&bench));
    std::fs::create_dir_all(&folder).unwrap();
    let waiting = sockets::listen(&folder).unwrap();
    let add = |from: Option<Key>| {
        let kept = Kept { from, ..Kept::new(vm_id(&bench), own, vm_body(&bench), vm_private(), Want::Arriving) };
        bench.agent.vms.insert(Arc::new(LocalVm::new(bench.agent.knowledge.clone(), folder.clone(), kept)));
    };
    for from in [None, Some(Name([1; 32]))] {
        add(from);
        let (status, body) = ask(&bench, Caller::Host(own)).await;
        assert_eq!((status, refusal(&body).code), (403, ErrorCode::Forbidden), "{from:?}");
    }
    add(Some(own));
    assert_eq!(ask(&bench, bench.root()).await.0, 403);
    assert_eq!(ask(&bench, Caller::Host(own)).await.0, 101);
    waiting.set_nonblocking(true).unwrap();
    assert!(waiting.accept().is_ok(), "it was let through, but to nobody");
}
