//! READDIR and READDIRPLUS under every limit and while the directory changes.

use crate::support::client::{Attributes, Fh, fh, post_attr};
use crate::support::{Client, NF, World};
use moraine_nfs::v3::wire::Procedure;
use moraine_nfs::xdr::Decoder;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
struct Entry {
    fileid: u64,
    name: Vec<u8>,
    cookie: u64,
    attr: Option<Attributes>,
    handle: Option<Fh>,
}

struct Listed {
    entries: Vec<Entry>,
    eof: bool,
    verifier: u64,
    /// Bytes of the whole result and of names, fileids and cookies.
    len: usize,
    names_len: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain { count: u32 },
    Plus { dircount: u32, maxcount: u32 },
}

async fn list(client: &Client, dir: &[u8], cookie: u64, verifier: u64, kind: Kind) -> Result<Listed, u32> {
    let result = match kind {
        Kind::Plain { count } => {
            client
                .call(Procedure::ReadDir, |e| {
                    e.opaque(dir).u64(cookie).u64(verifier).u32(count);
                })
                .await
        }
        Kind::Plus { dircount, maxcount } => {
            client
                .call(Procedure::ReadDirPlus, |e| {
                    e.opaque(dir).u64(cookie).u64(verifier).u32(dircount).u32(maxcount);
                })
                .await
        }
    };
    let mut d = Decoder::new(&result);
    let (status, _attr) = (d.u32().unwrap(), post_attr(&mut d));
    if status != 0 {
        assert!(d.rest().is_empty());
        return Err(status);
    }
    let verifier = d.u64().unwrap();
    let (mut entries, mut names_len) = (Vec::new(), 0);
    while d.bool().unwrap() {
        let before = d.rest().len();
        let (fileid, name, cookie) = (d.u64().unwrap(), d.opaque(255).unwrap().to_vec(), d.u64().unwrap());
        names_len += before - d.rest().len();
        let (attr, handle) = match kind {
            Kind::Plain { .. } => (None, None),
            Kind::Plus { .. } => (post_attr(&mut d), d.bool().unwrap().then(|| fh(&mut d))),
        };
        entries.push(Entry { fileid, name, cookie, attr, handle });
    }
    let eof = d.bool().unwrap();
    assert!(d.rest().is_empty());
    Ok(Listed { entries, eof, verifier, len: result.len(), names_len })
}

/// The whole directory, in as many calls as it takes.
async fn list_all(client: &Client, dir: &[u8], kind: Kind) -> Result<Vec<Entry>, u32> {
    let (mut all, mut cookie, mut verifier) = (Vec::new(), 0, 0);
    loop {
        let part = list(client, dir, cookie, verifier, kind).await?;
        verifier = part.verifier;
        all.extend(part.entries);
        if part.eof {
            return Ok(all);
        }
        cookie = all.last().expect("a listing that goes on has entries").cookie;
        assert!(all.len() < 100_000, "the listing never ends");
    }
}

fn names(entries: &[Entry]) -> BTreeSet<Vec<u8>> {
    let set: BTreeSet<_> = entries.iter().map(|e| e.name.clone()).collect();
    assert_eq!(set.len(), entries.len(), "an entry came twice");
    set
}

#[test]
fn v3_07_cookies_last_while_entries_come_and_go() {
    /// Names, so many that every listing takes several calls.
    const NAMES: usize = 5000;
    let world = World::new();
    let (client, server) = (world.client(), world.server.clone());
    world.run(async move {
        let root = client.root().await;
        let (dir, ..) = client.mkdir(&root, b"d").await.unwrap();
        for i in 0..NAMES {
            client.create(&dir, format!("old{i}").as_bytes()).await.unwrap();
        }
        let whole = list_all(&client, &dir, Kind::Plain { count: 8192 }).await.unwrap();
        assert_eq!(whole.len(), NAMES + 2);
        // However much is asked for at once, in few calls or in many, it is the same listing.
        for (kind, least, most) in [
            (Kind::Plain { count: 256 }, NAMES / 5, NAMES),
            (Kind::Plain { count: 4096 }, NAMES / 150, NAMES / 50),
            (Kind::Plain { count: u32::MAX }, 2, NAMES / 1000),
            (Kind::Plus { dircount: 256, maxcount: 4096 }, NAMES / 10, NAMES / 4),
            (Kind::Plus { dircount: 8192, maxcount: 65536 }, NAMES / 350, NAMES / 150),
        ] {
            let calls = || {
                let calls = server.counters().calls;
                calls[Procedure::ReadDir as usize] + calls[Procedure::ReadDirPlus as usize]
            };
            let before = calls();
            let listed = list_all(&client, &dir, kind).await.unwrap();
            let calls = (calls() - before) as usize;
            assert!((least..=most).contains(&calls), "{calls} calls for {kind:?}");
            let told = |all: &[Entry]| all.iter().map(|e| (e.cookie, e.name.clone())).collect::<Vec<_>>();
            assert!(told(&listed) == told(&whole), "{kind:?}");
        }
        assert_eq!((&whole[0].name[..], whole[0].cookie), (&b"."[..], 1));
        assert_eq!((&whole[1].name[..], whole[1].cookie), (&b".."[..], 2));
        let cookies: BTreeSet<u64> = whole.iter().map(|e| e.cookie).collect();
        assert_eq!(cookies.len(), whole.len(), "never equal within a directory");
        assert!(whole[2..].iter().all(|e| (3..1 << 63).contains(&e.cookie)));

        // Remove every entry as soon as it was listed, insert others: what was there before and was not removed comes
        // exactly once, and the cookie of a removed entry goes on after it.
        let (mut cookie, mut verifier, mut seen, mut step) = (0, 0, Vec::new(), 0);
        loop {
            let part = list(&client, &dir, cookie, verifier, Kind::Plain { count: 512 }).await.unwrap();
            verifier = part.verifier;
            for entry in &part.entries {
                if entry.name.starts_with(b"old") {
                    assert_eq!(client.unlink(Procedure::Remove, &dir, &entry.name).await.0, 0);
                }
            }
            client.create(&dir, format!("new{step}").as_bytes()).await.unwrap();
            step += 1;
            seen.extend(part.entries);
            cookie = seen.last().unwrap().cookie;
            if part.eof {
                break;
            }
        }
        let seen = names(&seen);
        assert_eq!(seen.iter().filter(|n| n.starts_with(b"old")).count(), NAMES);
        assert!(step > NAMES / 20, "{step} calls");
        // An old cookie with any verifier still works: the verifier is constant and never a reason to refuse.
        assert!(list(&client, &dir, whole[150].cookie, 0xdead, Kind::Plain { count: 4096 }).await.is_ok());
    });
}

