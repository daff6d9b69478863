//! The appliance on this machine: network, pool, exports, until the power button.

use crate::console;
use crate::machine::clock;
use crate::memory::budget::Budget;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use moraine_appliance::{Addressing, Config, Listen, Stop, open_pool, serve_exports};
use moraine_fs::Vfs;
use moraine_net::Stack;
use moraine_platform::memory::Usage;
use moraine_platform::{BlockDevice, NicDevice, Platform, error, info, warn};

/// How long an address of version 4 is waited for once there is one of version 6.
const VERSION_4_WAIT: Duration = Duration::from_secs(3);
/// How often addresses are looked at meanwhile.
const ADDRESS_LOOK: Duration = Duration::from_millis(20);
/// After how long without an address the console says so.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(5);

/// A card's address as people write it.
struct Mac([u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Brings the network up on the first card with a link. None without a card.
pub(crate) fn start_network(
    platform: &Platform,
    nics: Vec<Rc<dyn NicDevice>>,
    config: &Config,
    budget: &Budget,
) -> Option<Stack> {
    let linked = nics.iter().position(|nic| nic.link_up());
    let Some(nic) = nics.get(linked.unwrap_or(0)).cloned() else {
        error!("net", "no network card: nothing can be served");
        return None;
    };
    if nics.len() > 1 {
        // One stack, one card: which one is for people to see, lest they look for an address on another.
        let why = if linked.is_some() { "the first with a link" } else { "the first, none has a link" };
        warn!("net", "{} network cards; {} is used, {why}; the others are not", nics.len(), Mac(nic.mac()));
    }
    let addressing = match &config.addressing {
        Addressing::Automatic => moraine_net::Addressing::Automatic,
        Addressing::Static(addresses) => {
            let convert = |a: &moraine_appliance::StaticAddress| moraine_net::StaticAddress {
                address: a.address,
                prefix: a.prefix,
                gateway: a.gateway,
            };
            moraine_net::Addressing::Static(addresses.iter().map(convert).collect())
        }
    };
    let config = moraine_net::Config {
        addressing,
        buffer_bytes: budget.memory.network as usize,
        ..moraine_net::Config::default()
    };
    match Stack::new(platform, nic, &config) {
        Ok(stack) => {
            platform.spawn.spawn("network", alloc::boxed::Box::pin(stack.clone().run()));
            Some(stack)
        }
        Err(why) => {
            error!("net", "{why}");
            None
        }
    }
}

/// Serves `vfs` until `stop`; the filesystem comes back with nothing under way. How the shares of memory were used is told
/// at the end; `caches` tells those of the filesystem.
pub(crate) async fn serve<V: Vfs + 'static>(
    platform: &Platform,
    vfs: Rc<V>,
    stack: Stack,
    budget: &Budget,
    config: &Config,
    stop: &Stop,
    caches: impl Fn() -> Vec<Usage>,
) -> Rc<V> {
    let network = Rc::new(stack.clone());
    let (listen, files) = (Listen::everywhere(), vfs.clone());
    let exports = match serve_exports(platform, files, network, listen, &budget.memory, config.squash) {
        Ok(exports) => exports,
        Err(why) => {
            error!("kernel", "{why}");
            stop.wait().await;
            return vfs;
        }
    };
    let address = address(platform, &stack, stop).await;
    if let Some(address) = address {
        // The listeners are bound to every address; who reads this line wants one that can be reached.
        let line = exports.ready_line(Duration::from_nanos(clock::now_ns()), None);
        let at = SocketAddr::new(address, 0);
        let text = alloc::format!("{at}");
        let host = text.strip_suffix(":0").unwrap_or(&text);
        console::plain(format_args!("{}", line.replace("=[::]:", &alloc::format!("={host}:"))));
    }
    stop.wait().await;
    let mut shares = caches();
    shares.push(stack.memory());
    shares.append(&mut exports.memory());
    budget.report(shares);
    exports.stop().await
}

/// Opens the pool on these disks, serves it until `stop`, and closes it; without one says so and waits.
pub(crate) async fn pool(
    platform: &Platform,
    disks: &[Rc<dyn BlockDevice>],
    stack: Option<Stack>,
    config: &Config,
    budget: &Budget,
    stop: &Stop,
) {
    let pool = match open_pool(platform, disks, config, &budget.memory).await {
        Ok(pool) => pool,
        Err(idle) => {
            console::plain(format_args!("{idle}"));
            return stop.wait().await;
        }
    };
    match stack {
        Some(stack) => {
            let files = pool.files();
            let caches = || files.memory().into();
            drop(serve(platform, files.clone(), stack, budget, config, stop, caches).await);
        }
        None => stop.wait().await,
    }
    match pool.unmount().await {
        Ok(()) => info!("kernel", "the pool is closed, everything is on the disks"),
        Err(why) => error!("kernel", "the pool did not close in order: {why}"),
    }
}

/// Waits for an address, best of version 4; none if the end is asked for before.
async fn address(platform: &Platform, stack: &Stack, stop: &Stop) -> Option<IpAddr> {
    let begin = platform.clock.now();
    let (mut first, mut told) = (None, false);
    while !stop.asked() {
        let addresses = stack.addresses();
        let now = platform.clock.now();
        if let Some(address) = addresses.iter().find(|a| a.is_ipv4()) {
            return Some(*address);
        }
        if let Some(address) = addresses.first() {
            let since = *first.get_or_insert(now);
            if now.since(since) > VERSION_4_WAIT {
                return Some(*address);
            }
        } else if !told && now.since(begin) > ADDRESS_PATIENCE {
            told = true;
            info!("net", "still no address: is there a DHCP server? (or say ip=ADDRESS/PREFIX)");
        }
        platform.clock.sleep(ADDRESS_LOOK).await;
    }
    None
}
