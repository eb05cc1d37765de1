//! Orders that cross each other, hosts that come back, hosts that leave: what ordinary use must not bring about. A hostile host of the same domain reads
//! books, and tries what root at a host that may only look must not be able to.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use rebec_lab::netlab::{
    NetLab,
    agents::{Agents, Host, SOON, eventually},
    hostile::{Findings, Hostile, Question, Writer, speech},
};

/// Rate of a link over which an image takes seconds.
const SLOW_MBIT: u32 = 20;
const DISK_BYTES: u32 = 6 << 20;
/// A guest that runs beats far more often.
const BEATS: Duration = Duration::from_millis(700);

/// No question between hosts waits for its answer so long.
const CUT_OFF: Duration = Duration::from_secs(12);
/// How long books that differ may take to agree.
const AGREE: Duration = Duration::from_secs(10);

/// Numbers of the machines after the pool's hosts: one that joins late, and the one that reads.
const LATE: usize = 3;
const READER: usize = 4;

fn image(agents: &Agents, name: &str, seed: u32) -> Result<()> {
    let disk = agents.lab.evidence().join(name);
    fs::write(&disk, (0..DISK_BYTES).map(|at| ((at ^ seed).wrapping_mul(0x9e37_79b1) >> 13) as u8).collect::<Vec<_>>())?;
    let kernel = rebec_lab::netlab::guest::build()?.display().to_string();
    let words = ["image", "import", name, "--kernel", &kernel, "--cmdline", "stats_ms=0", "--disk", &disk.display().to_string()];
    agents.hosts[0].must(&words)?;
    eventually("the image is known", SOON, || agents.hosts[1].knows("image", name))
}

fn said_bytes(host: &Host, id: &str) -> u64 {
    fs::metadata(host.state().join("vms").join(id).join("console.log")).map_or(0, |file| file.len())
}

/// The hosts on which a guest beats now.
fn beats_at<'a>(agents: &'a Agents, id: &str) -> Vec<&'a str> {
    let before: Vec<_> = agents.hosts.iter().map(|host| said_bytes(host, id)).collect();
    thread::sleep(BEATS);
    let beating = agents.hosts.iter().zip(before).filter(|(host, before)| said_bytes(host, id) > *before);
    beating.map(|(host, _)| host.name()).collect()
}

fn beats_once(agents: &Agents, id: &str) -> Result<()> {
    let at = beats_at(agents, id);
    ensure!(at.len() == 1, "it beats at {at:?}");
    Ok(())
}

/// What one of two books has and the other has not, or has otherwise.
fn difference(reader: &Hostile, hosts: [&str; 2]) -> Result<Vec<String>> {
    let books = hosts.map(|host| speech::contents(&reader.book(host)?));
    let [one, other] = books;
    let (one, other) = (one?, other?);
    let names = one.keys().chain(other.keys()).filter(|name| one.get(*name) != other.get(*name));
    Ok(names.cloned().collect())
}

