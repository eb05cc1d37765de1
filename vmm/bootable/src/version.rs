//! Versions in their order, as the Boot Loader Specification has it (uapi-group.org, "Version Format Specification").

use std::cmp::Ordering;

/// Whether `a` is older than `b`.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        (a, b) = (without_odd(a), without_odd(b));
        // What begins with one of these is older than what ends, and that older than what goes on.
        for mark in [b'~', b'-', b'^', b'.'] {
            match (a.first() == Some(&mark), b.first() == Some(&mark)) {
                (true, true) => {
                    (a, b) = (&a[1..], &b[1..]);
                    break;
                }
                (true, false) if mark == b'~' => return Ordering::Less,
                (false, true) if mark == b'~' => return Ordering::Greater,
                (true, false) => return if b.is_empty() { Ordering::Greater } else { Ordering::Less },
                (false, true) => return if a.is_empty() { Ordering::Less } else { Ordering::Greater },
                (false, false) => {}
            }
        }
        let is_number = a.first().is_some_and(u8::is_ascii_digit) || b.first().is_some_and(u8::is_ascii_digit);
        let (mine, theirs);
        (mine, a) = if is_number { split(a, u8::is_ascii_digit) } else { split(a, u8::is_ascii_alphabetic) };
        (theirs, b) = if is_number { split(b, u8::is_ascii_digit) } else { split(b, u8::is_ascii_alphabetic) };
        let order = if is_number { numbers(mine, theirs) } else { letters(mine, theirs) };
        if order != Ordering::Equal {
            return order;
        }
        if a.is_empty() && b.is_empty() {
            return Ordering::Equal;
        }
    }
}

fn without_odd(text: &[u8]) -> &[u8] {
    split(text, |byte| !(byte.is_ascii_alphanumeric() || b"~-^.".contains(byte))).1
}

fn split(text: &[u8], belongs: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !belongs(byte)).unwrap_or(text.len()))
}

fn numbers(a: &[u8], b: &[u8]) -> Ordering {
    let (a, b) = (split(a, |byte| *byte == b'0').1, split(b, |byte| *byte == b'0').1);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Capital letters first, as in ASCII.
fn letters(a: &[u8], b: &[u8]) -> Ordering {
    a.cmp(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_examples_are_in_order() {
        let rising = ["", "~1", "1", "1~", "1-", "1.0"];
        assert_eq!(compare(rising[1], rising[0]), Ordering::Less);
        for (older, newer) in [
            ("122.1", "123~rc1-1"),
            ("123~rc1-1", "123"),
            ("123", "123-a"),
            ("123-a", "123-a.1"),
            ("123-a.1", "123-1"),
            ("123-1", "123-1.1"),
            ("123-1.1", "123^post1"),
            ("123^post1", "123.a-1"),
            ("123.a-1", "123.1-1"),
            ("123.1-1", "123a-1"),
            ("123a-1", "124-1"),
            ("6.1.0-9-amd64", "6.1.0-31-amd64"),
            ("6.1.0-31-amd64", "6.12.57+deb13-amd64"),
            ("6.11.4-301.fc41.x86_64", "6.11.10-300.fc41.x86_64"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{older} {newer}");
        }
        assert_eq!(compare("1_2", "12"), Ordering::Less);
        assert_eq!(compare("1.02", "1.2"), Ordering::Equal);
    }
}
