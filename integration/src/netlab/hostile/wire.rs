//! What a hostile member sends and hears: HTTP/1.1 over TCP, with TLS 1.3 under any key it has. It keeps to the rules of TLS, because nobody hears
//! it otherwise, and to those of HTTP only where that serves it.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rebec_tls::Holder;
use rustls::{ClientConnection, StreamOwned};

use super::speech::Request;
use crate::netlab::lab::Entrance;

/// How long a host may take for a connection and for each piece of an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// No answer of a small pool is longer.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// No head of an answer is longer.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// A connection to a host.
pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// What came with it.
    pub body: Vec<u8>,
}

impl Answer {
    /// Whether the host did as it was asked, or began to.
    pub fn is_granted(&self) -> bool {
        (100..300).contains(&self.status)
    }

    /// Whether the host says that there is no such question, or that it has another form.
    pub fn says_nonsense(&self) -> bool {
        matches!(self.status, 400 | 405 | 415 | 422) || self.status == 404 && self.text().contains("this API has no")
    }

    /// The body, as far as a message has room for it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(160).collect()
    }
}

impl Connection {
    /// Connects under a key, to the holder of another.
    pub fn open(entrance: &Entrance, secret: &[u8; 32], host: [u8; 32], address: SocketAddr) -> Result<Self> {
        let tcp = entrance.within(move || TcpStream::connect_timeout(&address, PATIENCE))?;
        let tcp = tcp.with_context(|| format!("connect to {address}"))?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        tcp.set_nodelay(true)?;
        let config = Arc::new(Holder::new(secret)?.client_of(host)?);
        let mut stream = StreamOwned::new(ClientConnection::new(config, rebec_tls::server_name())?, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).with_context(|| format!("TLS with {address}"))?;
        }
        Ok(Self { stream })
    }

    /// Sends the head of a request, which promises so many bytes.
    pub fn head(&mut self, request: &Request, body_bytes: usize) -> Result<()> {
        let Request { method, path, headers, .. } = request;
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: rebec\r\nContent-Type: application/json\r\nContent-Length: {body_bytes}\r\n");
        let upgrades = headers.iter().any(|(name, _)| *name == "Upgrade");
        head += if upgrades { "Connection: upgrade\r\n" } else { "Connection: close\r\n" };
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        head += "\r\n";
        self.send(head.as_bytes())
    }

    /// Sends any bytes.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)?;
        Ok(self.stream.flush()?)
    }

    /// Makes a request and hears its answer. Of one that upgrades the connection, the head.
    pub fn ask(mut self, request: &Request) -> Result<Answer> {
        self.head(request, request.body.len())?;
        // Who refuses does not read on, and may be gone while it is still sent to.
        let sent = self.send(&request.body);
        let (status, chunked, early) = self.hear_head().or_else(|error| sent.and(Err(error)))?;
        if status == 101 {
            return Ok(Answer { status, body: early });
        }
        let mut body = early;
        match (&mut self.stream).take(ANSWER_BYTES_MAX).read_to_end(&mut body) {
            // Not every side says goodbye.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error).context("the body of an answer"),
            _ => {}
        }
        let body = if chunked { whole(&body).context("a body in chunks")? } else { body };
        Ok(Answer { status, body })
    }

    /// Status, whether the body is in chunks, and what has come of the body.
    fn hear_head(&mut self) -> Result<(u16, bool, Vec<u8>)> {
        let mut heard = vec![];
        loop {
            if let Some(end) = heard.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&heard[..end]).to_ascii_lowercase();
                let status =
                    head.split(' ').nth(1).and_then(|status| status.parse().ok()).with_context(|| format!("no status in `{head}`"))?;
                return Ok((status, head.contains("transfer-encoding: chunked"), heard.split_off(end + 4)));
            }
            ensure!(heard.len() < HEAD_BYTES_MAX, "a head without an end");
            let mut piece = [0; 4096];
            let count = self.stream.read(&mut piece).context("the head of an answer")?;
            ensure!(count > 0, "the connection ended before the answer");
            heard.extend_from_slice(&piece[..count]);
        }
    }
}

/// Joins the chunks of a body.
fn whole(mut chunks: &[u8]) -> Option<Vec<u8>> {
    let mut body = vec![];
    loop {
        let end = chunks.windows(2).position(|window| window == b"\r\n")?;
        let count = usize::from_str_radix(std::str::from_utf8(&chunks[..end]).ok()?.trim(), 16).ok()?;
        if count == 0 {
            return Some(body);
        }
        let rest = chunks.get(end + 2..)?;
        body.extend_from_slice(rest.get(..count)?);
        chunks = rest.get(count + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined_and_a_torn_one_is_none() {
        assert_eq!(whole(b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"), Some(b"abc0123456789".to_vec()));
        assert_eq!(whole(b"3\r\nab"), None);
        assert_eq!(whole(b"x\r\nab\r\n0\r\n"), None);
    }
}
