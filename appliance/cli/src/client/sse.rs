//! Server-sent events (WHATWG HTML §9.2.6) out of bytes that may be cut anywhere. Fields other than `event` and `data` are
//! passed over: an agent sends no others.

/// Longest line, and longest event, that is kept: a job with the report of a move is a few KiB.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its name; `message` when none was given.
    pub name: String,
    /// Its data lines, joined by line feeds.
    pub data: String,
}

/// A line or an event is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {} KiB", EVENT_BYTES_MAX >> 10)]
pub struct TooLong;

/// Turns bytes into events.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed now belongs to it.
    after_return: bool,
    begun: bool,
    name: String,
    data: String,
}

impl Parser {
    /// Takes the next bytes and returns the events that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for byte in bytes {
            let pair = std::mem::replace(&mut self.after_return, *byte == b'\r') && *byte == b'\n';
            match byte {
                b'\n' if pair => {}
                b'\r' | b'\n' => events.extend(self.end_line()),
                _ if self.line.len() + self.data.len() >= EVENT_BYTES_MAX => return Err(TooLong),
                _ => self.line.push(*byte),
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Option<Event> {
        let bytes = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&bytes);
        let line = if self.begun { &text } else { text.strip_prefix('\u{feff}').unwrap_or(&text) };
        self.begun = true;
        if line.is_empty() {
            return self.end_event();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            _ => {}
        }
        None
    }

    fn end_event(&mut self) -> Option<Event> {
        let (mut name, mut data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        data.pop()?;
        if name.is_empty() {
            "message".clone_into(&mut name);
        }
        Some(Event { name, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str =
        "\u{feff}: hello\nevent: job\ndata: {\"a\":\ndata: \"é\"}\n\nevent:job\r\ndata:2\r\n\r\nretry: 5\n\rdata: 3\rid: x\r\rdata: cut";

    fn expected() -> Vec<Event> {
        let event = |name: &str, data: &str| Event { name: name.to_owned(), data: data.to_owned() };
        vec![event("job", "{\"a\":\n\"é\"}"), event("job", "2"), event("message", "3")]
    }

    #[test]
    fn the_same_events_wherever_the_bytes_are_cut() {
        let bytes = STREAM.as_bytes();
        for cut in 0..=bytes.len() {
            let mut parser = Parser::default();
            let mut events = parser.push(&bytes[..cut]).unwrap();
            events.extend(parser.push(&bytes[cut..]).unwrap());
            assert_eq!(events, expected(), "cut at {cut}");
        }
        let mut parser = Parser::default();
        let single: Vec<Event> = bytes.iter().flat_map(|byte| parser.push(&[*byte]).unwrap()).collect();
        assert_eq!(single, expected());
    }

    #[test]
    fn an_endless_line_or_event_is_refused() {
        let mut parser = Parser::default();
        assert_eq!(parser.push(&vec![b'x'; EVENT_BYTES_MAX + 1]), Err(TooLong));
        let mut parser = Parser::default();
        let line = format!("data: {}\n", "x".repeat(1000));
        assert!((0..2000).any(|_| parser.push(line.as_bytes()) == Err(TooLong)));
    }

    #[test]
    fn bytes_that_are_no_text_do_no_harm() {
        let events = Parser::default().push(b"data: \xff\xfe\0\n\ndata\n\n\n\n").unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!(events[1].data, "");
    }
}
