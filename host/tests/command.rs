//! The `moraine` command as a person runs it: what it prints, how it ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A directory of its own for a test, gone at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("moraine-command-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.0.join(name);
        std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn moraine() -> Command {
    Command::new(env!("CARGO_BIN_EXE_moraine"))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn run(arguments: &[&str], paths: &[&Path]) -> Output {
    moraine().args(arguments).args(paths).output().unwrap()
}

/// A serving process and what its ready line says.
struct Serving {
    process: Child,
    nfs: SocketAddr,
    nbd: SocketAddr,
}

fn serve(arguments: &[&str], paths: &[&Path]) -> Serving {
    let free = ["--nfs", "127.0.0.1:0", "--nbd", "127.0.0.1:0"];
    let mut command = moraine();
    command.arg("serve").args(arguments).args(free).args(paths).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let words: Vec<&str> = line.trim_end().split(' ').collect();
    assert_eq!(words[..2], ["moraine", "ready"], "{line}");
    let value = |n: usize, name: &str| words[n].strip_prefix(name).unwrap_or_else(|| panic!("{line}"));
    let (nfs, nbd) = (value(2, "nfs=").parse().unwrap(), value(3, "nbd=").parse().unwrap());
    value(4, "boot_ms=").parse::<u64>().unwrap();
    assert_eq!(value(5, "pid=").parse::<u32>().unwrap(), process.id());
    assert_eq!(words.len(), 6, "{line}");
    Serving { process, nfs, nbd }
}

impl Serving {
    /// Ends it as a person would, and returns its exit code.
    fn end(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.process.wait().unwrap().code()
    }
}

#[test]
fn serve_says_exactly_where_it_answers_and_ends_cleanly_on_sigterm() {
    let serving = serve(&["--memory"], &[]);
    let mut greeting = [0; 8];
    TcpStream::connect(serving.nbd).unwrap().read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGIC");
    drop(TcpStream::connect(serving.nfs).unwrap());
    let nbd = serving.nbd.to_string();
    let second = run(&["serve", "--memory", "--nfs", "127.0.0.1:0", "--nbd", &nbd], &[]);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains(&format!("NBD cannot listen on {nbd}: address in use")));
    assert_eq!(second.stdout, b"", "nothing is ready");
    assert_eq!(serving.end(), Some(0));
}

#[test]
fn a_client_in_the_middle_of_nothing_does_not_hold_up_the_end() {
    let serving = serve(&["--memory"], &[]);
    let idle = [TcpStream::connect(serving.nfs).unwrap(), TcpStream::connect(serving.nbd).unwrap()];
    assert_eq!(serving.end(), Some(0));
    for mut client in idle {
        let mut rest = Vec::new();
        // Whether by an end or by a reset: the connection is over.
        let _ = client.read_to_end(&mut rest);
    }
}

/// The result of a call that root on a client makes of a server of NFS.
fn call_as_root(server: &mut TcpStream, program: u32, procedure: u32, args: &[u8]) -> Vec<u8> {
    const XID: u32 = 7;
    // AUTH_SYS: no stamp, no machine's name, user and group 0, no further groups; no verifier.
    let head = [XID, 0, 2, program, 3, procedure, 1, 20, 0, 0, 0, 0, 0, 0, 0];
    let head: Vec<u8> = head.iter().flat_map(|word| word.to_be_bytes()).collect();
    let mark = (head.len() + args.len()) as u32 | 1 << 31;
    server.write_all(&[&mark.to_be_bytes()[..], &head, args].concat()).unwrap();
    let mut mark = [0; 4];
    server.read_exact(&mut mark).unwrap();
    let mut reply = vec![0; (u32::from_be_bytes(mark) & !(1 << 31)) as usize];
    server.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..24], [XID, 1, 0, 0, 0, 0].map(u32::to_be_bytes).concat(), "accepted");
    reply.split_off(24)
}

#[test]
fn root_on_a_client_is_root_here_unless_squash_says_otherwise() {
    const OK: u32 = 0;
    const ACCES: u32 = 13;
    for (squash, wanted) in [(&[][..], OK), (&["none"], OK), (&["root"], ACCES), (&["all"], ACCES)] {
        let words: Vec<&str> =
            squash.iter().flat_map(|whom| ["--squash", whom]).chain(["--memory"]).collect();
        let serving = serve(&words, &[]);
        let mut server = TcpStream::connect(serving.nfs).unwrap();
        let mounted = call_as_root(&mut server, 100_005, 1, &[0, 0, 0, 1, b'/', 0, 0, 0]);
        assert_eq!(mounted[..8], [0, 0, 0, 0, 0, 0, 0, 40]);
        let dir = [&mounted[4..48], &[0, 0, 0, 1, b'd', 0, 0, 0], &[0; 24]].concat();
        let status = call_as_root(&mut server, 100_003, 9, &dir)[..4].to_vec();
        assert_eq!(status, wanted.to_be_bytes(), "MKDIR in root's directory with {words:?}");
        assert_eq!(serving.end(), Some(0));
    }
}

