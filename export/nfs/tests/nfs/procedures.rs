//! Every procedure, what it does and how it fails.

use crate::support::client::{fattr, made, mode_sattr, no_sattr, post_attr, refusal, status_and_wcc};
use crate::support::{Client, NF, World};
use moraine_fs::FsError;
use moraine_nfs::v3::wire::Procedure;
use moraine_nfs::xdr::{Decoder, Encoder};

async fn symlink(client: &Client, dir: &[u8], name: &[u8], target: &[u8]) -> Vec<u8> {
    client
        .call(Procedure::SymLink, |e| {
            e.opaque(dir).opaque(name);
            no_sattr(e);
            e.opaque(target);
        })
        .await
}

async fn mknod(client: &Client, dir: &[u8], name: &[u8], kind: u32) -> Vec<u8> {
    client
        .call(Procedure::MkNod, |e| {
            e.opaque(dir).opaque(name).u32(kind);
            if matches!(kind, 3 | 4 | 6 | 7) {
                mode_sattr(e, 0o600);
            }
            if matches!(kind, 3 | 4) {
                e.u32(8).u32(17);
            }
        })
        .await
}

#[test]
fn files_directories_links_and_nodes_are_made_found_and_told_apart() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let file = client.create(&root, b"file").await.unwrap();
        let (dir, attr, change) = client.mkdir(&root, b"dir").await.unwrap();
        assert_eq!((attr.kind, attr.mode, attr.nlink), (2, 0o755, 2));
        assert!(change.pre.is_some() && change.post.is_some());
        let (sym, attr, _) = made(&symlink(&client, &dir, b"sym", b"../file").await).unwrap();
        assert_eq!(attr.kind, 5);
        let result = client
            .call(Procedure::ReadLink, |e| {
                e.opaque(&sym);
            })
            .await;
        let mut d = Decoder::new(&result);
        assert_eq!((d.u32(), post_attr(&mut d).unwrap().kind), (Ok(0), 5));
        assert_eq!(d.opaque(100), Ok(&b"../file"[..]));
        for (name, kind, rdev) in
            [(b"blk", 3, (8, 17)), (b"chr", 4, (8, 17)), (b"soc", 6, (0, 0)), (b"fif", 7, (0, 0))]
        {
            let (node, attr, _) = made(&mknod(&client, &dir, name, kind).await).unwrap();
            assert_eq!((attr.kind, attr.rdev, attr.mode), (kind, rdev, 0o600));
            assert_eq!(client.lookup(&dir, name).await.unwrap().0, node);
        }
        assert_eq!(client.link(&file, &dir, b"hard").await, 0);
        let (found, attr) = client.lookup(&dir, b"hard").await.unwrap();
        assert_eq!((found == file, attr.nlink), (true, 2));
        assert_eq!(client.lookup(&dir, b".").await.unwrap().0, dir);
        assert_eq!(client.lookup(&dir, b"..").await.unwrap().0, root);
        assert_eq!(client.lookup(&root, b"..").await.unwrap().0, root);
    });
}

