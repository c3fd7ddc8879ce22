//! Staging memory: page-locked memory that readers fill and devices copy from.

mod pool;
mod slots;

pub(crate) use pool::{SlotPool, StagingBudget, StagingMemory, place, pool};
pub(crate) use slots::{FIRST_SLOTS, ReaderSlots};
