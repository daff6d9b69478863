//! The port mapper, version 2 (RFC 1833 §3): tells where NFS and MOUNT listen. It registers nothing for others and
//! calls nobody on their behalf.

use crate::rpc::{AcceptStat, Program};
use crate::xdr::{Decoder, Encoder};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

const NULL: u32 = 0;
const SET: u32 = 1;
const UNSET: u32 = 2;
const GETPORT: u32 = 3;
const DUMP: u32 = 4;

/// Where clients find each program: the ports as the server sees them. Behind a forwarded port they are not what a
/// client must use; such clients name the port themselves (`port=`, `mountport=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// NFS over TCP.
    pub nfs: u16,
    /// MOUNT over TCP.
    pub mount: u16,
    /// MOUNT over UDP; 0 if it is not served there.
    pub mount_udp: u16,
    /// The port mapper, TCP and UDP; 0 if it has no port of its own.
    pub portmap: u16,
}

impl Ports {
    /// Everything on one TCP port, nothing on UDP.
    pub fn all_on(port: u16) -> Ports {
        Ports { nfs: port, mount: port, mount_udp: 0, portmap: 0 }
    }

    /// Program, protocol and port of everything served.
    fn mappings(&self) -> impl Iterator<Item = (Program, u32, u16)> {
        [
            (Program::Portmap, IPPROTO_TCP, self.portmap),
            (Program::Portmap, IPPROTO_UDP, self.portmap),
            (Program::Nfs, IPPROTO_TCP, self.nfs),
            (Program::Mount, IPPROTO_TCP, self.mount),
            (Program::Mount, IPPROTO_UDP, self.mount_udp),
        ]
        .into_iter()
        .filter(|(_, _, port)| *port != 0)
    }
}

/// Runs one procedure. SET, UNSET and CALLIT are refused: the first two with "false", the last as a procedure that
/// does not exist, so that nobody can send traffic through us.
pub fn call(procedure: u32, args: &[u8], ports: &Ports, out: &mut Encoder) -> Result<(), AcceptStat> {
    match procedure {
        NULL => {}
        SET | UNSET => {
            out.bool(false);
        }
        GETPORT => {
            let mut d = Decoder::new(args);
            let mut word = || d.u32().map_err(|_| AcceptStat::GarbageArgs);
            // The version does not matter: a wrong one is told by the program itself, with the right ones.
            let (program, _version, protocol, _port) = (word()?, word()?, word()?, word()?);
            let found = ports.mappings().find(|(p, proto, _)| p.number() == program && *proto == protocol);
            out.u32(found.map_or(0, |(_, _, port)| port.into()));
        }
        DUMP => {
            for (program, protocol, port) in ports.mappings() {
                out.bool(true).u32(program.number()).u32(program.version()).u32(protocol).u32(port.into());
            }
            out.bool(false);
        }
        _ => return Err(AcceptStat::ProcedureUnavailable),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const PORTS: Ports = Ports { nfs: 2049, mount: 2049, mount_udp: 111, portmap: 111 };

    fn run(procedure: u32, args: &[u32]) -> Result<Vec<u8>, AcceptStat> {
        let bytes: Vec<u8> = args.iter().flat_map(|w| w.to_be_bytes()).collect();
        let mut out = Encoder::default();
        call(procedure, &bytes, &PORTS, &mut out).map(|()| out.into_bytes())
    }

    #[test]
    fn r_02_getport_tells_the_port_of_what_is_served_and_zero_else() {
        let port = |args: [u32; 4]| u32::from_be_bytes(run(GETPORT, &args).unwrap().try_into().unwrap());
        assert_eq!(port([100_003, 3, 6, 0]), 2049);
        assert_eq!(port([100_003, 4, 6, 0]), 2049);
        assert_eq!(port([100_003, 3, 17, 0]), 0, "NFS is not served over UDP");
        assert_eq!(port([100_005, 3, 17, 0]), 111);
        assert_eq!(port([100_021, 4, 6, 0]), 0, "no lock manager");
        assert_eq!(run(GETPORT, &[100_003, 3, 6]), Err(AcceptStat::GarbageArgs));
    }

    #[test]
    fn dump_lists_every_mapping_and_fits_four_times_its_request() {
        let dump = run(DUMP, &[]).unwrap();
        assert_eq!(dump.len(), 5 * 20 + 4);
        assert!(24 + dump.len() <= 4 * 40, "an amplifier for forged senders otherwise");
    }

    #[test]
    fn nothing_is_registered_and_nobody_is_called_on_behalf_of_others() {
        assert_eq!(run(SET, &[1, 2, 6, 99]).unwrap(), [0; 4]);
        assert_eq!(run(UNSET, &[100_003, 3, 6, 2049]).unwrap(), [0; 4]);
        assert_eq!(run(5, &[100_003, 3, 0, 0]), Err(AcceptStat::ProcedureUnavailable));
    }
}
