//! The words of the boot command line, and of the text file on a flashed image, as values.
//!
//! Words are separated by white space; `#` starts a comment that ends with its line. A word that is unknown or
//! malformed is never dropped in silence: parsing returns a [`Complaint`] for each, to be shown on the console, and
//! goes on with the rest, because an appliance with a typing mistake in its configuration still has to serve.
//!
//! | word | meaning |
//! |---|---|
//! | `format=blank` | make a pool of disks that are entirely blank, if no pool is found |
//! | `ip=dhcp` | ask the network for an address (the default; IPv6 configures itself beside it) |
//! | `ip=ADDR/PREFIX[,GATEWAY]` | use this address; once for IPv4 and once for IPv6 |
//! | `panic=reboot` or `panic=halt` | what to do after a panic (default: reboot) |
//! | `log=LEVEL` | `error`, `warn`, `info` (default), `debug` or `trace` |
//! | `budget=SIZE` | bytes of memory to use at most, with `K`, `M` or `G`; without it all there is |
//! | `accel=NAME` | use the checksum routines called NAME (`scalar`, `sse4.2`, `pclmul`) instead of the fastest |
//! | `squash=WHOM` | which NFS clients' users become nobody (65534): `none` (the default), `root` or `all` |
//!
//! The kernel takes its own words (`copy=`, `selftest=`, `virtio_mmio.device=`) before; docs/boot.md tells all of them.

use crate::memory::BUDGET_MIN;
use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use moraine_nfs::Squash;
use moraine_platform::log::Level;

/// Every word that is understood here.
const WORDS: [&str; 7] = ["format", "ip", "panic", "log", "budget", "accel", "squash"];

/// How the appliance is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What to do with blank disks when there is no pool.
    pub blank_disks: BlankDisks,
    /// Where addresses come from.
    pub addressing: Addressing,
    /// What follows a panic.
    pub on_panic: OnPanic,
    /// Least important level that is logged.
    pub log: Level,
    /// Memory to use at most, in bytes; `None`: all the machine has.
    pub budget: Option<u64>,
    /// Name of the accelerated routines to use; `None`: the fastest.
    pub accel: Option<String>,
    /// Which NFS callers lose their identity.
    pub squash: Squash,
}

/// What to do with blank disks when there is no pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlankDisks {
    /// Leave them alone: nothing is ever formatted unless told to.
    Leave,
    /// Make a pool of them.
    Format,
}

/// Where addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// DHCP for IPv4 and router advertisements for IPv6.
    Automatic,
    /// These and no others; at most one of each family.
    Static(Vec<StaticAddress>),
}

/// One address given by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits of it that name the network.
    pub prefix: u8,
    /// Where packets for other networks go.
    pub gateway: Option<IpAddr>,
}

/// What follows a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPanic {
    /// Start again.
    Reboot,
    /// Stand still, so that the console can be read.
    Halt,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            blank_disks: BlankDisks::Leave,
            addressing: Addressing::Automatic,
            on_panic: OnPanic::Reboot,
            log: Level::Info,
            budget: None,
            accel: None,
            squash: Squash::Nobody,
        }
    }
}

/// A word that was not obeyed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The word as it stood.
    pub word: String,
    /// Why it was not obeyed.
    pub reason: Reason,
}

/// Why a word was not obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no such word.
    Unknown,
    /// The word is known, its value is not; the text says what is.
    BadValue(&'static str),
    /// It was already said.
    Repeated,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot word `{}` ignored: ", self.word.escape_debug())?;
        match self.reason {
            Reason::Unknown => write!(f, "no such word (known are {})", WORDS.join(", ")),
            Reason::BadValue(wanted) => write!(f, "wanted {wanted}"),
            Reason::Repeated => f.write_str("said before; the first one counts"),
        }
    }
}

