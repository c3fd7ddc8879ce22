//! What was measured, as tables and as a CSV of all rounds.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use crate::cases::median;

/// A measured value; `round` counts from 1.
struct Figure {
    case: &'static str,
    contestant: String,
    round: usize,
    measure: &'static str,
    value: f64,
}

#[derive(Default)]
pub(crate) struct Report {
    figures: Vec<Figure>,
    /// Case and contestant, in the order of their first mention.
    rows: Vec<(&'static str, String)>,
    /// Case, contestant and why.
    failures: Vec<(&'static str, String, String)>,
}

/// A column of a table: what was measured, its heading, and how many digits are shown behind the point.
pub(crate) type Column = (&'static str, &'static str, usize);

impl Report {
    pub(crate) fn add(
        &mut self,
        case: &'static str,
        contestant: &str,
        round: usize,
        measure: &'static str,
        value: f64,
    ) {
        self.mention(case, contestant);
        self.figures.push(Figure { case, contestant: contestant.into(), round, measure, value });
    }

    /// Says once that a contestant fails a case.
    pub(crate) fn fail(&mut self, case: &'static str, contestant: &str, why: String) {
        if !self.failed(case, contestant) {
            self.mention(case, contestant);
            self.failures.push((case, contestant.into(), why));
        }
    }

    fn mention(&mut self, case: &'static str, contestant: &str) {
        if !self.rows.iter().any(|(of, who)| *of == case && who == contestant) {
            self.rows.push((case, contestant.into()));
        }
    }

    pub(crate) fn failed(&self, case: &str, contestant: &str) -> bool {
        self.failures.iter().any(|(of, who, _)| *of == case && who == contestant)
    }

    /// Prints the medians of a case's rounds, with the smallest and the largest behind.
    pub(crate) fn print(&self, case: &'static str, title: &str, columns: &[Column]) {
        let headings: Vec<&str> = columns.iter().map(|(_, heading, _)| *heading).collect();
        println!("\n{title}\n\n| | {} |\n|---|{}", headings.join(" | "), "---|".repeat(columns.len()));
        for (_, name) in self.rows.iter().filter(|(of, _)| *of == case) {
            let failure = self.failures.iter().find(|(of, who, _)| *of == case && who == name);
            let cells = columns.iter().map(|column| self.cell(case, name, column));
            match failure {
                Some((.., why)) => println!("| {name} | fails: {why} |{}", " |".repeat(columns.len() - 1)),
                None => println!("| {name} | {} |", cells.collect::<Vec<_>>().join(" | ")),
            }
        }
    }

    fn cell(&self, case: &str, contestant: &str, &(measure, _, digits): &Column) -> String {
        let of = |figure: &&Figure| {
            (figure.case, figure.measure) == (case, measure) && figure.contestant == contestant
        };
        let mut values: Vec<f64> = self.figures.iter().filter(of).map(|figure| figure.value).collect();
        values.sort_unstable_by(f64::total_cmp);
        let (Some(least), Some(most)) = (values.first().copied(), values.last().copied()) else {
            return "-".into();
        };
        let middle = format!("{:.digits$}", median(values));
        let (least, most) = (format!("{least:.digits$}"), format!("{most:.digits$}"));
        if least == most { middle } else { format!("{middle} ({least} to {most})") }
    }

    /// Prints how many times another's median one's is.
    pub(crate) fn print_quotients(&self, case: &'static str, one: &str, other: &str, columns: &[Column]) {
        let of = |contestant: &str, measure: &str| {
            let figures =
                self.figures.iter().filter(|figure| (figure.case, figure.measure) == (case, measure));
            median(
                figures.filter(|figure| figure.contestant == contestant).map(|figure| figure.value).collect(),
            )
        };
        let known = |contestant: &str| {
            self.rows.contains(&(case, contestant.into())) && !self.failed(case, contestant)
        };
        if known(one) && known(other) {
            let quotient =
                |&(measure, _, _): &Column| format!("{:.2}", of(one, measure) / of(other, measure));
            let cells: Vec<String> = columns.iter().map(quotient).collect();
            println!("| {one} by {other} | {} |", cells.join(" | "));
        }
    }

    /// Writes all rounds to a file.
    pub(crate) fn write(&self, path: &str, command: &str) -> Result<(), String> {
        let mut csv = String::new();
        for line in [&date(), &machine(), &toolchain(), command] {
            writeln!(csv, "# {line}").map_err(|error| error.to_string())?;
        }
        csv += "case,contestant,round,measure,value\n";
        for Figure { case, contestant, round, measure, value } in &self.figures {
            writeln!(csv, "{case},\"{contestant}\",{round},{measure},{value}")
                .map_err(|error| error.to_string())?;
        }
        for (case, contestant, why) in &self.failures {
            writeln!(csv, "{case},\"{contestant}\",,\"fails: {why}\",").map_err(|error| error.to_string())?;
        }
        fs::write(path, csv).map_err(|error| format!("write {path}: {error}"))
    }
}

pub(crate) fn date() -> String {
    format!("date: {}", output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]))
}

pub(crate) fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "machine: {cores} cores, {}; kernel {}",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim()
    )
}

pub(crate) fn toolchain() -> String {
    format!("toolchain: {}, release profile", output("rustc", &["--version"]))
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().into())
}
