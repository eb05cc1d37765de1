//! `/v1/vms/{name}/set`: at the VM's home, whose word its record is.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Extension, FromRequest, State},
    http::Request,
    response::{IntoResponse, Response},
};
use rebec_api::{ApiError, ErrorCode, vm::SetVm};
use rebec_book::authority::Granted;

use super::{
    answer::{Failure, Json},
    disks, vms,
};
use crate::{agent::Agent, orders::limits};

/// `POST /v1/vms/{name}/set`
pub async fn set(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let (found, request) = match disks::at_home(&agent, &granted, request).await? {
        Ok(here) => here,
        Err(answer) => return Ok(answer),
    };
    let Json(wish) = Json::<SetVm>::from_request(request, &()).await?;
    limits::check(&wish).map_err(|what| ApiError::new(ErrorCode::BadRequest, what))?;
    limits::set(&agent.orders, found.id, &wish).await?;
    Ok(axum::Json(vms::info(&agent, found.id)?).into_response())
}
