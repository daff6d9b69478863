//! Stateless address autoconfiguration (RFC 4862) as a state machine without I/O: adverts and time in, addresses and
//! a router out. smoltcp has one too, but its timer stands in the past for ever on a network without IPv6 routers,
//! which would keep an idle core spinning.

use core::time::Duration;
use moraine_platform::Instant;
use smoltcp::wire::{HardwareAddress, Ipv6Address, Ipv6Cidr, NdiscPrefixInfoFlags, NdiscPrefixInformation};

/// Router solicitations sent after the link came up (RFC 4861 §10).
const SOLICITATIONS: u8 = 3;
/// Time between them.
const SOLICITATION_INTERVAL: Duration = Duration::from_secs(4);
/// Networks an interface can be in; further ones are ignored.
const PREFIXES_MAX: usize = 3;
/// An advert cannot shorten a prefix's remaining life below this: it is not authenticated (RFC 4862 §5.5.3 e).
const LIFETIME_GUARD: Duration = Duration::from_secs(2 * 3600);

/// The state.
pub(crate) struct Slaac {
    hardware: HardwareAddress,
    left_to_solicit: u8,
    next_solicit: Instant,
    prefixes: [Option<(Ipv6Cidr, Instant)>; PREFIXES_MAX],
    router: Option<(Ipv6Address, Instant)>,
}

/// What an advert says, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Advert {
    pub(crate) router: Ipv6Address,
    pub(crate) router_lifetime: Duration,
    pub(crate) prefix: Option<NdiscPrefixInformation>,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Todo {
    Nothing,
    /// Send a router solicitation.
    Solicit,
    /// Something expired: apply [`Slaac::addresses`] and [`Slaac::router`].
    Apply,
}

impl Slaac {
    /// Starts with solicitations due at once.
    pub(crate) fn new(hardware: HardwareAddress, now: Instant) -> Slaac {
        let prefixes = [None; PREFIXES_MAX];
        Slaac { hardware, left_to_solicit: SOLICITATIONS, next_solicit: now, prefixes, router: None }
    }

