//! Worlds with many clients at once and no power cut: each in a directory of its own, compared call by call; or all in
//! one tree, where the filesystem says in which order things happened and the model repeats them in that order.

use crate::compare::Pair;
use crate::disk::DiskConfig;
use crate::generate::{Generator, Known, Profile};
use crate::harness::{
    Client, Mounted, Store, Tally, all, blank, devices, fill, is_full, plug, same_tree, walk,
};
use crate::ops::{Answer, Done, Objects, Op, Slot, Step, apply};
use crate::world::World;
use moraine_fs::vfs::*;
use moraine_model::Model;
use moraine_model::tree::{Tree, now};
use std::cell::RefCell;
use std::rc::Rc;

/// `clients` at work at once, each in lock-step with a model of its own directory; then a clean remount.
pub fn crowd_world<S: Store>(
    store: &S,
    seed: u64,
    profile: &Profile,
    clients: usize,
    steps: usize,
) -> Result<Tally, String> {
    let world = World::new(seed);
    let disks = plug(&world, &blank(store), &DiskConfig::default());
    let (platform, disks) = (world.platform(), devices(&disks));
    world.run(async {
        store.format(&platform, &disks).await?;
        let fs = store.mount(&platform, &disks).await?.fs;
        if let Some(room) = profile.room {
            fill(&*fs, room).await.map_err(|e| format!("cannot fill it: {e}"))?;
        }
        let mut crowd = Vec::new();
        for number in 0..clients {
            let generator = Generator::new(profile.clone(), world.random(&format!("client {number}")));
            let name = format!("client{number}").into_bytes();
            match Client::among(&*fs, number, &name, generator).await {
                Ok(client) => crowd.push(Rc::new(RefCell::new(client))),
                Err(why) if is_full(profile, &why) => {}
                Err(why) => return Err(why),
            }
        }
        let problem: RefCell<Option<String>> = RefCell::default();
        #[allow(clippy::await_holding_refcell_ref, reason = "each client is used by one task only")]
        let work = |client: Rc<RefCell<Client>>| {
            let (fs, trace, problem) = (fs.clone(), world.trace(), &problem);
            Box::pin(async move {
                if let Err(why) = client.borrow_mut().work(&*fs, trace, steps).await {
                    problem.borrow_mut().get_or_insert(why);
                }
            })
        };
        all(crowd.iter().cloned().map(work).collect()).await;
        if let Some(why) = problem.take() {
            return Err(why);
        }
        let compare = |tree: &Tree, when: &str| {
            crowd.iter().try_for_each(|client| {
                let client = client.borrow();
                let theirs = tree.below(&client.history.borrow().home);
                same_tree(when, &client.expected(), &theirs)
            })
        };
        compare(&walk(&*fs).await?, "the tree in the end")?;
        store.unmount(fs).await?;
        store.check(&platform, &disks).await?;
        let fs = store.mount(&platform, &disks).await?.fs;
        compare(&walk(&*fs).await?, "the tree after a clean remount")?;
        store.unmount(fs).await
    })?;
    Ok(Tally { worlds: 1, steps: (clients * steps) as u64, cuts: 0, hash: world.trace().hash() })
}

/// What the tasks of a tangle share.
struct Tangle {
    objects: Objects,
    known: Vec<Known>,
    /// What succeeded, in order of completion.
    log: Vec<(Step, Done)>,
}

/// `clients` that rename, link, make and remove in one tree at once. Their successes, repeated on the model in the order
/// in which the filesystem says it committed them, must give the same answers and the same tree.
pub fn tangle_world<S: Store>(store: &S, seed: u64, clients: usize, steps: usize) -> Result<Tally, String> {
    let profile = Profile {
        name: "tangle",
        names: 80,
        data: 0,
        attributes: 12,
        looks: 4,
        syncs: 4,
        name_count: 6,
        file_bytes: 4096,
        users_percent: 20,
        nonsense_percent: 1,
        room: None,
    };
    let world = World::new(seed);
    let disks = plug(&world, &blank(store), &DiskConfig::default());
    let (platform, disks) = (world.platform(), devices(&disks));
    world.run(async {
        store.format(&platform, &disks).await?;
        let Mounted { fs, .. } = store.mount(&platform, &disks).await?;
        let volumes = fs.lookup(&Caller::root(), fs.root(), b"volumes").await.map_err(|e| e.to_string())?.0;
        let shared = RefCell::new(Tangle {
            objects: [(Slot::HOME, fs.root()), (Slot::VOLUMES, volumes)].into(),
            known: vec![Known { slot: Slot::HOME, kind: Kind::Dir, alive: true }],
            log: Vec::new(),
        });
        let task = |number: usize| {
            let (fs, shared) = (fs.clone(), &shared);
            let random = world.random(&format!("client {number}"));
            let mut generator =
                Generator::new(profile.clone(), random).numbered(number as u32, clients as u32);
            Box::pin(async move {
                for _ in 0..steps {
                    let (step, objects) = {
                        let tangle = shared.borrow();
                        (generator.step(&tangle.known), tangle.objects.clone())
                    };
                    if let Some(done) = apply(&*fs, &objects, &step, Seq(0)).await {
                        shared.borrow_mut().learn(step, done);
                    }
                }
            })
        };
        all((0..clients).map(task).collect()).await;
        let mut log = shared.into_inner().log;
        // Commits of one journal entry share a number: among them the order of completion is the order of commit.
        log.sort_by_key(|(_, done)| done.changed.iter().map(|change| change.seq).max());
        let mut pair = Pair::new(Model::for_tests(), fs.root(), Some(volumes));
        for (step, theirs) in &log {
            let Some(ours) = now(apply(&pair.model, &pair.ours, step, Seq(0))) else {
                return Err(format!("{step}: about an object that was made later"));
            };
            pair.compare(step, &ours, theirs).map_err(|why| format!("in order of commits, {step}: {why}"))?;
        }
        let expected = pair.model.tree();
        same_tree("the tree in the end", &expected, &walk(&*fs).await?)?;
        store.unmount(fs).await?;
        store.check(&platform, &disks).await?;
        let fs = store.mount(&platform, &disks).await?.fs;
        same_tree("the tree after a clean remount", &expected, &walk(&*fs).await?)?;
        store.unmount(fs).await
    })?;
    Ok(Tally { worlds: 1, steps: (clients * steps) as u64, cuts: 0, hash: world.trace().hash() })
}

impl Tangle {
    /// Notes a success that changed something, and what it made.
    fn learn(&mut self, step: Step, done: Done) {
        let Ok(answer) = &done.answer else { return };
        if let (Op::Create { .. } | Op::Make { .. }, Answer::Object(object, attr)) = (&step.op, answer)
            && !self.objects.values().any(|known| known == object)
        {
            let slot = Slot(step.number);
            self.objects.insert(slot, *object);
            self.known.push(Known { slot, kind: attr.kind, alive: true });
        }
        if let (Op::Rmdir { .. }, Answer::Lost(Some(gone))) = (&step.op, answer) {
            let slot = self.objects.iter().find(|(_, object)| *object == gone).map(|(slot, _)| *slot);
            self.known.retain(|known| Some(known.slot) != slot || known.slot == Slot::HOME);
        }
        // Opening an existing file with a size changes the file and not the directory that is reported.
        let cuts =
            matches!(&step.op, Op::Create { how: CreateMode::Unchecked, set, .. } if set.size.is_some());
        if cuts || done.changed.iter().any(|change| change.pre.change != change.post.change) {
            self.log.push((step, done));
        }
    }
}