#[test]
fn names_that_are_taken_missing_or_impossible() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let file = client.create(&root, b"file").await.unwrap();
        let (dir, ..) = client.mkdir(&root, b"dir").await.unwrap();
        let inner = client.create(&dir, b"inner").await.unwrap();
        let long = [b'x'; 256];
        assert_eq!(client.create(&root, b"file").await, Err(NF::EXIST));
        assert_eq!(client.create(&root, &long).await, Err(NF::NAMETOOLONG));
        assert_eq!(client.create(&root, b"").await, Err(NF::ACCES));
        assert_eq!(client.create(&root, b"a/b").await, Err(NF::ACCES));
        assert_eq!(client.create(&root, b"a\0b").await, Err(NF::ACCES));
        assert_eq!(client.create(&file, b"x").await, Err(NF::NOTDIR));
        assert_eq!(client.lookup(&root, b"nothing").await, Err(NF::NOENT));
        assert_eq!(client.lookup(&root, &long).await, Err(NF::NAMETOOLONG));
        assert_eq!(client.lookup(&file, b"x").await, Err(NF::NOTDIR));
        assert_eq!(client.mkdir(&root, b"dir").await.unwrap_err(), NF::EXIST);
        assert_eq!(made(&symlink(&client, &root, b"file", b"t").await).unwrap_err(), NF::EXIST);
        assert_eq!(made(&mknod(&client, &root, b"file", 7).await).unwrap_err(), NF::EXIST);
        for kind in [0, 1, 2, 5, 8, u32::MAX] {
            assert_eq!(made(&mknod(&client, &root, b"new", kind).await).unwrap_err(), NF::BADTYPE);
        }
        assert_eq!(client.link(&file, &root, b"dir").await, NF::EXIST);
        assert!([NF::ISDIR, NF::PERM, NF::INVAL].contains(&client.link(&dir, &root, b"loop").await));
        assert_eq!(client.unlink(Procedure::Remove, &root, b"nothing").await.0, NF::NOENT);
        assert_eq!(client.unlink(Procedure::Remove, &root, b"dir").await.0, NF::ISDIR);
        assert_eq!(client.unlink(Procedure::RmDir, &root, b"dir").await.0, NF::NOTEMPTY);
        assert_eq!(client.unlink(Procedure::RmDir, &root, b"file").await.0, NF::NOTDIR);
        assert_eq!(client.rename((&root, b"nothing"), (&root, b"x")).await.0, NF::NOENT);
        assert_eq!(client.rename((&root, b"dir"), (&root, b"file")).await.0, NF::NOTDIR);
        assert_eq!(client.rename((&root, b"file"), (&root, b"dir")).await.0, NF::ISDIR);
        assert_eq!(client.rename((&root, b"dir"), (&dir, b"self")).await.0, NF::INVAL);
        let (status, from, to) = client.rename((&root, b"file"), (&dir, b"inner")).await;
        assert_eq!(status, 0);
        assert!(from.pre.is_some() && to.pre.is_some());
        assert_eq!(client.getattr(&inner).await, Err(NF::STALE));
        assert_eq!(client.lookup(&dir, b"inner").await.unwrap().0, file);
        assert_eq!(client.unlink(Procedure::Remove, &dir, b"inner").await.0, 0);
        assert_eq!(client.unlink(Procedure::RmDir, &root, b"dir").await.0, 0);
    });
}

#[test]
fn content_is_written_read_truncated_and_bounded() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let file = client.create(&root, b"file").await.unwrap();
        let (dir, ..) = client.mkdir(&root, b"dir").await.unwrap();
        let (written, wcc) = client.write(&file, 5000, b"hello", 0).await;
        assert_eq!(written.unwrap().0, 5);
        assert_eq!(wcc.post.unwrap().size, 5005);
        let mut want = vec![0; 5000];
        want.extend_from_slice(b"hello");
        assert_eq!(client.read(&file, 0, 1 << 20).await, Ok((want.clone(), true)));
        assert_eq!(client.read(&file, 4998, 4).await, Ok((want[4998..5002].to_vec(), false)));
        let cut = |e: &mut Encoder| {
            e.u32(0).u32(0).u32(0).u32(1).u64(5002).u32(0).u32(0);
        };
        let (status, change) = client.setattr(&file, cut, None).await;
        assert_eq!((status, change.post.unwrap().size), (0, 5002));
        assert_eq!(client.read(&file, 5000, 9).await, Ok((b"he".to_vec(), true)));
        // Every length of padding.
        for len in 0..9u8 {
            let data: Vec<u8> = (1..=len).collect();
            assert_eq!(client.write(&file, 0, &data, 2).await.0.unwrap().0, len.into());
            assert_eq!(client.read(&file, 0, len.into()).await.unwrap().0, data);
        }
        assert_eq!(client.write(&file, u64::MAX - 2, b"abc", 0).await.0, Err(NF::FBIG));
        assert_eq!(client.write(&file, 1 << 63, b"abc", 0).await.0, Err(NF::FBIG));
        assert_eq!(client.read(&file, u64::MAX, 10).await.map(|r| r.0.len()), Ok(0));
        assert_eq!(client.read(&dir, 0, 10).await, Err(NF::INVAL));
        assert!(client.write(&dir, 0, b"x", 0).await.0.is_err());
        assert!(client.commit(&file, 0, 0).await.0.is_ok());
        let readlink = client
            .call(Procedure::ReadLink, |e| {
                e.opaque(&file);
            })
            .await;
        assert_eq!(readlink[..4], NF::INVAL.to_be_bytes());
    });
}

