//! Who asks, and whether they may: every request is judged before its handler hears of it. The judgement itself is
//! `rebec_book::authority`; what it grants is an extension of the request.

use std::sync::Arc;

use axum::{
    extract::{RawPathParams, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    authority::{Asker, Command, Granted, Question, Refused},
    key::Id,
    record::Kind,
};

use super::{answer::Failure, names};
use crate::{agent::Agent, exchange};

/// Where hosts compare their books.
pub const EXCHANGE: &str = "/internal/exchange";

/// Who asks, as the listener knows.
pub type Caller = Asker;

/// What a command is about: nothing, or what the path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// Nothing by itself, or what the body says.
    Nothing,
    /// A thing of this kind, by the path's first name.
    Thing(Kind),
}

/// The right to ask an agent's question, or the refusal.
pub fn ask(agent: &Agent, caller: Caller, question: Question) -> Result<Granted, ApiError> {
    agent.may(caller, question).map_err(|refused| forbidden(&refused))
}

/// A refusal as the API says it.
pub fn forbidden(refused: &Refused) -> ApiError {
    ApiError::new(ErrorCode::Forbidden, refused.to_string())
}

/// Lets a user's command through to its handler if the caller may give it, about that thing, with the right to it as an extension.
pub async fn commands(
    State((agent, command, about)): State<(Arc<Agent>, Command, About)>,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = request.extensions().get::<Caller>().copied().unwrap_or(Asker::Nobody);
    let granted = match about {
        About::Nothing => ask(&agent, caller, Question::Command(command, None)),
        About::Thing(kind) => about_thing(&agent, caller, command, kind, &params),
    };
    match granted {
        Ok(granted) => {
            request.extensions_mut().insert(granted);
            next.run(request).await
        }
        Err(error) => Failure(error).into_response(),
    }
}

/// The name is understood once, here; whoever carries the command out hears of an id.
fn about_thing(agent: &Agent, caller: Caller, command: Command, kind: Kind, params: &RawPathParams) -> Result<Granted, ApiError> {
    // Who may not ask anything is not told what there is.
    let someone = ask(agent, caller, Question::Command(command, None));
    if let (Asker::User(_) | Asker::Nobody, Err(error)) = (caller, &someone) {
        return Err(error.clone());
    }
    let name = params.iter().next().map(|(_, value)| value.to_owned()).unwrap_or_default();
    let id: Id = names::find(agent, kind, &name).map_err(|error| match caller {
        Asker::Host(_) if someone.is_err() => someone.clone().err().unwrap_or(error),
        _ => error,
    })?;
    ask(agent, caller, Question::Command(command, Some((kind, id))))
}

/// Lets the question of another agent through to its handler if the asker may talk here at all; what it may ask is for the handler. One
/// that was declared dead is told so, and hears nothing else.
pub async fn agents(State(agent): State<Arc<Agent>>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().copied().unwrap_or(Asker::Nobody);
    match agent.may(caller, Question::Exchange) {
        Ok(granted) => {
            if let Some(host) = granted.host() {
                agent.heard(host);
            }
            next.run(request).await
        }
        Err(Refused { proof: Some(proof), .. }) if request.uri().path() == EXCHANGE => axum::Json(exchange::dead(proof)).into_response(),
        Err(refused) => Failure(forbidden(&refused)).into_response(),
    }
}
