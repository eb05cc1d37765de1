//! Hours of the week, in UTC: `mon-fri 18:00-08:00`, `sat-sun`, `20:00-06:00`. A span that ends before it begins goes on into the next day.

use std::{fmt, ops::Range};

const DAY: u32 = 24 * 60;
const WEEK: u32 = 7 * DAY;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// 1970 began on a Thursday.
const EPOCH: u64 = 3 * DAY as u64;

/// When something is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calendar {
    /// Minutes of the week, apart and in order.
    open: Vec<Range<u32>>,
    /// As it was written.
    text: String,
}

impl Calendar {
    /// Every minute.
    pub fn always() -> Self {
        Self { open: std::iter::once(0..WEEK).collect(), text: "always".into() }
    }

    /// The minutes that any of the spans names.
    ///
    /// # Errors
    /// The number of the span that is wrong, and what is.
    pub fn of(spans: &[&str]) -> Result<Self, (usize, String)> {
        let mut found: Vec<Range<u32>> = vec![];
        for (number, span) in spans.iter().enumerate() {
            let (days, (from, to)) = parse(span).map_err(|why| (number, why))?;
            for day in days {
                let start = day * DAY + from;
                let end = day * DAY + if to > from { to } else { to + DAY };
                found.push(start..end.min(WEEK));
                if end > WEEK {
                    found.push(0..end - WEEK);
                }
            }
        }
        found.sort_by_key(|range| (range.start, range.end));
        let mut open: Vec<Range<u32>> = vec![];
        for range in found.into_iter().filter(|range| !range.is_empty()) {
            match open.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => open.push(range),
            }
        }
        Ok(Self { open, text: spans.join(", ") })
    }

    /// Whether it is open at a time, in seconds since 1970.
    pub fn is_open(&self, now: u64) -> bool {
        let minute = minute(now);
        self.open.iter().any(|range| range.contains(&minute))
    }

    /// When it closes next, in seconds since 1970; none if it does not, and `now` if it is closed.
    pub fn closes(&self, now: u64) -> Option<u64> {
        let (begun, mut at, mut ahead) = (now / 60 * 60, minute(now), 0);
        while ahead < WEEK {
            let Some(range) = self.open.iter().find(|range| range.contains(&at)) else {
                return Some(if ahead == 0 { now } else { begun.saturating_add(u64::from(ahead) * 60) });
            };
            ahead += range.end - at;
            at = range.end % WEEK;
        }
        None
    }
}

impl fmt::Display for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Monday's first minute is 0.
fn minute(now: u64) -> u32 {
    u32::try_from((now / 60).saturating_add(EPOCH) % u64::from(WEEK)).unwrap_or_default()
}

type Span = (Vec<u32>, (u32, u32));

fn parse(span: &str) -> Result<Span, String> {
    let wrong = || format!("`{span}` names no hours; write days, hours or both, as in \"mon-fri 18:00-08:00\"");
    let words: Vec<&str> = span.split_whitespace().collect();
    let whole = (0, DAY);
    match words[..] {
        [days, hours] => Ok((these_days(days).ok_or_else(wrong)?, these_hours(hours).ok_or_else(wrong)?)),
        [one] => match (these_days(one), these_hours(one)) {
            (Some(days), _) => Ok((days, whole)),
            (None, Some(hours)) => Ok(((0..7).collect(), hours)),
            (None, None) => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}

fn these_days(text: &str) -> Option<Vec<u32>> {
    let day = |name: &str| DAYS.iter().position(|day| *day == name).and_then(|day| u32::try_from(day).ok());
    match text.split_once('-') {
        None => Some(vec![day(text)?]),
        Some((first, last)) => {
            let (first, last) = (day(first)?, day(last)?);
            let many = (last + 7 - first) % 7;
            Some((0..=many).map(|step| (first + step) % 7).collect())
        }
    }
}

fn these_hours(text: &str) -> Option<(u32, u32)> {
    let time = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        let digits = |text: &str| (text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse::<u32>().ok())?;
        let (hour, minute) = (digits(hour)?, digits(minute)?);
        (minute < 60 && hour * 60 + minute <= DAY).then_some(hour * 60 + minute)
    };
    let (from, to) = text.split_once('-')?;
    let (from, to) = (time(from)?, time(to)?);
    (from < DAY && from != to).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Monday, 7 January 2019, 00:00.
    const MONDAY: u64 = 1_546_819_200;

    fn at(day: u64, hour: u64, minute: u64) -> u64 {
        MONDAY + (day * 24 + hour) * 3600 + minute * 60
    }

    #[test]
    fn nights_go_on_into_the_next_day_and_the_week_is_a_circle() {
        let nights = Calendar::of(&["mon-fri 18:00-08:00", "sun 22:00-24:00"]).unwrap();
        for (day, hour, minute, open) in [
            (0, 17, 59, false),
            (0, 18, 0, true),
            (1, 7, 59, true),
            (1, 8, 0, false),
            (5, 7, 59, true),
            (5, 8, 0, false),
            (5, 20, 0, false),
            (6, 23, 59, true),
            (7, 0, 0, false),
        ] {
            assert_eq!(nights.is_open(at(day, hour, minute)), open, "day {day}, {hour}:{minute}");
        }
        assert_eq!(nights.closes(at(0, 19, 30) + 5), Some(at(1, 8, 0)));
        assert_eq!(nights.closes(at(0, 9, 0) + 5), Some(at(0, 9, 0) + 5));
        let sundays = Calendar::of(&["sun 20:00-06:00"]).unwrap();
        assert_eq!(sundays.closes(at(6, 21, 0)), Some(at(7, 6, 0)));
        assert!(sundays.is_open(at(7, 5, 59)) && !sundays.is_open(at(7, 6, 0)));
    }

    #[test]
    fn what_never_closes_says_so() {
        assert_eq!(Calendar::always().closes(at(3, 4, 5)), None);
        let all = Calendar::of(&["mon-sun"]).unwrap();
        assert_eq!((all.closes(at(2, 0, 0)), all.is_open(at(6, 23, 59))), (None, true));
        let weekend = Calendar::of(&["fri-mon"]).unwrap();
        assert_eq!(
            (weekend.is_open(at(0, 1, 0)), weekend.is_open(at(1, 1, 0)), weekend.closes(at(4, 0, 0))),
            (true, false, Some(at(8, 0, 0)))
        );
        assert!(!Calendar::of(&[]).unwrap().is_open(at(0, 0, 0)));
    }

    #[test]
    fn what_names_no_hours_is_refused() {
        for span in [
            "",
            "monday",
            "mon tue",
            "25:00-26:00",
            "08:00-08:00",
            "8:00-9:00",
            "24:00-08:00",
            "mon 08:00",
            "mon-fri 08:60-09:00",
            "a b c",
            "é-ü",
        ] {
            assert_eq!(Calendar::of(&["mon", span]).unwrap_err().0, 1, "{span}");
        }
    }
}
