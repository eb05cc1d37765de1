//! Hosts of other versions: what an older or newer one asks, and what questions and answers look like that both have to read.

use std::{cmp::Ordering, fmt::Debug};

use axum::extract::FromRequest as _;
use rebec_api::{ErrorCode, job::Job};
use rebec_book::Signed;
use serde::{Serialize, de::DeserializeOwned};

use super::{super::internal, *};
use crate::{
    keeper,
    mesh::versions::{Answerer, MUST, SPEAKS, between_hosts, speaks},
    orders::{addresses::LeaseQuestion, order::StartOrder, record::Introduction, remove::Removal, returns::ReturnQuestion},
    pool::{JoinAnswer, JoinQuestion},
    vm::depart::Offer,
};

/// Bodies between hosts as each version writes them. A line that is there is never changed.
const KEPT: &str = include_str!("golden/peer-v1.txt");

fn kept<T: Serialize + DeserializeOwned + Debug>(line: &str) {
    let value: T = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    assert_eq!(serde_json::to_string(&value).unwrap(), line);
    // What a later version adds is skipped.
    if let Some(fields) = line.strip_prefix('{').filter(|_| !std::any::type_name::<T>().ends_with("Verdict")) {
        let later = format!(r#"{{"later":{{"much":[1,2]}},{fields}"#);
        serde_json::from_str::<T>(&later).unwrap_or_else(|error| panic!("{later}: {error}"));
    }
}

#[test]
fn questions_and_answers_that_were_kept_are_read_and_written_as_they_were() {
    for line in KEPT.lines() {
        let (what, line) = line.split_once(' ').unwrap();
        match what {
            "join" => kept::<JoinQuestion>(line),
            "joined" => kept::<JoinAnswer>(line),
            "records" => kept::<Introduction>(line),
            "leases" => kept::<LeaseQuestion>(line),
            "returns" => kept::<ReturnQuestion>(line),
            "leased" => kept::<Vec<Signed>>(line),
            "promises" => kept::<keeper::Question>(line),
            "promised" => kept::<keeper::Verdict>(line),
            "restarts" => kept::<keeper::Wish>(line),
            "starts" => kept::<StartOrder>(line),
            "removals" => kept::<Removal>(line),
            "arrivals" => kept::<Offer>(line),
            "jobs/wait" => kept::<internal::JobQuestion>(line),
            "job" => kept::<Job>(line),
            "refusal" => kept::<ApiError>(line),
            other => panic!("{other}: no question between hosts"),
        }
    }
    assert_eq!(KEPT.lines().count(), 31, "something that was kept is not there any more");
    let newer: ApiError = serde_json::from_str(r#"{"code":"too-hot","message":"it is"}"#).unwrap();
    assert_eq!(newer.code, ErrorCode::Failed);
}

impl Bench {
    /// Asks as a host that speaks these.
    async fn ask_as_host(&self, speaks_and_must: (&str, &str), method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
        let (near, far) = tokio::io::duplex(64 << 10);
        let answerer =
            Answerer { speaks: self.agent.peers.mesh.speaks(), rebec: self.agent.knowledge.rebec(), name: Arc::new(|| "a1".into()) };
        let caller = Caller::Host(self.agent.knowledge.key());
        tokio::spawn(serve::connection(far, between_hosts(router(self.agent.clone()), answerer), caller, serve::LIMITS.head));
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json").header("host", "a1");
        let (speaks, must) = speaks_and_must;
        let request = request.header(SPEAKS, speaks).header(MUST, must).body(Body::from(body.to_owned())).unwrap();
        exchange(near, request).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_host_asks_is_answered_or_refused_in_words_that_name_who_is_behind() {
    let bench = Bench::founded().await;
    let wait = "/internal/jobs/wait";
    let question = r#"{"id":"j1","seen":{"phase":"","done_bytes":0,"total_bytes":0},"later":7}"#;
    let (status, body) = bench.ask_as_host(("1-2", ""), "POST", wait, question).await;
    assert_eq!((status, refusal(&body).code), (404, ErrorCode::NotFound), "a field that is not known is skipped");

    let older = "host a1 (Rebec 0.1.0) is older than the host that asks and does not know ";
    let token = r#"{"name":"x","later":7}"#;
    for (versions, method, path, body, told) in [
        (("1-2", ""), "POST", "/internal/later", "{}", format!("{older}`/internal/later`: upgrade it")),
        (("1-2", ""), "GET", "/v1/vms/web/later", "", format!("{older}`/v1/vms/web/later`: upgrade it")),
        (("1-2", ""), "PUT", wait, "{}", format!("{older}this way of asking `{wait}`: upgrade it")),
        (("1-2", "later"), "POST", wait, question, format!("{older}`later`: upgrade it")),
        (("2-3", ""), "POST", wait, question, "the host that asks 2-3: upgrade that host".to_owned()),
    ] {
        let (status, body) = bench.ask_as_host(versions, method, path, body).await;
        let error = refusal(&body);
        assert_eq!((status, error.code), (501, ErrorCode::OtherVersion), "{path}: {error}");
        assert!(error.message.contains(&told), "{path}: {error}");
    }
    // A user's wish that another host sends on: no field of it is skipped.
    let request = Request::post("/v1/tokens").header("content-type", "application/json").body(Body::from(token)).unwrap();
    let (mut parts, body) = request.into_parts();
    let answerer = Answerer { speaks: "1".parse().unwrap(), rebec: "0.1.0", name: Arc::new(|| "a1".into()) };
    let headers = axum::http::HeaderMap::from_iter([(SPEAKS, axum::http::HeaderValue::from_static("1-2"))]);
    parts.extensions.insert(answerer.agree(&headers).unwrap());
    let json = super::super::answer::Json::<rebec_api::token::NewToken>::from_request(Request::from_parts(parts, body), &()).await;
    let Err(failure) = json else { panic!("a field was skipped") };
    assert_eq!(failure.0.message, format!("{older}the field `later`: upgrade it"));
    assert_eq!(speaks(&headers).age(bench.agent.peers.mesh.speaks()), Ordering::Greater);
}
