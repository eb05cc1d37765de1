//! What agents refuse: one clear line each, and nothing of it stays behind.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rebec_lab::{
    command::Program,
    netlab::agents::{Agents, Host, SOON, eventually, same},
};

/// A refusal says so in one line, and in these words.
fn refuses(host: &Host, words: &[&str], says: &str) -> Result<()> {
    let (code, said) = host.refused(words)?;
    // Progress may have been shown before.
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("rebec: ")).collect();
    let clear = lines.len() == 1 && said.ends_with(&format!("{}\n", lines[0]));
    ensure!(code == 1 && said.contains(says) && clear, "{words:?} ended with {code}, not `{says}`: {said}");
    Ok(())
}

#[test]
fn tickets_that_admit_nobody_are_refused_with_their_reason() -> Result<()> {
    let mut agents = Agents::start("local-pool-tickets", &["a1", "a2", "c1"])?;
    let [a1, a2, c1] = &agents.hosts[..] else { unreachable!("three hosts were asked for") };
    refuses(a1, &["host", "invite"], "belongs to no pool")?;
    a1.must(&["pool", "init", "lab", "--domain", "alpha"])?;
    refuses(a1, &["pool", "init", "lab", "--domain", "alpha"], "belongs to pool lab already")?;

    let good = a1.ticket(&["host", "invite"])?;
    let mut damaged = good.clone().into_bytes();
    let last = damaged.len() - 9;
    damaged[last] = if damaged[last] == b'a' { b'b' } else { b'a' };
    refuses(a2, &["pool", "join", &String::from_utf8(damaged)?], "ticket")?;
    refuses(a2, &["pool", "join", &good[..good.len() / 2]], "ticket")?;

    let expired = a1.ticket(&["host", "invite", "--valid", "1s"])?;
    let revoked = a1.must(&["host", "invite"])?;
    let [id, ticket] = ["id", "ticket"].map(|field| revoked[field].as_str().unwrap_or_default());
    a1.must(&["invitation", "revoke", id])?;
    refuses(a2, &["pool", "join", ticket], "was revoked")?;
    thread::sleep(Duration::from_millis(1500));
    refuses(a2, &["pool", "join", &expired], "has expired")?;

    a2.must(&["pool", "join", &good])?;
    refuses(c1, &["pool", "join", &good], "was used already")?;
    refuses(a2, &["pool", "join", &good], "belongs to pool lab already")?;
    // A ticket of a pool that is no more: its issuer belongs to another.
    let before = a1.ticket(&["host", "invite"])?;
    a2.must(&["pool", "leave"])?;
    eventually("a2 has left", SOON, || Ok(a1.must(&["pool", "status"])?["hosts"] == 1))?;
    a1.must(&["pool", "leave"])?;
    a1.must(&["pool", "init", "other", "--domain", "alpha"])?;
    refuses(c1, &["pool", "join", &before], "not known to its issuer")?;
    same("c1's pool", &c1.must(&["pool", "status"])?["pool"], serde_json::Value::Null)?;
    agents.succeeded();
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_by_each_host_with_its_figures() -> Result<()> {
    let mut agents = Agents::start("local-pool-refusals", &["a1", "a2"])?;
    agents.found(&["alpha", "alpha"])?;
    agents.furnish()?;
    let a1 = agents.host("a1");

    let (code, said) = a1.refused(&["vm", "run", "huge", "--image", "bench", "--memory", "4G"])?;
    ensure!(code == 1 && said.contains("  a1: memory: 1024 MiB free, 4096 MiB wanted"), "{said}");
    ensure!(said.contains("  a2: memory: 1024 MiB free, 4096 MiB wanted") && !a1.knows("vm", "huge")?, "{said}");
    refuses(a1, &["vm", "run", "x", "--image", "none"], "image")?;
    refuses(a1, &["vm", "run", "x", "--image", "bench", "--lan", "none"], "LAN")?;
    refuses(a1, &["vm", "run", "x", "--image", "bench", "--host", "none"], "host")?;
    refuses(a1, &["vm", "move", "none"], "none")?;
    refuses(a1, &["lan", "create", "office"], "exists already")?;
    refuses(a1, &["lan", "create", "wide", "--range", "8.8.8.0/24"], "private IPv4 range")?;

    let folder = agents.lab.evidence();
    let file = |name: &str, bytes: &[u8]| -> Result<String> {
        fs::write(folder.join(name), bytes)?;
        Ok(folder.join(name).display().to_string())
    };
    let kernel = rebec_lab::netlab::guest::build()?.display().to_string();
    let (text, torn) = (file("text", b"this is no kernel")?, file("torn", &[7; 1000])?);
    let over = file("over.qcow2", &[b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\x10\0".as_slice(), &[1; 100]].concat())?;
    refuses(a1, &["image", "import", "x", "--kernel", &text], "neither a bzImage nor an ELF file")?;
    refuses(a1, &["image", "import", "x", "--kernel", &kernel, "--disk", &torn], "was the file cut off?")?;
    refuses(a1, &["image", "import", "x", "--kernel", &kernel, "--disk", &over], "backing file")?;
    refuses(a1, &["image", "import", "bench", "--kernel", &kernel], "exists already")?;
    let parts = || Ok::<_, anyhow::Error>(fs::read_dir(a1.state().join("parts"))?.count());
    eventually("nothing stays of what was refused", SOON, || Ok(parts()? == 1))?;
    ensure!(!a1.knows("image", "x")?);

    // An import that is cut off leaves no part.
    let mut stream = UnixStream::connect(a1.socket())?;
    stream.write_all(b"PUT /v1/parts HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nonly this")?;
    drop(stream);
    thread::sleep(Duration::from_millis(500));
    ensure!(parts()? == 1);
    agents.succeeded();
    Ok(())
}

/// Records come from other domains, which may not look at what they import: a part is put in the place of one that was.
#[test]
fn an_image_that_names_a_file_of_its_host_is_given_nothing_of_it() -> Result<()> {
    let mut agents = Agents::start("local-pool-poison", &["a1"])?;
    agents.found(&["alpha"])?;
    agents.furnish()?;
    let a1 = agents.host("a1");
    let path = |name: &str| agents.lab.evidence().join(name).display().to_string();
    fs::write(path("secret"), [7; 1 << 20])?;
    let make = |words: &[&str]| Program::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).args(words).run();
    make(&[&path("honest.qcow2"), "1M"])?;
    make(&["-F", "raw", "-b", &path("secret"), &path("poison.qcow2")])?;

    let kernel = rebec_lab::netlab::guest::build()?.display().to_string();
    a1.must(&["image", "import", "poison", "--kernel", &kernel, "--disk", &path("honest.qcow2")])?;
    let honest = fs::read(path("honest.qcow2"))?;
    let parts = fs::read_dir(a1.state().join("parts"))?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let part = parts.iter().find(|part| fs::read(part).is_ok_and(|bytes| bytes == honest)).context("the image's disk is in the depot")?;
    fs::copy(path("poison.qcow2"), part)?;
    let says = format!("its backing image {} was not given", path("secret"));
    refuses(a1, &["vm", "run", "thief", "--image", "poison", "--memory", "16M"], &says)?;
    agents.succeeded();
    Ok(())
}

#[test]
fn hosts_of_one_name_are_told_apart_and_one_without_kvm_says_why() -> Result<()> {
    let mut agents = Agents::start("local-pool-names", &["a1", "a2", "a3"])?;
    agents.hosts[1].kill()?;
    agents.hosts[1].called = "a1".into();
    agents.restart(1)?;
    agents.hosts[2].kill()?;
    // A machine whose firmware offers no virtualisation: the device is not there.
    let hide = "mount -t tmpfs none /mnt && for node in null random urandom; do touch /mnt/$node && mount --bind /dev/$node /mnt/$node; done && \
                mount --rbind /mnt /dev && exec \"$0\" \"$@\"";
    agents.hosts[2].wrapper = ["unshare", "--mount", "sh", "-c", hide].map(String::from).to_vec();
    agents.restart(2)?;
    agents.found(&["alpha", "alpha", "alpha"])?;
    agents.furnish()?;
    let a1 = &agents.hosts[0];
    let hosts = a1.must(&["host", "ls"])?;
    let names: Vec<&str> = hosts.as_array().context("a list")?.iter().filter_map(|host| host["name"].as_str()).collect();
    ensure!(names.len() == 3 && names[0].starts_with("a1~") && names[1].starts_with("a1~") && names[0] != names[1], "{names:?}");
    let run = ["vm", "run", "web", "--image", "bench", "--memory", "16M", "--host"];
    let on = |host: &'static str| run.into_iter().chain([host]).collect::<Vec<_>>();
    let (code, said) = a1.refused(&on("a1"))?;
    ensure!(code == 1 && said.contains("means several") && names[..2].iter().all(|name| said.contains(name)), "{said}");
    let twin = names[1].to_owned();
    same("web's host", &a1.must(&[&run[..], &[&twin]].concat())?["host"], twin.as_str())?;
    let (code, said) = a1.refused(&["vm", "run", "other", "--image", "bench", "--memory", "16M", "--host", "a3"])?;
    ensure!(code == 1 && said.contains("  a3: cannot run VMs: /dev/kvm is missing"), "{said}");
    ensure!(a1.must(&["host", "show", "a3"])?["no_kvm"].as_str().is_some_and(|why| why.contains("firmware")));
    agents.succeeded();
    Ok(())
}

#[test]
fn a_host_without_room_on_its_disk_says_how_much_it_has() -> Result<()> {
    const DISK_BYTES: usize = 60 << 20;
    let mut agents = Agents::start("local-pool-full", &["a1", "a2"])?;
    agents.hosts[1].kill()?;
    let small = format!("mount -t tmpfs -o size=100M none {} && exec \"$0\" \"$@\"", agents.hosts[1].state().display());
    agents.hosts[1].wrapper = ["unshare", "--mount", "sh", "-c", &small].map(String::from).to_vec();
    agents.restart(1)?;
    agents.found(&["alpha", "alpha"])?;
    agents.furnish()?;
    let [a1, a2] = &agents.hosts[..] else { unreachable!("two hosts were asked for") };

    let disk = agents.lab.evidence().join("disk.raw");
    // Not zeros: a sparse file would be no test.
    fs::write(&disk, (0..DISK_BYTES).map(|at| (at >> 12) as u8 | 1).collect::<Vec<_>>())?;
    let (kernel, disk) = (rebec_lab::netlab::guest::build()?.display().to_string(), disk.display().to_string());
    let import = ["image", "import", "large", "--kernel", &kernel, "--disk", &disk];
    refuses(a2, &import, "MiB free, 60 MiB are needed and 64 MiB stay free for disks")?;
    ensure!(!a2.knows("image", "large")?);
    a1.must(&import)?;
    a2.must(&["vm", "run", "small", "--image", "bench", "--memory", "16M", "--host", "a2"])?;
    let (code, said) = a1.refused(&["vm", "run", "web", "--image", "large", "--memory", "16M", "--host", "a2"])?;
    ensure!(code == 1 && said.contains("MiB free, 60 MiB are needed"), "{said}");
    ensure!(!a1.knows("vm", "web")?, "what could not be started is still there");
    a1.must(&["vm", "run", "web", "--image", "large", "--memory", "16M", "--host", "a1"])?;
    let (code, said) = a1.refused(&["vm", "move", "web", "--to", "a2"])?;
    ensure!(code == 1 && said.contains("MiB free, 60 MiB are needed"), "{said}");
    same("web's state", &a1.vm("web")?["state"], "running")?;
    same("small's state", &a2.vm("small")?["state"], "running")?;
    agents.succeeded();
    Ok(())
}

/// One request as bytes, and the answer to its end.
fn raw(socket: &Path, request: &[u8]) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SOON))?;
    // A server that has heard enough may have closed already.
    stream.write_all(request).ok();
    let mut answer = vec![];
    match stream.read_to_end(&mut answer) {
        // It closed before it had read everything: the end of an answer, as long as there is one.
        Err(error) if error.kind() == ErrorKind::ConnectionReset && !answer.is_empty() => {}
        read => drop(read.context("read the answer")?),
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[test]
fn the_api_refuses_what_is_no_request_and_is_not_held_up_by_slow_clients() -> Result<()> {
    let mut agents = Agents::start("local-pool-api", &["a1"])?;
    agents.found(&["alpha"])?;
    let a1 = &agents.hosts[0];
    let asked = |path: &str, body: &str, status: &str, says: &str| -> Result<()> {
        let answer = raw(a1.socket(), &post(path, body))?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(says), "{path} {body:.80}: {answer}");
        Ok(())
    };
    asked("/v1/lans", r#"{"name":"x","colour":"red"}"#, "400", "unknown field `colour`")?;
    asked("/v1/lans", r#"{"name":7}"#, "400", "expected a string")?;
    asked("/v1/lans", "{", "400", "bad-request")?;
    asked("/v1/nowhere", "{}", "404", "/v1/nowhere")?;
    asked("/internal/records", r#"{"records":[]}"#, "403", "for agents")?;
    asked("/internal/join", "{}", "4", "code")?;
    asked("/v1/lans", &format!(r#"{{"name":"{}"}}"#, "x".repeat(17 << 20)), "413", "too-large")?;
    ensure!(raw(a1.socket(), b"this is no HTTP\r\n\r\n")?.starts_with("HTTP/1.1 400"));

    // Slow ones: no head, half a head, half a body. Nobody else waits for them, and they are sent away.
    let beginnings: [&[u8]; 3] = [
        b"",
        b"GET /v1/pool HTTP/1.1\r\nHost:",
        b"POST /v1/lans HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{",
    ];
    let began = Instant::now();
    let mut slow = vec![];
    for beginning in beginnings.iter().cycle().take(300) {
        let mut stream = UnixStream::connect(a1.socket())?;
        stream.write_all(beginning)?;
        slow.push(stream);
    }
    eventually("others are served in the end", SOON, || Ok(a1.must(&["pool", "status"])?["pool"] == "lab"))?;
    ensure!(began.elapsed() < Duration::from_secs(25), "others waited for {:?}", began.elapsed());
    for mut stream in slow.into_iter().rev().take(3) {
        stream.set_read_timeout(Some(SOON))?;
        stream.read_to_end(&mut vec![]).context("a slow client is sent away")?;
    }
    ensure!(a1.resident_bytes()? < 200 << 20, "the agent takes {} bytes", a1.resident_bytes()?);
    agents.succeeded();
    Ok(())
}
