//! Who calls: AUTH_NONE and AUTH_SYS credentials, and the squashing of root before any check.

use crate::xdr::{Decoder, Malformed};
use moraine_fs::vfs::Caller;

/// No credential (RFC 5531 §10.1).
pub const AUTH_NONE: u32 = 0;
/// Unix ids as the client claims them (RFC 5531 appendix A).
pub const AUTH_SYS: u32 = 1;
/// The probe for RPC over TLS (RFC 9289 §4.1), refused like any unknown flavour.
pub const AUTH_TLS: u32 = 7;
/// The most groups AUTH_SYS may carry.
pub const GROUPS_MAX: usize = 16;
/// The longest credential or verifier body, in bytes (RFC 5531 §8.2).
pub const AUTH_BODY_MAX: usize = 400;
const MACHINE_NAME_MAX: usize = 255;

/// What an AUTH_SYS credential says. Its stamp and machine name mean nothing to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthSys {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    groups: [u32; GROUPS_MAX],
    group_count: usize,
}

impl AuthSys {
    /// Reads a credential body; more than [`GROUPS_MAX`] groups are [`Malformed::TooLong`].
    pub fn parse(body: &[u8]) -> Result<AuthSys, Malformed> {
        let mut d = Decoder::new(body);
        let _stamp = d.u32()?;
        d.opaque(MACHINE_NAME_MAX)?;
        let (uid, gid) = (d.u32()?, d.u32()?);
        let group_count = d.u32()? as usize;
        let mut groups = [0; GROUPS_MAX];
        for group in groups.get_mut(..group_count).ok_or(Malformed::TooLong)? {
            *group = d.u32()?;
        }
        Ok(AuthSys { uid, gid, groups, group_count })
    }

    /// The further groups.
    pub fn groups(&self) -> &[u32] {
        &self.groups[..self.group_count]
    }
}

/// A credential that may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Nobody in particular.
    None,
    /// Unix ids.
    Sys(AuthSys),
}

/// Which callers lose their identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Squash {
    /// Nobody: root of a client is root here. Hypervisors and container storage need it so.
    #[default]
    Nobody,
    /// User 0 and group 0 become anonymous, in the list of groups too.
    Root,
    /// Everybody becomes anonymous.
    Everybody,
}

impl Squash {
    /// As people write it: `none`, `root` or `all`.
    pub fn from_name(name: &str) -> Option<Squash> {
        match name {
            "none" => Some(Squash::Nobody),
            "root" => Some(Squash::Root),
            "all" => Some(Squash::Everybody),
            _ => None,
        }
    }
}

/// How credentials become callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identities {
    /// Who is squashed.
    pub squash: Squash,
    /// The user that anonymous and squashed callers are.
    pub anonymous_uid: u32,
    /// Their group.
    pub anonymous_gid: u32,
}

impl Default for Identities {
    fn default() -> Identities {
        Identities { squash: Squash::Nobody, anonymous_uid: 65534, anonymous_gid: 65534 }
    }
}

impl Identities {
    /// The caller that `credential` stands for. NFSv3 has no open, so every caller has `owner_override`.
    pub fn caller(&self, credential: &Credential) -> Caller {
        let anonymous = Caller {
            uid: self.anonymous_uid,
            gid: self.anonymous_gid,
            groups: alloc::vec::Vec::new(),
            owner_override: true,
        };
        let sys = match credential {
            Credential::None => return anonymous,
            Credential::Sys(_) if self.squash == Squash::Everybody => return anonymous,
            Credential::Sys(sys) => sys,
        };
        let squash = self.squash == Squash::Root;
        let group = |gid: u32| if squash && gid == 0 { self.anonymous_gid } else { gid };
        Caller {
            uid: if squash && sys.uid == 0 { self.anonymous_uid } else { sys.uid },
            gid: group(sys.gid),
            groups: sys.groups().iter().map(|g| group(*g)).collect(),
            owner_override: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdr::Encoder;
    use alloc::vec::Vec;

    fn body(uid: u32, gid: u32, groups: &[u32]) -> Vec<u8> {
        let mut e = Encoder::default();
        e.u32(77).opaque(b"host").u32(uid).u32(gid).u32(groups.len() as u32);
        groups.iter().for_each(|g| {
            e.u32(*g);
        });
        e.into_bytes()
    }

    #[test]
    fn r_04_sixteen_groups_fit_and_seventeen_do_not() {
        let sixteen: Vec<u32> = (100..116).collect();
        let sys = AuthSys::parse(&body(5, 6, &sixteen)).unwrap();
        assert_eq!((sys.uid, sys.gid, sys.groups()), (5, 6, &sixteen[..]));
        let seventeen: Vec<u32> = (100..117).collect();
        assert_eq!(AuthSys::parse(&body(5, 6, &seventeen)), Err(Malformed::TooLong));
        let cut = body(5, 6, &sixteen);
        for len in 0..cut.len() {
            assert!(AuthSys::parse(&cut[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn v3_16_root_squash_maps_user_group_and_the_group_list() {
        let sys =
            |uid, gid, groups: &[u32]| Credential::Sys(AuthSys::parse(&body(uid, gid, groups)).unwrap());
        let with = |squash| Identities { squash, ..Identities::default() };
        let ids = |squash, credential: &Credential| {
            let c = with(squash).caller(credential);
            (c.uid, c.gid, c.groups)
        };
        let root = sys(0, 0, &[0, 4]);
        let user = sys(1000, 0, &[0, 1000]);
        assert_eq!(ids(Squash::Nobody, &root), (0, 0, [0, 4].to_vec()));
        assert_eq!(ids(Squash::Root, &root), (65534, 65534, [65534, 4].to_vec()));
        assert_eq!(ids(Squash::Root, &user), (1000, 65534, [65534, 1000].to_vec()));
        assert_eq!(ids(Squash::Everybody, &user), (65534, 65534, Vec::new()));
        assert_eq!(ids(Squash::Nobody, &Credential::None), (65534, 65534, Vec::new()));
    }
}
