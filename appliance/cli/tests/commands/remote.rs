//! A real agent, asked over TLS as its users do.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::agent::ended;

/// How long an agent may take to listen.
const START_TIME: Duration = Duration::from_secs(60);

/// An agent in a temporary folder; it ends with the test.
struct Host {
    folder: tempfile::TempDir,
    agent: Child,
    port: u16,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.agent.kill().unwrap();
        self.agent.wait().unwrap();
    }
}

impl Host {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_rebec"));
        command.arg("--socket").arg(folder.path().join("sock")).args(["agent", "--port", "0", "--address", "127.0.0.1", "--name", "a1"]);
        command.arg("--state").arg(folder.path().join("state")).arg("--screen").arg(folder.path().join("screen"));
        command.arg("--api-port").arg(port.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let host = Self { agent: command.spawn().unwrap(), folder, port };
        let began = Instant::now();
        while !(host.path("sock").exists() && host.path("screen").exists()) {
            assert!(began.elapsed() < START_TIME, "the agent does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn screen(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("screen")).unwrap()).unwrap()
    }

    fn here(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_rebec")).arg("--socket").arg(self.path("sock")).args(arguments).output().unwrap()
    }

    fn elsewhere(&self, fingerprint: &str, token: &Path, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rebec"));
        command.arg("--host-url").arg(format!("https://127.0.0.1:{}", self.port)).args(["--fingerprint", fingerprint]);
        command.arg("--token-file").arg(token).args(arguments).output().unwrap()
    }
}

#[test]
fn a_token_and_the_right_key_lead_to_an_agent_elsewhere() {
    let host = Host::start();
    let screen = host.screen();
    let key = screen["fingerprint"].as_str().unwrap();
    assert_eq!(screen["api"], format!("https://127.0.0.1:{}", host.port));
    let (code, token, talk) = ended(host.here(&["token", "create", "laptop"]));
    assert_eq!(code, 0, "{talk}");
    let file = host.path("token");
    fs::write(&file, &token).unwrap();
    let (code, status, talk) = ended(host.elsewhere(key, &file, &["--json", "pool", "status"]));
    assert_eq!(code, 0, "{talk}");
    assert_eq!(serde_json::from_str::<Value>(&status).unwrap()["host"], "a1");
    let bundle = host.path("bundle.tar");
    let (code, _, talk) = ended(host.elsewhere(key, &file, &["support-bundle", "--out", bundle.to_str().unwrap()]));
    assert_eq!(code, 0, "{talk}");
    assert_eq!(fs::read(&bundle).unwrap()[257..262], *b"ustar");

    let last = if key.ends_with('0') { "1" } else { "0" };
    let other_key = format!("{}{last}", &key[..63]);
    let (code, _, talk) = ended(host.elsewhere(&other_key, &file, &["pool", "status"]));
    assert!(code != 0 && talk.contains(key) && talk.contains("--fingerprint"), "{code} {talk}");
    fs::write(&file, format!("rebec-token-{}", "0".repeat(64))).unwrap();
    let (code, _, talk) = ended(host.elsewhere(key, &file, &["pool", "status"]));
    assert_eq!(code, 1, "{talk}");
    assert!(talk.contains("not known here") && talk.contains("rebec token create"), "{talk}");
    assert_eq!(talk.lines().count(), 1, "{talk}");
}
