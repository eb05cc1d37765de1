//! What is asked of the book before a VM gets a place: in which domain it stays.

use rebec_book::{Book, Key};

/// The domain that a VM stays in where nobody says otherwise: its home's, if that is this host's own.
pub fn stays_in(book: &Book, home: &Key) -> Option<Key> {
    book.own_domain().filter(|own| book.domain_of(home) == Some(*own))
}
