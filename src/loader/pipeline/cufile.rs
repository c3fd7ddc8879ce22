//! [`CuFileSession`]: the state of cuFile in a load.
//!
//! cuFile reads whole blocks into scratch on the device; copies within the device move them to their places.
//! [`direct_reader`](super::direct_reader) reads by cuFile as by other engines: only its slots, and the
//! copies out of them, are on the device. A session is opened when there is something to read, and closed
//! when the readers have ended.
//!
//! If cuFile is required, it reads everything. Otherwise it reads the bytes that are not cached, if it reads
//! each of the files directly. When it refuses a read later, other direct readers take over.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tensorhold_allocator::{Bytes, Fragment, Pool};

use crate::device::Device;
use crate::error::Result;
use crate::io::Access;
use crate::io::gds::{self, CuFile};
use crate::loader::plan::Job;
use crate::loader::staging::{ReaderSlots, SlotPool, StagingBudget};
use crate::report::Choice;

/// The files, the scratch and the state of cuFile in a load.
pub(crate) struct CuFileSession {
    pub(super) cufile: Arc<CuFile>,
    /// By file.
    pub(super) accesses: Vec<Access>,
    pub(super) pool: Pool,
    /// The pool was made for this load.
    pub(super) owns_pool: bool,
    /// All slots in one piece, and the number of slots that have been handed out.
    pub(super) scratch: Mutex<(Option<Fragment>, usize)>,
    pub(super) scratch_bytes: u64,
    pub(super) slots: usize,
    /// Slots of a reader with one read in flight.
    pub(super) each: usize,
    pub(super) slot_bytes: u64,
    /// Empty: no slots are added later.
    pub(super) budget: StagingBudget,
    /// cuFile has refused a read: others read the remaining jobs.
    pub(super) refused: AtomicBool,
}

impl CuFileSession {
    /// Slots for a reader with `depth` reads in flight; `None` if all have been handed out.
    pub(super) fn open_slots(&self, device: &Device, depth: usize) -> Result<Option<ReaderSlots<'_>>> {
        let slots = if depth > 1 { depth } else { self.each };
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let (block, taken) = &mut *scratch;
        let slots = slots.min(self.slots - *taken);
        let part = block
            .as_ref()
            .and_then(|block| block.slice(*taken as u64 * self.slot_bytes, slots as u64 * self.slot_bytes));
        let Some(part) = part.filter(|_| slots > 0) else { return Ok(None) };
        *taken += slots;
        let slot_pool = SlotPool {
            pool: &self.pool,
            budget: &self.budget,
            slot_bytes: self.slot_bytes,
            slot_jobs: 1,
            slots,
        };
        ReaderSlots::over(device, slot_pool, part).map(Some)
    }

    /// The file of a job.
    pub(super) fn access(&self, job: &Job) -> &Access {
        &self.accesses[job.file]
    }

    /// Whether an error comes from cuFile rather than from the file.
    pub(super) fn is_refusal(error: &io::Error) -> bool {
        gds::is_from_library(error)
    }

    /// Records that cuFile has refused a read: others read the remaining jobs.
    pub(super) fn refuse(&self) {
        self.refused.store(true, Ordering::Release);
    }

    /// Whether cuFile has refused a read.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }

    /// Bytes of the scratch.
    pub(crate) fn scratch_bytes(&self) -> u64 {
        self.scratch_bytes
    }

    /// The choices about cuFile, for the report.
    pub(crate) fn choices(&self) -> [Choice; 2] {
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let start = scratch.0.as_ref().map(Fragment::as_ptr);
        let registered = start.is_some_and(|start| self.cufile.is_registered(start));
        let why = match self.cufile.refusal().filter(|_| !registered) {
            _ if registered => {
                "registered with cuFile; tensors move on from there, to regions that are not".into()
            }
            Some(refusal) => format!("not registered: {refusal}"),
            None => "not registered".into(),
        };
        let scratch = format!("{} on the device, in one region", Bytes(self.scratch_bytes));
        [
            Choice {
                about: "cufile",
                picked: self.cufile.describe(),
                why: self.cufile.mode().describe().into(),
            },
            Choice { about: "scratch", picked: scratch, why },
        ]
    }
}

impl Drop for CuFileSession {
    fn drop(&mut self) {
        // Every reader has ended, and so have its slots and queue. The device gets its memory back before the
        // load returns (I4).
        *self.scratch.get_mut().unwrap_or_else(PoisonError::into_inner) = (None, 0);
        if self.owns_pool {
            self.pool.trim();
        }
    }
}