#[test]
fn unchecked_create_keeps_an_existing_file_and_applies_its_size_only() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let file = client.create(&root, b"f").await.unwrap();
        client.write(&file, 0, b"content", 2).await.0.unwrap();
        let keep = |e: &mut Encoder| {
            e.u32(0);
            mode_sattr(e, 0o600);
        };
        let (same, attr, _) = client.create_how(&root, b"f", keep).await.unwrap();
        assert_eq!((same == file, attr.size), (true, 7));
        let cut = |e: &mut Encoder| {
            e.u32(0).u32(0).u32(0).u32(0).u32(1).u64(0).u32(0).u32(0);
        };
        assert_eq!(client.create_how(&root, b"f", cut).await.unwrap().1.size, 0);
    });
}

#[test]
fn limits_are_told() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let ask = async |procedure| {
            client
                .call(procedure, |e| {
                    e.opaque(&root);
                })
                .await
        };
        let result = ask(Procedure::FsInfo).await;
        let mut d = Decoder::new(&result);
        assert_eq!((d.u32(), post_attr(&mut d).unwrap().kind), (Ok(0), 2));
        let words: Vec<u32> = (0..7).map(|_| d.u32().unwrap()).collect();
        assert_eq!(words, [1 << 20, 1 << 20, 4096, 1 << 20, 1 << 20, 4096, 64 << 10]);
        assert!(d.u64().unwrap() > 1 << 62, "largest file");
        assert_eq!([d.u32(), d.u32(), d.u32()], [Ok(0), Ok(1), Ok(0x1b)], "times exact to 1 ns");
        let result = ask(Procedure::PathConf).await;
        let mut d = Decoder::new(&result);
        assert_eq!((d.u32(), post_attr(&mut d).unwrap().kind), (Ok(0), 2));
        let words: Vec<u32> = (0..6).map(|_| d.u32().unwrap()).collect();
        assert_eq!(words, [u32::MAX - 1, 255, 1, 1, 0, 1]);
        let result = ask(Procedure::FsStat).await;
        let mut d = Decoder::new(&result);
        assert_eq!((d.u32(), post_attr(&mut d).unwrap().kind), (Ok(0), 2));
        let [total, free, available] = [d.u64(), d.u64(), d.u64()].map(Result::unwrap);
        assert!(total >= free && free >= available && available > 0);
        let [files, free, available] = [d.u64(), d.u64(), d.u64()].map(Result::unwrap);
        assert!(files > free && free == available);
        assert_eq!((d.u32(), d.rest().len()), (Ok(0), 0));
    });
}

/// Arguments of each procedure with `handle` wherever one is.
fn args_with(procedure: Procedure, handle: &[u8]) -> impl Fn(&mut Encoder) {
    move |e| {
        e.opaque(handle);
        use Procedure::*;
        match procedure {
            Null | GetAttr | ReadLink | FsStat | FsInfo | PathConf => {}
            SetAttr => {
                no_sattr(e);
                e.bool(false);
            }
            Lookup | Remove | RmDir => {
                e.opaque(b"n");
            }
            Access => {
                e.u32(63);
            }
            Read | Commit => {
                e.u64(0).u32(1);
            }
            Write => {
                e.u64(0).u32(1).u32(2).opaque(b"x");
            }
            Create => {
                e.opaque(b"n").u32(2).u64(7);
            }
            MkDir => {
                e.opaque(b"n");
                no_sattr(e);
            }
            SymLink => {
                e.opaque(b"n");
                no_sattr(e);
                e.opaque(b"t");
            }
            MkNod => {
                e.opaque(b"n").u32(7);
                no_sattr(e);
            }
            Rename => {
                e.opaque(b"n").opaque(handle).opaque(b"m");
            }
            Link => {
                e.opaque(handle).opaque(b"n");
            }
            ReadDir => {
                e.u64(0).u64(0).u32(4096);
            }
            ReadDirPlus => {
                e.u64(0).u64(0).u32(4096).u32(4096);
            }
        }
    }
}

