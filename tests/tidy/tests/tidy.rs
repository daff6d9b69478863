//! Holds the rules of `moraine-tidy` over the whole workspace.

use moraine_tidy::{docs, imports, text, tree};

#[track_caller]
fn none(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_tree_is_found() {
    let sources = tree::sources();
    assert!(
        sources.iter().any(|s| s.path == "Cargo.toml") && sources.iter().any(|s| s.path == "fs/src/vfs.rs")
    );
}

#[test]
fn imports_run_one_way() {
    none(imports::wrong_way(&tree::sources()));
}

#[test]
fn the_kernel_is_no_default_member() {
    let sources = tree::sources();
    let workspace = sources.iter().find(|s| s.path == "Cargo.toml").expect("there is a workspace");
    none(imports::wrongly_default(&workspace.text));
}

#[test]
fn planted_faults_are_in_no_program() {
    none(imports::planted(&tree::sources()));
}

#[test]
fn every_file_opens_with_its_one_idea() {
    none(text::without_header(&tree::sources()));
}

#[test]
fn no_file_is_too_long() {
    none(text::too_long(&tree::sources()));
}

#[test]
fn unsafe_stays_in_its_rooms() {
    none(text::unsafe_elsewhere(&tree::sources()));
}

#[test]
fn the_image_has_no_std() {
    none(text::with_std(&tree::sources()));
}

#[test]
fn nothing_is_left_unfinished() {
    none(text::unfinished(&tree::sources()));
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    none(text::machine_paths(&tree::sources()));
}

#[test]
fn documents_name_files_that_exist() {
    none(docs::missing_files(&tree::root(), &tree::sources()));
}

#[test]
fn documents_list_the_tests_of_each_trap() {
    none(docs::untested_traps(&tree::sources()));
}