impl Config {
    /// Reads `text`; words that are not understood leave the default in place and are returned beside the values.
    pub fn parse(text: &str) -> (Config, Vec<Complaint>) {
        let mut config = Config::default();
        let mut complaints = Vec::new();
        let mut seen: Vec<&str> = Vec::new();
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or(""));
        for word in lines.flat_map(str::split_whitespace) {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let result = if name != "ip" && seen.contains(&name) {
                Err(Reason::Repeated)
            } else {
                config.apply(name, value)
            };
            match result {
                Ok(()) => seen.push(name),
                Err(reason) => complaints.push(Complaint { word: word.to_owned(), reason }),
            }
        }
        (config, complaints)
    }

    fn apply(&mut self, name: &str, value: &str) -> Result<(), Reason> {
        match name {
            "format" => match value {
                "blank" => self.blank_disks = BlankDisks::Format,
                _ => return Err(Reason::BadValue("format=blank")),
            },
            "ip" => self.apply_ip(value)?,
            "panic" => {
                self.on_panic = match value {
                    "reboot" => OnPanic::Reboot,
                    "halt" => OnPanic::Halt,
                    _ => return Err(Reason::BadValue("panic=reboot or panic=halt")),
                }
            }
            "log" => {
                self.log = Level::from_name(value)
                    .ok_or(Reason::BadValue("log=error, warn, info, debug or trace"))?
            }
            "budget" => {
                let bytes = parse_size(value).filter(|bytes| *bytes >= BUDGET_MIN);
                self.budget = Some(bytes.ok_or(Reason::BadValue("budget=SIZE of 32M at least, like 256M"))?);
            }
            "accel" if !value.is_empty() => self.accel = Some(value.to_owned()),
            "accel" => return Err(Reason::BadValue("accel=NAME")),
            "squash" => {
                self.squash = Squash::from_name(value)
                    .ok_or(Reason::BadValue("squash=none, squash=root or squash=all"))?
            }
            _ => return Err(Reason::Unknown),
        }
        Ok(())
    }

    fn apply_ip(&mut self, value: &str) -> Result<(), Reason> {
        const WANTED: Reason = Reason::BadValue("ip=dhcp or ip=ADDRESS/PREFIX[,GATEWAY]");
        if value == "dhcp" {
            return match self.addressing {
                Addressing::Automatic => Ok(()),
                Addressing::Static(_) => Err(Reason::Repeated),
            };
        }
        let address = parse_static(value).ok_or(WANTED)?;
        match &mut self.addressing {
            Addressing::Automatic => self.addressing = Addressing::Static(Vec::from([address])),
            Addressing::Static(others) => {
                if others.iter().any(|other| other.address.is_ipv4() == address.address.is_ipv4()) {
                    return Err(Reason::Repeated);
                }
                others.push(address);
            }
        }
        Ok(())
    }
}

/// `ADDR/PREFIX[,GATEWAY]` with both addresses of one family and usable as a host's.
fn parse_static(text: &str) -> Option<StaticAddress> {
    let (address, gateway) = match text.split_once(',') {
        Some((address, gateway)) => (address, Some(gateway.parse::<IpAddr>().ok()?)),
        None => (text, None),
    };
    let (address, prefix) = address.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let usable = |a: IpAddr| !a.is_unspecified() && !a.is_multicast();
    let broadcast = address == IpAddr::from([255; 4]);
    let right = (1..=bits).contains(&prefix)
        && usable(address)
        && !broadcast
        && gateway.is_none_or(|g| usable(g) && g.is_ipv4() == address.is_ipv4());
    right.then_some(StaticAddress { address, prefix, gateway })
}

