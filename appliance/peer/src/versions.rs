//! Which version of the protocol two hosts speak with each other. Each question says what its asker speaks, and each answer what its
//! answerer does; the greatest number that both have counts. What the answerer does not know it refuses as such, in words that name the host
//! that has to be upgraded: never as a fault of what was asked about. docs/formats/compatibility.md is the prose of it.
//!
//! ```text
//! rebec-peer: 1-2         of every question and answer: from the oldest version to the newest; left out, the first
//! rebec-must: word, …     of a question: what the answerer has to know, because it would skip the fields that say it, and may not
//! ```

use std::{cmp::Ordering, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode},
    middleware::{Next, from_fn_with_state},
    response::IntoResponse,
};
use rebec_api::{ApiError, ErrorCode};
use rebec_vmm_api::Versions;

/// What this program speaks with other hosts.
pub const PROTOCOL: Versions = Versions::only(1);
/// Of questions and answers: what their side speaks.
pub const SPEAKS: HeaderName = HeaderName::from_static("rebec-peer");
/// Of questions: words that the answerer has to know.
pub const MUST: HeaderName = HeaderName::from_static("rebec-must");

/// The words that this program knows. None of the first version needs one.
const KNOWN: [&str; 0] = [];

/// The answering side.
#[derive(Clone)]
pub struct Answerer {
    /// What it speaks.
    pub speaks: Versions,
    /// Its version of Rebec.
    pub rebec: &'static str,
    /// Its name, as it is now.
    pub name: Arc<dyn Fn() -> String + Send + Sync>,
}

/// How a question is asked that came from another host: an extension of it.
#[derive(Clone)]
pub struct Spoken {
    /// The version that counts.
    pub version: u16,
    /// How old the answerer is beside the asker.
    age: Ordering,
    answerer: Answerer,
}

impl Spoken {
    /// The refusal of what this host does not know.
    pub fn not_known(&self, what: &str) -> ApiError {
        self.answerer.not_known(self.age, what)
    }
}

impl Answerer {
    fn host(&self) -> String {
        format!("host {} (Rebec {})", (self.name)(), self.rebec)
    }

    fn not_known(&self, age: Ordering, what: &str) -> ApiError {
        let host = self.host();
        other_version(match age {
            Ordering::Less => format!("{host} is older than the host that asks and does not know {what}: upgrade it"),
            Ordering::Equal => format!("{host} does not know {what}: upgrade it"),
            Ordering::Greater => format!("{host} does not know {what} any more: upgrade the host that asks"),
        })
    }

    /// What is spoken with who sent these, and whether everything is known that has to be.
    ///
    /// # Errors
    /// With whom is behind, where nothing is or something is not.
    pub fn agree(&self, headers: &HeaderMap) -> Result<Spoken, ApiError> {
        let theirs = speaks(headers);
        let age = self.speaks.age(theirs);
        let Some(version) = self.speaks.common(theirs) else {
            let (host, speaks) = (self.host(), self.speaks);
            let behind = if age == Ordering::Less { "upgrade that host" } else { "upgrade the host that asks" };
            return Err(other_version(format!(
                "{host} speaks version {speaks} of the protocol between hosts, the host that asks {theirs}: {behind}"
            )));
        };
        let words = headers.get_all(MUST).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim);
        match words.filter(|word| !word.is_empty()).find(|word| !KNOWN.contains(word)) {
            Some(word) => Err(self.not_known(age, &format!("`{}`", word.chars().take(64).collect::<String>()))),
            None => Ok(Spoken { version, age, answerer: self.clone() }),
        }
    }
}

/// What the sender of these speaks.
pub fn speaks(headers: &HeaderMap) -> Versions {
    let told = headers.get(SPEAKS).and_then(|value| value.to_str().ok()?.parse().ok());
    told.unwrap_or(Versions::only(1))
}

/// The same as it is said.
pub(crate) fn said(speaks: Versions) -> HeaderValue {
    HeaderValue::from_str(&speaks.to_string()).unwrap_or(HeaderValue::from_static("1"))
}

fn other_version(message: String) -> ApiError {
    ApiError::new(ErrorCode::OtherVersion, message)
}

/// A router that answers hosts of other versions.
pub fn between_hosts(router: Router, answerer: Answerer) -> Router {
    router.layer(from_fn_with_state(answerer, agree))
}

async fn agree(State(answerer): State<Answerer>, mut request: Request, next: Next) -> Response<Body> {
    let mut response = match answerer.agree(request.headers()) {
        Ok(spoken) => {
            request.extensions_mut().insert(spoken);
            next.run(request).await
        }
        Err(error) => {
            let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::NOT_IMPLEMENTED);
            (status, Json(error)).into_response()
        }
    };
    response.headers_mut().insert(SPEAKS, said(answerer.speaks));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answerer(speaks: &str) -> Answerer {
        Answerer { speaks: speaks.parse().unwrap(), rebec: "0.1.0", name: Arc::new(|| "a1".into()) }
    }

    fn asked(speaks: &str, must: &str) -> HeaderMap {
        let header = |text: &str| HeaderValue::from_str(text).unwrap();
        HeaderMap::from_iter([(SPEAKS, header(speaks)), (MUST, header(must))])
    }

    #[test]
    fn hosts_of_neighbouring_versions_speak_the_greatest_that_both_have() {
        for (here, there, spoken) in [("1", "1", 1), ("1", "1-2", 1), ("1-2", "1", 1), ("1-2", "2-3", 2), ("2-3", "2-3", 3)] {
            assert_eq!(answerer(here).agree(&asked(there, "")).map(|spoken| spoken.version), Ok(spoken), "{here}, {there}");
        }
        assert_eq!(answerer("1-2").agree(&HeaderMap::new()).map(|spoken| spoken.version), Ok(1));
        assert_eq!(answerer("1-2").agree(&asked("nonsense", "")).map(|spoken| spoken.version), Ok(1));
    }

    #[test]
    fn whoever_is_behind_is_named() {
        let refused = |here: &str, there: &str, must: &str| match answerer(here).agree(&asked(there, must)) {
            Ok(spoken) => spoken.not_known("`/internal/x`"),
            Err(error) => error,
        };
        for (here, there, must, told) in [
            (
                "1",
                "3-4",
                "",
                "host a1 (Rebec 0.1.0) speaks version 1 of the protocol between hosts, the host that asks 3-4: upgrade that host",
            ),
            ("3-4", "1", "", "speaks version 3-4 of the protocol between hosts, the host that asks 1: upgrade the host that asks"),
            ("1", "1-2", "", "host a1 (Rebec 0.1.0) is older than the host that asks and does not know `/internal/x`: upgrade it"),
            ("1-2", "1", "", "does not know `/internal/x` any more: upgrade the host that asks"),
            ("1", "1", "", "host a1 (Rebec 0.1.0) does not know `/internal/x`: upgrade it"),
            ("1", "1-2", "softly, now", "host a1 (Rebec 0.1.0) is older than the host that asks and does not know `softly`: upgrade it"),
        ] {
            let error = refused(here, there, must);
            assert_eq!(error.code, ErrorCode::OtherVersion);
            assert!(error.message.contains(told), "{error}");
        }
    }
}