/// Length of each procedure's result when it fails and knows no attributes.
fn failure_len(procedure: Procedure) -> usize {
    use Procedure::*;
    match procedure {
        Null => 0,
        GetAttr => 4,
        Lookup | Access | ReadLink | Read | ReadDir | ReadDirPlus | FsStat | FsInfo | PathConf => 8,
        SetAttr | Write | Create | MkDir | SymLink | MkNod | Remove | RmDir | Commit => 12,
        Link => 16,
        Rename => 20,
    }
}

#[test]
fn every_procedure_answers_a_bad_and_a_stale_handle_with_a_result_of_its_own_shape() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let gone = client.create(&root, b"gone").await.unwrap();
        assert_eq!(client.unlink(Procedure::Remove, &root, b"gone").await.0, 0);
        let forged = vec![7; 40];
        for procedure in &Procedure::ALL[1..] {
            for (handle, status) in [(&gone, NF::STALE), (&forged, NF::BADHANDLE), (&vec![], NF::BADHANDLE)] {
                let result = client.call(*procedure, args_with(*procedure, handle)).await;
                assert_eq!(result[..4], status.to_be_bytes(), "{procedure:?}");
                assert_eq!(result.len(), failure_len(*procedure), "{procedure:?}");
                assert!(result[4..].iter().all(|b| *b == 0), "no attributes: {procedure:?}");
            }
        }
    });
}

#[test]
fn every_procedure_refuses_cut_arguments_as_garbage_and_the_connection_goes_on() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        for procedure in &Procedure::ALL[1..] {
            let whole = client.nfs(*procedure, args_with(*procedure, &root));
            let head = client.nfs(*procedure, |_| ()).len();
            for len in (head..whole.len()).step_by(4) {
                let mut call = client.nfs(*procedure, args_with(*procedure, &root));
                call.truncate(len);
                assert_eq!(refusal(&client.exchange(call).await), [0, 0, 0, 4], "{procedure:?} cut to {len}");
            }
        }
        assert!(client.getattr(&root).await.is_ok());
    });
}

#[test]
fn failed_calls_still_tell_the_attributes_of_what_they_name() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let now = client.getattr(&root).await.unwrap();
        let (status, wcc) = client.unlink(Procedure::Remove, &root, b"nothing").await;
        assert_eq!((status, wcc.pre, wcc.post.as_ref()), (NF::NOENT, None, Some(&now)));
        let result = client
            .call(Procedure::Lookup, |e| {
                e.opaque(&root).opaque(b"nothing");
            })
            .await;
        let mut d = Decoder::new(&result);
        assert_eq!((d.u32(), d.bool()), (Ok(NF::NOENT), Ok(true)));
        assert_eq!(fattr(&mut d), now);
        let file = client.create(&root, b"file").await.unwrap();
        let result = client
            .call(Procedure::SetAttr, |e| {
                e.opaque(&file);
                no_sattr(e);
                e.bool(true).u32(1).u32(1);
            })
            .await;
        let (status, wcc) = status_and_wcc(&result);
        assert_eq!(status, NF::NOT_SYNC);
        assert!(wcc.pre.is_none() && wcc.post.is_some());
    });
}

