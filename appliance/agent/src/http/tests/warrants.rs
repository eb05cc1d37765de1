//! Signed commands as they come in: from a user, through another host, from root there; and what a host on the way could try.

use ed25519_dalek::SigningKey;
use rebec_api::{ErrorCode, audit::AuditRow};
use rebec_book::{
    Body as RecordBody, Key, Record, Warrant,
    book::Came,
    key::{id_of_key, public},
    record::{HostBody, Kind, MemberBody},
    warrant::{LIFE_S, SKEW_S, TokenBound, body_digest},
};

use super::*;
use crate::{
    chance::{now_s, random},
    identity,
};

const ANNA: u8 = 20;
const FELLOW: u8 = 30;
const OTHER: u8 = 31;

fn secret(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn key(number: u8) -> Key {
    public(&secret(number))
}

/// What a signer signs at a host.
fn signs(by: u8, at: Key, method: &str, path: &str, body: &str) -> Warrant {
    Warrant {
        signer: key(by),
        at,
        method: method.into(),
        path: path.into(),
        body: Some(body_digest(body.as_bytes())),
        until: now_s() + LIFE_S,
        nonce: Name(random()),
        token: None,
    }
}

fn sealed(by: u8, warrant: &Warrant) -> String {
    warrant.sign(&secret(by)).unwrap()
}

/// A host of the bench's domain whose root has a role.
fn fellow(bench: &Bench, host: u8, role: Option<Role>) {
    let agent = &bench.agent;
    let domain = agent.identity.get(identity::Role::Domain).unwrap().unwrap();
    let domain_key = public(domain.as_signing_key());
    let member = MemberBody { host: key(host), domain: domain_key, name: format!("h{host}"), dead: None, role };
    let id = id_of_key(&key(host));
    agent.knowledge.publish_as(Kind::MEMBER, id, Some(RecordBody::Member(member)), domain.as_signing_key()).unwrap();
    let body = HostBody::bare(domain_key);
    let says = Record::sign(Kind::HOST, id, now_s(), Some(&RecordBody::Host(body.into())), &secret(host)).unwrap();
    agent.knowledge.take_in(vec![says], Came::Alone);
}

/// A pool with a VM, which is here and does not run, and a user.
async fn pool_with(role: &str) -> Bench {
    let bench = Bench::founded().await;
    bench.agent.knowledge.publish(Kind::VM, vm_id(&bench), Some(RecordBody::Vm(vm_body(&bench).into()))).unwrap();
    let user = format!(r#"{{"name":"anna","key":"{}","role":"{role}","valid_s":600}}"#, key(ANNA));
    assert_eq!(bench.ask(bench.root(), "POST", "/v1/users", user).await.0, 200);
    bench
}

async fn rows(bench: &Bench) -> Vec<AuditRow> {
    serde_json::from_slice(&bench.ask(bench.root(), "GET", "/v1/audit?tail=1000", "").await.1).unwrap()
}

#[tokio::test]
async fn a_users_signature_is_good_once_for_what_was_signed_at_the_host_that_was_asked() {
    let bench = pool_with("operator").await;
    let own = bench.agent.knowledge.key();
    let body = r#"{"name":"office"}"#;
    let ask = async |warrant: &Warrant, by: u8, path: &str, body: &'static str| {
        let (status, body) = bench.ask_with(Caller::Nobody, "POST", path, body, Some(&sealed(by, warrant))).await;
        (status, String::from_utf8(body).unwrap())
    };
    let good = signs(ANNA, own, "POST", "/v1/lans", body);
    for (wrong, why) in [
        (Warrant { at: key(FELLOW), ..good.clone() }, "to another host"),
        (Warrant { until: now_s() - SKEW_S - 1, ..good.clone() }, "one of the two clocks"),
        (Warrant { until: now_s() + LIFE_S + SKEW_S + 60, ..good.clone() }, "one of the two clocks"),
        (Warrant { method: "GET".into(), ..good.clone() }, "not the one that was signed"),
        (Warrant { path: "/v1/images".into(), ..good.clone() }, "not the one that was signed"),
        (Warrant { body: None, ..good.clone() }, "not the one that was signed"),
        (Warrant { body: Some(body_digest(b"{}")), ..good.clone() }, "not the one that was signed"),
        (Warrant { until: now_s() + LIFE_S - 60, ..good.clone() }, "before this agent started"),
    ] {
        let (status, said) = ask(&wrong, ANNA, "/v1/lans", body).await;
        assert!(status == 403 && said.contains(why), "{status} {said}, not {why}");
    }
    // Of a key that nobody knows, and with a bit changed.
    let unknown = signs(OTHER, own, "POST", "/v1/lans", body);
    let (status, said) = ask(&unknown, OTHER, "/v1/lans", body).await;
    assert!(status == 403 && said.contains("`rebec user add NAME --key") && said.contains(&key(OTHER).to_string()), "{said}");
    let mut forged = sealed(ANNA, &good);
    let other = if &forged[4..5] == "A" { "B" } else { "A" };
    forged.replace_range(4..5, other);
    let (status, answer) = bench.ask_with(Caller::Nobody, "POST", "/v1/lans", body, Some(&forged)).await;
    assert_eq!((status, refusal(&answer).code), (403, ErrorCode::Forbidden));
    assert_eq!(bench.ask_with(Caller::Nobody, "POST", "/v1/lans", body, Some("x")).await.0, 403);
    // What failed has used nothing up; what succeeded is good for once.
    assert_eq!(ask(&good, ANNA, "/v1/lans", body).await.0, 200);
    let (status, said) = ask(&good, ANNA, "/v1/lans", body).await;
    assert!(status == 403 && said.contains("carried out already"), "{said}");
    // Her role, and the end of it.
    let user = signs(ANNA, own, "POST", "/v1/users", "{}");
    let (status, said) = ask(&user, ANNA, "/v1/users", "{}").await;
    assert!(status == 403 && said.contains("needs the role admin; anna has operator"), "{said}");
    assert_eq!(bench.ask(bench.root(), "DELETE", "/v1/users/anna", "").await.0, 200);
    let late = signs(ANNA, own, "POST", "/v1/lans", r#"{"name":"x"}"#);
    assert_eq!(ask(&late, ANNA, "/v1/lans", r#"{"name":"x"}"#).await.0, 403);
    let rows = rows(&bench).await;
    let made = rows.iter().find(|row| row.asked == "LanCreate" && row.refused.is_none()).unwrap();
    assert_eq!((made.user.as_deref(), made.role.as_deref(), made.via.as_deref()), (Some("anna"), Some("operator"), None));
}

#[tokio::test]
async fn a_host_on_the_way_can_neither_make_up_nor_change_nor_repeat_a_command() {
    let bench = pool_with("user").await;
    fellow(&bench, FELLOW, Some(Role::Viewer));
    fellow(&bench, OTHER, None);
    let (there, id) = (key(FELLOW), rebec_book::names::by_id(&vm_id(&bench)));
    let path = |rest: &str| format!("/v1/vms/{id}{rest}");
    let stop = r#"{"timeout_s":0}"#;
    let from = async |host: u8, method: &str, path: &str, body: &'static str, warrant: Option<&str>| {
        let (status, body) = bench.ask_with(Caller::Host(key(host)), method, path, body, warrant).await;
        (status, String::from_utf8(body).unwrap())
    };
    // Its key alone gives no command, and its root may what the domain lets it, here too.
    let (status, said) = from(FELLOW, "GET", &path(""), "", None).await;
    assert!(status == 403 && said.contains("needs a signature"), "{said}");
    let as_root = |host: u8, method: &str, path: &str, body: &str| sealed(host, &signs(host, key(host), method, path, body));
    let (status, said) = from(FELLOW, "POST", &path("/stop"), stop, Some(&as_root(FELLOW, "POST", &path("/stop"), stop))).await;
    assert!(status == 403 && said.contains("root@h30 has viewer: `rebec host set-role h30 user`"), "{said}");
    assert_eq!(from(FELLOW, "GET", &path(""), "", Some(&as_root(FELLOW, "GET", &path(""), ""))).await.0, 200);
    assert_eq!(from(OTHER, "GET", &path(""), "", Some(&as_root(OTHER, "GET", &path(""), ""))).await.0, 403);
    let invite = as_root(FELLOW, "POST", "/v1/hosts/invite", "{}");
    assert_eq!(from(FELLOW, "POST", "/v1/hosts/invite", "{}", Some(&invite)).await.0, 403);

    // The user's word, as the host that heard it sends it on. Nothing runs, so what is granted is told so.
    let said = signs(ANNA, there, "POST", "/v1/vms/web/stop", stop);
    let text = sealed(ANNA, &said);
    for (host, method, to, body) in [
        (OTHER, "POST", path("/stop"), stop),
        (FELLOW, "POST", path("/stop"), r#"{"timeout_s":60}"#),
        (FELLOW, "POST", path("/start"), stop),
        (FELLOW, "POST", path("/move"), stop),
        (FELLOW, "DELETE", path(""), stop),
        (FELLOW, "POST", path("/stop?now=1"), stop),
        (FELLOW, "POST", format!("/v1/vms/~{}/stop", Name([3; 16])), stop),
    ] {
        let (status, answer) = from(host, method, &to, body, Some(&text)).await;
        assert!(status == 403 || status == 404, "{method} {to} {body}: {status} {answer}");
    }
    let (status, answer) = from(FELLOW, "POST", &path("/stop"), stop, Some(&text)).await;
    assert!(status == 409 && answer.contains("has not been started yet"), "{status} {answer}");
    let (status, answer) = from(FELLOW, "POST", &path("/stop"), stop, Some(&text)).await;
    assert!(status == 403 && answer.contains("carried out already"), "{status} {answer}");
    // A token of that host: its host signs, for no more than the host may.
    let token = Some(TokenBound { name: "eyes".into(), role: Role::Admin });
    let shown = Warrant { token, ..signs(FELLOW, there, "POST", &path("/stop"), stop) };
    let (status, answer) = from(FELLOW, "POST", &path("/stop"), stop, Some(&sealed(FELLOW, &shown))).await;
    assert!(status == 403 && answer.contains("root@h30 has viewer"), "{status} {answer}");
    let rows = rows(&bench).await;
    let granted: Vec<_> = rows.iter().filter(|row| row.asked == "VmStop" && row.refused.is_none()).collect();
    assert_eq!(granted.len(), 1);
    assert_eq!((granted[0].user.as_deref(), granted[0].via.clone()), (Some("anna"), Some(there.to_string())));
    let token = rows.iter().find(|row| row.token.is_some()).unwrap();
    assert_eq!((token.token.as_deref(), token.user.as_deref()), (Some("eyes"), Some("root@h30")));
}

#[tokio::test]
async fn root_at_a_host_is_what_its_domain_says_and_with_the_key_its_admin() {
    let bench = Bench::founded().await;
    fellow(&bench, FELLOW, Some(Role::Operator));
    let set = async |host: &str, role: &str| {
        bench.ask(bench.root(), "POST", &format!("/v1/hosts/{host}/role"), format!(r#"{{"role":"{role}"}}"#)).await.0
    };
    assert_eq!((set("h30", "viewer").await, set("h30", "king").await, set("none", "viewer").await), (200, 400, 404));
    let (_, body) = bench.ask(bench.root(), "GET", "/v1/hosts/h30", "").await;
    assert_eq!(json(&body)["role"], "viewer");
    // Who has the key is the domain, whatever its record says.
    assert_eq!((set("a1", "viewer").await, set("a1", "admin").await), (409, 200));
}

#[tokio::test]
async fn users_have_names_of_their_own_and_keys_that_sign() {
    let bench = pool_with("user").await;
    let add = async |name: &str, key: &str, more: &str| {
        let body = format!(r#"{{"name":"{name}","key":"{key}","role":"viewer"{more}}}"#);
        bench.ask(bench.root(), "POST", "/v1/users", body).await.0
    };
    let (anna, other) = (key(ANNA).to_string(), key(OTHER).to_string());
    assert_eq!(add("anna", &other, "").await, 409);
    assert_eq!((add("a b", &other, "").await, add("x", "07", "").await, add("x", &"0".repeat(64), "").await), (400, 400, 400));
    assert_eq!(add("x", &other, r#","valid_s":0"#).await, 400);
    // Another name and role for the same key.
    assert_eq!(add("anne", &anna, "").await, 200);
    let (_, body) = bench.ask(bench.root(), "GET", "/v1/users", "").await;
    let listed = json(&body);
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["name"], &listed[0]["role"]), (1, &"anne".into(), &"viewer".into()));
    assert_eq!(bench.ask(bench.root(), "DELETE", "/v1/users/anna", "").await.0, 404);
    assert_eq!(bench.ask(bench.root(), "DELETE", "/v1/users/anne", "").await.0, 200);
    // Without the domain's key nobody is given a role.
    let alone = Bench::new().await;
    let body = format!(r#"{{"name":"x","key":"{other}","role":"viewer"}}"#);
    assert_eq!(alone.ask(alone.root(), "POST", "/v1/users", body).await.0, 409);
}

#[tokio::test]
async fn what_goes_on_is_signed_for_root_and_for_tokens_and_by_users_themselves() {
    use super::super::{tls::TokenName, warrants};
    let bench = Bench::founded().await;
    let own = bench.agent.knowledge.key();
    let request = |by: Caller, token: Option<&str>| {
        let mut request = Request::post("/v1/vms/~07/stop?x=1").body(Body::from("{}")).unwrap();
        request.extensions_mut().insert(by);
        token.map(|name| request.extensions_mut().insert(TokenName(name.into())));
        request
    };
    for (by, token, at_most) in [(bench.root(), None, None), (bench.holder(Role::User), Some("hands"), Some(Role::User))] {
        let signed = warrants::sign(&bench.agent, request(by, token)).await.unwrap();
        let proven = warrant::Proven::open(signed.headers()[warrant::HEADER].to_str().unwrap()).unwrap();
        let signer = proven.signer(own, now_s()).unwrap();
        assert_eq!((signer.key(), signer.at(), signer.at_most()), (own, own, at_most));
        assert_eq!(proven.warrant().token.as_ref().map(|token| token.name.as_str()), token);
        assert_eq!((proven.warrant().method.as_str(), proven.warrant().path.as_str()), ("POST", "/v1/vms/~07/stop?x=1"));
        // Whom it was sent to does not bring it back as the host's own word.
        for bringer in [Caller::Nobody, bench.root(), Caller::Host(key(OTHER))] {
            assert!(warrants::read(&bench.agent, bringer, &signed).is_err(), "{bringer:?}");
        }
        let body = signed.into_body().collect().await.unwrap().to_bytes();
        assert!(body == "{}" && proven.covers_body(Some(&body)).is_ok());
    }
    // A user's own is left as it is, and for a user nobody else signs.
    let mut signed = request(bench.root(), None);
    signed.headers_mut().insert(warrant::HEADER, axum::http::HeaderValue::from_static("hers"));
    assert_eq!(warrants::sign(&bench.agent, signed).await.unwrap().headers()[warrant::HEADER], "hers");
    let text = sealed(ANNA, &signs(ANNA, own, "GET", "/v1/vms", ""));
    let hers = Caller::Signer(warrant::Proven::open(&text).unwrap().signer(own, now_s()).unwrap());
    for by in [hers, Caller::Host(own), Caller::Nobody] {
        assert!(warrants::sign(&bench.agent, request(by, None)).await.is_err(), "{by:?}");
    }
}
