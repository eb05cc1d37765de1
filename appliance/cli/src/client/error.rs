//! Why an agent could not be asked, or what it answered instead.

use rebec_api::ApiError;

/// What came of a request that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("{place}: {why}; {hint}")]
    NoAgent {
        /// Which agent.
        place: String,
        /// What the system said.
        why: String,
        /// What to do next.
        hint: String,
    },
    /// Somebody listens who holds another key.
    #[error("{place}: {why}; compare --fingerprint with the host's status screen")]
    OtherKey {
        /// Which agent.
        place: String,
        /// Whose key was found.
        why: String,
    },
    /// The connection ended, or the answer did not come.
    #[error("{place}: the agent did not answer ({why}); is it running? `systemctl status rebec` shows it on its host")]
    Cut {
        /// Which agent.
        place: String,
        /// How the connection ended.
        why: String,
    },
    /// The agent said no.
    #[error("{0}")]
    Refused(ApiError),
    /// The agent said no, in no words of this API.
    #[error("{place}: status {status} and no reason; is it a Rebec agent of this version?")]
    Unsaid {
        /// Which agent.
        place: String,
        /// HTTP status.
        status: u16,
    },
    /// An answer that is none of this API.
    #[error("{place}: {path}: {why}; is it a Rebec agent of this version?")]
    Strange {
        /// Which agent.
        place: String,
        /// What was asked.
        path: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// A file that cannot be sent.
    #[error("{0}")]
    File(String),
}

impl ClientError {
    /// Whether the agent could not be reached at all.
    pub fn unreachable(&self) -> bool {
        matches!(self, Self::NoAgent { .. } | Self::Cut { .. })
    }
}