#[test]
fn wrong_usage_ends_with_two() {
    for arguments in [
        &["frobnicate"][..],
        &["serve"],
        &["serve", "--memory", "disk"],
        &["serve", "--memory", "--nfs", "nowhere"],
        &["serve", "--memory", "--squash", "somebody"],
        &["mkfs"],
        &["mkfs", "disk", "--size", "much"],
        &["dump"],
        &["dump", "disk", "--tree", "oak"],
        &["--log", "loud", "serve", "--memory"],
    ] {
        let output = run(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(output.stdout, b"", "{arguments:?}");
    }
}

#[test]
fn dump_names_what_is_on_a_disk_that_is_no_member() {
    let scratch = Scratch::new("dump");
    let blank = scratch.file("blank", 64 << 20);
    let output = run(&["dump"], &[&blank]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), format!("{}: blank\n", blank.display()));
    let output = run(&["dump", "--json"], &[&blank]);
    assert_eq!(text(&output.stdout), format!("{{\"disk\":\"{}\",\"found\":\"blank\"}}\n", blank.display()));
    let output = run(&["dump", "--journal"], &[&blank]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no disk is a member of a pool"), "{}", text(&output.stderr));
    let output = run(&["dump"], &[&scratch.0.join("missing")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("missing: No such file"), "{}", text(&output.stderr));
}

#[test]
fn a_pool_is_made_checked_served_and_shown() {
    let scratch = Scratch::new("pool");
    let disks = [scratch.0.join("a.img"), scratch.0.join("b.img")];
    let paths = disks.each_ref().map(PathBuf::as_path);
    let made = run(&["mkfs", "--size", "256M", "--label", "attic"], &paths);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    assert!(text(&made.stdout).starts_with("made the pool 'attic' of "));

    let again = run(&["mkfs"], &paths);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("member 0 of the pool 'attic'"), "{}", text(&again.stderr));

    let checked = run(&["fsck"], &paths);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stdout));
    assert!(text(&checked.stdout).contains(" 0 found wrong"));

    let tree = run(&["dump", "--tree", "inodes"], &paths);
    assert_eq!(text(&tree.stdout).lines().count(), 2, "the root and its volumes: {}", text(&tree.stdout));
    let one = run(&["dump", "--tree", "inodes"], &paths[..1]);
    assert_eq!(one.status.code(), Some(1), "half a pool is none");

    let serving = serve(&[], &paths);
    let locked = run(&["fsck"], &paths);
    assert_eq!(locked.status.code(), Some(8));
    assert!(text(&locked.stderr).contains("in use by another process"), "{}", text(&locked.stderr));
    assert_eq!(serving.end(), Some(0));
    let shown = run(&["dump"], &paths);
    assert_eq!(text(&shown.stdout).matches("last ended cleanly").count(), 2);

    // The process is cut off, as by a power failure: the pool mounts again and is whole.
    let mut serving = serve(&[], &paths);
    serving.process.kill().unwrap();
    serving.process.wait().unwrap();
    let shown = run(&["dump"], &paths);
    assert_eq!(text(&shown.stdout).matches("last did not end").count(), 2);
    assert_eq!(run(&["fsck"], &paths).status.code(), Some(0));

    assert_eq!(run(&["mkfs", "--force", "--label", "cellar"], &paths).status.code(), Some(0));
}

#[test]
fn what_is_no_pool_is_neither_served_nor_overwritten() {
    let scratch = Scratch::new("foreign");
    let foreign = scratch.file("notes", 256 << 20);
    let mut content = std::fs::OpenOptions::new().write(true).open(&foreign).unwrap();
    std::io::Write::write_all(&mut content, b"do not lose this").unwrap();
    for arguments in [&["serve"][..], &["mkfs"]] {
        let output = run(arguments, &[&foreign]);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stderr).contains("data of an unknown kind"), "{}", text(&output.stderr));
    }
    let idle = run(&["serve"], &[&foreign]);
    assert!(text(&idle.stderr).contains("moraine idle"), "{}", text(&idle.stderr));
    assert_eq!(run(&["fsck"], &[&foreign]).status.code(), Some(8));
    assert_eq!(run(&["fsck"], &[]).status.code(), Some(16));
    assert_eq!(std::fs::read(&foreign).unwrap()[..16], *b"do not lose this");
}
