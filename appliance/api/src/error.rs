//! Why a request was not carried out.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what happened, to what, and what to do next.
    pub message: String,
    /// One line each, where several things were tried: a host and why it refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

/// The kinds of refusal, and with them the HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// 400: the request is not one of this API.
    BadRequest,
    /// 401: no token, or one that is not known here.
    Unauthorized,
    /// 403: known, and not allowed.
    Forbidden,
    /// 404: no object of this name.
    NotFound,
    /// 409: the object exists already, or is not in a state that allows it.
    Conflict,
    /// 413: the body is larger than the request allows.
    TooLarge,
    /// 422: the request is well formed and cannot be met: no host has room, no such image.
    Refused,
    /// 501: one of two hosts is of an older version and has to be upgraded; nothing is wrong with what was asked about.
    OtherVersion,
    /// 502: another host was needed and did not answer.
    Unreachable,
    /// 500: the machine refused; the message says which part. Also what a newer host calls otherwise.
    #[serde(other)]
    Failed,
}

impl ErrorCode {
    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Refused => 422,
            Self::Failed => 500,
            Self::OtherVersion => 501,
            Self::Unreachable => 502,
        }
    }
}

impl ApiError {
    /// An error without details.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: vec![] }
    }

    /// Nothing is called that.
    pub fn not_found(kind: &str, name: &str, list: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("{kind} `{name}` does not exist; `{list}` shows those that do"))
    }
}
