//! VMs and the book: whom a home assigns them to, and what becomes of those that it does not list.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use rebec_api::ErrorCode;
use rebec_book::{Body as Record, record::Kind, view};
use rebec_host::life::{Ended, Goal, Input};

use super::*;
use crate::{
    orders::plan,
    upkeep,
    vm::{Kept, LocalVm, Want, grants, stop, watch},
};

fn here(bench: &Bench, want: Want) -> Arc<LocalVm> {
    let (id, agent) = (vm_id(bench), &bench.agent);
    let folder = rebec_host::kept::folder(agent.host.state(), &id);
    std::fs::create_dir_all(&folder).unwrap();
    let kept = Kept { epoch: 1, ..Kept::new(id, agent.knowledge.key(), vm_body(bench), vm_private(), want) };
    let vm = Arc::new(LocalVm::new(bench.agent.knowledge.clone(), folder, kept));
    agent.vms.insert(vm.clone());
    vm
}

#[tokio::test]
async fn of_two_who_have_a_lost_vm_started_one_assigns_it() {
    let bench = Bench::founded().await;
    let (agent, id) = (&bench.agent, vm_id(&bench));
    agent.knowledge.publish(Kind::VM, id, Some(Record::Vm(vm_body(&bench).into()))).unwrap();
    let found = agent.knowledge.read(|book| view::holder(book, id)).flatten().unwrap();
    let assign = || {
        let agent = agent.clone();
        tokio::task::spawn_blocking(move || plan::assign(&agent.orders, id, found, agent.knowledge.key()))
    };
    let asked: Vec<_> = (0..8).map(|_| assign()).collect();
    let mut outcomes = vec![];
    for asked in asked {
        outcomes.push(asked.await.unwrap());
    }
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    assert!(outcomes.iter().flat_map(|outcome| outcome.as_ref().err()).all(|error| error.code == ErrorCode::Conflict));
}

#[tokio::test]
async fn a_vm_that_is_here_is_listed_again_or_goes_as_its_home_says() {
    let bench = Bench::founded().await;
    let (agent, id) = (&bench.agent, vm_id(&bench));
    let vm = here(&bench, Want::Stopped);
    vm.say();
    let (_, listed) = bench.ask(bench.root(), "GET", "/v1/vms", "").await;
    assert_eq!(json(&listed), serde_json::json!([]));
    upkeep::compare(&agent.knowledge, &agent.store, &agent.vms).await;
    let (status, shown) = bench.ask(bench.root(), "GET", "/v1/vms/web", "").await;
    assert_eq!((status, &json(&shown)["state"]), (200, &"stopped".into()), "it is not listed");

    // Its home takes it back: what is here ends, and goes.
    watch::spawn(&agent.vms, &vm, None);
    agent.knowledge.publish(Kind::VM, id, None).unwrap();
    upkeep::compare(&agent.knowledge, &agent.store, &agent.vms).await;
    let gone = || agent.vms.get(&id).is_none() && !vm.folder.exists();
    assert!(agent.knowledge.until(Duration::from_secs(10), gone).await, "what its home removed is still here");
}

#[tokio::test]
async fn of_several_words_about_a_vm_the_last_is_the_last_that_others_hear() {
    let bench = Bench::founded().await;
    let (agent, id) = (&bench.agent, vm_id(&bench));
    agent.knowledge.publish(Kind::VM, id, Some(Record::Vm(vm_body(&bench).into()))).unwrap();
    let vm = here(&bench, Want::Running);
    for round in 0..20 {
        let target = vm.kept().epoch + 8;
        // As its task, its looks, upkeep and jobs do. All of them wait for the book, and go on together.
        let sayers = agent.knowledge.read(|_| {
            let say = || {
                let vm = vm.clone();
                std::thread::spawn(move || {
                    vm.keep(|kept| kept.epoch += 1).unwrap();
                    vm.say();
                })
            };
            let sayers: Vec<_> = (0..8).map(|_| say()).collect();
            while vm.kept().epoch < target {
                std::thread::yield_now();
            }
            sayers
        });
        sayers.unwrap().into_iter().for_each(|sayer| sayer.join().unwrap());
        let told = agent.knowledge.read(|book| match book.get(Kind::SEEN, id, agent.knowledge.key()) {
            Some(Record::Seen(seen)) => seen.epoch,
            _ => 0,
        });
        assert_eq!(told, Some(vm.kept().epoch), "round {round}");
    }
}

