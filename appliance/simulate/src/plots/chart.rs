//! Draws lines or groups of bars as SVG: one size, one font, colours that differ for everyone (Okabe and Ito), numbers from 0.

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 170.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 54.0;
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000"];

/// A chart, whose series have a value at each of its places, if it is known.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// Below the places.
    pub x: &'static str,
    /// Beside the values.
    pub y: &'static str,
    /// What the places are called.
    pub places: Vec<String>,
    /// What is drawn.
    pub series: Vec<Series>,
    /// Bars side by side, or lines through points.
    pub bars: bool,
}

/// One colour.
#[derive(Debug, Clone)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// At each place.
    pub values: Vec<f64>,
}

impl Chart {
    /// The picture.
    pub fn svg(&self) -> String {
        let mut svg = String::new();
        let most = self.series.iter().flat_map(|series| &series.values).copied().fold(0.0, f64::max);
        let (top, step) = scale(most);
        self.frame(&mut svg, top, step);
        for (number, series) in self.series.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            if self.bars {
                self.draw_bars(&mut svg, number, series, colour, top);
            } else {
                self.draw_line(&mut svg, series, colour, top);
            }
            let y = TOP + 20.0 * number as f64;
            let x = WIDTH - RIGHT + 16.0;
            add(&mut svg, format_args!(r#"<rect x="{x:.0}" y="{y:.0}" width="12" height="12" fill="{colour}"/>"#));
            text(&mut svg, x + 18.0, y + 10.5, "start", &series.name);
        }
        svg + "</svg>\n"
    }

    fn frame(&self, svg: &mut String, top: f64, step: f64) {
        let size = format!(r#"width="{WIDTH:.0}" height="{HEIGHT:.0}" viewBox="0 0 {WIDTH:.0} {HEIGHT:.0}""#);
        add(svg, format_args!(r##"<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" fill="#222">"##));
        add(svg, format_args!(r##"<rect width="100%" height="100%" fill="#fff"/>"##));
        add(svg, format_args!(r#"<text x="{LEFT:.0}" y="24" font-size="15" font-weight="bold">{}</text>"#, escaped(&self.title)));
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let mut value = 0.0;
        while value <= top * 1.0001 {
            let y = height(value, top);
            add(svg, format_args!(r##"<path d="M{LEFT:.1} {y:.1}H{right:.1}" stroke="#ddd"/>"##));
            text(svg, LEFT - 8.0, y + 4.0, "end", &number(value, step));
            value += step;
        }
        // Names of places that would run into each other are left out.
        let widest = self.places.iter().map(|place| place.chars().count()).max().unwrap_or(1);
        let room = ((right - LEFT) / (widest as f64 * 7.5 + 10.0)).max(1.0);
        let every = (self.places.len() as f64 / room).ceil().max(1.0) as usize;
        for (at, place) in self.places.iter().enumerate().filter(|(at, _)| at % every == 0) {
            text(svg, self.across(at), bottom + 18.0, "middle", place);
        }
        text(svg, f64::midpoint(LEFT, right), HEIGHT - 14.0, "middle", self.x);
        let middle = f64::midpoint(TOP, bottom);
        add(
            svg,
            format_args!(r#"<text transform="translate(18 {middle:.0}) rotate(-90)" text-anchor="middle">{}</text>"#, escaped(self.y)),
        );
        add(svg, format_args!(r##"<path d="M{LEFT:.1} {bottom:.1}H{right:.1}" stroke="#222"/>"##));
    }

    fn draw_line(&self, svg: &mut String, series: &Series, colour: &str, top: f64) {
        let points: Vec<(f64, f64)> = series.values.iter().enumerate().map(|(at, value)| (self.across(at), height(*value, top))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        add(svg, format_args!(r#"<path d="M{}" fill="none" stroke="{colour}" stroke-width="2"/>"#, path.join("L")));
        for (x, y) in points.iter().filter(|_| points.len() <= 12) {
            add(svg, format_args!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#));
        }
    }

    fn draw_bars(&self, svg: &mut String, number_of: usize, series: &Series, colour: &str, top: f64) {
        let wide = self.place_wide() * 0.8 / self.series.len().max(1) as f64;
        for (at, value) in series.values.iter().enumerate() {
            let x = self.across(at) - wide * self.series.len() as f64 / 2.0 + wide * number_of as f64;
            let y = height(*value, top);
            let high = HEIGHT - BOTTOM - y;
            add(svg, format_args!(r#"<rect x="{x:.1}" y="{y:.1}" width="{:.1}" height="{high:.1}" fill="{colour}"/>"#, wide * 0.92));
            if wide > 30.0 {
                text(svg, x + wide * 0.46, y - 4.0, "middle", &number(*value, 0.01));
            }
        }
    }

    fn place_wide(&self) -> f64 {
        (WIDTH - RIGHT - LEFT) / self.places.len().max(1) as f64
    }

    fn across(&self, at: usize) -> f64 {
        LEFT + self.place_wide() * (at as f64 + 0.5)
    }
}

/// The greatest value that is drawn and the distance of lines: 1, 2 or 5 of a power of ten, five lines or so.
fn scale(most: f64) -> (f64, f64) {
    let rough = if most > 0.0 && most.is_finite() { most / 5.0 } else { 0.2 };
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= rough).unwrap_or(rough);
    ((most / step).ceil().max(1.0) * step, step)
}

fn height(value: f64, top: f64) -> f64 {
    HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value / top)
}

fn number(value: f64, step: f64) -> String {
    match step {
        step if step >= 1000.0 => format!("{:.0}k", value / 1000.0),
        step if step >= 1.0 => format!("{value:.0}"),
        step if step >= 0.1 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    add(svg, format_args!(r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#, escaped(words)));
}

fn add(svg: &mut String, line: std::fmt::Arguments<'_>) {
    svg.push_str(&format!("{line}\n"));
}

fn escaped(text: &str) -> String {
    let characters = text.chars().filter(|character| !character.is_control());
    let mut escaped = String::new();
    for character in characters {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_round_and_reach_the_greatest() {
        for (most, top, step) in
            [(4.4, 5.0, 1.0), (0.0, 0.2, 0.2), (99.0, 100.0, 20.0), (186_090.0, 200_000.0, 50_000.0), (f64::NAN, 0.2, 0.2)]
        {
            let (found, by) = scale(most);
            assert!((by - step).abs() < 1e-9 && (found - top).abs() < 1e-6 || most.is_nan(), "{most}: {found} by {by}");
        }
    }

    #[test]
    fn names_of_strangers_stay_text() {
        let series = vec![Series { name: "<a&\"\n>".into(), values: vec![1.0, 2.0] }];
        for bars in [false, true] {
            let chart = Chart { title: "t".into(), x: "x", y: "y", places: vec!["1".into(), "2".into()], series: series.clone(), bars };
            let svg = chart.svg();
            assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("&lt;a&amp;&quot;&gt;"), "{svg}");
            assert!(!svg.contains("NaN"), "{svg}");
        }
    }
}
