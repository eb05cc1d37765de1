//! A keeper's answers as holders hear them, and what a holder makes of them.

use std::time::Duration;

use ed25519_dalek::SigningKey;
use rebec_api::ErrorCode;
use rebec_book::{
    Body as RecordBody, Key, Record,
    book::Came,
    key::{id_of_key, public},
    record::{DomainBody, HostBody, Kind, MemberBody, SeenBody, SeenState},
};
use rebec_pool::lease;
use serde_json::json;

use super::*;
use crate::{
    identity,
    vm::{Kept, LocalVm, Want, lease as holder, start, watch},
};

const ELSEWHERE: Key = Name([1; 32]);

fn kept_by(bench: &Bench, keeper: Key) -> VmBody {
    let body = VmBody { keeper: Some(keeper), ..vm_body(bench) };
    bench.agent.knowledge.publish(Kind::VM, vm_id(bench), Some(RecordBody::Vm(body.clone().into()))).unwrap();
    body
}

async fn ask(bench: &Bench, epoch: u64, stance: &str) -> (u16, Vec<u8>) {
    let question = json!({ "vm": vm_id(bench), "ask": { "epoch": epoch, "stance": stance }, "records": [] });
    bench.ask(Caller::Host(bench.agent.knowledge.key()), "POST", "/internal/promises", question.to_string()).await
}

fn grant_elsewhere(bench: &Bench) {
    let granted = bench.agent.store.change_charge(&vm_id(bench), |charge| Ok::<_, ()>(lease::grant(charge.unwrap(), ELSEWHERE)));
    assert_eq!(granted.unwrap().unwrap().floor, 4);
}

#[tokio::test]
async fn a_keeper_promises_what_it_keeps_and_remembers_it() {
    let bench = Bench::founded().await;
    assert_eq!(ask(&bench, 1, "runs").await.0, 403);
    kept_by(&bench, ELSEWHERE);
    let (status, body) = ask(&bench, 1, "runs").await;
    assert_eq!((status, refusal(&body).code), (403, ErrorCode::Forbidden));
    kept_by(&bench, bench.agent.knowledge.key());
    let (status, body) = ask(&bench, 1, "runs").await;
    assert_eq!((status, json(&body)), (200, json!({ "promised": { "lease_ms": 15000 } })));
    // What it never promised leads nowhere, and removes nothing.
    assert_eq!(refusal(&ask(&bench, 9, "runs").await.1).code, ErrorCode::Forbidden);
    assert_eq!(ask(&bench, 1, "flies").await.0, 400);
    let charges = bench.agent.store.charges().unwrap();
    assert_eq!((charges.len(), charges[0].0, charges[0].1.holder), (1, vm_id(&bench), bench.agent.knowledge.key()));

    grant_elsewhere(&bench);
    let (status, body) = ask(&bench, 1, "runs").await;
    assert_eq!((status, json(&body)), (200, json!({ "superseded": { "host": ELSEWHERE, "epoch": 4 } })));
    assert_eq!(bench.ask(bench.root(), "POST", "/internal/promises", "{}").await.0, 403);
}

