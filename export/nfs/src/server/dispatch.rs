//! From a received call to its reply: which program, who calls, has it been here before, run it.

use super::Inner;
use super::config::{MEMORY_PAUSE, MEMORY_PAUSE_MAX};
use super::intake::Incoming;
use crate::drc::{self, Keep};
use crate::mount;
use crate::portmap;
use crate::rpc::{AcceptStat, Call, CallError, Program, Reply, begin_success, encode_accept, encode_denied};
use crate::v3::procedures::Hold;
use crate::v3::wire::{Args, Procedure};
use alloc::vec::Vec;
use core::net::IpAddr;
use moraine_fs::vfs::{Caller, Vfs, WriteData};
use moraine_platform::BLOCK_SIZE;

/// Room made for a result at first; larger ones grow it.
const RESULT_CAPACITY: usize = 256;

/// How a call came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Stream,
    Datagram,
}

/// What to do with a received call.
pub(super) enum Plan {
    /// It is no call; nothing can be answered.
    Hopeless,
    /// Answer at once.
    Answer(Reply),
    /// Run it.
    Run(Job),
}

/// A call that is to run.
pub(super) struct Job {
    xid: u32,
    client: IpAddr,
    transport: Transport,
    target: Target,
    head: Vec<u8>,
    args_at: usize,
    data: Option<WriteData>,
    /// How the duplicate request cache knows it.
    pub(super) replay: Option<(drc::Key, Keep)>,
    /// Bytes of file data its reply may hold.
    pub(super) reply_payload: u64,
}

/// A call that passed every check: what runs, how the duplicate request cache knows it, and bytes of file data its
/// reply may hold.
type Accepted = (Target, Option<(drc::Key, Keep)>, u64);

enum Target {
    Portmap(u32),
    Mount(u32),
    Nfs(Procedure, Caller),
}

/// How a call ended.
pub(super) enum Outcome {
    Reply(Reply),
    /// Nothing is answered and the connection closes: the client will ask again.
    Close,
}