#[tokio::test]
async fn a_removal_is_carried_out_once_and_a_lost_answer_is_given_again() {
    let bench = Bench::founded().await;
    let ask = async |path: &str, order: u8| {
        let (near, far) = tokio::io::duplex(64 << 10);
        tokio::spawn(serve::connection(far, router(bench.agent.clone()), bench.root(), serve::LIMITS.head));
        let request = Request::delete(path).header("host", "a1").header(rebec_api::job::ORDER, Name([order; 16]).to_string());
        exchange(near, request.body(Body::empty()).unwrap()).await.unwrap()
    };
    let (agent, id) = (&bench.agent, vm_id(&bench));
    agent.knowledge.publish(Kind::VM, id, Some(Record::Vm(vm_body(&bench).into()))).unwrap();
    let vm = here(&bench, Want::Stopped);
    watch::spawn(&agent.vms, &vm, None);
    assert_eq!(ask("/v1/vms/web", 1).await.0, 200);
    assert!(agent.vms.get(&id).is_none() && !vm.folder.exists());
    // The same order is answered as before; another finds nothing.
    assert_eq!(ask("/v1/vms/web", 1).await.0, 200);
    assert_eq!(refusal(&ask("/v1/vms/web", 2).await.1).code, ErrorCode::NotFound);

    agent.knowledge.publish(Kind::IMAGE, id, Some(Record::Image(vm_body(&bench).image.into()))).unwrap();
    assert_eq!(ask("/v1/images/debian", 3).await.0, 200);
    assert_eq!(ask("/v1/images/debian", 3).await.0, 200);
    assert_eq!(refusal(&ask("/v1/images/debian", 4).await.1).code, ErrorCode::NotFound);

    let removed = agent.jobs.all().into_iter().filter(|job| job.what.starts_with("remove ")).count();
    assert_eq!(removed, 2);
}

#[tokio::test]
async fn an_order_is_carried_out_once_however_often_it_comes() {
    let bench = Bench::founded().await;
    let ask = async |name: &str| {
        let (near, far) = tokio::io::duplex(64 << 10);
        tokio::spawn(serve::connection(far, router(bench.agent.clone()), bench.root(), serve::LIMITS.head));
        let request = Request::builder().method("POST").uri("/v1/hosts/a1/drain").header("host", "a1").header(rebec_api::job::ORDER, name);
        exchange(near, request.body(Body::empty()).unwrap()).await.unwrap()
    };
    let name = "07".repeat(16);
    let (first, second, other) = (ask(&name).await, ask(&name).await, ask(&"08".repeat(16)).await);
    assert_eq!((first.0, second.0, other.0), (202, 202, 202));
    assert_eq!(json(&first.1)["id"], json(&second.1)["id"]);
    assert_ne!(json(&first.1)["id"], json(&other.1)["id"]);
    assert_eq!(refusal(&ask("seven").await.1).code, ErrorCode::BadRequest);

    // And undone.
    let settled = |state: &'static str| {
        let agent = bench.agent.clone();
        async move {
            agent
                .knowledge
                .until(std::time::Duration::from_secs(5), || {
                    agent.knowledge.read(|book| view::hosts(book)[0].body.draining) == Some(state == "draining")
                })
                .await
        }
    };
    assert!(settled("draining").await);
    let (status, _) = bench.ask(bench.root(), "POST", "/v1/hosts/a1/drain", r#"{"undo":true}"#).await;
    assert!(status == 202 && settled("ready").await, "it takes no VMs: {status}");
}

