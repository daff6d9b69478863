//! The kernel's own words of the boot command line, told apart from the appliance's before either is judged.

use crate::guards::Kind;
use alloc::string::String;
use alloc::vec::Vec;

/// Most virtio-mmio windows that a command line may name.
pub const WINDOWS_MAX: usize = 32;

/// What the machine does after boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Serve.
    Appliance,
    /// Run the kernel's self-tests, then power off.
    SelfTest,
    /// Hold the red zone under the interrupts of disks and network cards, then power off.
    Canary,
    /// Fail on purpose, to see the report and what follows.
    Mishap(Mishap),
    /// Measure the disks, then power off.
    Disks,
    /// Serve an empty filesystem in memory: the network and the exports without disks.
    Memory,
}

/// A way to fail on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// Panic.
    Panic,
    /// Touch memory that is not there.
    Fault,
    /// Panic while all other cores log.
    Storm,
    /// Panic while every line of the report faults.
    Twice,
    /// Do nothing any more.
    Hang,
    /// Overflow this stack of the first core.
    Overflow(Kind),
    /// Overflow the stack of a second core.
    OverflowSecond,
}

impl Mishap {
    fn named(name: &str) -> Option<Mishap> {
        Some(match name {
            "panic" => Mishap::Panic,
            "fault" => Mishap::Fault,
            "storm" => Mishap::Storm,
            "twice" => Mishap::Twice,
            "hang" => Mishap::Hang,
            "overflow" => Mishap::Overflow(Kind::Own),
            "overflow-interrupts" => Mishap::Overflow(Kind::Interrupts),
            "overflow-exceptions" => Mishap::Overflow(Kind::Exceptions),
            "overflow-emergencies" => Mishap::Overflow(Kind::Emergencies),
            "overflow-second" => Mishap::OverflowSecond,
            _ => return None,
        })
    }
}

/// A virtio-mmio device as QEMU and other monitors announce it: `virtio_mmio.device=SIZE@ADDRESS:INTERRUPT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Physical address of its registers.
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
    /// Its global interrupt.
    pub interrupt: u32,
}

/// The parsed words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// `selftest`, `selftest=canary`, `selftest=disks`, `selftest=memory`, `selftest=` and a [`Mishap`].
    pub mode: Mode,
    /// `copy=auto|words|string`: how memory is copied; None is automatic (docs/boot.md).
    pub copy_by_string: Option<bool>,
    /// `virtio_mmio.device=…`, each.
    pub windows: Vec<Window>,
    /// All other words, for the appliance, with one space between them.
    pub others: String,
    /// Words of the kernel's whose value it does not know.
    pub wrong: Vec<String>,
}

impl Words {
    /// Parses a command line: words between white space, `#` begins a remark up to the line's end. Bytes that are no
    /// text are replaced.
    pub fn parse(line: &[u8]) -> Words {
        let line = String::from_utf8_lossy(line);
        let mut words = Words {
            mode: Mode::Appliance,
            copy_by_string: None,
            windows: Vec::new(),
            others: String::new(),
            wrong: Vec::new(),
        };
        let lines = line.lines().map(|line| line.split('#').next().unwrap_or(""));
        for word in lines.flat_map(str::split_ascii_whitespace) {
            if !words.take(word) {
                words.wrong.push(word.into());
            }
        }
        words
    }

    /// Takes one word; false if it is the kernel's with a value that is not known.
    fn take(&mut self, word: &str) -> bool {
        match word.split_once('=').unwrap_or((word, "")) {
            ("selftest", "") => self.mode = Mode::SelfTest,
            ("selftest", "canary") => self.mode = Mode::Canary,
            ("selftest", "disks") => self.mode = Mode::Disks,
            ("selftest", "memory") => self.mode = Mode::Memory,
            ("selftest", name) if Mishap::named(name).is_some() => {
                self.mode = Mishap::named(name).map_or(self.mode, Mode::Mishap);
            }
            ("copy", "auto") => self.copy_by_string = None,
            ("copy", "words") => self.copy_by_string = Some(false),
            ("copy", "string") => self.copy_by_string = Some(true),
            ("virtio_mmio.device", value) => match window(value) {
                Some(window) if self.windows.len() < WINDOWS_MAX => self.windows.push(window),
                _ => return false,
            },
            ("selftest" | "copy", _) => return false,
            _ => {
                if !self.others.is_empty() {
                    self.others.push(' ');
                }
                self.others.push_str(word);
            }
        }
        true
    }
}

/// `SIZE@ADDRESS:INTERRUPT`, as in the Linux kernel's parameter of that name.
fn window(text: &str) -> Option<Window> {
    let (len, rest) = text.split_once('@')?;
    let (address, rest) = rest.split_once(':')?;
    let interrupt = rest.split(':').next()?;
    let window = Window {
        address: number(address)?,
        len: number(len)?,
        interrupt: number(interrupt)?.try_into().ok()?,
    };
    (window.len >= 0x200
        && window.len <= 1 << 20
        && window.address.is_multiple_of(4)
        && window.address >> 46 == 0)
        .then_some(window)
}

fn number(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    match text.strip_suffix(['K', 'k']) {
        Some(kib) => kib.parse::<u64>().ok()?.checked_mul(1024),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn known_words_are_taken_others_passed_on_wrong_values_named() {
        let words =
            Words::parse(b"panic=halt selftest format=blank\n# a remark\nip=dhcp copy=dance copy=words");
        assert_eq!(words.mode, Mode::SelfTest);
        assert_eq!(words.copy_by_string, Some(false));
        assert_eq!(words.others, "panic=halt format=blank ip=dhcp");
        assert_eq!(words.wrong, vec!["copy=dance"]);
    }

    #[test]
    fn virtio_windows_are_read_as_qemu_writes_them() {
        let words =
            Words::parse(b"virtio_mmio.device=512@0xfeb00e00:12 virtio_mmio.device=4K@0xd0000000:5:3");
        let window = |address, len, interrupt| Window { address, len, interrupt };
        assert_eq!(words.windows, [window(0xfeb0_0e00, 512, 12), window(0xd000_0000, 4096, 5)]);
        for bad in
            ["512@0xfeb00000", "1@0x1000:1", "512@0x1001:1", "512@0xffffffffffffff00:1", "99G@0x1000:1", ""]
        {
            let line = alloc::format!("virtio_mmio.device={bad}");
            assert_eq!(Words::parse(line.as_bytes()).wrong, vec![line]);
        }
    }

    #[test]
    fn rubbish_is_no_panic() {
        assert_eq!(Words::parse(&[0xff, 0xfe, b' ', b'=']).others.split(' ').count(), 2);
        assert!(Words::parse(b"").others.is_empty());
    }
}