    /// Asks again: the link was down, the network may be another one.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.left_to_solicit = SOLICITATIONS;
        self.next_solicit = now;
    }

    /// Takes an advert; whether addresses or router changed.
    pub(crate) fn hear(&mut self, advert: &Advert, now: Instant) -> bool {
        self.left_to_solicit = 0;
        let before = self.router.map(|(router, _)| router);
        if !advert.router_lifetime.is_zero() {
            self.router = Some((advert.router, now + advert.router_lifetime));
        } else if before == Some(advert.router) {
            self.router = None;
        }
        let router_changed = before != self.router.map(|(router, _)| router);
        let prefix_changed = advert.prefix.is_some_and(|prefix| self.hear_prefix(&prefix, now));
        router_changed || prefix_changed
    }

    fn hear_prefix(&mut self, prefix: &NdiscPrefixInformation, now: Instant) -> bool {
        let usable = prefix.flags.contains(NdiscPrefixInfoFlags::ADDRCONF)
            && prefix.is_valid_prefix_info()
            && prefix.prefix_len == 64
            && !prefix.prefix.is_multicast();
        if !usable {
            return false;
        }
        let network = Ipv6Cidr::new(prefix.prefix, prefix.prefix_len);
        let Some(address) = Ipv6Cidr::from_link_prefix(&network, self.hardware) else { return false };
        let lifetime = Duration::from_micros(prefix.valid_lifetime.total_micros());
        if let Some((_, until)) = self.prefixes.iter_mut().flatten().find(|(known, _)| *known == address) {
            let remaining = until.since(now);
            if lifetime > LIFETIME_GUARD || lifetime > remaining {
                *until = now + lifetime;
            } else if remaining > LIFETIME_GUARD {
                *until = now + LIFETIME_GUARD;
            }
            return false;
        }
        match self.prefixes.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) if !lifetime.is_zero() => {
                *slot = Some((address, now + lifetime));
                true
            }
            _ => false,
        }
    }

    /// What is due at `now`; call again until there is nothing.
    pub(crate) fn poll(&mut self, now: Instant) -> Todo {
        if self.left_to_solicit > 0 && self.next_solicit <= now {
            self.left_to_solicit -= 1;
            self.next_solicit = now + SOLICITATION_INTERVAL;
            return Todo::Solicit;
        }
        let mut expired = false;
        for slot in &mut self.prefixes {
            if slot.is_some_and(|(_, until)| until <= now) {
                *slot = None;
                expired = true;
            }
        }
        if self.router.is_some_and(|(_, until)| until <= now) {
            self.router = None;
            expired = true;
        }
        if expired { Todo::Apply } else { Todo::Nothing }
    }

    /// When to poll next.
    pub(crate) fn due(&self) -> Option<Instant> {
        let solicit = (self.left_to_solicit > 0).then_some(self.next_solicit);
        let prefixes = self.prefixes.iter().flatten().map(|(_, until)| *until);
        let router = self.router.map(|(_, until)| until);
        solicit.into_iter().chain(prefixes).chain(router).min()
    }

    /// Addresses in force.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = Ipv6Cidr> {
        self.prefixes.iter().flatten().map(|(address, _)| *address)
    }

    /// The default router in force.
    pub(crate) fn router(&self) -> Option<Ipv6Address> {
        self.router.map(|(router, _)| router)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::EthernetAddress;

    const ROUTER: Ipv6Address = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    fn new() -> Slaac {
        Slaac::new(HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, 9])), at(0))
    }

    fn advert(router_seconds: u64, prefix_seconds: u64) -> Advert {
        let prefix = NdiscPrefixInformation {
            prefix_len: 64,
            flags: NdiscPrefixInfoFlags::ADDRCONF | NdiscPrefixInfoFlags::ON_LINK,
            valid_lifetime: smoltcp::time::Duration::from_secs(prefix_seconds),
            preferred_lifetime: smoltcp::time::Duration::from_secs(prefix_seconds),
            prefix: Ipv6Address::new(0xfd00, 0, 0, 7, 0, 0, 0, 0),
        };
        Advert { router: ROUTER, router_lifetime: Duration::from_secs(router_seconds), prefix: Some(prefix) }
    }

    #[test]
    fn without_an_answer_three_questions_are_asked_and_then_nothing_is_due() {
        let mut slaac = new();
        let mut asked = 0;
        while let Some(due) = slaac.due() {
            assert_eq!(slaac.poll(due), Todo::Solicit);
            assert_eq!(slaac.poll(due), Todo::Nothing);
            asked += 1;
        }
        assert_eq!(asked, 3);
    }

    #[test]
    fn an_advert_gives_an_address_and_a_router_until_they_expire() {
        let mut slaac = new();
        assert!(slaac.hear(&advert(1800, 86_400), at(1)));
        assert!(!slaac.hear(&advert(1800, 86_400), at(2)), "the same again is no change");
        let addresses: alloc::vec::Vec<_> = slaac.addresses().collect();
        assert_eq!(addresses, ["fd00::7:0:ff:fe00:9".parse().map(|a| Ipv6Cidr::new(a, 64)).unwrap()]);
        assert_eq!(slaac.router(), Some(ROUTER));
        assert_eq!(slaac.due(), Some(at(1802)));
        assert_eq!(slaac.poll(at(1802)), Todo::Apply);
        assert_eq!(slaac.router(), None);
        assert_eq!(slaac.poll(at(86_402)), Todo::Apply);
        assert_eq!((slaac.addresses().count(), slaac.due()), (0, None));
    }

    #[test]
    fn a_forged_short_lifetime_cannot_take_the_address_away_at_once() {
        let mut slaac = new();
        slaac.hear(&advert(1800, 86_400), at(0));
        slaac.hear(&advert(0, 1), at(10));
        assert_eq!(slaac.router(), None, "a router may always withdraw");
        assert_eq!(slaac.poll(at(20)), Todo::Nothing);
        assert_eq!(slaac.addresses().count(), 1);
        assert_eq!(slaac.due(), Some(at(10 + 7200)));
    }
}
