//! Every state that a small core can reach within a bound, breadth-first, each once.
//!
//! For what decides without I/O: a core is driven by all its steps in all orders, its test says in [`Core::apply`] what
//! must hold, and the first violation found is one with the fewest steps. States are told apart by [`Core::key`], which
//! must hold everything that decides what can still happen: of the core itself and of what the test knows.
//!
//! A core need not be cloneable: it is made anew and its steps are repeated.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// States of one exploration at most: beyond, its bound is too wide for a test.
const STATES_MAX: usize = 4_000_000;

/// A core with what its test knows of it.
pub trait Core: Sized {
    /// Something that can happen to it.
    type Step: Clone + fmt::Debug;
    /// Tells its states apart.
    type Key: Eq + Hash;

    /// What can happen now.
    fn steps(&self) -> Vec<Self::Step>;
    /// Lets it happen; says what then does not hold that must.
    fn apply(&mut self, step: &Self::Step) -> Result<(), String>;
    /// Equal for two only if the same can happen to both from here on, and the same must hold.
    fn key(&self) -> Self::Key;
}

/// What an exploration saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Steps taken from them.
    pub steps: usize,
    /// The most steps that any state is away from the start.
    pub depth: usize,
    /// Nothing beyond the bound was left: these are all states there are.
    pub complete: bool,
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Explored { states, steps, depth, .. } = self;
        let all = if self.complete { "all there are" } else { "cut there" };
        write!(f, "{states} states by {steps} steps, up to {depth} away: {all}")
    }
}

/// A shortest way to something that must not be.
#[derive(Debug)]
pub struct Counterexample {
    /// The steps to it.
    pub path: Vec<String>,
    /// What is wrong there.
    pub why: String,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "after {} steps: {}", self.path.len(), self.why)?;
        for (n, step) in self.path.iter().enumerate() {
            writeln!(f, "  {}. {step}", n + 1)?;
        }
        Ok(())
    }
}

/// Explores every state at most `depth_max` steps from what `start` makes.
pub fn explore<C: Core>(start: impl Fn() -> C, depth_max: usize) -> Result<Explored, Box<Counterexample>> {
    /// How a state was first reached: from which, by which step.
    struct Reached<S> {
        from: usize,
        step: Option<S>,
        depth: usize,
    }
    let mut reached: Vec<Reached<C::Step>> = vec![Reached { from: 0, step: None, depth: 0 }];
    let mut known: HashSet<C::Key> = HashSet::from([start().key()]);
    let mut done = Explored { states: 1, steps: 0, depth: 0, complete: true };
    let path = |reached: &[Reached<C::Step>], mut at: usize| {
        let mut path = Vec::new();
        while let Some(step) = &reached[at].step {
            path.push(step.clone());
            at = reached[at].from;
        }
        path.reverse();
        path
    };
    let mut at = 0;
    while at < reached.len() {
        let way = path(&reached, at);
        let again = || {
            let mut core = start();
            way.iter().for_each(|step| core.apply(step).expect("it held the first time"));
            core
        };
        let steps = again().steps();
        let depth = reached[at].depth + 1;
        if depth > depth_max {
            done.complete &= steps.is_empty();
            at += 1;
            continue;
        }
        for step in steps {
            let mut core = again();
            done.steps += 1;
            let held = catch_unwind(AssertUnwindSafe(|| core.apply(&step)))
                .unwrap_or_else(|panic| Err(format!("it panics: {}", message(&*panic))));
            if let Err(why) = held {
                let path = way.iter().chain([&step]).map(|s| format!("{s:?}")).collect();
                return Err(Box::new(Counterexample { path, why }));
            }
            if known.insert(core.key()) {
                assert!(reached.len() < STATES_MAX, "the bound holds too many states");
                reached.push(Reached { from: at, step: Some(step), depth });
                done.depth = depth;
            }
        }
        at += 1;
    }
    done.states = reached.len();
    Ok(done)
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "?".to_string())
}

/// Explores and expects nothing to be found; prints what was seen.
pub fn expect_all_to_hold<C: Core>(name: &str, start: impl Fn() -> C, depth_max: usize) -> Explored {
    match explore(start, depth_max) {
        Ok(explored) => {
            println!("{name}: {explored}");
            explored
        }
        Err(found) => panic!("{name}, {found}"),
    }
}

/// Explores and expects the fault that `start` was given to be found; prints how.
pub fn expect_a_fault<C: Core>(name: &str, start: impl Fn() -> C, depth_max: usize) -> Counterexample {
    match explore(start, depth_max) {
        Ok(explored) => panic!("{name} is not noticed: {explored}"),
        Err(found) => {
            println!("{name}, {found}");
            *found
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two counters up to `limit`; the second must never be ahead by more than two.
    struct Pair {
        limit: u32,
        a: u32,
        b: u32,
    }

    impl Core for Pair {
        type Step = char;
        type Key = (u32, u32);

        fn steps(&self) -> Vec<char> {
            let a = (self.a < self.limit).then_some('a');
            a.into_iter().chain((self.b < self.limit).then_some('b')).collect()
        }

        fn apply(&mut self, step: &char) -> Result<(), String> {
            match step {
                'a' => self.a += 1,
                _ => self.b += 1,
            }
            assert!(self.b < 7, "seven is too many");
            if self.b > self.a + 2 { Err(format!("{} and {}", self.a, self.b)) } else { Ok(()) }
        }

        fn key(&self) -> (u32, u32) {
            (self.a, self.b)
        }
    }

    #[test]
    fn every_state_is_seen_once_and_the_shortest_way_to_a_fault_is_told() {
        let pair = |limit| move || Pair { limit, a: 0, b: 0 };
        let all = explore(pair(2), 9).unwrap();
        assert_eq!(all, Explored { states: 9, steps: 12, depth: 4, complete: true });
        let cut = explore(pair(2), 3).unwrap();
        assert_eq!((cut.states, cut.complete), (8, false));
        let found = explore(pair(3), 9).unwrap_err();
        assert_eq!((found.path.join(""), found.why.as_str()), ("'b''b''b'".into(), "0 and 3"));
        let found = explore(|| Pair { limit: 9, a: 9, b: 0 }, 9).unwrap_err();
        assert_eq!((found.path.len(), found.why.as_str()), (7, "it panics: seven is too many"));
    }
}
