//! Numbers for monitoring: families of samples as a VMM tells them, and Prometheus' text format, version 0.0.4.
//!
//! A family says itself what it is, so that an agent passes on what a newer VMM counts.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the text is, for HTTP.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Numbers of one meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Family {
    /// As in `rebec_vm_net_frames_total`.
    pub name: String,
    /// One line for people.
    pub help: String,
    /// How it behaves.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The numbers.
    pub samples: Vec<Sample>,
}

/// How numbers of a family behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// They only grow, but for new beginnings.
    Counter,
    /// They come and go; also what a newer program calls otherwise.
    #[serde(other)]
    Gauge,
}

/// One number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Whose: names and values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of: Vec<(String, String)>,
    /// The number.
    pub is: f64,
}

impl Family {
    /// A family of counters without numbers yet.
    pub fn counter(name: &str, help: &str) -> Self {
        Self { name: name.into(), help: help.into(), kind: Kind::Counter, samples: vec![] }
    }

    /// A family of gauges without numbers yet.
    pub fn gauge(name: &str, help: &str) -> Self {
        Self { kind: Kind::Gauge, ..Self::counter(name, help) }
    }

    /// With one number more.
    pub fn with(mut self, of: &[(&str, &str)], is: f64) -> Self {
        self.add(of, is);
        self
    }

    /// Adds a number.
    pub fn add(&mut self, of: &[(&str, &str)], is: f64) {
        let of = of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.samples.push(Sample { of, is });
    }

    /// Says of each number whose it is, before all else.
    pub fn belongs(mut self, of: &[(&str, &str)]) -> Self {
        for sample in &mut self.samples {
            let own = std::mem::take(&mut sample.of);
            sample.of = of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).chain(own).collect();
        }
        self
    }
}

/// Puts families of one name together, in the order in which the names came.
pub fn join(families: impl IntoIterator<Item = Family>) -> Vec<Family> {
    let mut joined: Vec<Family> = vec![];
    for family in families {
        match joined.iter_mut().find(|known| known.name == family.name) {
            Some(known) => known.samples.extend(family.samples),
            None => joined.push(family),
        }
    }
    joined
}

/// The text that Prometheus reads. What has no number, and what is no name there, is left out.
pub fn text(families: &[Family]) -> String {
    families.iter().filter(|family| is_name(&family.name) && !family.samples.is_empty()).map(Family::to_string).collect()
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let name = &self.name;
        writeln!(f, "# HELP {name} {}", escaped(&self.help, false))?;
        writeln!(f, "# TYPE {name} {kind}")?;
        self.samples.iter().try_for_each(|sample| writeln!(f, "{name}{} {}", labels(&sample.of), sample.is))
    }
}

fn labels(of: &[(String, String)]) -> String {
    let pairs = of.iter().filter(|(name, _)| is_name(name) && !name.contains(':'));
    let pairs: Vec<_> = pairs.map(|(name, value)| format!("{name}=\"{}\"", escaped(value, true))).collect();
    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
}

fn is_name(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    name.chars().all(|c| is_letter(c) || c.is_ascii_digit()) && name.starts_with(is_letter)
}

fn escaped(text: &str, quoted: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '"' if quoted => escaped.push_str("\\\""),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let frames = Family::counter("rebec_frames_total", "Frames, by \"way\"\nand \\ NIC.");
        let frames = frames.with(&[("nic", "a\"b\\c\nd"), ("way", "rx")], 18_446_744_073_709_551_615_u64 as f64);
        let frames = frames.with(&[], 1.5);
        let bad = [Family::gauge("1st", "no name").with(&[], 1.0), Family::gauge("empty", "nothing")];
        let bad_label = Family::gauge("ok", "one").with(&[("a b", "c")], 0.0);
        let all: Vec<_> = [frames, bad_label].into_iter().chain(bad).collect();
        let expected = "# HELP rebec_frames_total Frames, by \"way\"\\nand \\\\ NIC.\n# TYPE rebec_frames_total counter\n\
                        rebec_frames_total{nic=\"a\\\"b\\\\c\\nd\",way=\"rx\"} 18446744073709552000\nrebec_frames_total 1.5\n\
                        # HELP ok one\n# TYPE ok gauge\nok 0\n";
        assert_eq!(text(&all), expected);
    }

    #[test]
    fn families_of_several_vms_are_one() {
        let of = |vm: &str, is| Family::counter("x_total", "X.").with(&[("nic", "0")], is).belongs(&[("vm", vm)]);
        let other = Family::gauge("y", "Y.").with(&[], 1.0);
        let joined = join([of("web", 1.0), other.clone(), of("db", 2.0)]);
        assert_eq!(joined.len(), 2);
        assert_eq!(joined[0].samples[1].of, [("vm".to_owned(), "db".to_owned()), ("nic".to_owned(), "0".to_owned())]);
        assert_eq!(joined[1], other);
    }

    #[test]
    fn a_line_reads_as_documented() {
        let line = r#"{"name":"x_total","help":"X.","type":"counter","samples":[{"of":[["nic","0"]],"is":3.0},{"is":0.5}]}"#;
        let family: Family = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&family).unwrap(), line);
        let newer: Family = serde_json::from_str(r#"{"name":"x","help":"X.","type":"histogram","samples":[],"unit":"s"}"#).unwrap();
        assert_eq!(newer.kind, Kind::Gauge);
    }
}