impl<V: Vfs + 'static> Inner<V> {
    /// Decides what is to be done with a call, without waiting for anything.
    pub(super) fn plan(&self, client: IpAddr, transport: Transport, incoming: Incoming) -> Plan {
        let call = match Call::parse(&incoming.head) {
            Ok(call) => call,
            Err(CallError::NotACall) => return Plan::Hopeless,
            Err(CallError::Denied { xid, why }) => {
                self.counters.borrow_mut().refused += 1;
                return Plan::Answer(encode_denied(xid, why));
            }
        };
        let xid = call.xid;
        match self.accept(client, transport, &call, &incoming) {
            Ok((target, replay, reply_payload)) => {
                let args_at = incoming.head.len() - call.args.len();
                let Incoming { head, data, .. } = incoming;
                Plan::Run(Job { xid, client, transport, target, head, args_at, data, replay, reply_payload })
            }
            Err(stat) => {
                self.counters.borrow_mut().refused += 1;
                Plan::Answer(encode_accept(xid, stat))
            }
        }
    }

    fn accept(
        &self,
        client: IpAddr,
        transport: Transport,
        call: &Call<'_>,
        incoming: &Incoming,
    ) -> Result<Accepted, AcceptStat> {
        let program = Program::from_number(call.program)
            .filter(|p| *p != Program::Nfs || transport == Transport::Stream)
            .ok_or(AcceptStat::ProgramUnavailable)?;
        if call.version != program.version() {
            return Err(AcceptStat::ProgramMismatch { only: program.version() });
        }
        if incoming.broken {
            return Err(AcceptStat::GarbageArgs);
        }
        let procedure = match program {
            Program::Portmap => return Ok((Target::Portmap(call.procedure), None, 0)),
            Program::Mount => return Ok((Target::Mount(call.procedure), None, 0)),
            Program::Nfs => Procedure::from_number(call.procedure).ok_or(AcceptStat::ProcedureUnavailable)?,
        };
        let args = Args::parse(procedure, call.args).map_err(|_| AcceptStat::GarbageArgs)?;
        if (procedure == Procedure::Write) != incoming.data.is_some() {
            return Err(AcceptStat::GarbageArgs);
        }
        let transfer = self.nfs.transfer();
        let reply_payload = match args {
            Args::Read { count, .. } => count.min(transfer.read_max).into(),
            Args::ReadDir { count, .. } => count.min(transfer.listing_max).into(),
            Args::ReadDirPlus { maxcount, .. } => maxcount.min(transfer.listing_max).into(),
            _ => 0,
        };
        let caller = self.config.identities.caller(&call.credential);
        let replay = procedure.replay().map(|keep| {
            let data = incoming.data.as_ref().map_or(&[][..], |data| data.bytes());
            // A repeat may have been given less room than the first, or more.
            let data = &data[..data.len().min(self.budget.piece() as usize - BLOCK_SIZE)];
            let key = drc::Key {
                client,
                xid: call.xid,
                program: call.program,
                version: call.version,
                procedure: call.procedure,
                hash: self.fingerprint.of(caller.uid, call.args, data),
                len: (call.args.len() + data.len()) as u64,
            };
            (key, keep)
        });
        Ok((Target::Nfs(procedure, caller), replay, reply_payload))
    }

    /// Runs a call to its end.
    pub(super) async fn run(&self, mut job: Job) -> Outcome {
        let args = &job.head[job.args_at..];
        let mut out = begin_success(job.xid, RESULT_CAPACITY);
        let refused = match &job.target {
            Target::Portmap(procedure) => {
                self.counters.borrow_mut().other_calls += 1;
                portmap::call(*procedure, args, &self.config.ports, &mut out)
            }
            Target::Mount(procedure) => {
                self.counters.borrow_mut().other_calls += 1;
                return self.run_mount(&job, *procedure, out).await;
            }
            Target::Nfs(procedure, caller) => {
                self.counters.borrow_mut().calls[*procedure as usize] += 1;
                let args = Args::parse(*procedure, args).expect("the arguments were read before");
                let args = args.within(job.reply_payload);
                return self.run_nfs(job.xid, caller, &args, job.data.take(), out).await;
            }
        };
        Outcome::Reply(match refused {
            Ok(()) => Reply::new(out),
            Err(stat) => {
                self.counters.borrow_mut().refused += 1;
                encode_accept(job.xid, stat)
            }
        })
    }

    /// Runs a procedure of MOUNT, again and again while the filesystem has no memory for it. One that came as a datagram
    /// would hold up those behind it, and is sent again.
    async fn run_mount(&self, job: &Job, procedure: u32, mut out: crate::xdr::Encoder) -> Outcome {
        let (args, vfs, handles) = (&job.head[job.args_at..], self.nfs.vfs(), self.nfs.handles());
        let mut pause = MEMORY_PAUSE;
        loop {
            match mount::call(procedure, args, job.client, vfs, handles, &self.mounts, &mut out).await {
                Ok(()) => return Outcome::Reply(Reply::new(out)),
                Err(mount::Failure::Refused(stat)) => {
                    self.counters.borrow_mut().refused += 1;
                    return Outcome::Reply(encode_accept(job.xid, stat));
                }
                Err(mount::Failure::Hold(Hold::Later)) if job.transport == Transport::Stream => {
                    vfs.memory_is_short();
                    self.platform.clock.sleep(pause).await;
                    pause = (pause * 2).min(MEMORY_PAUSE_MAX);
                    out = begin_success(job.xid, RESULT_CAPACITY);
                }
                Err(mount::Failure::Hold(_)) => return Outcome::Close,
            }
        }
    }

    /// Runs an NFS procedure, again and again while the filesystem has no memory for it.
    async fn run_nfs(
        &self,
        xid: u32,
        caller: &Caller,
        args: &Args<'_>,
        mut data: Option<WriteData>,
        mut out: crate::xdr::Encoder,
    ) -> Outcome {
        let mut pause = MEMORY_PAUSE;
        loop {
            match self.nfs.call(caller, args, data.take(), &mut out).await {
                Ok(parts) => return Outcome::Reply(Reply::with_data(out, parts)),
                // A WRITE's data is gone with the attempt; its client still has it.
                Err(Hold::Later) if matches!(args, Args::Write { .. }) => {
                    self.nfs.vfs().memory_is_short();
                    return Outcome::Close;
                }
                Err(Hold::Later) => {
                    self.nfs.vfs().memory_is_short();
                    self.platform.clock.sleep(pause).await;
                    pause = (pause * 2).min(MEMORY_PAUSE_MAX);
                    out = begin_success(xid, RESULT_CAPACITY);
                }
                Err(Hold::Close) => return Outcome::Close,
            }
        }
    }
}
