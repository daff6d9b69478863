//! Any target under libFuzzer; the variable MORAINE_TARGET names it. See `fuzz/libfuzzer/README.md`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moraine_fuzz::{TARGETS, Target};
use std::sync::OnceLock;

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let target = CHOSEN.get_or_init(|| {
        let name = std::env::var("MORAINE_TARGET").expect("MORAINE_TARGET names a target");
        TARGETS.iter().find(|target| target.name == name).expect("there is a target of that name")
    });
    (target.run)(bytes);
});
