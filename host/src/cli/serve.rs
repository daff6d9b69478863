//! `moraine serve`: a pool over NFS and NBD from an ordinary process.

use super::disks::open_all;
use super::{Failure, size};
use crate::os::{self, OpenMode, OsNetwork};
use clap::Args;
use moraine_appliance::{Config, Listen, Memory, Squash, Stop, choose_routines, open_pool, serve_exports};
use moraine_fs::Vfs;
use moraine_model::Model;
use moraine_platform::{Platform, info};
use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use tokio::signal::unix::{SignalKind, signal};

/// Arguments of `moraine serve`.
#[derive(Args, Debug)]
pub(super) struct Serve {
    /// Disks of the pool: image files or block devices.
    #[arg(required_unless_present = "memory", conflicts_with = "memory")]
    disks: Vec<PathBuf>,
    /// Where NFS, MOUNT and portmap answer; port 0 takes any free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:2049", value_parser = address)]
    nfs: SocketAddr,
    /// Where NBD answers; port 0 takes any free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:10809", value_parser = address)]
    nbd: SocketAddr,
    /// Also answer as the system's portmapper, on TCP and UDP (usually HOST:111).
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    portmap: Option<SocketAddr>,
    /// Memory to plan for: caches, and payload in flight.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "512M")]
    budget: u64,
    /// Use the checksum routines of this name (scalar, sse4.2, pclmul) instead of the fastest.
    #[arg(long, value_name = "NAME")]
    accel: Option<String>,
    /// Which NFS clients' users become nobody (65534): none, root, or all.
    #[arg(long, value_name = "WHOM", value_parser = squash, default_value = "none")]
    squash: Squash,
    /// For developers of the exports: serve an empty filesystem in memory, without disks; everything is lost at the
    /// end.
    #[arg(long)]
    memory: bool,
}

impl Serve {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        os::run(async |platform| {
            choose_routines(self.accel.as_deref(), &*platform.clock);
            if self.memory {
                let model = Model::new(platform.clock.clone(), platform.rng.clone());
                self.serve(&platform, Rc::new(model)).await?;
                return Ok(ExitCode::SUCCESS);
            }
            let disks = open_all(&self.disks, OpenMode::Write)?;
            let memory = Memory::of(self.budget);
            info!("memory", "{memory}");
            let pool = open_pool(&platform, &disks, &Config::default(), &memory).await;
            let pool = pool.map_err(|idle| Failure(idle.to_string()))?;
            let served = self.serve(&platform, pool.files()).await;
            pool.unmount().await?;
            served.map(|_| ExitCode::SUCCESS)
        })?
    }

    /// Serves `vfs` until a signal asks for the end; it is returned with nothing under way.
    async fn serve<V: Vfs + 'static>(&self, platform: &Platform, vfs: Rc<V>) -> Result<Rc<V>, Failure> {
        let stop = stop_on_signals()?;
        let listen = Listen { nfs: Some(self.nfs), nbd: Some(self.nbd), portmap: self.portmap };
        let memory = Memory::of(self.budget);
        let exports = serve_exports(platform, vfs, Rc::new(OsNetwork), listen, &memory, self.squash)?;
        let boot = platform.clock.now().since(moraine_platform::Instant(0));
        let mut out = std::io::stdout();
        writeln!(out, "{}", exports.ready_line(boot, Some(std::process::id())))?;
        out.flush()?;
        stop.wait().await;
        Ok(exports.stop().await)
    }
}

/// A handle that is asked once SIGTERM or Ctrl-C arrives. A second signal ends the process at once.
fn stop_on_signals() -> Result<Stop, Failure> {
    let stop = Stop::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        let stop = stop.clone();
        tokio::task::spawn_local(async move {
            while signals.recv().await.is_some() {
                if stop.asked() {
                    std::process::exit(1);
                }
                stop.ask();
            }
        });
    }
    Ok(stop)
}

fn squash(text: &str) -> Result<Squash, String> {
    Squash::from_name(text).ok_or_else(|| "wanted none, root or all".to_owned())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().map_err(|e| format!("wanted HOST:PORT: {e}"))?;
    found.next().ok_or_else(|| "the host has no address".to_owned())
}