/// What a host that may only look cannot do at others, neither by itself nor with what a user said to it. `id` is of a VM that runs at a2.
fn looks_and_no_more(agents: &Agents, reader: &Hostile, id: &str, findings: &mut Findings) -> Result<()> {
    let a1 = &agents.hosts[0];
    let vm = format!("~{id}");
    let by_root = |question: &Question| Ok::<_, anyhow::Error>(question.clone().with(&reader.host.signs(reader.host.key(), question)?));
    let stop = Question::stop(&vm);
    findings.of("a VM is stopped by the key of a host", reader.is_refused("a2", &stop));
    findings.of("a VM is stopped by root at a host that may look", reader.is_refused("a2", &by_root(&stop)?));
    findings.of("a ticket is made by root at a host that may look", reader.is_refused("a1", &by_root(&Question::invite_host())?));
    let looks = reader.asks("a2", &by_root(&Question::User("GET", format!("/v1/vms/{vm}"), serde_json::Value::Null))?)?;
    ensure!(looks.status == 200, "it may not even look: {} {}", looks.status, looks.text());

    // A user gives the hostile host a command to carry, by the name that the VM has.
    let anna = Writer::new()?;
    let key = anna.key().to_string();
    a1.must(&["user", "add", "anna", "--key", &key, "--role", "user", "--valid", "1h"])?;
    eventually("anna is known", SOON, || Ok(agents.hosts[1].must(&["user", "ls"])?.as_array().is_some_and(|users| !users.is_empty())))?;
    let said = anna.signs(reader.host.key(), &Question::logs("crossed"))?;
    findings.of("a user's word is used for another command", reader.is_refused("a2", &stop.clone().with(&said)));
    let more = Question::User("GET", format!("/v1/vms/{vm}/logs?tail=9"), serde_json::Value::Null);
    findings.of("a user's command is changed", reader.is_refused("a2", &more.with(&said)));
    let elsewhere = anna.signs(a1_key(reader)?, &Question::logs("crossed"))?;
    findings.of("what a user said to another host is carried", reader.is_refused("a2", &Question::logs(&vm).with(&elsewhere)));
    let forged = reader.host.signs(reader.host.key(), &stop)?;
    let forged = format!("{}{}", &said[..86], &forged[86..]);
    findings.of("a user's signature is put under another command", reader.is_refused("a2", &stop.with(&forged)));
    let carried = reader.asks("a2", &Question::logs(&vm).with(&said))?;
    ensure!(carried.status == 200, "what anna said is not carried out: {} {}", carried.status, carried.text());
    findings.of("a user's command is carried out twice", reader.is_refused("a2", &Question::logs(&vm).with(&said)));
    Ok(())
}

fn a1_key(reader: &Hostile) -> Result<speech::Key> {
    Ok(reader.known()?.host("a1")?.0)
}

/// A user's key signs at a1 what is carried out at a2, where it is written down with the user's name.
fn a_user_signs(agents: &Agents) -> Result<()> {
    let file = agents.lab.evidence().join("user.key").display().to_string();
    let [a1, a2] = &agents.hosts[..2] else { unreachable!("there are more") };
    let signed = |words: &[&str]| a1.ask(&[&["--user-key", &file], words].concat());
    let unknown = signed(&["vm", "stop", "crossed"])?;
    let secret: speech::Name<32> = fs::read_to_string(&file)?.trim().parse()?;
    let key = speech::public_of(&secret.0);
    ensure!(unknown.code == 1 && unknown.stderr.contains(&format!("--key {key} --role user")), "{unknown:?}");
    a1.must(&["user", "add", "bert", "--key", &key.to_string(), "--role", "user"])?;
    eventually("bert is known", SOON, || Ok(a2.must(&["user", "ls"])?.as_array().is_some_and(|users| users.len() == 2)))?;
    signed(&["vm", "stop", "crossed", "--timeout", "0"])?.value()?;
    let refused = signed(&["lan", "create", "his"])?;
    ensure!(refused.code == 1 && refused.stderr.contains("needs the role operator; bert has user"), "{refused:?}");
    let rows = a2.must(&["audit"])?;
    let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["asked"] == "VmStop" && row["refused"].is_null()));
    let row = row.context("a2 has no row of the stop")?;
    ensure!(row["user"] == "bert" && row["role"] == "user" && row["via"].is_string(), "{row}");
    Ok(())
}

