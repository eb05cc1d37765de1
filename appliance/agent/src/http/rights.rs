//! Who asks, and whether they may: every request is judged before its handler hears of it, a command by who signed it. The judgement itself
//! is `rebec_book::authority`; what it grants is an extension of the request. Each judgement is a row of the audit log, as far as
//! `audit::weight` says so.

use std::sync::Arc;

use axum::{
    extract::{RawPathParams, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    authority::{self, Asker, Command, Granted, Question, Refused},
    gossip::message::Answer,
    record::Kind,
};

use super::{answer::Failure, internal, jobs, tls::TokenName, warrants};
use crate::{
    agent::Agent,
    audit::{self, Entry, Weight, Who},
    chance::now_s,
    names, peers,
};

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
pub async fn ask(agent: &Agent, caller: Caller, question: Question) -> Result<Granted, ApiError> {
    let judged = agent.knowledge.may(caller, question).map_err(|refused| forbidden(&refused));
    note(agent, who(agent, caller, None), question, judged.as_ref().err()).await;
    judged
}

/// Writes a judgement down: before what was asked is carried out, if that changes something.
pub async fn note(agent: &Agent, who: Who, question: Question, refused: Option<&ApiError>) {
    let entry = Entry::new(who, &question, refused.map(|refused| refused.message.clone()));
    match audit::weight(&question) {
        Weight::Change if refused.is_none() => agent.audit.note(entry).await,
        Weight::None if refused.is_none() => {}
        _ => agent.audit.try_note(entry),
    }
}

/// Who asks, as the audit log has it.
pub fn who(agent: &Agent, caller: Caller, token: Option<&str>) -> Who {
    let Asker::Signer(signer) = caller else { return Who::new(caller, token) };
    agent.knowledge.look(|book| {
        let role = authority::role_of(book, agent.knowledge.key(), now_s(), &signer);
        Who::signer(&signer, agent.knowledge.key(), authority::called(book, &signer), role, token)
    })
}

/// A refusal as the API says it.
pub fn forbidden(refused: &Refused) -> ApiError {
    ApiError::new(ErrorCode::Forbidden, refused.to_string())
}

/// Lets a command through to its handler if who gives it may, about that thing, with the right to it as an extension. Who gives it is known
/// from the socket or the token, or by the warrant that came with it.
pub async fn commands(
    State((agent, command, about)): State<(Arc<Agent>, Command, About)>,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = request.extensions().get::<Caller>().copied().unwrap_or(Asker::Nobody);
    let (caller, proven) = match warrants::read(&agent, caller, &request) {
        Ok(None) => (caller, None),
        Ok(Some((proven, signer))) => {
            request.extensions_mut().insert(signer);
            match warrants::token_of(&proven) {
                Some(token) => drop(request.extensions_mut().insert(token)),
                None => drop(request.extensions_mut().remove::<TokenName>()),
            }
            (signer, Some(proven))
        }
        Err(error) => {
            note(&agent, who(&agent, caller, None), Question::Command(command, None), Some(&error)).await;
            return Failure(error).into_response();
        }
    };
    let token = request.extensions().get::<TokenName>().map(|name| name.0.clone());
    let question = match about {
        About::Nothing => Ok(Question::Command(command, None)),
        // What was to go may have gone by this very order, whose answer was lost.
        About::Thing(kind) => about_thing(&agent, caller, command, kind, &params).or_else(|error| {
            let is_known = jobs::order(request.headers())?.is_some_and(|order| agent.jobs.is_known(caller, &order));
            if error.code == ErrorCode::NotFound && is_known { Ok(Question::Command(command, None)) } else { Err(error) }
        }),
    };
    let question = match question {
        Ok(question) => question,
        Err(error) => return Failure(error).into_response(),
    };
    let judged = agent.knowledge.may(caller, question).map_err(|refused| forbidden(&refused));
    let held = match (judged, proven) {
        (Ok(granted), None) => Ok((granted, request)),
        (Ok(granted), Some(proven)) => {
            let about = if let Question::Command(_, about) = question { about } else { None };
            warrants::hold(&agent, &proven, command, about, request).await.map(|request| (granted, request))
        }
        (Err(error), _) => Err(error),
    };
    note(&agent, who(&agent, caller, token.as_deref()), question, held.as_ref().err()).await;
    match held {
        Ok((granted, mut request)) => {
            request.extensions_mut().insert(granted);
            next.run(request).await
        }
        Err(error) => Failure(error).into_response(),
    }
}

/// The name is understood once, here; whoever carries the command out hears of an id. Who may not ask anything of the kind is not told what
/// there is: what is judged then is the command about nothing.
fn about_thing(agent: &Agent, caller: Caller, command: Command, kind: Kind, params: &RawPathParams) -> Result<Question, ApiError> {
    let alone = Question::Command(command, None);
    let someone = agent.knowledge.may(caller, alone);
    // Whoever is somebody in a domain may have to do with a VM of that domain.
    let is_somebody = match caller {
        Asker::Signer(signer) => agent.knowledge.read(|book| !authority::domains_of(book, &signer.key()).is_empty()) == Some(true),
        Asker::Host(_) | Asker::Nobody => false,
    };
    if someone.is_err() && !is_somebody {
        return Ok(alone);
    }
    let name = params.iter().next().map(|(_, value)| value.to_owned()).unwrap_or_default();
    match names::find(&agent.knowledge, kind, &name) {
        Ok(id) => Ok(Question::Command(command, Some((kind, id)))),
        Err(_) if someone.is_err() => Ok(alone),
        Err(error) => Err(error),
    }
}

/// Lets the question of another agent through to its handler if the asker may talk here at all; what it may ask is for the handler. One
/// that was declared dead is told so, and hears nothing else.
pub async fn agents(State(agent): State<Arc<Agent>>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().copied().unwrap_or(Asker::Nobody);
    match agent.knowledge.may(caller, Question::Exchange) {
        Ok(granted) => {
            if let Some(host) = granted.host() {
                agent.peers.heard(host);
            }
            next.run(request).await
        }
        Err(refused) => {
            let error = forbidden(&refused);
            note(&agent, who(&agent, caller, None), Question::Exchange, Some(&error)).await;
            match refused {
                Refused { proof: Some(proof), .. } if request.uri().path() == peers::PATH => internal::told(&Answer::Dead(proof)),
                _ => Failure(error).into_response(),
            }
        }
    }
}
