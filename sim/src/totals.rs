//! What tests of worlds counted, gathered over all their processes: a test harness that is quiet swallows what they print.
//!
//! With `MORAINE_TOTALS=FILE` in the environment each note is a line at the end of FILE: `worlds WORLDS CUTS NAME` of worlds
//! by seed with their power cuts, or `cuts WORLDS CUTS NAME` of cuts at every command, each with what it may leave of
//! caches, and of the different worlds recovered from them. `scripts/test` sums them up.

use crate::crash::CrashReport;
use crate::harness::Tally;
use std::fs::OpenOptions;
use std::io::Write;

/// The variable that names the file.
const FILE: &str = "MORAINE_TOTALS";

/// Notes and prints worlds of one kind.
pub fn worlds(kind: &str, total: Tally) {
    println!("{kind}: {} worlds, {} steps, {} power cuts", total.worlds, total.steps, total.cuts);
    note(&line("worlds", total.worlds, total.cuts, kind));
}

/// Notes cuts at every command, in recoveries too.
pub(crate) fn cuts(report: &CrashReport) {
    note(&line_of(report));
}

fn line_of(report: &CrashReport) -> String {
    line("cuts", report.distinct_worlds() as u64, report.images as u64, &report.name)
}

fn line(what: &str, worlds: u64, cuts: u64, name: &str) -> String {
    format!("{what} {worlds} {cuts} {}\n", name.replace('\n', " "))
}

/// Appends a line in one write, so that lines of tests that run beside each other stay whole.
fn note(line: &str) {
    let Some(path) = std::env::var_os(FILE) else { return };
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    written.unwrap_or_else(|why| panic!("{FILE}={}: {why}", path.display()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_line_with_all_its_levels() {
        let report = CrashReport {
            name: "a\nb".to_owned(),
            images: 1000,
            worlds: 3,
            second_worlds: 40,
            third_worlds: 500,
            ..CrashReport::default()
        };
        assert_eq!(line_of(&report), "cuts 543 1000 a b\n");
    }
}
