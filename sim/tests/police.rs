//! Every stable answer of the façade, proved from the log of what the disks saw: synced writes, COMMIT, and changes of the
//! namespace that were waited for. The protocols call nothing stable but by these.

use moraine_sim::police::patrol;

#[test]
fn every_stable_answer_was_written_and_flushed_before() {
    let proved = |seed| match patrol(seed) {
        Ok(promises) => promises,
        Err(why) => panic!("seed {seed}: {why}"),
    };
    let promises: usize = (0..30).map(proved).sum();
    println!("{promises} promises proved");
    assert!(promises > 5000);
}