#[test]
fn orders_that_cross_and_hosts_that_come_and_go_leave_one_of_everything() -> Result<()> {
    let lab = NetLab::start("local-pool-order", &["a1", "a2", "a3", "late", "reader"])?;
    let mut agents = Agents::start_on(lab, LATE + 1, |_| ())?;
    let late = agents.hosts.pop().context("four hosts")?;
    agents.found(&["alpha", "alpha", "alpha"])?;
    agents.furnish()?;
    agents.hosts.push(late);
    let mut findings = Findings::default();
    let mut reader = Hostile::new(&agents.lab.machines[READER])?;
    reader.joins(&agents.hosts[0].ticket(&["host", "invite", "--role", "viewer"])?, "reader")?;
    reader.says_where(&["a1"])?;
    reader.reads("a1")?;

    // One leaves, another starts anew, a third comes.
    agents.hosts[2].must(&["pool", "leave"])?;
    eventually("a3 has left", SOON, || Ok(agents.hosts[0].must(&["pool", "status"])?["hosts"] == 3))?;
    agents.hosts[1].stop()?;
    agents.restart(1)?;
    let ticket = agents.hosts[0].ticket(&["host", "invite"])?;
    findings.of("nobody joins after a host has left", agents.hosts[LATE].must(&["pool", "join", &ticket]).map(drop));
    let agree = eventually("books agree", AGREE, || {
        let differ = difference(&reader, ["a1", "a2"])?;
        ensure!(differ.is_empty(), "they differ in {differ:?}");
        Ok(true)
    });
    findings.of("books never agree after a host has left", agree);

    // Two commands about one VM, of which one takes its time.
    image(&agents, "crossed", 1)?;
    image(&agents, "shared", 2)?;
    let a1 = &agents.hosts[0];
    agents.lab.shape_one(&agents.lab.machines[1], Some(SLOW_MBIT))?;
    let run = |name: &str, image: &str| -> Vec<String> {
        ["vm", "run", name, "--image", image, "--host", "a2", "--memory", "16M"].map(str::to_owned).to_vec()
    };
    let words = run("crossed", "crossed");
    let crossing = a1.begin(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    eventually("crossed is known", SOON, || a1.knows("vm", "crossed"))?;
    // It may be refused, wait, or be what starts it; it must not be what starts it a second time.
    let answer = a1.ask(&["vm", "start", "crossed"])?;
    let began = crossing.end()?;
    ensure!(answer.is_done() || began.is_done(), "neither was obeyed: {answer:?} {began:?}");
    let id = a1.vm("crossed")?["id"].as_str().context("no id")?.to_owned();
    findings.of("a VM runs twice by two commands that cross", beats_once(&agents, &id));
    looks_and_no_more(&agents, &reader, &id, &mut findings)?;
    beats_once(&agents, &id)?;
    a_user_signs(&agents)?;

    // Two VMs of an image that their host has to fetch.
    let both = ["one", "two"].map(|name| run(name, "shared"));
    let asked = both.iter().map(|words| a1.begin(&words.iter().map(String::as_str).collect::<Vec<_>>())).collect::<Result<Vec<_>>>()?;
    for asked in asked {
        findings.of("of two VMs of one image that are started at once, one fails", asked.end()?.value().map(drop));
    }
    agents.lab.shape_one(&agents.lab.machines[1], None)?;

    // A host is declared dead that is only cut off, and is reached again.
    let held = agents.run("held", "a2", "16M", &[], "vm=9")?["id"].as_str().context("no id")?.to_owned();
    agents.lab.cut(&agents.lab.machines[1])?;
    let a1 = &agents.hosts[0];
    eventually("a2 is silent", SOON, || Ok(a1.must(&["host", "show", "a2"])?["state"] == "silent"))?;
    a1.must(&["host", "declare-dead", "a2", "--reason", "its light is off"])?;
    a1.must(&["vm", "start", "held"])?;
    // What was under way when the link was cut must not be what tells it.
    thread::sleep(CUT_OFF);
    agents.lab.shape(None)?;
    let told = eventually("held beats once", SOON, || beats_once(&agents, &held).map(|()| true));
    findings.of("a VM runs twice after a host that was declared dead came back", told.map_err(|error| anyhow!("{error:#}")));
    findings.are_none()?;
    agents.succeeded();
    Ok(())
}