#[tokio::test]
async fn what_was_granted_is_forgotten_by_the_word_of_its_own_domain_alone() {
    let bench = Bench::founded().await;
    let agent = &bench.agent;
    kept_by(&bench, agent.knowledge.key());
    ask(&bench, 1, "runs").await;
    grant_elsewhere(&bench);
    kept_by(&bench, ELSEWHERE);
    // Of another domain, which says that the VM is gone.
    let [domain, host] = [5, 6].map(|number| SigningKey::from_bytes(&[number; 32]));
    let pool = agent.identity.get(identity::Role::Pool).unwrap().unwrap();
    let body = DomainBody { name: "beta".into(), key: public(&domain) };
    agent.knowledge.publish_as(Kind::DOMAIN, id_of_key(&body.key), Some(RecordBody::Domain(body.clone())), pool.as_signing_key()).unwrap();
    let member = MemberBody { host: public(&host), domain: body.key, name: "b1".into(), dead: None, role: None };
    let id = id_of_key(&member.host);
    let records = vec![
        Record::sign(Kind::MEMBER, id, 1, Some(&RecordBody::Member(member)), &domain).unwrap(),
        Record::sign(Kind::HOST, id, 1, Some(&RecordBody::Host(HostBody::bare(body.key).into())), &host).unwrap(),
        Record::sign(Kind::VM, vm_id(&bench), 2, None, &host).unwrap(),
    ];
    assert_eq!(agent.knowledge.take_in(records, Came::InTurn).len(), 3);
    assert!(agent.keeper.lost().unwrap().is_empty());
    assert_eq!(agent.store.charges().unwrap().len(), 1, "another domain had it forgotten");
    agent.knowledge.publish(Kind::VM, vm_id(&bench), None).unwrap();
    assert!(agent.keeper.lost().unwrap().is_empty() && agent.store.charges().unwrap().is_empty());
}

/// A VM that this host keeps, on this host.
fn own(bench: &Bench) -> Arc<LocalVm> {
    let agent = &bench.agent;
    let body = kept_by(bench, agent.knowledge.key());
    let folder = rebec_host::kept::folder(agent.host.state(), &vm_id(bench));
    std::fs::create_dir_all(&folder).unwrap();
    let kept = Kept { epoch: 1, boot: "b".into(), ..Kept::new(vm_id(bench), agent.knowledge.key(), body, vm_private(), Want::Running) };
    let vm = Arc::new(LocalVm::new(bench.agent.knowledge.clone(), folder, kept));
    agent.vms.insert(vm.clone());
    let (state, to) = (SeenState::Failed, None);
    let seen =
        SeenBody { epoch: 1, state, reason: None, endpoints: vec![], memory_bytes: 0, pid: 0, grants: vec![], to, keys: None, ahead: None };
    agent.knowledge.publish(Kind::SEEN, vm_id(bench), Some(RecordBody::Seen(seen.into()))).unwrap();
    watch::spawn(&agent.vms, &vm, None);
    vm
}

#[tokio::test]
async fn an_order_that_is_not_the_keepers_removes_nothing() {
    let bench = Bench::founded().await;
    let (agent, vm) = (&bench.agent, own(&bench));
    std::fs::write(agent.host.depot.path(&vm.kept().body.image.kernel.unwrap().digest), b"7 bytes").unwrap();
    holder::renew(agent.vms.clone(), vm.clone()).await;
    let reporter = agent.jobs.begin_own("start".into());
    let refused = start::start(&agent.vms, vm_id(&bench), start::Order { epoch: 9, reason: None }, &reporter).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Conflict, "{refused}");
    assert!(agent.vms.get(&vm_id(&bench)).is_some() && vm.folder.exists(), "what was here has gone");
}

#[tokio::test]
async fn a_holder_keeps_what_it_is_promised_and_removes_what_runs_elsewhere() {
    let bench = Bench::founded().await;
    let (agent, vm) = (&bench.agent, own(&bench));
    let folder = vm.folder.clone();
    let before = crate::facts::boot_time();
    holder::renew(agent.vms.clone(), vm.clone()).await;
    let lasts = vm.lease_ends() - before;
    assert!(lasts >= lease::Terms::STANDARD.lease && folder.exists(), "{lasts:?}");

    grant_elsewhere(&bench);
    holder::renew(agent.vms.clone(), vm.clone()).await;
    agent.knowledge.until(Duration::from_secs(9), || agent.vms.get(&vm_id(&bench)).is_none()).await;
    assert!(agent.vms.get(&vm_id(&bench)).is_none() && !folder.exists(), "the old copy is still here");
    assert_eq!(agent.knowledge.read(|book| rebec_book::view::seen(book, vm_id(&bench)).is_none()), Some(true));
}
