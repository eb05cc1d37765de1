//! Who talks to whom on a LAN: rows send to columns, as a table and as a picture.

use std::fmt::Write;

use rebec_api::lan::{LanInfo, VmTraffic};
use serde::Serialize;

use super::{printable, size};

/// The last column: what went to all, and to stations of no VM.
const OTHERS: &str = "others";
/// Side of a place in the picture.
const SIDE: usize = 46;
/// Room for names beside and above it.
const MARGIN: usize = 150;

/// Bytes a second from each VM of a LAN to each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Matrix {
    /// The LAN.
    pub lan: String,
    /// Time in which what was counts half, in seconds.
    pub half_life_s: u64,
    /// Who sends, and who receives.
    pub vms: Vec<String>,
    /// A row for each VM: to each VM, then to others. None of whom nothing is known.
    pub bytes_per_s: Vec<Option<Vec<u64>>>,
}

impl Matrix {
    /// From what the hosts of the VMs answered.
    pub fn of(lan: &LanInfo, answers: &[(String, Option<VmTraffic>)]) -> Self {
        let vms: Vec<String> = answers.iter().map(|(vm, _)| vm.clone()).collect();
        let port_of = |mac: &str| lan.ports.iter().find(|port| port.mac == mac);
        let place_of = |mac: &str| port_of(mac).and_then(|port| vms.iter().position(|vm| *vm == port.vm)).unwrap_or(vms.len());
        let row = |(vm, answer): &(String, Option<VmTraffic>)| {
            let mut row = vec![0; vms.len() + 1];
            // A VM may be on other LANs with other NICs.
            let own = |nic: &str| port_of(nic).is_some_and(|port| port.vm == *vm);
            for flow in answer.as_ref()?.flows.iter().filter(|flow| own(&flow.nic)) {
                let place: &mut u64 = &mut row[place_of(&flow.station)];
                *place = place.saturating_add(flow.tx_bytes_per_s);
            }
            Some(row)
        };
        let half_life_s = answers.iter().find_map(|(_, answer)| answer.as_ref()).map_or(0, |answer| answer.half_life_s);
        Self { lan: lan.name.clone(), half_life_s, bytes_per_s: answers.iter().map(row).collect(), vms }
    }

    fn columns(&self) -> impl Iterator<Item = &str> {
        self.vms.iter().map(String::as_str).chain([OTHERS])
    }
}