#[test]
fn v3_08_no_limit_is_exceeded_and_no_listing_is_empty_unless_it_ends() {
    let world = World::new();
    // The filesystem stops early now and then, as it may.
    world.fs.listing_limit.set(7);
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let (dir, ..) = client.mkdir(&root, b"d").await.unwrap();
        for i in 0..30usize {
            client.create(&dir, &vec![b'a' + i as u8 % 26; 1 + (i * 37) % 255]).await.unwrap();
        }
        let want = names(&list_all(&client, &dir, Kind::Plain { count: 65536 }).await.unwrap());
        assert_eq!(want.len(), 32);
        for max in (0..=4096u32).step_by(4) {
            for kind in [Kind::Plain { count: max }, Kind::Plus { dircount: max, maxcount: max }] {
                match list(&client, &dir, 0, 0, kind).await {
                    Ok(part) => {
                        assert!(part.len <= max as usize, "{} bytes for {max}", part.len);
                        assert!(!part.entries.is_empty());
                        assert!(part.names_len <= max as usize);
                    }
                    Err(status) => assert!(status == NF::TOOSMALL && max < 300, "{status} for {max}"),
                }
            }
        }
        // Large enough for the longest name: everything comes, whatever the limits.
        for max in (640..=2048).step_by(64) {
            for kind in [Kind::Plain { count: max }, Kind::Plus { dircount: 64, maxcount: max }] {
                assert_eq!(names(&list_all(&client, &dir, kind).await.unwrap()), want);
            }
        }
        // The name bound is kept apart from the bound of the result.
        let plus = list(&client, &dir, 0, 0, Kind::Plus { dircount: 200, maxcount: 65536 }).await.unwrap();
        assert!(plus.names_len <= 200 && !plus.eof);
        // Beyond the end: nothing follows, and that is said.
        let past = list(&client, &dir, (1 << 63) - 1, 0, Kind::Plain { count: 4096 }).await.unwrap();
        assert!(past.entries.is_empty() && past.eof);
        // A listing is never longer than the server's own bound.
        let most =
            list(&client, &dir, 0, 0, Kind::Plus { dircount: u32::MAX, maxcount: u32::MAX }).await.unwrap();
        assert!(most.len <= 64 << 10 && most.eof);
    });
}

#[test]
fn readdirplus_tells_attributes_and_handles_that_lookup_and_getattr_tell_too() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let (dir, ..) = client.mkdir(&root, b"d").await.unwrap();
        client.create(&dir, b"file").await.unwrap();
        client.mkdir(&dir, b"sub").await.unwrap();
        let kind = Kind::Plus { dircount: 4096, maxcount: 16384 };
        for entry in list_all(&client, &dir, kind).await.unwrap() {
            let (handle, attr) = client.lookup(&dir, &entry.name).await.unwrap();
            assert_eq!(entry.handle.as_ref(), Some(&handle));
            assert_eq!(entry.attr.as_ref(), Some(&attr));
            assert_eq!(entry.fileid, attr.fileid);
        }
        let file = client.lookup(&dir, b"file").await.unwrap().0;
        assert_eq!(list(&client, &file, 0, 0, kind).await.err(), Some(NF::NOTDIR));
    });
}

#[test]
fn v3_14_attributes_and_handle_are_left_out_at_the_root_of_another_subvolume() {
    let world = World::new();
    let client = world.client();
    let fs = world.fs.clone();
    world.run(async move {
        let root = client.root().await;
        let (_, attr, _) = client.mkdir(&root, b"subvolume").await.unwrap();
        fs.boundary.set(Some(attr.fileid));
        let kind = Kind::Plus { dircount: 4096, maxcount: 16384 };
        let entries = list_all(&client, &root, kind).await.unwrap();
        let at = entries.iter().find(|e| e.name == b"subvolume").unwrap();
        assert!(at.attr.is_none() && at.handle.is_none());
        assert!(
            entries.iter().filter(|e| e.name != b"subvolume").all(|e| e.attr.is_some() && e.handle.is_some())
        );
    });
}

#[test]
fn v3_15_a_fresh_root_lists_what_mkfs_made_and_no_snapshots() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let entries = list_all(&client, &root, Kind::Plain { count: 4096 }).await.unwrap();
        let want: BTreeSet<Vec<u8>> = [&b"."[..], b"..", b"volumes"].map(<[u8]>::to_vec).into();
        assert_eq!(names(&entries), want);
    });
}
