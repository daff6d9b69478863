//! Losses and races that are brought about on purpose.

use moraine_sim::staged::{
    grown_while_written_back, lost_writes, reader_of_overwritten, written_while_loaded,
};

fn seeds(count: u64, mut world: impl FnMut(u64) -> Result<(), String>) {
    for seed in 0..count {
        if let Err(why) = world(seed) {
            panic!("seed {seed}: {why}");
        }
    }
}

#[test]
fn each_write_of_a_session_can_be_lost_and_what_it_held_is_never_wrong() {
    let (mut lost, mut noticed) = (0, 0);
    seeds(4, |seed| {
        let (of_seed, of_which) = lost_writes(seed)?;
        (lost, noticed) = (lost + of_seed, noticed + of_which);
        Ok(())
    });
    println!("{lost} writes lost, {noticed} noticed");
    assert!(noticed > 0, "some of the writes hold what is read later");
}

#[test]
fn a_bucket_is_discarded_only_after_its_readers() {
    seeds(20, reader_of_overwritten);
}

#[test]
fn a_block_written_while_it_is_loaded_stays_written() {
    seeds(20, written_while_loaded);
}

#[test]
fn a_file_that_grows_while_it_is_written_back_shows_only_what_was_written() {
    seeds(10, grown_while_written_back);
}