#[tokio::test]
async fn what_stands_still_is_forgotten_with_its_vmm_and_a_refused_stop_changes_nothing() {
    let bench = Bench::founded().await;
    let agent = &bench.agent;
    let folder = rebec_host::kept::folder(agent.host.state(), &vm_id(&bench));
    std::fs::create_dir_all(&folder).unwrap();
    let kept = |want| Kept {
        epoch: 1,
        stands_still: true,
        ..Kept::new(vm_id(&bench), agent.knowledge.key(), vm_body(&bench), vm_private(), want)
    };
    let found = |want| Arc::new(LocalVm::found(agent.knowledge.clone(), folder.clone(), kept(want), "its VMM ended".into()));

    // Its VMM is there: it stands still. Then it ends.
    let vm = found(Want::Running);
    vm.learn(Input::Adopted(0));
    assert!(vm.kept().stands_still, "a VMM that is there was forgotten");
    vm.learn(Input::Ended(Ended { code: Some(1), how: "its VMM ended".into(), right: Err("no ledger".into()) }));
    assert!(!vm.kept().stands_still && !rebec_host::kept::read(&folder).unwrap().stands_still, "it is looked after for ever");

    // One that leaves may not be stopped, and goes on standing still.
    let vm = found(Want::Running);
    vm.learn(Input::Adopted(0));
    vm.hear(Input::Want(Goal::Depart { to: Name([3; 32]) })).unwrap();
    let refused = stop::stop(&vm, Duration::ZERO, None).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Conflict, "{refused}");
    assert!(vm.kept().stands_still, "a stop that was refused had it go on");
}

#[tokio::test]
async fn what_is_found_at_once_is_looked_for_once_and_what_is_heard_of_later_again() {
    let bench = Bench::founded().await;
    let peers = &bench.agent.peers;
    let looks = AtomicUsize::new(0);
    let at = |look| {
        let looks = &looks;
        let found = move || if looks.fetch_add(1, Ordering::Relaxed) + 1 >= look { Ok(look) } else { Err("not yet") };
        peers.once_heard(found)
    };
    assert_eq!((at(1).await, looks.swap(0, Ordering::Relaxed)), (Ok(1), 1));
    let (found, ()) = tokio::join!(at(2), async { bench.agent.knowledge.touch() });
    assert_eq!((found, looks.load(Ordering::Relaxed)), (Ok(2), 2));
}

#[tokio::test]
async fn what_is_written_here_waits_for_who_tells_it_and_not_without_end() {
    let bench = Bench::founded().await;
    let knowledge = &bench.agent.knowledge;
    let founding = knowledge.take_untold();
    knowledge.publish(Kind::VM, vm_id(&bench), Some(Record::Vm(vm_body(&bench).into()))).unwrap();
    let written = knowledge.take_untold();
    assert_eq!(written.iter().map(|signed| signed.read().unwrap().key.kind).collect::<Vec<_>>(), [Kind::VM]);
    assert!(!founding.is_empty() && knowledge.take_untold().is_empty(), "it is told twice");
    knowledge.tell(vec![written[0].clone(); 10_000]);
    assert!(knowledge.take_untold().len() < 10_000, "what nobody tells grows without end");
    knowledge.tell(written);
    knowledge.forget().unwrap();
    assert!(knowledge.take_untold().is_empty(), "what was written in a pool is told after it was left");
}

#[tokio::test]
async fn what_a_vm_starts_with_is_kept_while_it_is_being_recorded_and_goes_with_its_record() {
    let bench = Bench::founded().await;
    let (agent, id) = (&bench.agent, vm_id(&bench));
    let is_kept = || agent.store.private(&id).unwrap().is_some();
    agent.store.set_private(&id, &vm_private()).unwrap();
    grants::tidy(&agent.vms);
    assert!(is_kept(), "it went before its record was written");
    agent.knowledge.publish(Kind::VM, id, Some(Record::Vm(vm_body(&bench).into()))).unwrap();
    (0..3).for_each(|_| grants::tidy(&agent.vms));
    assert!(is_kept(), "it went while the VM was listed");
    agent.knowledge.publish(Kind::VM, id, None).unwrap();
    (0..2).for_each(|_| grants::tidy(&agent.vms));
    assert!(!is_kept(), "it is kept of a VM that is gone");
}
