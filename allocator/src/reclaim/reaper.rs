//! The reaper: one thread for each pool, the only one that waits for devices and gives memory back to them.
//!
//! A pass takes back all that was retired, synchronizes the memory if addresses were given out (I1), frees the exposed ranges and
//! those whose fences have passed, and releases empty regions. When there has been nothing to do for a while, it parks until a drop,
//! [`PoolCore::settle`] or the close of the pool wakes it.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Duration;
use std::{io, mem};

use super::exposed::free_exposed;
use super::fences::{drop_stale_fences, free_passed};
use super::regions::{give_back_parts, release_empty_regions};
use super::shards::{fall_asleep, give_back_spans};
use super::take_back::{take_back, take_back_in_shard};
use crate::books::Pass;
use crate::core::{LockedPool, PoolCore};

/// The time between two passes while ranges wait for fences, which notify no one when they pass, or while placements take back what
/// is dropped.
const LOOKS_EVERY: Duration = Duration::from_millis(1);

/// Whether it stays awake for a while when it has nothing to do. In a loom model, time does not pass.
const LINGERS: bool = !cfg!(loom);

/// Starts the reaper of a pool.
pub(crate) fn start_reaper(core: &Arc<PoolCore>) -> io::Result<()> {
    let owned = Arc::clone(core);
    core.reaper().start("tensorhold-reap", move || {
        // R3: if a memory or a fence panics, the pool stays, and what it holds with it.
        let owned = ManuallyDrop::new(owned);
        let guard = PanicGuard(&owned);
        run(&owned);
        mem::forget(guard);
        drop(ManuallyDrop::into_inner(owned));
    })
}

/// If a memory or a fence makes the reaper panic, no one waits for it any more.
struct PanicGuard<'a>(&'a PoolCore);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        self.0.books().passes.end();
        self.0.notify_pass();
        tracing::error!(
            pool = self.0.config().name,
            "the memory or a fence panicked: no memory of this pool is given back any more"
        );
    }
}

/// What the reaper does after a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextStep {
    End,
    Pass,
    /// A pass after some time, or earlier if someone wakes it.
    Linger,
    /// It parks until a drop or someone else wakes it.
    Sleep,
}

fn run(core: &PoolCore) {
    let mut lingered = false;
    loop {
        let (pass, any) = {
            let mut books = core.books();
            // Begun before the queue is emptied: whatever was retired before a request is then in its pass.
            let pass = books.passes.begin();
            let any = take_back(core, &mut books);
            (pass, any || books.exposed_count() > 0)
        };
        let any = core
            .shards()
            .fold(any, |any, (_, shard)| take_back_in_shard(core, shard, &mut shard.books()) || any);
        free_passed(core, pass.waits_for_fences);
        free_exposed(core);
        give_back_spans(core);
        give_back_parts(core);
        release_empty_regions(core, pass);
        drop_stale_fences(core);

        let next = end_pass(core, pass, any, lingered);
        core.notify_pass();
        match next {
            NextStep::End => return,
            NextStep::Pass => {}
            NextStep::Linger => core.reaper().wait_timeout(LOOKS_EVERY),
            NextStep::Sleep => core.reaper().wait(),
        }
        lingered = next == NextStep::Linger;
    }
}

/// Ends a pass, which found `any` work or none, and returns what comes next.
fn end_pass(core: &PoolCore, pass: Pass, any: bool, lingered: bool) -> NextStep {
    let mut books = match core.is_closing() {
        true => {
            let locked = LockedPool::lock(core);
            // R2.
            let holds = locked.holds_anything();
            let mut books = locked.into_books();
            if !holds {
                books.passes.end();
            }
            books.note_closing();
            books
        }
        false => core.books(),
    };
    let requested = books.passes.finish(pass);
    if books.passes.have_ended() {
        return NextStep::End;
    }
    if any || requested || books.exposed_count() > 0 {
        return NextStep::Pass;
    }
    // Placements that take back what is dropped may leave work to the reaper, and drops need not wake it.
    let busy = books.was_taken_back() || !lingered && LINGERS;
    // All under one lock: what is dropped later wakes the reaper, and nothing was taken back before that it has not seen.
    if busy || books.has_pending() || !core.retired().fall_asleep() {
        return NextStep::Linger;
    }
    drop(books);
    if fall_asleep(core) { NextStep::Sleep } else { NextStep::Linger }
}
