//! A server in a simulated world: the whole of the exports over the reference model.

use crate::seeds::{NBD_GREETING, nfs_call, record};
use core::net::{IpAddr, SocketAddr};
use moraine_appliance::{Listen, Memory, Squash, serve_exports};
use moraine_fs::Vfs;
use moraine_fs::vfs::{Caller, CreateMode, SetAttr};
use moraine_model::Model;
use moraine_nfs::handle::Handles;
use moraine_platform::{Network, Platform};
use moraine_sim::net::NetConfig;
use moraine_sim::world::{World, WorldConfig};
use std::rc::Rc;

const SERVER: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(10, 0, 0, 1));
/// The clients' address.
pub const CLIENT: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(10, 0, 0, 2));
/// Bytes on their way in each direction of a connection, at most.
const WINDOW: usize = 1 << 20;
/// Size of the volume.
const VOLUME_BYTES: u64 = 1 << 20;

/// A running server and the clients' side of its world.
pub struct Served<'a> {
    /// The world.
    pub world: &'a World,
    /// What its tasks see.
    pub platform: Platform,
    /// The clients' network.
    pub network: Rc<dyn Network>,
    /// The NFS handle of the root.
    pub root_handle: Vec<u8>,
    /// The NFS handle of `file`, of one mebibyte as the volume `vm`.
    pub file_handle: Vec<u8>,
}

/// The server's address with this port.
pub fn at(port: u16) -> SocketAddr {
    SocketAddr::new(SERVER, port)
}

/// Runs `client` against a server in a world as `config` says, then sees that an honest client is served and the server
/// ends in order.
pub fn with_server(config: WorldConfig, client: impl AsyncFnOnce(&Served<'_>)) {
    let world = World::with(config);
    let inside = &world;
    let platform = world.platform();
    let (ours, theirs) = (world.switch().host(SERVER), world.switch().host(CLIENT));
    // So large that it is seldom full.
    world.switch().configure(NetConfig { window: WINDOW, ..NetConfig::default() });
    let ended = world.try_run(async move {
        let model = Rc::new(Model::new(platform.clock.clone(), platform.rng.clone()));
        let root = Caller::root();
        let (volumes, _) = model.lookup(&root, model.root(), b"volumes").await.expect("it is there");
        let set = SetAttr { mode: Some(0o644), size: Some(VOLUME_BYTES), ..SetAttr::default() };
        let how = CreateMode::Guarded;
        model.create(&root, volumes, b"vm", how, &set).await.expect("it is new");
        let made = model.create(&root, model.root(), b"file", how, &set).await.expect("it is new");
        let handles = Handles::new(model.pool());
        let served = Served {
            world: inside,
            platform: platform.clone(),
            network: theirs,
            root_handle: handles.encode(model.root()).to_vec(),
            file_handle: handles.encode(made.value.0).to_vec(),
        };
        let memory = Memory::of(0);
        let listen = Listen { nfs: Some(at(2049)), nbd: Some(at(10809)), portmap: Some(at(111)) };
        let exports = serve_exports(&platform, model, ours, listen, &memory, Squash::default());
        let exports = exports.expect("the ports are free");
        client(&served).await;
        // The honest ones: one call, one handshake.
        let call = record(&nfs_call(77, 100_003, 3, 0, &[]));
        let reply = exchange(&served, 2049, &call, 28).await;
        assert_eq!(reply[4..8], 77u32.to_be_bytes(), "an honest NFS client is answered");
        let greeting = exchange(&served, 10809, &[], 18).await;
        assert_eq!(&greeting[..16], NBD_GREETING, "an honest NBD client is greeted");
        drop(exports.stop().await);
    });
    if let Err(stall) = ended {
        panic!("the server hangs: {stall}");
    }
}

/// Sends `bytes` and returns the first `want` bytes of the answer.
async fn exchange(served: &Served<'_>, port: u16, bytes: &[u8], want: usize) -> Vec<u8> {
    let stream = served.network.connect(at(port)).await.expect("the server accepts");
    stream.send_all(bytes).await.expect("the server reads");
    let mut out = vec![0; want];
    assert!(stream.recv_exact(&mut out).await.expect("the server answers"), "the server answers whole");
    stream.abort();
    out
}
