//! How a command line ends when it does not end well: the words for people, and the exit code for scripts.

use std::io;

use rebec_api::{ApiError, job::Job};

use crate::{client::ClientError, talk, text::printable};

/// The exit codes, as `--help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// What was asked is done.
    Done,
    /// It was refused, or failed.
    Failed,
    /// The command line is wrong.
    Usage,
    /// The agent does not answer.
    Unreachable,
    /// A VM's ownership waits for the other side of a move.
    Waiting,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Waiting => 4,
        }
    }
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The agent could not be asked, or said no.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A job ended without its work done.
    #[error("{}", .0.message)]
    Job(ApiError),
    /// A job was left to itself.
    #[error("job {0} goes on; `rebec job show {0}` says how far it is")]
    LeftAlone(String),
    /// Something on this machine.
    #[error("{0}")]
    Here(String),
    /// What was written on the command line leads nowhere.
    #[error("{0}")]
    Usage(String),
    /// The VM waits for the other side of a move.
    #[error("{0}")]
    Waiting(String),
    /// Standard output.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// Prints the failure to standard error, one line and its details, and says the exit code.
    pub fn tell(&self) -> Exit {
        // Whoever closed the pipe has read enough (`rebec vm ls | head -1`).
        if matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return Exit::Failed;
        }
        talk::raw(&self.text());
        self.exit()
    }

    /// What [`Failure::tell`] prints.
    pub fn text(&self) -> String {
        let details = self.refusal().map(|refusal| refusal.details.as_slice()).unwrap_or_default();
        let lines = details.iter().map(|detail| format!("  {}\n", printable(detail)));
        format!("rebec: {}\n{}", printable(&self.to_string()), lines.collect::<String>())
    }

    /// The exit code that goes with it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Client(error) if error.unreachable() => Exit::Unreachable,
            Self::Usage(_) => Exit::Usage,
            Self::Waiting(_) => Exit::Waiting,
            Self::Client(_) | Self::Job(_) | Self::LeftAlone(_) | Self::Here(_) | Self::Output(_) => Exit::Failed,
        }
    }

    /// The agent's own words, where it said no.
    pub fn refusal(&self) -> Option<&ApiError> {
        match self {
            Self::Client(ClientError::Refused(error)) | Self::Job(error) => Some(error),
            _ => None,
        }
    }

    /// The failure of a job that did not say why.
    pub fn of_job(job: Job) -> Self {
        let unsaid = || ApiError::new(rebec_api::ErrorCode::Failed, format!("job {} ({}) failed without a reason", job.id, job.what));
        Self::Job(job.error.clone().unwrap_or_else(unsaid))
    }
}

#[cfg(test)]
mod tests {
    use rebec_api::ErrorCode;

    use super::*;

    #[test]
    fn a_refusal_prints_its_details_indented_and_no_control_characters() {
        let mut error = ApiError::new(ErrorCode::Refused, "vm `web`: no host has\x1b[2J room");
        error.details = vec!["a1: 100 MiB free, 512 MiB wanted".into(), "a2:\nno KVM".into()];
        let failure = Failure::Client(ClientError::Refused(error));
        assert_eq!(failure.text(), "rebec: vm `web`: no host has[2J room\n  a1: 100 MiB free, 512 MiB wanted\n  a2:no KVM\n");
        assert_eq!(failure.exit().code(), 1);
    }

    #[test]
    fn each_end_has_its_exit_code() {
        let cut = ClientError::Cut { place: "x".into(), why: "reset".into() };
        assert_eq!(Failure::Client(cut).exit().code(), 3);
        assert_eq!(Failure::Usage(String::new()).exit().code(), 2);
        assert_eq!(Failure::Waiting(String::new()).exit().code(), 4);
        assert_eq!(Failure::LeftAlone("j1".into()).exit().code(), 1);
    }
}
