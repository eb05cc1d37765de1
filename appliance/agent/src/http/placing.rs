//! `/v1/explain`: where a VM would go, and what each host says; `/v1/hosts/{name}/set`: what operators say of a host.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Extension, FromRequest, State},
    http::Request,
    response::{IntoResponse, Response},
};
use rebec_api::{
    ApiError, ErrorCode,
    host::{HostInfo, HostVerdict, SetHost},
    vm::NewVm,
};
use rebec_book::{authority::Granted, record::id_of_key};

use super::{
    answer::{Answer, Failure, Json},
    forward, hosts,
};
use crate::{
    agent::Agent,
    orders::{placing, plan, record},
};

/// `POST /v1/explain`: nothing is started, and nothing is kept.
pub async fn explain(State(agent): State<Arc<Agent>>, Json(new): Json<NewVm>) -> Answer<Vec<HostVerdict>> {
    let (body, lans) = record::sketch(&agent.orders, &new)?;
    let asked = plan::Asked { host: new.host.as_deref(), domain: new.domain.as_deref() };
    let verdicts = plan::explained(&agent.orders, &body, &lans, asked)?;
    let shown = agent.knowledge.pool(|book| {
        let verdict = |verdict: rebec_pool::place::Verdict| HostVerdict {
            host: verdict.name,
            domain: book.domain_name(&verdict.domain),
            takes: verdict.says.is_ok(),
            chosen: verdict.is_chosen,
            why: verdict.says.unwrap_or_else(|why| why),
        };
        verdicts.into_iter().map(verdict).collect::<Vec<_>>()
    })?;
    Ok(axum::Json(shown))
}

/// `POST /v1/hosts/{name}/set`
pub async fn set_host(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let host = hosts::key(&agent, &granted)?;
    if host != agent.knowledge.key() {
        return Ok(forward::about(&agent, &host, id_of_key(&host), request).await?.into_response());
    }
    let Json(SetHost { labels, no_labels }) = Json::<SetHost>::from_request(request, &()).await?;
    labels.iter().try_for_each(|label| placing::check(label))?;
    let bad = |error: anyhow::Error| ApiError::new(ErrorCode::BadRequest, format!("host {}: {error:#}", agent.knowledge.own_name()));
    agent.bulletin.set_labels(&labels, &no_labels).map_err(bad)?;
    let info: HostInfo = hosts::info(&agent, host)?;
    Ok(axum::Json(info).into_response())
}
