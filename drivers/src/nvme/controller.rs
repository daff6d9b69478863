//! One controller: bring-up, the path of a command, timeouts, abort and reset.
//!
//! The I/O queue is driven from [`Service::poll`]; everything that takes several steps (bring-up, recovery) is a
//! future that `poll` steps, so that a sick controller never blocks the reactor.
//!
//! *Quarantine*: from the moment a command is late until the controller answered it or was reset (or cut off from
//! memory), no new command is issued, its buffer stays here, and its caller is not answered. So a late write can
//! land only while its range still belongs to whoever wrote it.

use super::command::{Command, Identify, dataset_range};
use super::namespace::Namespace;
use super::prp;
use super::queue::{Acknowledge, QueuePair};
use super::registers::{ACQ, AQA, ASQ, CC, CC_RUN, CC_SHUTDOWN, Capabilities, ControllerStatus, VS};
use super::spec::{Completion, ControllerInfo, IDENTIFY_LEN, NamespaceInfo, Status, parse_namespace_list};
use crate::dma::Dma;
use crate::hal::{Hal, PAGE_SIZE, PciFunction, Registers, Service};
use crate::pci::{self, MSIX_VECTOR, Msix};
use crate::request::{Begun, Operation, Request, SLOTS_MAX, Slots, TICK, Tag};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use moraine_platform::{Instant, IoError, LocalFuture, OutOfMemory, error, info, warn};

/// Mass storage, non-volatile memory, NVM Express I/O controller.
const CLASS_NVME: u32 = 0x01_08_02;

/// Number of the only I/O queue pair: one core runs the reactor.
const IO_QUEUE: u16 = 1;
/// Commands in flight are one less. A larger ring holds more latency than throughput.
const SQ_ENTRIES_MAX: u32 = SLOTS_MAX as u32;
/// Twice as many, so that the head doorbell is rung once in 256 completions.
const CQ_ENTRIES_MAX: u32 = 2 * SLOTS_MAX as u32;
const ADMIN_ENTRIES: u16 = 16;

/// Largest transfer of one command, whatever the controller allows.
const TRANSFER_MAX: u64 = 512 * 1024;
const _: () = assert!(TRANSFER_MAX <= prp::TRANSFER_MAX);

const ADMIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a controller may take to put its house in order.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an abort may take before the controller is reset.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Resets tried before the controller is given up.
const RESETS_MAX: u32 = 2;
/// How often a controller is looked at which cannot interrupt, or during recovery.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// Turns without a sleep after which interrupts are masked until the next sleep.
const BUSY_TURNS: u8 = 16;
/// Nonsense completions that are logged.
const COMPLAINTS_MAX: u32 = 10;
/// Namespaces looked at.
const NAMESPACES_MAX: usize = 64;

/// Why bring-up or an admin command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControllerError {
    Gone,
    NotReady,
    NotDisabled,
    Fatal,
    AdminTimeout,
    Admin(Status),
    Memory,
    Unsupported(&'static str),
}

impl core::fmt::Display for ControllerError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            ControllerError::Gone => f.write_str("it is gone"),
            ControllerError::NotReady => f.write_str("it did not become ready"),
            ControllerError::NotDisabled => f.write_str("it could not be disabled"),
            ControllerError::Fatal => f.write_str("it reported a fatal error"),
            ControllerError::AdminTimeout => f.write_str("an admin command timed out"),
            ControllerError::Admin(status) => write!(f, "an admin command failed: {status:?}"),
            ControllerError::Memory => f.write_str("out of memory"),
            ControllerError::Unsupported(what) => f.write_str(what),
        }
    }
}

