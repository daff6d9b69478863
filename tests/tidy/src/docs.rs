//! What documents name must be there: files in backticks and behind links, and the tests of the traps they list.

use crate::tree::Source;
use std::path::Path;

/// Endings by which a word in backticks is taken for a file of this tree.
const FILES: &[&str] = &[".rs", ".md", ".py", ".S", ".ld", ".toml", ".sh"];

/// Files that a document names and that are not there. A name counts from the root or from the document's folder.
pub fn missing_files(root: &Path, sources: &[Source]) -> Vec<String> {
    let mut missing = Vec::new();
    for source in sources.iter().filter(|s| s.path.ends_with(".md")) {
        let folder = root.join(&source.path);
        let folder = folder.parent().unwrap_or(root);
        for (number, line) in source.text.lines().enumerate() {
            for name in named_files(line) {
                if !root.join(name).exists() && !folder.join(name).exists() {
                    missing.push(format!("{}:{}: there is no {name}", source.path, number + 1));
                }
            }
        }
    }
    missing
}

/// Files a line names: `folder/file.rs` in backticks, and targets of links within the tree.
fn named_files(line: &str) -> Vec<&str> {
    let quoted = line.split('`').skip(1).step_by(2);
    let whole = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let files = quoted.filter(|w| {
        w.contains('/')
            && !w.starts_with('/')
            && w.chars().all(whole)
            && FILES.iter().any(|end| w.ends_with(end))
    });
    let links = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let links = links.map(|l| l.split('#').next().unwrap_or(l));
    files.chain(links.filter(|l| !l.is_empty() && !l.contains("://") && l.chars().all(whole))).collect()
}

/// Protocols with numbered traps: how documents write them, and how the names of tests begin.
const TRAPS: &[(&str, &str)] = &[("R-", "r"), ("V3-", "v3"), ("NBD-", "nbd")];

/// Where a table of traps and the tests disagree. A row begins with its traps' numbers, then names files: each trap has a
/// test in one of them, each of them a test of one of these traps. Tests of exports that bear a number are in a row. A row
/// without files tells of something no test can show.
pub fn untested_traps(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut listed = Vec::new();
    for source in sources.iter().filter(|s| s.path.ends_with(".md")) {
        for (number, line) in source.text.lines().enumerate() {
            let place = format!("{}:{}", source.path, number + 1);
            let mut cells = line.split('|').skip(1);
            let traps = traps_of_row(cells.next().unwrap_or(""));
            let files: Vec<&str> = cells.flat_map(named_files).collect();
            if traps.is_empty() || files.is_empty() {
                continue;
            }
            let text = |file: &str| sources.iter().find(|s| s.path == file).map_or("", |s| &s.text);
            let tests: Vec<_> = files.iter().map(|file| tested_traps(text(file))).collect();
            for trap in traps.iter().filter(|trap| !tests.iter().flatten().any(|t| t == *trap)) {
                wrong.push(format!("{place}: no test of {trap} in the files named"));
            }
            for (file, tested) in
                files.iter().zip(&tests).filter(|(_, t)| !t.iter().any(|t| traps.contains(t)))
            {
                let found = if tested.is_empty() { "no trap" } else { "other traps" };
                wrong.push(format!("{place}: {file} tests {found}"));
            }
            listed.extend(traps.iter().flat_map(|trap| files.iter().map(move |file| (trap.clone(), *file))));
        }
    }
    for source in sources.iter().filter(|s| s.path.starts_with("export/")) {
        for trap in tested_traps(&source.text) {
            if !listed.iter().any(|(other, file)| (other, *file) == (&trap, &source.path)) {
                wrong.push(format!("{}: no document lists its test of {trap}", source.path));
            }
        }
    }
    wrong
}

/// The traps that the first cell of a row names, as `nbd_07`.
fn traps_of_row(cell: &str) -> Vec<String> {
    let words = cell.split(|c: char| c.is_whitespace() || c == ',');
    let trap = |word: &str| {
        let (written, name) = TRAPS.iter().find(|(written, _)| word.starts_with(written))?;
        let number = &word[written.len()..];
        (number.len() == 2 && is_number(number)).then(|| format!("{name}_{number}"))
    };
    words.filter_map(trap).collect()
}

/// The traps that tests in a file bear in their names: `fn nbd_06_07_…`.
fn tested_traps(text: &str) -> Vec<String> {
    let mut traps = Vec::new();
    for function in text.split("fn ").skip(1) {
        let mut parts = function.split('_');
        let Some((_, name)) = TRAPS.iter().find(|(_, name)| parts.clone().next() == Some(name)) else {
            continue;
        };
        parts.next();
        traps.extend(
            parts.take_while(|part| part.len() == 2 && is_number(part)).map(|n| format!("{name}_{n}")),
        );
    }
    traps
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_found_and_other_words_are_not() {
        assert_eq!(
            named_files("see `fs/src/lib.rs` and [this](docs/a.md#part)"),
            ["fs/src/lib.rs", "docs/a.md"]
        );
        assert!(
            named_files("`lib.rs`, `/etc/x.toml`, `a/*.rs`, `x::y/z`, [web](https://a.b/c.md), [here](#x)")
                .is_empty()
        );
        let document =
            Source { path: "README.md".to_owned(), text: "`no/such.rs` [x](Cargo.toml)".to_owned() };
        let root = crate::tree::root();
        assert_eq!(missing_files(&root, &[document]), ["README.md:1: there is no no/such.rs"]);
    }

    #[test]
    fn rows_of_traps_and_tests_are_compared_both_ways() {
        let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
        let tests = [
            source("export/a/t.rs", "fn nbd_06_07_both() {} fn v3_01_one() {} fn v3() {}"),
            source("export/a/u.rs", "fn r_05_again() {} fn name_06_of() {}"),
            source("export/a/v.rs", "fn other() {}"),
        ];
        let with = |rows: &str| {
            let document = source("docs/a.md", rows);
            untested_traps(&[&tests[..], &[document]].concat())
        };
        let right = "| NBD-06 a, NBD-07 b, V3-01 c | `export/a/t.rs` |\n| R-05 | `export/a/u.rs` |\n| R-03 | by hand |";
        assert_eq!(with(right), [""; 0]);
        assert_eq!(
            with(
                "| V3-01, V3-02, NBD-06, NBD-07 | `export/a/t.rs`, `export/a/v.rs` |\n| R-05 | `export/a/t.rs` |"
            ),
            [
                "docs/a.md:1: no test of v3_02 in the files named",
                "docs/a.md:1: export/a/v.rs tests no trap",
                "docs/a.md:2: no test of r_05 in the files named",
                "docs/a.md:2: export/a/t.rs tests other traps",
                "export/a/u.rs: no document lists its test of r_05",
            ]
        );
    }
}
