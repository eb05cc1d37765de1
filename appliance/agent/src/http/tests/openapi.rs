//! The OpenAPI document against the routes that are served.

use std::collections::BTreeSet;

use super::{super::table, *};

async fn document(bench: &Bench) -> Value {
    let (status, body) = bench.ask(bench.root(), "GET", "/v1/openapi.json", "").await;
    assert_eq!(status, 200);
    json(&body)
}

fn documented(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().unwrap().iter();
    let operations = |(path, item): (&String, &Value)| {
        let methods: Vec<_> = item.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())).collect();
        methods
    };
    paths.flat_map(operations).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_has_every_route_and_no_other() {
    let bench = Bench::founded().await;
    let document = document(&bench).await;
    let documented = documented(&document);
    let method = |row: &super::super::openapi::Row| serde_json::to_value(&row.method).unwrap().as_str().unwrap().to_uppercase();
    let routed: Vec<_> = table::rows().iter().map(|row| (method(row), row.path.to_owned())).collect();
    assert_eq!(documented, routed.iter().cloned().collect());
    assert_eq!(documented.len(), routed.len(), "a row stands twice");
    let paths: BTreeSet<_> = routed.iter().map(|(_, path)| path.clone()).collect();
    for path in paths {
        let asked = path.replace("{name}", "none").replace("{id}", "none").replace("{port}", "0");
        for method in ["GET", "POST", "PUT", "DELETE"] {
            // Leaving the pool would be carried out.
            if (method, path.as_str()) == ("POST", "/v1/pool/leave") {
                continue;
            }
            let (_, body) = bench.ask(bench.root(), method, &asked, "").await;
            let body = String::from_utf8_lossy(&body);
            let taken = !body.contains("does not take this method") && !body.contains("this API has no");
            assert_eq!(taken, documented.contains(&(method.to_owned(), path.clone())), "{method} {path}: {body}");
        }
    }
}

#[tokio::test]
async fn what_the_document_refers_to_is_in_it() {
    let bench = Bench::new().await;
    let document = document(&bench).await;
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let text = document.to_string();
    let names: BTreeSet<_> = text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(names.contains("NewVm") && names.contains("ErrorCode"));
    names.iter().for_each(|name| assert!(schemas.contains_key(*name), "{name}"));
    for (method, path) in documented(&document) {
        let operation = &document["paths"][&path][method.to_lowercase()];
        assert!(operation["summary"].is_string() && operation["responses"]["default"].is_object(), "{method} {path}");
        let parameters = operation["parameters"].as_array().map_or(0, |all| all.iter().filter(|one| one["in"] == "path").count());
        assert_eq!(parameters, path.matches('{').count(), "{method} {path}");
    }
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
}

/// The table of `docs/formats/authority.md` has every command with its route, and no other.
#[test]
fn every_route_has_its_row_in_the_table_of_who_may_ask() {
    let text = include_str!("../../../../../docs/formats/authority.md");
    let table = text.lines().skip_while(|line| !line.starts_with("| command |")).skip(2).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let written: BTreeSet<_> = table.map(cells).map(|row| (row[0].clone(), row[3].clone())).collect();
    let method = |row: &super::super::openapi::Row| serde_json::to_value(&row.method).unwrap().as_str().unwrap().to_uppercase();
    let routed: BTreeSet<_> =
        table::rows().iter().map(|row| (format!("{:?}", row.command), format!("{} {}", method(row), row.path))).collect();
    assert_eq!(written, routed);
    // Between hosts: every path that is written is served, to nobody without a key.
    let between = text.lines().skip_while(|line| !line.starts_with("| question |")).skip(2).take_while(|line| line.starts_with('|'));
    let source = include_str!("../mod.rs").to_owned() + include_str!("../rights.rs") + include_str!("../../peers.rs");
    for path in between.flat_map(|line| cells(line)[1].split(", ").map(str::to_owned).collect::<Vec<_>>()) {
        let path = path.split(' ').nth(1).unwrap_or_default();
        assert!(source.contains(&format!("\"{path}\"")), "{path} is not served");
    }
    assert_eq!(source.matches("\"/internal/").count(), 17, "a path between hosts is in no row");
}
