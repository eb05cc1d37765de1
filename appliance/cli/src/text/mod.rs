//! What people read: pure functions from answers to text. Programs read the JSON.

pub mod lists;
pub mod matrix;
pub mod report;
pub mod shows;
pub mod table;
pub mod trade;

#[cfg(test)]
mod screens;

/// Sizes as people say them; below ten with one digit after the point.
pub fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| bytes >= *unit) else { return format!("{bytes} B") };
    let (whole, tenth) = (bytes / unit, bytes % unit / (unit / 10));
    if whole < 10 && (1..10).contains(&tenth) { format!("{whole}.{tenth} {name}") } else { format!("{whole} {name}") }
}

/// A length of time in its largest unit.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long ago a time was; times and `now` in seconds since 1970.
pub fn age(time: u64, now: u64) -> String {
    span(now.saturating_sub(time))
}

/// How far off a time is.
pub fn until(time: u64, now: u64) -> String {
    if time > now { format!("in {}", span(time - now)) } else { "expired".to_owned() }
}

/// A time, in seconds since 1970, as people read it (RFC 3339).
pub fn utc(time: u64) -> String {
    let (days, second) = (time / 86_400, time % 86_400);
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": years begin in March, in eras of 400.
    let days = days.saturating_add(719_468);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Text from elsewhere reaches a terminal on one line and without its control characters.
pub fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).collect()
}

/// `1 host`, `2 hosts`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// The name that serde gives a state.
pub fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_spans_and_ages() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (512 << 20, "512 MiB"), (3 << 29, "1.5 GiB"), (1 << 40, "1 TiB"), (12_900_000, "12 MiB")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "16777215 TiB");
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (172_799, "47h"), (172_800, "2d")] {
            assert_eq!(span(seconds), text);
        }
        assert_eq!((age(100, 160), age(200, 100)), ("1m".to_owned(), "0s".to_owned()));
        assert_eq!((until(160, 100), until(100, 100)), ("in 1m".to_owned(), "expired".to_owned()));
    }

    #[test]
    fn times_are_dates() {
        for (time, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(time), text);
        }
        assert!(utc(u64::MAX).ends_with('Z'));
    }

    #[test]
    fn text_from_elsewhere_stays_on_its_line() {
        assert_eq!(printable("a\x1b[2J\nb\u{9b}c"), "a[2Jbc");
    }
}
