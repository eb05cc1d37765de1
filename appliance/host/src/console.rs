//! A VM's console: what the guest says is kept in a bounded file and told to whoever listens; what listeners type goes to the
//! guest. The VMM listens on `console.sock`; this end connects again whenever a VMM is started.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{Notify, broadcast, mpsc},
};

use crate::said::{self, FILE_BYTES};

/// Chunks that a slow listener may lag behind before it loses some.
const CHUNKS_MAX: usize = 256;
/// What listeners typed and the guest has not read yet.
const TYPED_MAX: usize = 64;
/// Between two tries to reach a VMM that is not there; it keeps 64 KiB for a reader who is late.
const RETRY: Duration = Duration::from_secs(1);

/// The console of one VM. When `console.log` is long it becomes `console.log.1` and a new one begins.
pub struct Console {
    said: broadcast::Sender<Bytes>,
    typed: mpsc::Sender<Bytes>,
    started: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
    folder: PathBuf,
}

impl Console {
    /// Begins to listen, whether or not a VMM is there yet.
    pub fn open(folder: &Path) -> Self {
        let said = broadcast::Sender::new(CHUNKS_MAX);
        let (typed, input) = mpsc::channel(TYPED_MAX);
        let started = Arc::new(Notify::new());
        let task = tokio::spawn(pump(folder.to_owned(), said.clone(), input, started.clone()));
        Self { said, typed, started, task, folder: folder.to_owned() }
    }

    /// A VMM was started: it is there to be reached.
    pub fn started(&self) {
        self.started.notify_one();
    }

    /// Hears what the guest says from now on.
    pub fn listen(&self) -> broadcast::Receiver<Bytes> {
        self.said.subscribe()
    }

    /// Where to send what is typed.
    pub fn input(&self) -> mpsc::Sender<Bytes> {
        self.typed.clone()
    }

    /// The last of what the guest said.
    pub fn tail(&self, bytes: usize) -> Vec<u8> {
        let mut text = std::fs::read(self.folder.join("console.log.1")).unwrap_or_default();
        text.extend(std::fs::read(self.folder.join("console.log")).unwrap_or_default());
        text.split_off(text.len().saturating_sub(bytes))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pump(folder: PathBuf, said: broadcast::Sender<Bytes>, mut input: mpsc::Receiver<Bytes>, started: Arc<Notify>) {
    loop {
        if let Ok(stream) = UnixStream::connect(folder.join("console.sock")).await
            && let Err(error) = converse(stream, &folder, &said, &mut input).await
        {
            log::debug!("console in {}: {error}", folder.display());
        }
        // A VMM of an earlier agent says nothing when this one begins.
        tokio::time::timeout(RETRY, started.notified()).await.unwrap_or_default();
    }
}

async fn converse(stream: UnixStream, folder: &Path, said: &broadcast::Sender<Bytes>, input: &mut mpsc::Receiver<Bytes>) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            count = reader.read(&mut buffer) => {
                let count = count?;
                if count == 0 {
                    return Ok(());
                }
                // A full disk keeps nobody from his console.
                if let Err(error) = append(folder, &buffer[..count]) {
                    log::debug!("console in {}: not kept: {error}", folder.display());
                }
                // Nobody listens: that is what the file is for.
                said.send(Bytes::copy_from_slice(&buffer[..count])).unwrap_or_default();
            }
            typed = input.recv() => match typed {
                Some(bytes) => writer.write_all(&bytes).await?,
                None => return Ok(()),
            },
        }
    }
}

fn append(folder: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = folder.join("console.log");
    let mut file = std::fs::File::options().create(true).append(true).open(&path)?;
    if file.metadata()?.len() >= FILE_BYTES {
        std::fs::rename(&path, said::before(&path))?;
        file = std::fs::File::options().create(true).append(true).open(&path)?;
    }
    file.write_all(bytes)
}