/// A number of bytes with an optional `K`, `M`, `G` or `T` (powers of 1024) behind it.
pub fn parse_size(text: &str) -> Option<u64> {
    let shift = match text.bytes().last()?.to_ascii_uppercase() {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        b'T' => 40,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn clean(text: &str) -> Config {
        let (config, complaints) = Config::parse(text);
        assert_eq!(complaints, [], "{text}");
        config
    }

    fn reasons(text: &str) -> Vec<Reason> {
        Config::parse(text).1.into_iter().map(|c| c.reason).collect()
    }

    #[test]
    fn no_words_mean_the_defaults_which_format_nothing() {
        assert_eq!(clean(""), Config::default());
        assert_eq!(clean("  # panic=halt\n\t\r\n"), Config::default());
        assert_eq!(Config::default().blank_disks, BlankDisks::Leave);
    }

    #[test]
    fn every_word_is_understood() {
        let config = clean(
            "format=blank ip=10.0.0.2/24,10.0.0.1\nip=fd00::2/64 panic=halt log=debug budget=256M accel=scalar squash=root",
        );
        assert_eq!(config.blank_disks, BlankDisks::Format);
        assert_eq!(config.on_panic, OnPanic::Halt);
        assert_eq!(config.log, Level::Debug);
        assert_eq!(config.budget, Some(256 << 20));
        assert_eq!(config.accel.as_deref(), Some("scalar"));
        assert_eq!(config.squash, Squash::Root);
        assert_eq!(
            (clean("squash=none").squash, clean("squash=all").squash),
            (Squash::Nobody, Squash::Everybody)
        );
        let Addressing::Static(addresses) = config.addressing else { panic!("static addresses were given") };
        assert_eq!(addresses[0].gateway, Some([10, 0, 0, 1].into()));
        assert_eq!((addresses[0].address, addresses[0].prefix), ([10, 0, 0, 2].into(), 24));
        assert_eq!((addresses[1].prefix, addresses[1].gateway), (64, None));
        assert_eq!(clean("ip=dhcp").addressing, Addressing::Automatic);
    }

    #[test]
    fn every_word_is_known_to_the_complaint_and_to_the_manual() {
        let manual = include_str!("../../docs/boot.md");
        for word in WORDS {
            assert_ne!(reasons(word), [Reason::Unknown], "{word}");
            assert!(manual.contains(&alloc::format!("| `{word}=")), "docs/boot.md does not tell of {word}");
        }
        assert!(Config::parse("copy").1[0].to_string().ends_with("budget, accel, squash)"));
    }

    #[test]
    fn unknown_words_are_named_and_the_rest_is_obeyed() {
        let (config, complaints) = Config::parse("fromat=blank log=warn quiet");
        assert_eq!(config.blank_disks, BlankDisks::Leave);
        assert_eq!(config.log, Level::Warn);
        let texts: Vec<String> = complaints.iter().map(|c| c.to_string()).collect();
        assert_eq!(texts.len(), 2);
        assert!(texts[0].contains("`fromat=blank` ignored: no such word"), "{}", texts[0]);
        assert!(texts[1].contains("`quiet`"));
    }

    #[test]
    fn malformed_values_leave_the_default() {
        for text in [
            "format",
            "format=all",
            "ip=",
            "ip=10.0.0.2",
            "ip=10.0.0.2/33",
            "ip=10.0.0.2/0",
            "ip=0.0.0.0/24",
            "ip=255.255.255.255/8",
            "ip=10.0.0.2/24,fd00::1",
            "ip=10.0.0.2/24,",
            "ip=fd00::2/129",
            "ip=ff02::1/64",
            "panic=maybe",
            "log=loud",
            "budget=1M",
            "budget=M",
            "budget=-1",
            "budget=99999999999999999999G",
            "accel=",
            "squash",
            "squash=",
            "squash=nobody",
            "squash=Root",
        ] {
            let (config, complaints) = Config::parse(text);
            assert_eq!(config, Config::default(), "{text}");
            assert!(matches!(complaints[..], [Complaint { reason: Reason::BadValue(_), .. }]), "{text}");
        }
    }

    #[test]
    fn a_word_said_twice_counts_once() {
        assert_eq!(reasons("panic=halt panic=reboot"), [Reason::Repeated]);
        assert_eq!(Config::parse("panic=halt panic=reboot").0.on_panic, OnPanic::Halt);
        assert_eq!(reasons("ip=10.0.0.2/8 ip=10.0.0.3/8"), [Reason::Repeated]);
        assert_eq!(reasons("ip=10.0.0.2/8 ip=dhcp"), [Reason::Repeated]);
        assert_eq!(reasons("panic=maybe panic=halt"), [Reason::BadValue("panic=reboot or panic=halt")]);
    }
}
