//! The support bundle: what is in it, and what is not.

use std::{collections::BTreeMap, io::Read as _};

use rebec_book::{Body as Record, Key, record::Kind};

use super::*;
use crate::{
    identity::Role,
    logs,
    vm::{Kept, LocalVm, Want},
};

/// A VM that has said what guests and VMMs say, with secrets in it.
fn add_vm(bench: &Bench, home: Key, said: &str) {
    let id = vm_id(bench);
    let body = vm_body(bench);
    let folder = rebec_host::kept::folder(bench.agent.host.state(), &id);
    std::fs::create_dir_all(&folder).unwrap();
    let kept = Kept::new(id, home, body.clone(), vm_private(), Want::Stopped);
    std::fs::write(folder.join("console.log"), format!("boot\n{}\n{said}", "[    0.000000] Command line: console=ttyS0 password=hunter2"))
        .unwrap();
    std::fs::write(folder.join("vmm.log"), format!("{}the end\n{said}", "x".repeat(1 << 20))).unwrap();
    std::fs::write(folder.join("seed.img"), "hunter2").unwrap();
    bench.agent.knowledge.publish(Kind::VM, id, Some(Record::Vm(body.into()))).unwrap();
    bench.agent.vms.insert(Arc::new(LocalVm::new(bench.agent.knowledge.clone(), folder, kept)));
}

fn unpack(bytes: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().strip_prefix("rebec-support").unwrap().to_str().unwrap().to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, text)
    });
    entries.collect()
}

#[tokio::test]
async fn the_bundle_tells_what_is_asked_and_no_secret() {
    let bench = Bench::founded().await;
    let (_, invited) = bench.ask(bench.root(), "POST", "/v1/hosts/invite", "{}").await;
    let ticket = json(&invited)["ticket"].as_str().unwrap().to_owned();
    let (_, made) = bench.ask(bench.root(), "POST", "/v1/tokens", r#"{"name":"laptop"}"#).await;
    let token = json(&made)["token"].as_str().unwrap().to_owned();
    bench.agent.knowledge.publish(Kind::IMAGE, vm_id(&bench), Some(Record::Image(vm_body(&bench).image.into()))).unwrap();
    add_vm(&bench, bench.agent.knowledge.key(), &format!("join with {ticket}, Bearer {token}; rebec.ticket={}", ticket.to_uppercase()));
    logs::keep(&format!("a line of this test: ticket={ticket} and more"));
    let (first, second) = ticket.split_at(ticket.len() / 2);
    logs::keep(&format!("a ticket in two lines: {first}\n{second} and more"));
    let (status, body) = bench.ask(bench.root(), "GET", "/v1/support-bundle", "").await;
    assert_eq!(status, 200);

    let files = unpack(&body);
    for name in ["version.txt", "host.json", "facts.json", "pool.json", "jobs.json", "hosts.json", "lans.json", "domains.json"] {
        assert!(!files[name].is_empty(), "{name}");
    }
    let vm = format!("vms/{}", vm_id(&bench));
    assert_eq!(json(files["vms.json"].as_bytes())[0]["name"], "web");
    assert_eq!(json(files["images.json"].as_bytes())[0]["cmdline"], "[left out]");
    assert!(files["agent.log"].contains("a line of this test: ticket=[left out] and more\n"), "{}", files["agent.log"]);
    assert!(files["agent.log"].contains("two lines: [left out]\n[left out] and more\n"), "{}", files["agent.log"]);
    let console = &files[&format!("{vm}/console.log")];
    assert_eq!(console, "boot\n[    0.000000] Command line: [left out]\njoin with [left out], Bearer [left out]; rebec.ticket=[left out]");
    let vmm = &files[&format!("{vm}/vmm.log")];
    assert!(vmm.contains("the end\njoin with [left out]") && vmm.len() <= 64 << 10);

    let ticket: rebec_book::Ticket = ticket.parse().unwrap();
    let mut secrets = vec![
        ticket.to_string().into_bytes(),
        ticket.secret.to_vec(),
        token.as_bytes()["rebec-token-".len()..].to_vec(),
        b"hunter2".to_vec(),
    ];
    for role in [Role::Host, Role::Pool, Role::Domain] {
        secrets.push(bench.agent.identity.get(role).unwrap().unwrap().to_bytes().to_vec());
    }
    for secret in secrets {
        let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        for form in [secret.as_slice(), digits.as_bytes()] {
            assert!(!body.windows(form.len()).any(|window| window.eq_ignore_ascii_case(form)), "{}", String::from_utf8_lossy(form));
        }
    }
}