impl From<OutOfMemory> for ControllerError {
    fn from(_: OutOfMemory) -> ControllerError {
        ControllerError::Memory
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Commands go through.
    Ready,
    /// Commands wait: bring-up, abort or reset is going on.
    Recovering,
    /// Commands fail.
    Dead,
}

/// The I/O queue with what its commands need.
struct Io {
    pair: QueuePair,
    slots: Slots,
    /// One PRP list for each slot, `list_len` bytes each.
    lists: Dma,
    list_len: usize,
    /// Whether the controller knows the queue.
    live: bool,
}

struct Admin {
    pair: QueuePair,
    scratch: Dma,
    next_id: u16,
}

/// A controller.
pub(crate) struct Controller {
    hal: Rc<dyn Hal>,
    function: Rc<dyn PciFunction>,
    registers: Rc<dyn Registers>,
    name: String,
    capabilities: Capabilities,
    msix: Option<Msix>,
    state: Cell<State>,
    /// Made once identification told the sizes.
    io: RefCell<Option<Io>>,
    admin: RefCell<Admin>,
    recovery: RefCell<Option<LocalFuture<()>>>,
    next_tick: Cell<Instant>,
    busy_turns: Cell<u8>,
    masked: Cell<bool>,
    complaints: Cell<u32>,
    this: Weak<Controller>,
}

/// Whether the function is a controller of this kind.
pub(crate) fn wants(identity: pci::Identity) -> bool {
    identity.class == CLASS_NVME
}

/// What one controller brought.
pub(crate) struct Probed {
    pub(crate) controller: Rc<Controller>,
    pub(crate) namespaces: Vec<Namespace>,
    /// Namespaces that cannot be used.
    pub(crate) failures: Vec<String>,
}

/// Brings up controller number `index`, waiting for it.
pub(crate) fn probe(
    hal: &Rc<dyn Hal>,
    function: &Rc<dyn PciFunction>,
    index: usize,
) -> Result<Probed, ControllerError> {
    let controller = Controller::new(hal, function, format!("nvme{index}"))?;
    let mut start = pin!(controller.start());
    loop {
        if let Poll::Ready(result) = start.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            let (namespaces, failures) = result?;
            return Ok(Probed { controller: controller.clone(), namespaces, failures });
        }
        hal.relax();
    }
}

impl Controller {
    fn new(
        hal: &Rc<dyn Hal>,
        function: &Rc<dyn PciFunction>,
        name: String,
    ) -> Result<Rc<Controller>, ControllerError> {
        pci::enable(&**function);
        let bar =
            pci::memory_bar(&**function, 0).ok_or(ControllerError::Unsupported("it has no memory BAR"))?;
        let unmapped = ControllerError::Unsupported("its registers cannot be mapped");
        let registers = hal.registers(bar, 0x40).ok_or(unmapped)?;
        if registers.read32(VS) == u32::MAX {
            return Err(ControllerError::Gone);
        }
        let capabilities = Capabilities::read(&*registers);
        if capabilities.page_min > PAGE_SIZE as u64 {
            return Err(ControllerError::Unsupported("its smallest page is larger than 4 KiB"));
        }
        if !capabilities.nvm_commands {
            return Err(ControllerError::Unsupported("it lacks the NVM command set"));
        }
        if capabilities.queue_entries_max < 2 {
            return Err(ControllerError::Unsupported("its queues have less than two entries"));
        }
        let doorbells_end =
            super::registers::DOORBELLS + capabilities.doorbell_stride * 2 * (usize::from(IO_QUEUE) + 1);
        let registers = hal.registers(bar, doorbells_end).ok_or(unmapped)?;
        let msix = hal.msi(&name).and_then(|message| Msix::enable(&**hal, &**function, message));
        let pair = QueuePair::new(hal, 0, ADMIN_ENTRIES, ADMIN_ENTRIES, capabilities.doorbell_stride)?;
        let admin = Admin { pair, scratch: Dma::new(hal, IDENTIFY_LEN)?, next_id: 0 };
        Ok(Rc::new_cyclic(|this| Controller {
            hal: hal.clone(),
            function: function.clone(),
            registers,
            name,
            capabilities,
            msix,
            state: Cell::new(State::Recovering),
            io: RefCell::new(None),
            admin: RefCell::new(admin),
            recovery: RefCell::new(None),
            next_tick: Cell::new(hal.now()),
            busy_turns: Cell::new(0),
            masked: Cell::new(false),
            complaints: Cell::new(0),
            this: this.clone(),
        }))
    }

