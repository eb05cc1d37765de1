//! VMs and the book: whom a home assigns them to, and what becomes of those that it does not list.

use std::time::Duration;

use rebec_api::ErrorCode;
use rebec_book::{Body as Record, record::Kind, view};

use super::*;
use crate::{
    agent::lock,
    upkeep,
    vm::{Kept, LocalVm, Want, create, folder, watch},
};

fn here(bench: &Bench, want: Want) -> Arc<LocalVm> {
    let (id, agent) = (vm_id(bench), &bench.agent);
    let folder = folder(&agent.options.state, &id);
    std::fs::create_dir_all(&folder).unwrap();
    let kept = Kept { epoch: 1, ..Kept::new(id, agent.key(), vm_body(bench), vm_private(), want) };
    let vm = Arc::new(LocalVm::new(folder, kept));
    lock(&agent.vms).insert(id, vm.clone());
    vm
}

#[tokio::test]
async fn of_two_who_have_a_lost_vm_started_one_assigns_it() {
    let bench = Bench::founded().await;
    let (agent, id) = (&bench.agent, vm_id(&bench));
    agent.publish(Kind::VM, id, Some(Record::Vm(vm_body(&bench).into()))).unwrap();
    let found = agent.book(|book| view::holder(book, id)).flatten().unwrap();
    let assign = || {
        let agent = agent.clone();
        tokio::task::spawn_blocking(move || create::assign(&agent, id, found, agent.key()))
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
    vm.say(agent);
    let (_, listed) = bench.ask(bench.root(), "GET", "/v1/vms", "").await;
    assert_eq!(json(&listed), serde_json::json!([]));
    upkeep::compare(agent).await;
    let (status, shown) = bench.ask(bench.root(), "GET", "/v1/vms/web", "").await;
    assert_eq!((status, &json(&shown)["state"]), (200, &"stopped".into()), "it is not listed");

    // Its home takes it back: what is here ends, and goes.
    watch::spawn(agent, &vm, None);
    agent.publish(Kind::VM, id, None).unwrap();
    upkeep::compare(agent).await;
    let gone = || agent.local_vm(&id).is_none() && !vm.folder.exists();
    assert!(agent.until(Duration::from_secs(10), gone).await, "what its home removed is still here");
}

#[tokio::test]
async fn of_several_words_about_a_vm_the_last_is_the_last_that_others_hear() {
    let bench = Bench::founded().await;
    let (agent, id) = (&bench.agent, vm_id(&bench));
    agent.publish(Kind::VM, id, Some(Record::Vm(vm_body(&bench).into()))).unwrap();
    let vm = here(&bench, Want::Running);
    for round in 0..20 {
        let target = vm.kept().epoch + 8;
        // As its task, its looks, upkeep and jobs do. All of them wait for the book, and go on together.
        let sayers = agent.book(|_| {
            let say = || {
                let (agent, vm) = (agent.clone(), vm.clone());
                std::thread::spawn(move || {
                    vm.keep(|kept| kept.epoch += 1).unwrap();
                    vm.say(&agent);
                })
            };
            let sayers: Vec<_> = (0..8).map(|_| say()).collect();
            while vm.kept().epoch < target {
                std::thread::yield_now();
            }
            sayers
        });
        sayers.unwrap().into_iter().for_each(|sayer| sayer.join().unwrap());
        let told = agent.book(|book| match book.get(Kind::SEEN, id, agent.key()) {
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
    agent.publish(Kind::VM, id, Some(Record::Vm(vm_body(&bench).into()))).unwrap();
    let vm = here(&bench, Want::Stopped);
    watch::spawn(agent, &vm, None);
    assert_eq!(ask("/v1/vms/web", 1).await.0, 200);
    assert!(agent.local_vm(&id).is_none() && !vm.folder.exists());
    // The same order is answered as before; another finds nothing.
    assert_eq!(ask("/v1/vms/web", 1).await.0, 200);
    assert_eq!(refusal(&ask("/v1/vms/web", 2).await.1).code, ErrorCode::NotFound);

    agent.publish(Kind::IMAGE, id, Some(Record::Image(vm_body(&bench).image.into()))).unwrap();
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
                .until(std::time::Duration::from_secs(5), || {
                    agent.book(|book| view::hosts(book)[0].body.draining) == Some(state == "draining")
                })
                .await
        }
    };
    assert!(settled("draining").await);
    let (status, _) = bench.ask(bench.root(), "POST", "/v1/hosts/a1/drain", r#"{"undo":true}"#).await;
    assert!(status == 202 && settled("ready").await, "it takes no VMs: {status}");
}
