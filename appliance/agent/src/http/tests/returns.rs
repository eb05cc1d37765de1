//! Parts of a LAN's range that go back to its home.

use rebec_book::{
    Body as RecordBody,
    record::{Kind, RangeLease},
    view,
};
use rebec_pool::ranges::Mark;
use serde_json::json;

use super::*;
use crate::orders::addresses::nic;

/// The one LAN: its id, the parts of its range, and the number of its record.
fn office(bench: &Bench) -> (Id, Vec<RangeLease>, u64) {
    let found = bench.agent.knowledge.read(|book| {
        let lan = view::lans(book).pop()?;
        let seq = book.about(Kind::LAN, lan.id).next()?.seq;
        Some((lan.id, lan.body.leases.clone(), seq))
    });
    found.flatten().unwrap()
}

async fn address(bench: &Bench) -> String {
    nic(&bench.agent.orders, "office", &[]).await.unwrap().address.to_string()
}

#[tokio::test]
async fn a_part_that_was_given_back_is_free_and_one_that_is_to_go_back_is_not_given_out() {
    let bench = Bench::founded().await;
    let made = json!({ "name": "office", "range": "10.7.0.0/24" }).to_string();
    assert_eq!(bench.ask(bench.root(), "POST", "/v1/lans", made).await.0, 200);
    let own = bench.agent.knowledge.key();
    assert_eq!(address(&bench).await, "10.7.0.8");

    // From here on nothing of it is given out, whatever becomes of the question.
    let (lan, parts, seq) = office(&bench);
    let mark = Mark::of(lan, own, &parts[0], seq).unwrap();
    bench.agent.store.mark(std::slice::from_ref(&mark)).unwrap();
    assert_eq!(address(&bench).await, "10.7.0.12");

    let question = json!({ "lan": lan, "tags": [mark.tag, 7] }).to_string();
    let ask = async || bench.ask(Caller::Host(own), "POST", "/internal/returns", question.clone()).await.0;
    assert_eq!(ask().await, 200);
    let (_, left, after) = office(&bench);
    assert_eq!(left, parts_from(&bench, "10.7.0.12"), "another part was taken, or none");
    assert_eq!((ask().await, office(&bench).2), (200, after), "asked again, it was written again");
    assert_eq!(bench.ask(bench.root(), "POST", "/internal/returns", question.clone()).await.0, 403);

    // The gap is used again, and is another part now.
    let refill: Vec<String> = (0..4).map(|nth| format!("10.7.0.{}", 12 + nth)).collect();
    take(&bench, &refill);
    assert_eq!(address(&bench).await, "10.7.0.8");
    let (_, parts, _) = office(&bench);
    assert!(parts.iter().any(|part| part.first.octets()[3] == 8 && part.tag != Some(mark.tag)));
    // A late question of before takes nothing of it.
    assert_eq!((ask().await, office(&bench).1), (200, parts));

    let (status, shown) = bench.ask(bench.root(), "GET", "/v1/lans/office", "").await;
    let shown = json(&shown);
    let of = |first: &str, last: &str, used: u32| json!({ "host": "a1", "first": first, "last": last, "used": used });
    assert_eq!((status, &shown["parts"]), (200, &json!([of("10.7.0.8", "10.7.0.11", 0), of("10.7.0.12", "10.7.0.15", 4)])));
}

fn parts_from(bench: &Bench, first: &str) -> Vec<RangeLease> {
    office(bench).1.into_iter().filter(|part| part.first.to_string() == first).collect()
}

/// A VM that has these addresses.
fn take(bench: &Bench, addresses: &[String]) {
    let lan = office(bench).0;
    let nic = |address: &String| rebec_book::record::NicBody {
        lan,
        vni: 7,
        mac: [0; 6],
        address: address.parse().unwrap(),
        prefix: 24,
        sealed: None,
        mtu: None,
        trunk: None,
    };
    let body = VmBody { nics: addresses.iter().map(nic).collect(), ..vm_body(bench) };
    bench.agent.knowledge.publish(Kind::VM, vm_id(bench), Some(RecordBody::Vm(body.into()))).unwrap();
}

#[tokio::test]
async fn who_leaves_uses_nothing_any_more_of_what_it_had() {
    let bench = Bench::founded().await;
    assert_eq!(bench.ask(bench.root(), "POST", "/v1/lans", json!({ "name": "office" }).to_string()).await.0, 200);
    let (lan, parts, _) = office(&bench);
    assert_eq!(bench.ask(bench.root(), "POST", "/v1/pool/leave", "").await.0, 200);
    let marks: Vec<_> = bench.agent.store.marks().unwrap().into_iter().map(|mark| (mark.lan, Some(mark.tag))).collect();
    assert_eq!(marks, [(lan, parts[0].tag)]);
}
