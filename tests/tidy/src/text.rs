//! What may stand in a file: a header on top, a bounded length, `unsafe` in its rooms only, no unfinished work, no
//! path of the machine it was written on.

use crate::tree::Source;

/// The longest file, in lines. A file that needs more holds more than one idea.
pub const LINES_MAX: usize = 800;

/// Folders whose crates may hold `unsafe`; every other crate forbids it.
const UNSAFE_ROOMS: &[&str] = &["boot/", "kernel/", "drivers/", "fs/accel/", "bench/", "fuzz/base/"];

/// Library crates that are linked into the boot image.
const IMAGE_ROOMS: &[&str] = &[
    "platform",
    "fs",
    "fs/format",
    "fs/accel",
    "export/share",
    "export/nfs",
    "export/nbd",
    "net",
    "drivers",
    "appliance",
    "model",
];

/// Words of unfinished or silenced work, in two halves so that this file passes its own test.
const UNFINISHED: &[(&str, &str)] = &[
    ("todo", "!("),
    ("unimplemented", "!("),
    ("dbg", "!("),
    ("TO", "DO"),
    ("FIX", "ME"),
    ("XX", "X"),
    ("#[ign", "ore"),
];

/// Beginnings of absolute paths that exist on one person's machine only, in two halves as above.
const MACHINE_PATHS: &[(&str, &str)] = &[("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/"), ("/Us", "ers/")];

/// Rust files whose first line is not a `//!` header.
pub fn without_header(sources: &[Source]) -> Vec<String> {
    let bare = |s: &&Source| s.is_rust() && !s.text.starts_with("//! ");
    sources.iter().filter(bare).map(|s| format!("{}: no `//!` header on the first line", s.path)).collect()
}

/// Rust files longer than [`LINES_MAX`].
pub fn too_long(sources: &[Source]) -> Vec<String> {
    let lines = |s: &Source| s.text.lines().count();
    let long = sources.iter().filter(|s| s.is_rust() && lines(s) > LINES_MAX);
    long.map(|s| format!("{}: {} lines, at most {LINES_MAX}", s.path, lines(s))).collect()
}

/// Uses of `unsafe` outside the rooms for it, and crate roots outside them that do not forbid it.
pub fn unsafe_elsewhere(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust()) {
        if UNSAFE_ROOMS.iter().any(|room| source.path.starts_with(room)) {
            continue;
        }
        let root = ["/src/lib.rs", "/src/main.rs"].iter().any(|end| source.path.ends_with(end))
            || source.path.contains("/src/bin/");
        if root && !source.text.contains("#![forbid(unsafe_code)]") {
            wrong.push(format!("{}: does not forbid unsafe code", source.path));
        }
        for (number, line) in source.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let used = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe trait", "unsafe extern", "#[unsafe("];
            // A quoted word (in this very file, say) is no use of it.
            if !code.contains('"') && used.iter().any(|u| code.contains(u)) {
                wrong.push(format!("{}:{}: unsafe outside its rooms", source.path, number + 1));
            }
        }
    }
    wrong
}

/// Crates linked into the boot image that would pull the standard library in.
pub fn with_std(sources: &[Source]) -> Vec<String> {
    let root = |s: &&Source| IMAGE_ROOMS.iter().any(|room| s.path == format!("{room}/src/lib.rs"));
    let wrong = sources.iter().filter(root).filter(|s| !s.text.contains("#![no_std]"));
    wrong.map(|s| format!("{}: is linked into the image and not `no_std`", s.path)).collect()
}

/// Lines of Rust with words of unfinished or silenced work.
pub fn unfinished(sources: &[Source]) -> Vec<String> {
    find(sources.iter().filter(|s| s.is_rust()), UNFINISHED)
}

/// Lines of any file that name a path of one machine.
pub fn machine_paths(sources: &[Source]) -> Vec<String> {
    find(sources.iter(), MACHINE_PATHS)
}

fn find<'a>(sources: impl Iterator<Item = &'a Source>, words: &[(&str, &str)]) -> Vec<String> {
    let words: Vec<String> = words.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let mut found = Vec::new();
    for source in sources {
        for (number, line) in source.text.lines().enumerate() {
            for word in words.iter().filter(|w| holds(line, w)) {
                found.push(format!("{}:{}: `{word}`", source.path, number + 1));
            }
        }
    }
    found
}

/// Whether `line` holds `word`, not as the head or tail of a longer word or path.
fn holds(line: &str, word: &str) -> bool {
    let path = word.starts_with('/');
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let joins_before = |c: char| is_word(c) || (path && "./-}".contains(c));
    let joins_after = |c: char| is_word(c) && word.ends_with(is_word);
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(joins_before) && !after.is_some_and(joins_after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rust(text: &str) -> [Source; 1] {
        [Source { path: "fs/src/lib.rs".to_owned(), text: text.to_owned() }]
    }

    #[test]
    fn a_missing_header_and_a_long_file_are_found() {
        assert_eq!(without_header(&rust("use x;\n")).len(), 1);
        assert!(without_header(&rust("//! Says what.\n")).is_empty());
        assert_eq!(too_long(&rust(&"\n".repeat(LINES_MAX + 1))).len(), 1);
        assert!(too_long(&rust(&"\n".repeat(LINES_MAX))).is_empty());
    }

    #[test]
    fn unsafe_is_found_in_code_but_not_in_its_rooms() {
        let block = "#![forbid(unsafe_code)]\nfn f() { unsafe { g() } }";
        assert_eq!(unsafe_elsewhere(&rust(block)), ["fs/src/lib.rs:2: unsafe outside its rooms"]);
        assert_eq!(unsafe_elsewhere(&rust("//! Root.\n")), ["fs/src/lib.rs: does not forbid unsafe code"]);
        let room = Source { path: "fs/accel/src/lib.rs".to_owned(), text: block.to_owned() };
        assert!(unsafe_elsewhere(&[room]).is_empty());
    }

    #[test]
    fn a_library_of_the_image_with_std_is_found() {
        assert_eq!(with_std(&rust("//! Root.\n")).len(), 1);
        assert!(with_std(&rust("//! Root.\n#![no_std]\n")).is_empty());
    }

    #[test]
    fn unfinished_work_is_found() {
        for (a, b) in UNFINISHED {
            assert_eq!(unfinished(&rust(&format!("    {a}{b} later"))).len(), 1, "{a}{b}");
        }
        assert!(unfinished(&rust("let x = AXXXA;")).is_empty());
    }

    #[test]
    fn paths_of_one_machine_are_found_and_longer_paths_are_not() {
        for (a, b) in MACHINE_PATHS {
            assert_eq!(machine_paths(&rust(&format!("open(\"{a}{b}x\")"))).len(), 1, "{a}{b}");
            assert!(machine_paths(&rust(&format!("open(\"mnt{a}{b}x\")"))).is_empty(), "mnt{a}{b}");
        }
    }
}
