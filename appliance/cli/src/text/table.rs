//! Aligned columns: no borders, no colour, two spaces between columns, nothing at the end of a line.

use super::printable;

/// What stands in an empty cell.
const NOTHING: &str = "-";

/// Rows under their headings. A row has as many cells as there are headings.
pub fn table<const COLUMNS: usize>(headings: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let cells = |row: &[String; COLUMNS]| row.each_ref().map(|cell| if cell.is_empty() { NOTHING.to_owned() } else { printable(cell) });
    let lines: Vec<[String; COLUMNS]> = std::iter::once(headings.map(str::to_owned)).chain(rows.iter().map(cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let render = |line: &[String; COLUMNS]| {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(render).collect()
}

/// Names and values, one pair a line; a pair without a name continues the one above.
pub fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let render = |(name, value): &(&str, String)| {
        let value = if value.is_empty() { NOTHING.to_owned() } else { printable(value) };
        format!("{name:<width$}  {value}\n")
    };
    pairs.iter().map(render).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters() {
        let rows = [["wéb".to_owned(), String::new(), "1".to_owned()], ["a-long-name".to_owned(), "x\ny".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "B", "LAST"], &rows), "NAME         B   LAST\nwéb          -   1\na-long-name  xy  -\n");
        assert_eq!(table(["NAME", "B"], &[]), "NAME  B\n");
    }

    #[test]
    fn pairs_share_a_column() {
        let text = pairs(&[("name", "web".to_owned()), ("nic", "a".to_owned()), ("", "b".to_owned()), ("reason", String::new())]);
        assert_eq!(text, "name    web\nnic     a\n        b\nreason  -\n");
    }
}
