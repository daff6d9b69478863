//! Imports run one way: `kernel | host | sim -> appliance -> export -> fs -> platform`, and `kernel | sim -> net,
//! drivers -> platform`. Tests (dev-dependencies) may import anything.

use crate::tree::Source;

/// Each crate's folder and the crates of this workspace it may depend on. A new crate gets its line here.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("platform", &[]),
    ("fs/accel", &["platform"]),
    ("fs/format", &["platform", "accel"]),
    ("fs", &["platform", "accel", "format"]),
    ("export/share", &["platform", "fs"]),
    ("export/nfs", &["platform", "fs", "share"]),
    ("export/nbd", &["platform", "fs", "share"]),
    ("appliance", &["platform", "fs", "accel", "share", "nfs", "nbd"]),
    ("net", &["platform"]),
    ("drivers", &["platform"]),
    ("drivers/fake", &["platform", "drivers"]),
    ("boot", &[]),
    ("boot/image", &[]),
    ("kernel", &["platform", "boot", "drivers", "net", "fs", "appliance", "model"]),
    ("host", &["platform", "boot", "fs", "format", "accel", "appliance", "model"]),
    ("model", &["platform", "fs"]),
    (
        "sim",
        &[
            "platform",
            "fs",
            "format",
            "accel",
            "model",
            "share",
            "nfs",
            "nbd",
            "appliance",
            "net",
            "drivers",
            "fake",
        ],
    ),
    ("bench", &["platform", "fs", "format", "host"]),
    ("tests/tidy", &[]),
];

/// Crates outside `default-members`: they have a build call of their own, so that features never unify.
const OUTSIDE_DEFAULT: &[&str] = &["bench", "kernel"];

/// The crates of this workspace that a manifest names in its `[dependencies]` and `[build-dependencies]`.
pub fn imports(manifest: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut counts = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            counts = section.ends_with("dependencies") && !section.ends_with("dev-dependencies");
            if let Some(name) = section.strip_prefix("dependencies.moraine-") {
                found.push(name.to_owned());
            }
        } else if counts && let Some(rest) = line.strip_prefix("moraine-") {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len());
            found.push(rest[..end].to_owned());
        }
    }
    found
}

/// Manifests that import against the direction, or that the table does not know.
pub fn wrong_way(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources {
        let Some(folder) = source.path.strip_suffix("/Cargo.toml") else { continue };
        if folder == "fuzz" || folder.starts_with("fuzz/") {
            continue;
        }
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(f, _)| *f == folder) else {
            wrong.push(format!("{}: give this crate its line in tests/tidy/src/imports.rs", source.path));
            continue;
        };
        for import in imports(&source.text) {
            if !allowed.contains(&import.as_str()) {
                wrong.push(format!("{}: {folder} may not import {import}", source.path));
            }
        }
    }
    wrong
}

/// Crates whose manifests may speak of planted faults: the one that holds them, and the one whose test looks for them.
const PLANTED: &[&str] = &["fs/Cargo.toml", "sim/Cargo.toml"];

/// Manifests that could bring planted faults into a program, and default features that would.
pub fn planted(sources: &[Source]) -> Vec<String> {
    let manifests = sources.iter().filter(|s| s.path.ends_with("Cargo.toml"));
    let speaks = |s: &&Source| s.text.contains("planted") && !PLANTED.contains(&s.path.as_str());
    let by_default = |s: &Source| s.text.lines().any(|l| l.starts_with("default") && l.contains("planted"));
    let asks = |l: &str| l.contains("features = [") && l.contains("\"planted\"");
    // A test that requires the feature to be there does not bring it.
    let depends = |s: &Source| s.text.lines().any(|l| asks(l) && !l.starts_with("required-features"));
    let wrong = manifests.filter(|s| speaks(s) || by_default(s) || depends(s));
    wrong.map(|s| format!("{}: planted faults are for one test only", s.path)).collect()
}

/// Members of the workspace that are in `default-members` and must not be.
pub fn wrongly_default(workspace: &str) -> Vec<String> {
    let list = workspace.split("default-members").nth(1).and_then(|t| t.split(']').next()).unwrap_or("");
    let wrong = OUTSIDE_DEFAULT.iter().filter(|name| list.contains(&format!("\"{name}\"")));
    wrong.map(|name| format!("Cargo.toml: {name} is in default-members")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn an_import_upwards_is_found_and_one_for_tests_is_not() {
        let upward = manifest("fs/Cargo.toml", "[dependencies]\nmoraine-nbd.workspace = true\n");
        assert_eq!(wrong_way(&[upward]), ["fs/Cargo.toml: fs may not import nbd"]);
        let table = manifest("fs/Cargo.toml", "[dependencies.moraine-nfs]\npath = \"../export/nfs\"\n");
        assert_eq!(wrong_way(&[table]).len(), 1);
        let target = manifest("net/Cargo.toml", "[target.'cfg(unix)'.dependencies]\nmoraine-fs = \"0\"\n");
        assert_eq!(wrong_way(&[target]).len(), 1);
        let tests = manifest("fs/Cargo.toml", "[dev-dependencies]\nmoraine-sim.workspace = true\n");
        assert!(wrong_way(&[tests]).is_empty());
        assert_eq!(wrong_way(&[manifest("attic/Cargo.toml", "")]).len(), 1, "unknown crates are named");
    }

    #[test]
    fn the_kernel_among_default_members_is_found() {
        assert!(wrongly_default("members = [\"kernel\"]\ndefault-members = [\"fs\"]").is_empty());
        assert_eq!(wrongly_default("default-members = [\"fs\", \"kernel\"]").len(), 1);
    }
}
