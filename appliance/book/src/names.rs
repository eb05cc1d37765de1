//! Names: what may be one, and whom one means. A name is unique in its domain; what belongs to another domain is called
//! `domain/name`. Where two hosts of one domain chose one name at the same time, each is shown with `~` and the first digits of its
//! id, a letter that no name has; `~` and all digits of an id mean that id.

pub use crate::name::{NAME_BYTES_MAX, is_name};
use crate::{
    book::{Book, Thing},
    key::{Id, Key},
    kind::Kind,
};

/// A thing as a path of the API names it, whatever its name is: by its id.
pub fn by_id(id: &Id) -> String {
    format!("~{id}")
}

/// Whom a text means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meant {
    /// One thing.
    One(Id),
    /// None.
    Nothing,
    /// Several, in this way told apart.
    Several(Vec<String>),
}

/// The thing of a kind that a text means, to who belongs to the book's own domain: its own domain's before those of others.
pub fn find(book: &Book, kind: Kind, text: &str) -> Meant {
    find_for(book, book.own_domain(), kind, text)
}

/// The same to who belongs to another domain.
pub fn find_for(book: &Book, reader: Option<Key>, kind: Kind, text: &str) -> Meant {
    if let Some(id) = text.strip_prefix('~').and_then(|digits| digits.parse().ok()) {
        return if book.thing(kind, id).is_some() { Meant::One(id) } else { Meant::Nothing };
    }
    let (domain, rest) = text.rsplit_once('/').map_or((None, text), |(domain, rest)| (Some(domain), rest));
    let (name, digits) = rest.split_once('~').map_or((rest, None), |(name, digits)| (name, Some(digits)));
    let mut found = book.of_name(kind, name);
    found.retain(|thing| digits.is_none_or(|digits| thing.id.to_string().starts_with(digits)));
    match domain {
        Some(domain) => found.retain(|thing| thing.domain.is_some_and(|key| book.domain_name(&key) == domain)),
        None => {
            if found.iter().any(|thing| thing.domain == reader) {
                found.retain(|thing| thing.domain == reader);
            }
        }
    }
    // A dead host's name is its successor's.
    let lives = |thing: &Thing| kind != Kind::MEMBER || book.dead(&thing.home).is_none();
    if digits.is_none() && found.iter().any(lives) {
        found.retain(lives);
    }
    match &found[..] {
        [] => Meant::Nothing,
        [one] => Meant::One(one.id),
        several => Meant::Several(several.iter().map(|thing| book.shown(kind, name, thing)).collect()),
    }
}
