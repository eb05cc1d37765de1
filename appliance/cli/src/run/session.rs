//! What every command has at hand: the agent, and where its answers go. Data to standard output, talk to standard error.

use std::{
    io::{self, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

use rebec_api::job::Job;
use serde::Serialize;
use serde_json::Value;

use super::job;
use crate::{
    args::Patience,
    client::{Answer, Client},
    failure::Failure,
    talk,
    text::printable,
};

/// One command's surroundings.
#[derive(Debug)]
pub struct Session {
    /// The agent.
    pub client: Client,
    /// Whether answers are printed as JSON.
    pub json: bool,
}

impl Session {
    /// Prints an answer: as JSON if the user wants that, else as `text` renders it.
    pub fn show<T: Serialize>(&self, answer: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let rendered = if self.json {
            serde_json::to_string(answer).map_err(|error| Failure::Here(format!("write the answer: {error}")))? + "\n"
        } else {
            text(answer)
        };
        self.print(&rendered)
    }

    /// Prints a list; an empty one says what to do next.
    pub fn list<T: Serialize>(&self, answer: &Vec<T>, next: &str, text: impl FnOnce(&[T]) -> String) -> Result<(), Failure> {
        if answer.is_empty() && !self.json {
            self.say(next);
            return Ok(());
        }
        self.show(answer, |answer| text(answer))
    }

    /// Says what came of a command, in words or as JSON.
    pub fn tell<T: Serialize>(&self, answer: &T, words: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if self.json {
            return self.show(answer, |_| String::new());
        }
        self.say(&words(answer));
        Ok(())
    }

    /// Prints data.
    pub fn print(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Says something to the person at the terminal.
    pub fn say(&self, text: &str) {
        talk::say(text);
    }

    /// Sees a change through: a job is followed to its end. `done` says that it was done.
    pub async fn finish(&self, answer: Answer, done: &str) -> Result<(), Failure> {
        self.tell(&self.settle(answer).await?, |_| done.to_owned())
    }

    /// What a change made in the end.
    pub async fn settle(&self, answer: Answer) -> Result<Value, Failure> {
        match answer {
            Answer::Done(value) => Ok(value),
            Answer::Job(begun) => Ok(job::follow(&self.client, begun).await?.result.unwrap_or_default()),
        }
    }

    /// What a change made, unless the user does not wait: then the job's name is printed and there is none.
    pub async fn settle_unless(&self, answer: Answer, patience: Patience) -> Result<Option<Value>, Failure> {
        match answer {
            Answer::Job(begun) if patience.detach => {
                self.show(&begun, |job: &Job| printable(&job.id) + "\n")?;
                Ok(None)
            }
            answer => Ok(Some(self.settle(answer).await?)),
        }
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Reads a value as one of the API's types.
pub fn parse<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_json::from_value(value).map_err(|error| Failure::Here(format!("the agent's answer: {error}; is it of this version?")))
}
