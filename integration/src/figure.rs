//! One measured figure, its target and its peer, and the table of them.

use serde::Serialize;

/// What a figure has to keep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// No less than the first, no more than the second.
    Between(f64, f64),
    /// Printed for who wants to know.
    None,
}

/// The same thing elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Peer {
    /// Who.
    pub name: String,
    /// In the figure's unit.
    pub value: f64,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Unit of all its numbers.
    pub unit: &'static str,
    /// What was found.
    pub measured: f64,
    /// What it has to keep.
    pub target: Target,
    /// Others, measured or computed in the same run.
    pub peers: Vec<Peer>,
    /// How it was measured, and what the peers' numbers are.
    pub how: String,
}

impl Figure {
    /// Whether the target is kept.
    pub fn is_met(&self) -> bool {
        match self.target {
            Target::AtMost(limit) => self.measured <= limit,
            Target::AtLeast(limit) => self.measured >= limit,
            Target::Between(least, most) => (least..=most).contains(&self.measured),
            Target::None => true,
        }
    }

    fn cells(&self) -> [String; 5] {
        let number = |value: f64| format!("{} {}", shown(value), self.unit);
        let target = match self.target {
            Target::AtMost(limit) => format!("<= {}", number(limit)),
            Target::AtLeast(limit) => format!(">= {}", number(limit)),
            Target::Between(least, most) => format!("{} to {}", shown(least), number(most)),
            Target::None => String::new(),
        };
        let verdict = match (self.target, self.is_met()) {
            (Target::None, _) => "",
            (_, true) => "met",
            (_, false) => "MISSED",
        };
        let peers: Vec<String> = self
            .peers
            .iter()
            .map(|peer| format!("{} {} (x {})", peer.name, number(peer.value), shown(self.measured / peer.value.max(f64::MIN_POSITIVE))))
            .collect();
        [self.name.clone(), target, number(self.measured), verdict.to_owned(), peers.join(", ")]
    }
}

/// Three significant digits are more than these measurements hold.
fn shown(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// All rows, and below them how each was measured.
pub fn table(figures: &[Figure]) -> String {
    let heads = ["figure", "target", "measured", "verdict", "peers (our figure as a multiple)"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(heads).chain(figures.iter().map(Figure::cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().enumerate().map(|(column, cell)| format!("{cell:<width$}", width = width(column))).collect();
        text += cells.join("  ").trim_end();
        text += "\n";
    }
    text += "\n";
    for figure in figures {
        text += &format!("{}: {}\n", figure.name, figure.how);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(measured: f64, target: Target) -> Figure {
        let peers = vec![Peer { name: "other".into(), value: 50.0 }];
        Figure { name: "gap".into(), unit: "ms", measured, target, peers, how: "seen".into() }
    }

    #[test]
    fn a_row_says_whether_its_target_is_kept_and_what_others_do() {
        let text = table(&[figure(25.0, Target::AtMost(24.9)), figure(25.0, Target::AtLeast(25.0)), figure(1.0, Target::None)]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("<= 24.9 ms") && lines[1].contains("MISSED") && lines[1].ends_with("other 50.0 ms (x 0.50)"), "{text}");
        assert!(lines[2].contains("met") && !lines[3].contains("met"), "{text}");
        assert_eq!(lines[5], "gap: seen");
    }
}
