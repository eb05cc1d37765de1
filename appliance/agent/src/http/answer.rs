//! Answers: JSON, errors with codes, and bodies that are refused with a sentence.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{Extension, FromRequest, Request, rejection::JsonRejection},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use rebec_api::{ApiError, ErrorCode};
use serde::de::DeserializeOwned;

use crate::mesh::versions::Spoken;

/// How long a client may take for the body of its request.
const BODY_TIME: Duration = Duration::from_secs(10);

/// An error as an answer.
pub struct Failure(pub ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self(rebec_host::failed(&error))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, axum::Json(self.0)).into_response()
    }
}

/// What handlers return.
pub type Answer<T> = Result<axum::Json<T>, Failure>;

/// A JSON body whose refusal is an [`ApiError`] too.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let spoken = request.extensions().get::<Spoken>().cloned();
        match tokio::time::timeout(BODY_TIME, axum::Json::from_request(request, state)).await {
            Ok(Ok(axum::Json(value))) => Ok(Self(value)),
            Ok(Err(rejection)) => Err(refuse(&rejection, spoken.as_ref())),
            Err(_) => Err(late()),
        }
    }
}

/// A body that is no JSON, with the same limits.
pub struct Whole(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Whole {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        match tokio::time::timeout(BODY_TIME, Bytes::from_request(request, state)).await {
            Ok(Ok(bytes)) => Ok(Self(bytes)),
            Ok(Err(rejection)) => {
                let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { ErrorCode::TooLarge } else { ErrorCode::BadRequest };
                Err(ApiError::new(code, format!("the body of the request: {}", rejection.body_text())).into())
            }
            Err(_) => Err(late()),
        }
    }
}

fn late() -> Failure {
    let message = format!("the body of the request did not come within {} s", BODY_TIME.as_secs());
    ApiError::new(ErrorCode::BadRequest, message).into()
}

/// What another host sends on for a user may have a field that only its own version knows.
fn refuse(rejection: &JsonRejection, spoken: Option<&Spoken>) -> Failure {
    let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { ErrorCode::TooLarge } else { ErrorCode::BadRequest };
    let text = rejection.body_text();
    let text = text.strip_prefix("Failed to deserialize the JSON body into the target type: ").unwrap_or(&text);
    match (spoken, text.split_once("unknown field")) {
        (Some(spoken), Some((_, named))) => {
            let field = named.split(',').next().unwrap_or_default().trim();
            Failure(spoken.not_known(&format!("the field {field}")))
        }
        _ => Failure(ApiError::new(code, format!("the body of the request: {text}"))),
    }
}

/// No such path. What another host asks, some version knows.
pub async fn no_route(spoken: Option<Extension<Spoken>>, uri: Uri) -> Failure {
    if let Some(Extension(spoken)) = spoken {
        return Failure(spoken.not_known(&format!("`{}`", uri.path())));
    }
    Failure(ApiError::new(ErrorCode::NotFound, format!("this API has no {}; GET /v1/openapi.json lists what it has", uri.path())))
}

/// No such method on this path.
pub async fn no_method(spoken: Option<Extension<Spoken>>, uri: Uri) -> Failure {
    if let Some(Extension(spoken)) = spoken {
        return Failure(spoken.not_known(&format!("this way of asking `{}`", uri.path())));
    }
    Failure(ApiError::new(
        ErrorCode::BadRequest,
        format!("{} does not take this method; GET /v1/openapi.json lists what it takes", uri.path()),
    ))
}
