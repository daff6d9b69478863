//! The exports over a mounted filesystem: started together, stopped together.

use crate::Memory;
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::future::{Future, poll_fn};
use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use moraine_fs::Vfs;
use moraine_nfs::{Ports, Squash};
use moraine_platform::memory::Usage;
use moraine_platform::{NetError, Network, Platform, warn};
use moraine_share::Share;

/// The port NFS, MOUNT and portmap share.
pub const NFS_PORT: u16 = 2049;
/// The port of NBD.
pub const NBD_PORT: u16 = 10809;
/// The port of the port mapper.
pub const PORTMAP_PORT: u16 = 111;
/// Connections of NFS clients at once. With those of NBD they are fewer than the network stack's, so that there is
/// always a place for a newcomer, for whom the export then closes an idle one.
const NFS_CONNECTIONS_MAX: usize = 176;
/// Connections of NBD clients at once.
const NBD_CONNECTIONS_MAX: usize = 64;
/// How long requests under way may take when the exports stop.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Where each export listens; `None` leaves it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// NFS, MOUNT and portmap.
    pub nfs: Option<SocketAddr>,
    /// NBD.
    pub nbd: Option<SocketAddr>,
    /// The portmapper's own port, on TCP and UDP; a process usually may not, an appliance should.
    pub portmap: Option<SocketAddr>,
}

impl Listen {
    /// Everything, on every address, at the well-known ports: what the booted image does.
    pub const fn everywhere() -> Listen {
        const fn any(port: u16) -> Option<SocketAddr> {
            Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port))
        }
        Listen { nfs: any(NFS_PORT), nbd: any(NBD_PORT), portmap: any(PORTMAP_PORT) }
    }
}

/// Why the exports did not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartError {
    /// Which export.
    pub export: &'static str,
    /// Where it was to listen.
    pub address: SocketAddr,
    /// What the network said.
    pub error: NetError,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot listen on {}: {}", self.export, self.address, self.error)
    }
}

impl core::error::Error for StartError {}

/// The running exports.
pub struct Exports<V> {
    platform: Platform,
    vfs: Rc<V>,
    nfs: Option<(moraine_nfs::Server<V>, SocketAddr)>,
    nbd: Option<(Rc<moraine_nbd::Server<V>>, SocketAddr)>,
}

/// Starts every export that has an address, within its shares of `memory`; NFS callers are squashed as `squash` says. When
/// this returns, they answer; on an error nothing was started.
pub fn serve_exports<V: Vfs + 'static>(
    platform: &Platform,
    vfs: Rc<V>,
    network: Rc<dyn Network>,
    listen: Listen,
    memory: &Memory,
    squash: Squash,
) -> Result<Exports<V>, StartError> {
    let streams = |export, address: Option<SocketAddr>| {
        let bound =
            address.map(|address| network.listen(address).map_err(|e| StartError::new(export, address, e)));
        bound.transpose()
    };
    let datagrams = |export, address: Option<SocketAddr>| {
        let bound =
            address.map(|address| network.bind(address).map_err(|e| StartError::new(export, address, e)));
        bound.transpose()
    };
    // Everything is bound before anything is started.
    let nfs_listener = streams("NFS", listen.nfs)?;
    let nbd_listener = streams("NBD", listen.nbd)?;
    let portmap_listener = streams("portmap", listen.portmap)?;
    let portmap_socket = datagrams("portmap", portmap_listener.as_ref().map(|l| l.local()))?;
    // MOUNT over UDP beside NFS's port, where old tools ask. Nobody needs it to mount, so it may be taken.
    let mount_socket = datagrams("MOUNT", nfs_listener.as_ref().map(|l| l.local()))
        .inspect_err(|e| warn!("appliance", "{e} over UDP"))
        .unwrap_or(None);

    let share = Share::new();
    let mut exports = Exports { platform: platform.clone(), vfs: vfs.clone(), nfs: None, nbd: None };
    if let Some(listener) = nfs_listener {
        let address = listener.local();
        let portmap = portmap_listener.as_ref().map_or(0, |l| l.local().port());
        let mount_udp = mount_socket.as_ref().map_or(0, |socket| socket.local().port());
        let ports = Ports { mount_udp, portmap, ..Ports::all_on(address.port()) };
        let mut config = moraine_nfs::Config::new(ports, memory.total, memory.nfs);
        config.connections_max = NFS_CONNECTIONS_MAX;
        config.identities.squash = squash;
        let server = moraine_nfs::Server::new(platform, vfs.clone(), share.clone(), config);
        platform.spawn.spawn("nfs", Box::pin(server.clone().serve(listener)));
        if let Some(listener) = portmap_listener {
            platform.spawn.spawn("portmap", Box::pin(server.clone().serve(listener)));
        }
        for socket in [portmap_socket, mount_socket].into_iter().flatten() {
            platform.spawn.spawn("nfs datagrams", Box::pin(server.clone().serve_datagrams(socket)));
        }
        exports.nfs = Some((server, address));
    }
    if let Some(listener) = nbd_listener {
        let address = listener.local();
        let config = moraine_nbd::Config { connections: NBD_CONNECTIONS_MAX, payload: memory.nbd };
        let server = moraine_nbd::Server::new(platform.clone(), vfs, share, config);
        platform.spawn.spawn("nbd", Box::pin(server.clone().serve(listener)));
        exports.nbd = Some((server, address));
    }
    Ok(exports)
}

