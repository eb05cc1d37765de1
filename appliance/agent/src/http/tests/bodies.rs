//! Bodies that are not what a request takes.

use axum::{body::Body, extract::FromRequest as _, http::Request};
use http_body_util::StreamBody;
use rebec_api::{ErrorCode, token::NewToken};

use super::{super::answer::Json, *};

#[tokio::test]
async fn unknown_fields_huge_bodies_and_other_bytes_are_refused_with_a_sentence() {
    let bench = Bench::founded().await;
    let (status, body) = bench.ask(bench.root(), "POST", "/v1/tokens", r#"{"name":"x","colour":"red"}"#).await;
    let error = refusal(&body);
    assert_eq!((status, error.code), (400, ErrorCode::BadRequest));
    assert!(error.message.contains("unknown field `colour`"), "{error}");
    let (status, body) = bench.ask(bench.root(), "POST", "/v1/vms", vec![b' '; (4 << 20) + 1]).await;
    assert_eq!((status, refusal(&body).code), (413, ErrorCode::TooLarge));
    for bytes in ["", "{", "[1]", "\0\0", r#"{"name":7}"#] {
        let (status, body) = bench.ask(bench.root(), "POST", "/v1/lans", bytes).await;
        assert_eq!((status, refusal(&body).code), (400, ErrorCode::BadRequest), "{bytes:?}");
    }
    let (status, body) = bench.ask(bench.root(), "GET", "/v1/nothing", "").await;
    assert_eq!((status, refusal(&body).code), (404, ErrorCode::NotFound));
    let (status, body) = bench.ask(bench.root(), "DELETE", "/v1/pool", "").await;
    assert_eq!((status, refusal(&body).code), (400, ErrorCode::BadRequest));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let never = futures_util::stream::pending::<Result<hyper::body::Frame<bytes::Bytes>, std::io::Error>>();
    let request = Request::post("/v1/tokens").header("content-type", "application/json").body(Body::new(StreamBody::new(never)));
    let Err(failure) = Json::<NewToken>::from_request(request.unwrap(), &()).await else { panic!("a body") };
    assert!(failure.0.message.contains("did not come within 10 s"), "{}", failure.0);
}

#[tokio::test]
async fn agents_of_the_pool_get_no_tokens() {
    let bench = Bench::founded().await;
    let member = Caller::Host(bench.agent.knowledge.key());
    assert_eq!(bench.ask(member, "POST", "/internal/exchange", "").await.0, 400, "it is not let through at all");
    for (method, path, body) in [("POST", "/v1/tokens", r#"{"name":"x"}"#), ("GET", "/v1/tokens", ""), ("DELETE", "/v1/tokens/x", "")] {
        assert_eq!(bench.ask(member, method, path, body).await.0, 403, "{method} {path}");
    }
    assert_eq!(bench.ask(Caller::Nobody, "GET", "/v1/hosts", "").await.0, 403);
    assert_eq!(bench.ask(Caller::Nobody, "POST", "/internal/join", "{}").await.0, 400);
}
