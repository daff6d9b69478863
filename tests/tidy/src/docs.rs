//! What documents name must be there: files in backticks and behind links.

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
}