/// As a table.
pub fn text(matrix: &Matrix) -> String {
    let heads = ["FROM \\ TO"].into_iter().chain(matrix.columns()).map(printable);
    let mut rows: Vec<Vec<String>> = vec![heads.collect()];
    for (vm, row) in matrix.vms.iter().zip(&matrix.bytes_per_s) {
        let cell = |at: usize| match row {
            None => "?".to_owned(),
            Some(row) if row[at] == 0 => "-".to_owned(),
            Some(row) => format!("{}/s", size(row[at])),
        };
        rows.push([printable(vm)].into_iter().chain((0..=matrix.vms.len()).map(cell)).collect());
    }
    let widths: Vec<usize> =
        (0..matrix.vms.len() + 2).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// As a picture: the darker, the more, by powers.
pub fn svg(matrix: &Matrix) -> String {
    let (columns, rows) = (matrix.vms.len() + 1, matrix.vms.len());
    let (width, height) = (MARGIN + columns * SIDE + 20, MARGIN + rows * SIDE + 20);
    let most = matrix.bytes_per_s.iter().flatten().flatten().copied().max().unwrap_or(0).max(1);
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>Who talks to whom on LAN {}</title>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n",
        escaped(&matrix.lan)
    );
    let mut put = |line: String| writeln!(picture, "{line}").expect("invariant: a String takes any text");
    for (at, name) in matrix.columns().enumerate() {
        let x = MARGIN + at * SIDE + SIDE / 2;
        put(format!("<text transform=\"translate({x} {}) rotate(-60)\">{}</text>", MARGIN - 8, escaped(name)));
    }
    for (row, name) in matrix.vms.iter().enumerate() {
        let y = MARGIN + row * SIDE;
        put(format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", MARGIN - 8, y + SIDE / 2 + 4, escaped(name)));
        for column in 0..columns {
            let x = MARGIN + column * SIDE;
            let (fill, word) = match &matrix.bytes_per_s[row] {
                None => ("#eee".to_owned(), "not known".to_owned()),
                Some(cells) => (shade(cells[column], most), format!("{}/s", size(cells[column]))),
            };
            put(format!(
                "<rect x=\"{x}\" y=\"{y}\" width=\"{SIDE}\" height=\"{SIDE}\" fill=\"{fill}\" stroke=\"#ccc\"><title>{word}</title></rect>"
            ));
        }
    }
    picture.push_str("</svg>\n");
    picture
}

/// White for nothing, dark for the most, in steps of powers.
fn shade(bytes: u64, most: u64) -> String {
    let weight = if bytes == 0 { 0.0 } else { ((bytes + 1) as f64).ln() / ((most + 1) as f64).ln() };
    let light = |dark: f64| (255.0 - weight * (255.0 - dark)).round() as u8;
    format!("#{:02x}{:02x}{:02x}", light(20.0), light(70.0), light(140.0))
}

fn escaped(text: &str) -> String {
    printable(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use rebec_api::lan::{Flow, PortInfo};

    use super::{super::screens, *};

    fn lan(vms: &[&str]) -> LanInfo {
        let port = |(number, vm): (usize, &&str)| PortInfo {
            vm: (*vm).to_owned(),
            host: "a1".into(),
            mac: format!("52:54:00:00:00:{number:02x}"),
            address: "10.5.0.8".parse().unwrap(),
            endpoint: String::new(),
        };
        LanInfo { ports: vms.iter().enumerate().map(port).collect(), ..screens::lan() }
    }

    fn flow(nic: &str, station: &str, tx_bytes_per_s: u64) -> Flow {
        let (nic, station) = (
            format!("52:54:00:00:00:{nic}"),
            if station == "all" { "ff:ff:ff:ff:ff:ff".into() } else { format!("52:54:00:00:00:{station}") },
        );
        Flow { nic, station, tx_bytes_per_s, rx_bytes_per_s: 0, tx_bytes: 0, tx_packets: 0, rx_bytes: 0, rx_packets: 0 }
    }

    fn matrix() -> Matrix {
        let traffic = |vm: &str, flows| VmTraffic { vm: vm.into(), half_life_s: 60, flows };
        let answers = [
            ("web".into(), Some(traffic("web", vec![flow("00", "01", 3 << 20), flow("00", "all", 60), flow("77", "01", 9)]))),
            ("db".into(), Some(traffic("db", vec![flow("01", "00", 200), flow("01", "55", 5)]))),
            ("b/mail".into(), None),
        ];
        Matrix::of(&lan(&["web", "db", "b/mail"]), &answers)
    }

    #[test]
    fn rows_send_to_columns() {
        let matrix = matrix();
        assert_eq!(matrix.bytes_per_s, [Some(vec![0, 3 << 20, 0, 60]), Some(vec![200, 0, 0, 5]), None]);
        assert_eq!(
            text(&matrix),
            "FROM \\ TO  web      db       b/mail  others\n\
             web        -        3 MiB/s  -       60 B/s\n\
             db         200 B/s  -        -       5 B/s\n\
             b/mail     ?        ?        ?       ?\n"
        );
    }

    #[test]
    fn a_picture_has_a_place_for_each_pair_and_nothing_of_a_name_but_its_text() {
        let mut matrix = matrix();
        matrix.vms[0] = "<script>\u{1b}".into();
        let picture = svg(&matrix);
        assert_eq!((picture.matches("<title>").count(), picture.matches("<rect x").count()), (13, 12));
        assert!(picture.contains("&lt;script&gt;") && !picture.contains("<script>") && picture.contains("3 MiB/s"));
        assert_eq!((shade(0, 9), shade(9, 9)), ("#ffffff".into(), "#14468c".into()));
    }
}