/// The ERRORS of each procedure in RFC 1813 §3.3 but for IO, STALE, BADHANDLE and SERVERFAULT, and behind them what this
/// server also answers.
fn errors_of(procedure: Procedure) -> (&'static [u32], &'static [u32]) {
    use NF::*;
    use Procedure::*;
    match procedure {
        Null | GetAttr | Access | FsStat | FsInfo | PathConf => (&[], &[]),
        SetAttr => (&[PERM, ACCES, INVAL, NOSPC, ROFS, DQUOT, NOT_SYNC, NOTSUPP], &[FBIG]),
        Lookup => (&[NOENT, ACCES, NOTDIR, NAMETOOLONG], &[]),
        ReadLink => (&[INVAL, ACCES, NOTSUPP], &[]),
        Read => (&[NXIO, ACCES, INVAL], &[]),
        Write => (&[ACCES, FBIG, DQUOT, NOSPC, ROFS, INVAL], &[]),
        Create => (&[ACCES, EXIST, NOTDIR, NOSPC, ROFS, NAMETOOLONG, DQUOT, NOTSUPP], &[PERM, INVAL, FBIG]),
        MkDir => (&[ACCES, EXIST, NOTDIR, NOSPC, ROFS, NAMETOOLONG, DQUOT, NOTSUPP], &[PERM, INVAL, MLINK]),
        SymLink => (&[ACCES, EXIST, NOTDIR, NOSPC, ROFS, NAMETOOLONG, DQUOT, NOTSUPP], &[PERM, INVAL]),
        MkNod => (&[ACCES, EXIST, NOTDIR, NOSPC, ROFS, NAMETOOLONG, DQUOT, NOTSUPP, BADTYPE], &[PERM, INVAL]),
        Remove => (&[NOENT, ACCES, NOTDIR, NAMETOOLONG, ROFS], &[PERM, ISDIR, NOSPC, DQUOT]),
        RmDir => (
            &[NOENT, ACCES, INVAL, EXIST, NOTDIR, NAMETOOLONG, ROFS, NOTEMPTY, NOTSUPP],
            &[PERM, NOSPC, DQUOT],
        ),
        Rename => (
            &[
                NOENT,
                ACCES,
                EXIST,
                XDEV,
                NOTDIR,
                ISDIR,
                INVAL,
                NOSPC,
                ROFS,
                MLINK,
                NAMETOOLONG,
                NOTEMPTY,
                DQUOT,
                NOTSUPP,
            ],
            &[PERM],
        ),
        Link => {
            (&[ACCES, EXIST, XDEV, NOTDIR, INVAL, NOSPC, ROFS, MLINK, NAMETOOLONG, DQUOT, NOTSUPP], &[PERM])
        }
        ReadDir => (&[ACCES, NOTDIR, BAD_COOKIE, TOOSMALL], &[]),
        ReadDirPlus => (&[ACCES, NOTDIR, BAD_COOKIE, TOOSMALL, NOTSUPP], &[]),
        Commit => (&[], &[INVAL, NOSPC, DQUOT]),
    }
}

/// The filesystem's call that `procedure` ends in.
fn call_of(procedure: Procedure) -> &'static str {
    use Procedure::*;
    match procedure {
        Null | GetAttr | Access | FsInfo | PathConf => "getattr",
        SetAttr => "setattr",
        Lookup => "lookup",
        ReadLink => "readlink",
        Read => "read",
        Write => "write",
        Create => "create",
        MkDir | SymLink | MkNod => "make",
        Remove => "remove",
        RmDir => "rmdir",
        Rename => "rename",
        Link => "link",
        ReadDir | ReadDirPlus => "readdir",
        FsStat => "statfs",
        Commit => "commit",
    }
}

#[test]
fn every_error_of_the_filesystem_is_told_in_the_words_its_procedure_has() {
    let world = World::new();
    let (client, fs) = (world.client(), world.fs.clone());
    world.run(async move {
        let root = client.root().await;
        for procedure in Procedure::ALL.into_iter().skip(1) {
            let (listed, beyond) = errors_of(procedure);
            let io: &[u32] =
                if matches!(procedure, Procedure::FsInfo | Procedure::PathConf) { &[] } else { &[NF::IO] };
            let always = [NF::STALE, NF::BADHANDLE, NF::SERVERFAULT];
            for error in FsError::ALL {
                if matches!(error, FsError::NoMemory | FsError::ShuttingDown) {
                    continue; // not told at all
                }
                fs.fail(call_of(procedure), *error, 1);
                let result = client.call(procedure, args_with(procedure, &root)).await;
                let status = u32::from_be_bytes(result[..4].try_into().unwrap());
                let mut allowed = [listed, beyond, io, &always].concat();
                if *error == FsError::Busy {
                    allowed = vec![NF::JUKEBOX];
                }
                assert!(allowed.contains(&status), "{procedure:?} tells {error:?} by {status}");
            }
        }
    });
}
