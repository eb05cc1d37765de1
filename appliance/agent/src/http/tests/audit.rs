//! What was decided is in the log, and a log that was changed is found out.

use std::time::Duration;

use rebec_api::audit::{AuditRow, AuditVerdict};

use super::*;

async fn rows(bench: &Bench) -> Vec<AuditRow> {
    let (status, body) = bench.ask(bench.root(), "GET", "/v1/audit?tail=1000", "").await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

async fn verdict(bench: &Bench) -> AuditVerdict {
    let (status, body) = bench.ask(bench.root(), "GET", "/v1/audit/verify", "").await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn what_was_granted_and_refused_is_in_the_log_and_looks_are_not() {
    let bench = Bench::founded().await;
    let viewer = bench.holder(Role::Viewer);
    assert_eq!(bench.ask(viewer, "GET", "/v1/vms", "").await.0, 200);
    assert_eq!(bench.ask(viewer, "POST", "/v1/lans", r#"{"name":"office"}"#).await.0, 403);
    assert_eq!(bench.ask(bench.root(), "POST", "/v1/lans", r#"{"name":"office"}"#).await.0, 200);
    assert_eq!(bench.ask(bench.root(), "DELETE", "/v1/lans/office", "").await.0, 200);
    let stranger = Name([3; 32]);
    assert_eq!(bench.ask(Caller::Host(stranger), "POST", "/internal/starts", "{}").await.0, 403);
    assert_eq!(bench.ask(Caller::Nobody, "GET", "/v1/vms", "").await.0, 403);
    assert_eq!(bench.ask(viewer, "GET", "/v1/audit", "").await.0, 403);
    let rows = rows(&bench).await;
    let said = |row: &AuditRow| (row.asked.clone(), row.role.clone().unwrap_or_default(), row.about.is_some(), row.refused.is_some());
    let expected = [
        ("LanCreate", "viewer", false, true),
        ("LanCreate", "admin", false, false),
        ("LanRemove", "admin", true, false),
        ("Exchange", "", false, true),
        ("VmList", "", false, true),
        ("AuditShow", "viewer", false, true),
        ("AuditShow", "admin", false, false),
    ];
    let expected = expected.map(|(asked, role, about, refused)| (asked.to_owned(), role.to_owned(), about, refused));
    assert_eq!(rows.iter().map(said).collect::<Vec<_>>(), expected);
    assert_eq!(
        rows[0].refused.as_deref(),
        Some("to make a LAN needs the role operator; this token has viewer: `rebec token create NAME --role operator` makes one that may")
    );
    assert_eq!(rows[3].host, Some(stranger.to_string()));
    assert_eq!(bench.ask(bench.root(), "GET", "/v1/audit?tail=1000000", "").await.0, 400);
}

#[tokio::test]
async fn a_flood_of_refusals_does_not_fill_the_log() {
    let bench = Bench::founded().await;
    for _ in 0..200 {
        assert_eq!(bench.ask(bench.holder(Role::Viewer), "POST", "/v1/lans", r#"{"name":"x"}"#).await.0, 403);
    }
    let rows = rows(&bench).await;
    assert!(rows.len() < 10, "{} rows", rows.len());
}

#[tokio::test]
async fn a_log_that_was_changed_is_found_by_what_the_pool_was_told() {
    let bench = Bench::founded().await;
    for name in ["a", "b", "c"] {
        assert_eq!(bench.ask(bench.root(), "POST", "/v1/lans", format!(r#"{{"name":"{name}"}}"#)).await.0, 200);
    }
    let whole = verdict(&bench).await;
    let last = whole.last.clone().unwrap();
    assert_eq!((whole.first, last.seq, whole.wrong, whole.told), (1, 4, None, None));
    bench.agent.audit.tell();
    bench.agent.bulletin.publish();
    let told = verdict(&bench).await.told.unwrap();
    assert_eq!(told, last);
    // What somebody noted earlier.
    let ask = async |known: String| {
        let (status, body) = bench.ask(bench.root(), "GET", &format!("/v1/audit/verify?known={known}"), "").await;
        (status, json(&body)["wrong"].as_str().map(str::to_owned))
    };
    assert_eq!(ask(last.to_string()).await, (200, None));
    let other = format!("3:{}", last.hash);
    assert_eq!(ask(other).await, (200, Some("row 3 is not the one that was given to compare with".into())));
    assert_eq!(ask("3:12".into()).await.0, 400);
    let path = bench.agent.host.state().join("audit/1.log");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("LanCreate", "LanRemove", 1)).unwrap();
    assert_eq!(verdict(&bench).await.wrong.unwrap(), "row 2 does not follow row 1: one of them was changed");
    super::super::audit::look_back(&bench.agent).await.unwrap();
    let last = rows(&bench).await;
    let changed = last.iter().rfind(|row| row.asked == "changed").unwrap();
    assert_eq!(changed.refused.as_deref(), Some("row 2 does not follow row 1: one of them was changed"));
    // Written anew as a whole, by an agent that was started on it.
    let state = tempfile::tempdir().unwrap();
    let anew = crate::audit::Audit::open(state.path()).unwrap();
    for _ in 0..9 {
        anew.note(crate::audit::Entry::shut_out(None, "no")).await;
    }
    anew.settle().await;
    let known = vec![(crate::audit::Head { seq: told.seq, hash: told.hash.parse().unwrap() }, "the pool was told of")];
    let (_, judged) = tokio::time::timeout(Duration::from_secs(10), anew.verify(known)).await.unwrap().unwrap();
    assert_eq!(judged.unwrap_err().to_string(), "row 4 is not the one that the pool was told of");
}
