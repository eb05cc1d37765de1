//! Names: what may be one, and whom one means (`rebec_book::names`), with the sentences for people.

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Key,
    key::Id,
    names::{self, Meant, NAME_BYTES_MAX},
    record::Kind,
};

use crate::knowledge::Knowledge;

/// Refuses what could not be typed, shown or looked up again.
pub fn check(kind: &str, name: &str) -> Result<(), ApiError> {
    if names::is_name(name) {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
    let message =
        format!("{kind} name {shown:?}: expected letters, digits, `-`, `_` and `.`, first a letter or digit, at most {NAME_BYTES_MAX}");
    Err(ApiError::new(ErrorCode::BadRequest, message))
}

/// Whether this host's domain has something of that name. Under the naming lock.
pub fn taken(knowledge: &Knowledge, kind: Kind, name: &str) -> Result<bool, ApiError> {
    knowledge.pool(|book| book.of_name(kind, name).iter().any(|thing| thing.domain == book.own_domain()))
}

/// What a name means.
pub fn find(knowledge: &Knowledge, kind: Kind, name: &str) -> Result<Id, ApiError> {
    let (what, list) = match kind {
        Kind::VM => ("VM", "rebec vm ls"),
        Kind::LAN => ("LAN", "rebec lan ls"),
        Kind::IMAGE => ("image", "rebec image ls"),
        Kind::DOMAIN => ("domain", "rebec domain ls"),
        _ => ("host", "rebec host ls"),
    };
    match knowledge.pool(|book| names::find(book, kind, name))? {
        Meant::One(id) => Ok(id),
        Meant::Nothing => Err(ApiError::not_found(what, name, list)),
        Meant::Several(all) => {
            Err(ApiError { code: ErrorCode::Conflict, message: format!("{what} `{name}` means several; say which"), details: all })
        }
    }
}

/// The host of that name.
pub fn host(knowledge: &Knowledge, name: &str) -> Result<Key, ApiError> {
    let id = find(knowledge, Kind::MEMBER, name)?;
    let found = knowledge.pool(|book| book.thing(Kind::MEMBER, id).map(|thing| thing.home))?;
    found.ok_or_else(|| ApiError::not_found("host", name, "rebec host ls"))
}

/// The domain of that name.
pub fn domain(knowledge: &Knowledge, name: &str) -> Result<Key, ApiError> {
    let id = find(knowledge, Kind::DOMAIN, name)?;
    let found = knowledge.pool(|book| book.thing(Kind::DOMAIN, id).and_then(|thing| thing.domain))?;
    found.ok_or_else(|| ApiError::not_found("domain", name, "rebec domain ls"))
}

/// The image of that name.
pub fn image(knowledge: &Knowledge, name: &str) -> Result<Id, ApiError> {
    find(knowledge, Kind::IMAGE, name)
}

/// The LAN of that name.
pub fn lan(knowledge: &Knowledge, name: &str) -> Result<Id, ApiError> {
    find(knowledge, Kind::LAN, name)
}