    /// First bring-up: enables the controller, learns what it is, creates its I/O queue, lists its namespaces.
    async fn start(&self) -> Result<(Vec<Namespace>, Vec<String>), ControllerError> {
        self.restart_admin().await?;
        let data = self.identify(Identify::Controller).await?;
        let about = ControllerInfo::parse(&data, self.capabilities.page_min);
        let transfer_max = about.transfer_max.unwrap_or(u64::MAX).min(TRANSFER_MAX);
        let depth = self.make_io(transfer_max)?;
        self.create_io_queues().await?;
        let mut namespaces = Vec::new();
        let mut failures = Vec::new();
        let mut after = 0;
        'lists: loop {
            let list = parse_namespace_list(&*self.identify(Identify::NamespacesAfter(after)).await?, after);
            let Some(&last) = list.last() else { break };
            for id in list {
                if namespaces.len() + failures.len() == NAMESPACES_MAX {
                    failures
                        .push(format!("{}: only the first {NAMESPACES_MAX} namespaces are used", self.name));
                    break 'lists;
                }
                let data = self.identify(Identify::Namespace(id)).await?;
                match NamespaceInfo::parse(&data) {
                    Ok(namespace) => {
                        let this = self.this.upgrade().expect("called on a controller in an Rc");
                        namespaces.push(Namespace::new(
                            this,
                            id,
                            &namespace,
                            &about,
                            transfer_max,
                            depth as u32,
                        ));
                    }
                    Err(why) => failures.push(format!("{}n{id}: {why}", self.name)),
                }
            }
            after = last;
        }
        self.state.set(State::Ready);
        info!("nvme", "{}: {} {}, {} namespaces", self.name, about.model, about.serial, namespaces.len());
        Ok((namespaces, failures))
    }

    /// Allocates the I/O queue; how many commands it carries.
    fn make_io(&self, transfer_max: u64) -> Result<usize, ControllerError> {
        let sq_entries = self.capabilities.queue_entries_max.min(SQ_ENTRIES_MAX) as u16;
        let cq_entries = self.capabilities.queue_entries_max.min(CQ_ENTRIES_MAX) as u16;
        let stride = self.capabilities.doorbell_stride;
        let depth = usize::from(sq_entries) - 1;
        let list_len = prp::list_len(transfer_max);
        let io = Io {
            pair: QueuePair::new(&self.hal, IO_QUEUE, sq_entries, cq_entries, stride)?,
            slots: Slots::new(depth),
            lists: Dma::new(&self.hal, depth * list_len)?,
            list_len,
            live: false,
        };
        *self.io.borrow_mut() = Some(io);
        Ok(depth)
    }

    /// Disables the controller. On success it has forgotten all commands and touches no memory.
    async fn disable(&self) -> Result<(), ControllerError> {
        if let Some(io) = self.io.borrow_mut().as_mut() {
            io.live = false;
        }
        self.registers.write32(CC, 0);
        self.until(self.capabilities.ready_timeout, || match ControllerStatus::read(&*self.registers) {
            ControllerStatus::NotReady => Some(Ok(())),
            ControllerStatus::Gone => Some(Err(ControllerError::Gone)),
            ControllerStatus::Ready => None,
            // Fatal status stays until ready is cleared too; not ready with it set is read as failed.
            ControllerStatus::Failed if self.registers.read32(super::registers::CSTS) & 1 == 0 => {
                Some(Ok(()))
            }
            ControllerStatus::Failed => None,
        })
        .await
        .unwrap_or(Err(ControllerError::NotDisabled))
    }

    /// Disables the controller and enables it with fresh admin queues.
    async fn restart_admin(&self) -> Result<(), ControllerError> {
        self.disable().await?;
        self.interrupt_all();
        {
            let mut admin = self.admin.borrow_mut();
            admin.pair.reset();
            let last = u32::from(ADMIN_ENTRIES) - 1;
            self.registers.write32(AQA, last << 16 | last);
            self.registers.write64(ASQ, admin.pair.submission_bus());
            self.registers.write64(ACQ, admin.pair.completion_bus());
        }
        self.registers.write32(CC, CC_RUN);
        self.until(self.capabilities.ready_timeout, || match ControllerStatus::read(&*self.registers) {
            ControllerStatus::Ready => Some(Ok(())),
            ControllerStatus::Gone => Some(Err(ControllerError::Gone)),
            ControllerStatus::Failed => Some(Err(ControllerError::Fatal)),
            ControllerStatus::NotReady => None,
        })
        .await
        .unwrap_or(Err(ControllerError::NotReady))
    }

    /// Creates the I/O queues with empty rings.
    async fn create_io_queues(&self) -> Result<(), ControllerError> {
        let (sq_entries, cq_entries, sq, cq) = {
            let mut io = self.io.borrow_mut();
            let pair = &mut io.as_mut().expect("made before").pair;
            pair.reset();
            (pair.sq_entries(), pair.cq_entries(), pair.submission_bus(), pair.completion_bus())
        };
        let vector = self.msix.as_ref().map(|_| MSIX_VECTOR);
        self.admin(Command::set_queue_count).await?;
        self.admin(|id| Command::create_completion_queue(id, IO_QUEUE, cq_entries, cq, vector)).await?;
        self.admin(|id| Command::create_submission_queue(id, IO_QUEUE, sq_entries, sq)).await?;
        self.io.borrow_mut().as_mut().expect("made before").live = true;
        Ok(())
    }

    /// Runs one admin command. Only one is under way at a time: bring-up and recovery are sequential.
    async fn admin(&self, make: impl FnOnce(u16) -> Command) -> Result<u32, ControllerError> {
        let id = {
            let mut admin = self.admin.borrow_mut();
            admin.next_id = admin.next_id.wrapping_add(1);
            let id = admin.next_id;
            admin.pair.push(&make(id));
            admin.pair.ring(&*self.registers);
            id
        };
        let completion = self
            .until(ADMIN_TIMEOUT, || {
                let mut admin = self.admin.borrow_mut();
                let completion: Completion = admin.pair.pop()?;
                admin.pair.acknowledge(&*self.registers, Acknowledge::Now);
                // Anything else is a late answer to a command given up, or nonsense.
                (completion.command_id == id).then_some(completion)
            })
            .await
            .ok_or(ControllerError::AdminTimeout)?;
        match completion.status {
            Status(status) if status & 0x7ff == 0 => Ok(completion.result),
            status => Err(ControllerError::Admin(status)),
        }
    }

    async fn identify(&self, what: Identify) -> Result<Box<[u8; IDENTIFY_LEN]>, ControllerError> {
        let bus = {
            let admin = self.admin.borrow();
            admin.scratch.clear();
            admin.scratch.bus(0)
        };
        self.admin(|id| Command::identify(id, what, bus)).await?;
        let mut data = Box::new([0; IDENTIFY_LEN]);
        self.admin.borrow().scratch.copy_out(0, &mut *data);
        Ok(data)
    }

    /// Looks until `test` says something or `limit` has passed.
    async fn until<T>(&self, limit: Duration, mut test: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = self.hal.now() + limit;
        poll_fn(|_| match test() {
            Some(value) => Poll::Ready(Some(value)),
            None if self.hal.now() >= deadline => Poll::Ready(None),
            None => Poll::Pending,
        })
        .await
    }

    /// Takes a command of a namespace's.
    pub(crate) fn submit(&self, request: Rc<Request>) {
        let mut io = self.io.borrow_mut();
        let io = io.as_mut().expect("namespaces exist only after bring-up");
        io.slots.push(request);
        match self.state.get() {
            State::Ready => io.issue(),
            State::Recovering => (),
            State::Dead => {
                // Nobody waits on the new request yet, so no task is woken under the borrow.
                io.slots.abandon().fail(IoError::Gone);
            }
        }
    }

    /// Takes completions; whether there were any.
    fn complete(&self) -> bool {
        let mut worked = false;
        for _ in 0..CQ_ENTRIES_MAX {
            let (ended, completion) = {
                let mut io = self.io.borrow_mut();
                let Some(io) = io.as_mut().filter(|io| io.live) else { break };
                let Some(completion) = io.pair.pop() else { break };
                worked = true;
                (io.slots.take(Tag(completion.command_id)), completion)
            };
            let Some(mut ended) = ended else {
                self.complain(completion);
                continue;
            };
            if completion.status.is_transient() {
                let mut io = self.io.borrow_mut();
                match io.as_mut().expect("it completed a command").slots.again(ended) {
                    Some(refused) => ended = refused,
                    None => continue,
                }
            }
            let result = match completion.status.to_result() {
                Ok(()) => Ok(()),
                Err(_) if ended.timed_out => Err(IoError::Timeout),
                Err(error) => {
                    let (operation, piece) = (ended.operation(), ended.piece());
                    let status = completion.status;
                    warn!("nvme", "{}: {operation:?} of {piece:?}: {status:?}", self.name);
                    Err(error)
                }
            };
            ended.finish(result);
        }
        worked
    }

    fn complain(&self, completion: Completion) {
        let count = self.complaints.get();
        if count < COMPLAINTS_MAX {
            self.complaints.set(count + 1);
            warn!("nvme", "{}: it completed a command never given: {completion:?}", self.name);
        }
    }

    /// Looks after commands that take too long.
    fn tick(&self) {
        let now = self.hal.now();
        if now < self.next_tick.get() {
            return;
        }
        self.next_tick.set(now + TICK);
        let mut io = self.io.borrow_mut();
        let Some(io) = io.as_mut().filter(|io| io.live && io.slots.in_flight() > 0) else { return };
        let late = io.slots.tick();
        let status = ControllerStatus::read(&*self.registers);
        if self.state.get() == State::Ready && (late.is_some() || status != ControllerStatus::Ready) {
            self.state.set(State::Recovering);
            let this = self.this.upgrade().expect("ticked through an Rc");
            *self.recovery.borrow_mut() = Some(Box::pin(async move { this.recover(late).await }));
        }
    }

    /// Gets the controller going again: abort what is late, else reset, else give it up.
    async fn recover(&self, late: Option<Tag>) {
        if !pci::is_present(&*self.function) {
            warn!("nvme", "{}: it was taken away", self.name);
            return self.give_up();
        }
        if let Some(tag) = late {
            warn!("nvme", "{}: a command timed out; aborting it", self.name);
            if self.abort(tag).await {
                self.state.set(State::Ready);
                return;
            }
        }
        for _ in 0..RESETS_MAX {
            warn!("nvme", "{}: resetting the controller", self.name);
            let restarted = match self.restart_admin().await {
                Ok(()) => self.create_io_queues().await,
                Err(error) => Err(error),
            };
            match restarted {
                Ok(()) => {
                    info!("nvme", "{}: it is back", self.name);
                    self.state.set(State::Ready);
                    return;
                }
                Err(ControllerError::Gone) => break,
                Err(error) => warn!("nvme", "{}: reset failed: {error}", self.name),
            }
        }
        self.give_up();
    }

    /// Aborts a late command; whether nothing is late any more. `poll` takes I/O completions meanwhile.
    async fn abort(&self, tag: Tag) -> bool {
        let mut aborting = pin!(self.admin(|id| Command::abort(id, IO_QUEUE, tag.0)));
        let mut answered = false;
        self.until(ABORT_TIMEOUT, || {
            if !answered {
                match aborting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Err(_)) => return Some(false),
                    Poll::Ready(Ok(_)) => answered = true,
                    Poll::Pending => (),
                }
            }
            let late = self.io.borrow().as_ref().is_some_and(|io| io.slots.has_late());
            (answered && !late).then_some(true)
        })
        .await
        .unwrap_or(false)
    }

    /// After a confirmed reset: answers what had timed out, and lets everything else begin again.
    fn interrupt_all(&self) {
        let failed = match self.io.borrow_mut().as_mut() {
            Some(io) => io.slots.interrupted(),
            None => Vec::new(),
        };
        for ended in failed {
            ended.finish(Err(IoError::Timeout));
        }
    }

    /// Cuts the controller off from memory, and fails everything.
    fn give_up(&self) {
        error!("nvme", "{}: giving the controller up", self.name);
        pci::disable_dma(&*self.function);
        self.state.set(State::Dead);
        let abandoned = self.io.borrow_mut().as_mut().map(|io| {
            io.live = false;
            io.slots.abandon()
        });
        if let Some(abandoned) = abandoned {
            abandoned.fail(IoError::Gone);
        }
    }

    /// Goes on with recovery; whether there was any.
    fn run_recovery(&self) -> bool {
        let Some(mut task) = self.recovery.take() else { return false };
        if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            *self.recovery.borrow_mut() = Some(task);
            return false;
        }
        true
    }

    /// Issues what waits and rings the doorbell; whether there was anything.
    fn submit_waiting(&self) -> bool {
        let mut io = self.io.borrow_mut();
        let Some(io) = io.as_mut().filter(|io| io.live) else { return false };
        if self.state.get() == State::Ready && io.slots.has_waiting() {
            io.issue();
        }
        io.pair.ring(&*self.registers)
    }

    pub(crate) fn hal(&self) -> &Rc<dyn Hal> {
        &self.hal
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Io {
    /// Turns waiting pieces into commands while there are slots. There is a ring entry for each slot.
    fn issue(&mut self) {
        while let Some(begun) = self.slots.begin() {
            let command = self.encode(&begun);
            self.pair.push(&command);
        }
    }

    fn encode(&self, begun: &Begun) -> Command {
        let Begun { tag, piece, request } = begun;
        let (id, namespace) = (tag.0, request.target);
        let lba = piece.offset >> request.block_shift;
        let blocks = (piece.len >> request.block_shift) as u32;
        let list = tag.slot() * self.list_len;
        let data = || prp::describe(request.bus_of(*piece), piece.len, &self.lists, list);
        match request.operation {
            Operation::Read => Command::read(id, namespace, lba, blocks, data()),
            Operation::Write(fua) => Command::write(id, namespace, lba, blocks, data(), fua),
            Operation::WriteZeroes if request.emulates_zeroes() => {
                Command::write(id, namespace, lba, blocks, data(), moraine_platform::Fua::No)
            }
            Operation::WriteZeroes => Command::write_zeroes(id, namespace, lba, blocks),
            Operation::Flush => Command::flush(id, namespace),
            Operation::Discard => {
                let [attributes, start] = dataset_range(lba, blocks);
                self.lists.write(list, attributes);
                self.lists.write(list + 8, start);
                Command::deallocate(id, namespace, self.lists.bus(list))
            }
        }
    }
}

impl Service for Controller {
    fn name(&self) -> &str {
        &self.name
    }

    fn poll(&self) -> bool {
        let mut worked = self.run_recovery();
        if self.state.get() == State::Dead {
            return worked;
        }
        worked |= self.submit_waiting();
        if self.complete() {
            worked = true;
            if let Some(io) = self.io.borrow_mut().as_mut().filter(|io| io.live) {
                io.pair.acknowledge(&*self.registers, Acknowledge::Late);
            }
            // Slots came free.
            self.submit_waiting();
            self.busy_turns.set(self.busy_turns.get().saturating_add(1));
            if self.busy_turns.get() == BUSY_TURNS
                && let Some(msix) = self.msix.as_ref().filter(|_| !self.masked.get())
            {
                msix.mask();
                self.masked.set(true);
            }
        }
        self.tick();
        worked
    }

    fn arm(&self) -> bool {
        self.busy_turns.set(0);
        if let Some(msix) = self.msix.as_ref().filter(|_| self.masked.get()) {
            msix.unmask();
            self.masked.set(false);
        }
        let mut io = self.io.borrow_mut();
        let Some(io) = io.as_mut().filter(|io| io.live) else { return true };
        io.pair.acknowledge(&*self.registers, Acknowledge::Now);
        !io.pair.is_pending()
    }

    fn deadline(&self) -> Option<Instant> {
        if self.recovery.borrow().is_some() {
            return Some(self.hal.now() + LOOK_INTERVAL);
        }
        let io = self.io.borrow();
        io.as_ref().filter(|io| io.slots.in_flight() > 0)?;
        Some(if self.msix.is_some() { self.next_tick.get() } else { self.hal.now() + LOOK_INTERVAL })
    }

    fn shut_down(&self) {
        if self.state.get() != State::Ready {
            return;
        }
        self.registers.write32(CC, CC_RUN | CC_SHUTDOWN);
        let deadline = self.hal.now() + SHUTDOWN_TIMEOUT;
        while !super::registers::is_shut_down(&*self.registers) && self.hal.now() < deadline {
            self.hal.relax();
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // Its rings and buffers are about to be freed: no DMA may follow.
        self.registers.write32(CC, 0);
        pci::disable_dma(&*self.function);
    }
}
