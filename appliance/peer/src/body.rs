//! The body of a stranger's request: short, and whole before anybody looks at it. What is too long is not read.

use std::time::Duration;

use axum::{
    body::Body,
    extract::Request,
    http::{Response, StatusCode, header},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use rebec_api::{ApiError, ErrorCode};
use tokio::time::timeout;

/// Longest body: a wish to join is below 1 KiB.
const BYTES_MAX: usize = 64 << 10;
/// How long it may take to come.
const TIME_MAX: Duration = Duration::from_secs(10);

/// A request with its body, or why not.
pub async fn short(request: Request<Incoming>) -> Result<Request<Body>, Response<Body>> {
    let (parts, body) = request.into_parts();
    if body.size_hint().lower() > BYTES_MAX as u64 {
        return Err(too_long());
    }
    match timeout(TIME_MAX, Limited::new(body, BYTES_MAX).collect()).await {
        Ok(Ok(body)) => Ok(Request::from_parts(parts, Body::from(body.to_bytes()))),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(error)) => Err(refuse(ErrorCode::BadRequest, format!("the body of the request: {error}"))),
        Err(_) => Err(refuse(ErrorCode::BadRequest, format!("the body of the request did not come within {} s", TIME_MAX.as_secs()))),
    }
}

fn too_long() -> Response<Body> {
    let message = format!("the body of the request is longer than the {} KiB that a host may send which is no member", BYTES_MAX >> 10);
    refuse(ErrorCode::TooLarge, message)
}

fn refuse(code: ErrorCode, message: String) -> Response<Body> {
    let body = serde_json::to_vec(&ApiError::new(code, message)).unwrap_or_default();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::BAD_REQUEST);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