impl<V: Vfs + 'static> Exports<V> {
    /// What file data under way takes of memory, for each export.
    pub fn memory(&self) -> Vec<Usage> {
        let nfs = self.nfs.iter().map(|(server, _)| server.memory());
        nfs.chain(self.nbd.iter().map(|(server, _)| server.memory())).collect()
    }

    /// Where NFS answers.
    pub fn nfs(&self) -> Option<SocketAddr> {
        self.nfs.as_ref().map(|(_, address)| *address)
    }

    /// Where NBD answers.
    pub fn nbd(&self) -> Option<SocketAddr> {
        self.nbd.as_ref().map(|(_, address)| *address)
    }

    /// The line that says that everything answers: `moraine ready nfs=… nbd=… boot_ms=… pid=…`. `boot` is the time
    /// since the start; a machine without processes leaves out the last part.
    pub fn ready_line(&self, boot: Duration, pid: Option<u32>) -> String {
        let mut line = String::from("moraine ready");
        for (name, address) in [("nfs", self.nfs()), ("nbd", self.nbd())] {
            if let Some(address) = address {
                line.push_str(&format!(" {name}={address}"));
            }
        }
        line.push_str(&format!(" boot_ms={}", boot.as_millis()));
        if let Some(pid) = pid {
            line.push_str(&format!(" pid={pid}"));
        }
        line
    }

    /// Accepts nothing more, lets requests under way finish, ends the connections, and returns the filesystem. A client
    /// that holds this up is left behind after a while.
    pub async fn stop(self) -> Rc<V> {
        {
            let mut nfs = pin!(async {
                if let Some((server, _)) = &self.nfs {
                    server.stop().await;
                }
            });
            let mut nbd = pin!(async {
                if let Some((server, _)) = &self.nbd {
                    server.shut_down().await;
                }
            });
            let mut deadline = self.platform.clock.sleep(STOP_MAX);
            let (mut nfs_ended, mut nbd_ended) = (false, false);
            poll_fn(|cx| {
                nfs_ended = nfs_ended || nfs.as_mut().poll(cx).is_ready();
                nbd_ended = nbd_ended || nbd.as_mut().poll(cx).is_ready();
                if nfs_ended && nbd_ended {
                    return Poll::Ready(());
                }
                deadline.as_mut().poll(cx).map(|()| warn!("appliance", "clients did not end in time"))
            })
            .await;
        }
        self.vfs
    }
}

impl StartError {
    fn new(export: &'static str, address: SocketAddr, error: NetError) -> StartError {
        StartError { export, address, error }
    }
}
