//! An agent that answers what a test tells it to, on a Unix socket, and remembers what it was asked.

use std::{
    convert::Infallible,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt as _, net::UnixListener};

/// What is answered to a request.
pub enum Reply {
    /// A status and a JSON body.
    Json(u16, String),
    /// Server-sent events, and then the end of the connection.
    Events(String),
    /// The connection becomes a stream that says this and ends.
    Stream(&'static str),
    /// The connection becomes a stream that says `>`, and then back what it hears, until it has heard this many bytes.
    Echo(usize),
}

/// A running agent.
pub struct Agent {
    folder: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
}

/// Answers a request, given its line (`GET /v1/vms`), its body, and how often that line came before.
pub type Answers = dyn Fn(&str, &str, usize) -> Reply + Send + Sync;

impl Agent {
    /// Starts an agent; it lives as long as the test's process.
    pub fn start(answers: impl Fn(&str, &str, usize) -> Reply + Send + Sync + 'static) -> Self {
        let (folder, asked) = (tempfile::tempdir().unwrap(), Arc::<Mutex<Vec<String>>>::default());
        let listener = std::os::unix::net::UnixListener::bind(folder.path().join("s")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (answers, memory): (Arc<Answers>, _) = (Arc::new(answers), Arc::clone(&asked));
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = UnixListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let (answers, memory) = (Arc::clone(&answers), Arc::clone(&memory));
                    let service = service_fn(move |request| answer(Arc::clone(&answers), Arc::clone(&memory), request));
                    tokio::spawn(async move {
                        drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await);
                    });
                }
            });
        });
        Self { folder, asked }
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// Every request so far: its line, and its body after a space.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Starts `rebec` with these words and pipes on all sides.
    pub fn spawn(&self, words: &str) -> Child {
        self.spawn_at(words, Stdio::piped())
    }

    /// Starts `rebec` with these words, this standard input, and pipes for the rest.
    pub fn spawn_at(&self, words: &str, input: Stdio) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rebec"));
        command.arg("--socket").arg(self.socket()).args(words.split_whitespace()).current_dir(self.folder.path());
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs `rebec` with these words and returns its exit code, standard output and standard error.
    pub fn rebec(&self, words: &str) -> (i32, String, String) {
        ended(self.spawn(words).wait_with_output().unwrap())
    }
}

/// Exit code, standard output and standard error.
pub fn ended(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

async fn answer(
    answers: Arc<Answers>,
    memory: Arc<Mutex<Vec<String>>>,
    mut request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    let body = request.body_mut().collect().await.unwrap().to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    let reply = {
        let mut memory = memory.lock().unwrap();
        let before = memory.iter().filter(|asked| asked.starts_with(&format!("{line} "))).count();
        memory.push(format!("{line} {body}"));
        answers(&line, &body, before)
    };
    Ok(match reply {
        Reply::Json(status, body) => Response::builder().status(status).body(Full::from(body)).unwrap(),
        Reply::Events(text) => Response::builder().header("connection", "close").body(Full::from(text)).unwrap(),
        Reply::Stream(text) => upgrade(request, text, 0),
        Reply::Echo(bytes) => upgrade(request, ">", bytes),
    })
}

fn upgrade(request: Request<Incoming>, text: &'static str, echo: usize) -> Response<Full<Bytes>> {
    tokio::spawn(async move {
        let mut raw = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        raw.write_all(text.as_bytes()).await.unwrap();
        let mut heard = 0;
        while heard < echo {
            let mut piece = [0; 512];
            let read = tokio::io::AsyncReadExt::read(&mut raw, &mut piece).await.unwrap();
            if read == 0 {
                break;
            }
            raw.write_all(&piece[..read]).await.unwrap();
            heard += read;
        }
        drop(raw.shutdown().await);
    });
    let headers = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "rebec-stream");
    headers.body(Full::default()).unwrap()
}
