//! Trees that grew and were emptied: they become a single leaf again, and the space of their nodes comes back.

use moraine_format::{Pos, Tree};
use moraine_fs::engine::{Budget, Engine, FormatOptions};
use moraine_fs::tx::Class;
use moraine_platform::BlockDevice;
use moraine_sim::{DiskConfig, World};
use std::rc::Rc;

const KEYS: u64 = 6000;
/// Nothing in the xattr tree has triggers, so its keys can be anything.
const TREE: Tree = Tree::Xattrs;

/// The level of the tree's root, as the engine shows it.
fn level(engine: &Engine) -> u32 {
    let text = engine.to_string();
    let line = text.lines().find_map(|l| l.trim().strip_prefix(&format!("{}: level ", TREE.name())));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

async fn change(engine: &Engine, keys: &[u64], value: Option<&[u8]>) {
    let class = if value.is_some() { Class::Normal } else { Class::Delete };
    engine
        .transact(class, async |tx| {
            for key in keys {
                match value {
                    Some(value) => tx.put(TREE, Pos::new(*key, 0, 0), value),
                    None => tx.delete(TREE, Pos::new(*key, 0, 0)),
                }
            }
            Ok(())
        })
        .await
        .unwrap();
}

#[test]
fn an_emptied_tree_is_a_single_leaf_again_and_its_space_is_free() {
    for (seed, keys_max, node_cache_bytes) in [(1, 12, 1 << 20), (2, 24, 256 << 10), (3, 1 << 20, 1 << 20)] {
        let world = World::new(seed);
        world.disk(256 << 20, DiskConfig::default());
        let disks: Vec<Rc<dyn BlockDevice>> =
            world.disks().into_iter().map(|d| d as Rc<dyn BlockDevice>).collect();
        let options = FormatOptions { node_bytes: 32 << 10, ..FormatOptions::default() };
        let budget = Budget { node_cache_bytes, node_keys_max: keys_max, ..Budget::default() };
        world.run(async {
            let engine = Engine::format(&world.platform(), &disks, &options, &budget).await.unwrap();
            engine.unmount().await.unwrap();
            let engine = Engine::mount(&world.platform(), &disks, &budget).await.unwrap();
            let before = engine.space();
            let mut keys: Vec<u64> = (0..KEYS).collect();
            for part in keys.chunks(20) {
                change(&engine, part, Some(&[7; 100])).await;
            }
            engine.unmount().await.unwrap();
            let engine = Engine::mount(&world.platform(), &disks, &budget).await.unwrap();
            let (grown, full) = (level(&engine), engine.space());
            assert!(grown >= 1 && (keys_max > 12 || grown >= 3), "level {grown} with {keys_max} keys a node");
            let mut random = world.random("order");
            for n in (1..keys.len()).rev() {
                keys.swap(n, random.index(n + 1));
            }
            for part in keys.chunks(20) {
                change(&engine, part, None).await;
            }
            engine.unmount().await.unwrap();
            let engine = Engine::mount(&world.platform(), &disks, &budget).await.unwrap();
            assert_eq!(level(&engine), 0, "{keys_max} keys a node, was level {grown}\n{engine}");
            let after = engine.space();
            let (took, left) = (before.free - full.free, before.free - after.free.min(before.free));
            assert!(left * 4 <= took, "{left} of {took} bytes are not free again\n{engine}");
            // It grows again where it was.
            change(&engine, &[1, 2, 3], Some(&[9; 10])).await;
            engine.unmount().await.unwrap();
        });
    }
}
