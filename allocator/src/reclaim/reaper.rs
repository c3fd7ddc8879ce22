//! The reaper: one thread for each pool, the only one that waits for devices and gives memory back to them.
//!
//! A pass takes all that was retired, waits for the memory's work to end if addresses of it were given out (I1), returns
//! the ranges to their regions' free lists, those that wait for fences when these have passed, and releases the regions that are
//! empty. Ranges that nothing can be using placements take back as well, before they look for room. When there has been nothing to
//! do for a while it parks until a drop, a [`Shared::settle`] or the close of the pool wakes it.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Duration;
use std::{io, mem};

use crate::core::pool_core::{Books, Entry, Region, Shared};
use crate::sync::atomic::Ordering;

/// How soon a range is free after its fences have passed, when no one waits for it (a fence tells no one that it has passed), and how
/// often the reaper looks while ranges are dropped and taken back without it.
const LOOKS_EVERY: Duration = Duration::from_millis(1);

/// Whether it stays awake for a while when it has nothing to do. Time does not pass in a model.
const LINGERS: bool = !cfg!(loom);

/// Starts the reaper of a pool.
pub(crate) fn start(shared: &Arc<Shared>) -> io::Result<()> {
    let theirs = Arc::clone(shared);
    shared.reaper.start("tensorhold-reap", move || {
        // R3: if a memory or a fence panics, the pool stays, and what it holds with it.
        let theirs = ManuallyDrop::new(theirs);
        let panicked = Panicked(&theirs);
        run(&theirs);
        mem::forget(panicked);
        drop(ManuallyDrop::into_inner(theirs));
    })
}

/// Sees to it that no one waits for a reaper that a memory or a fence has made panic.
struct Panicked<'a>(&'a Shared);

impl Drop for Panicked<'_> {
    fn drop(&mut self) {
        self.0.books().ended = true;
        self.0.passed.notify_all();
        tracing::error!(
            pool = self.0.name,
            "the memory or a fence panicked: no memory of this pool is given back any more"
        );
    }
}

/// What the reaper does after a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    End,
    Pass,
    /// A pass, but not before some time has gone by, or someone wakes it.
    Linger,
    /// It parks until a drop or someone else wakes it.
    Sleep,
}

fn run(shared: &Shared) {
    let mut lingered = false;
    loop {
        let (asked, patient, any) = {
            let mut books = shared.books();
            // Read before the queue is taken: whatever was retired before the asking is then in this pass.
            let (asked, patient) = (books.asked, books.patient > books.made);
            let any = shared.take_back(&mut books);
            (asked, patient, any || !books.dropped.exposed.is_empty())
        };
        let any = shared
            .shards()
            .fold(any, |any, (_, shard)| shared.take_back_in(shard, &mut shard.local()) || any);
        shared.free_passed(patient);
        free_exposed(shared);
        shared.give_back_spans();
        give_back_parts(shared);
        release_empty_regions(shared, asked);
        shared.drop_spent();

        let next = end_pass(shared, asked, any, lingered);
        shared.passed.notify_all();
        match next {
            Next::End => return,
            Next::Pass => {}
            Next::Linger => shared.reaper.wait_timeout(LOOKS_EVERY),
            Next::Sleep => shared.reaper.wait(),
        }
        lingered = next == Next::Linger;
    }
}

/// Enters that the pass for what had been `asked` is over, and says what comes next, if it found `any` work.
fn end_pass(shared: &Shared, asked: u64, any: bool, lingered: bool) -> Next {
    let mut books = match shared.closing.load(Ordering::Acquire) {
        true => {
            let mut whole = shared.whole();
            // R2: a region that is being reserved is counted in `reserved` already, and one that holds what was dropped is there.
            let holds =
                whole.holds_fragments() || !whole.books.regions.is_empty() || whole.books.reserved > 0;
            whole.books.ended = !holds;
            let mut books = whole.into_books();
            books.log_close();
            books
        }
        false => shared.books(),
    };
    books.made = asked;
    if books.ended {
        return Next::End;
    }
    if any || books.asked != asked || !books.dropped.exposed.is_empty() {
        return Next::Pass;
    }
    // While placements take back what is dropped there may be more for it to see to, and drops need not wake it.
    let busy = mem::take(&mut books.taken_back) || !lingered && LINGERS;
    // All under one lock: what is dropped later wakes the reaper, and nothing was taken back before that it has not seen.
    if busy || books.dropped.is_waiting() || !shared.retired.0.fall_asleep() {
        return Next::Linger;
    }
    drop(books);
    if shared.shards_fall_asleep() { Next::Sleep } else { Next::Linger }
}

/// Frees ranges whose addresses were given out, once nothing can touch them.
fn free_exposed(shared: &Shared) {
    // They stay where they are meanwhile: a shard that dissolves finds them.
    let in_shards = shared.exposed_in_shards();
    let count = shared.books().dropped.exposed.len();
    let fragments = count + in_shards.iter().sum::<usize>();
    if fragments == 0 {
        return;
    }
    // M3: all work submitted before the last drops has ended when this returns.
    let synchronized = shared.memory.synchronize();
    if count > 0 {
        let mut whole = shared.whole();
        let exposed: Vec<Entry> = whole.books.dropped.exposed.drain(..count).collect();
        for entry in &exposed {
            whole.books.dropped.bytes -= entry.bytes;
            match &synchronized {
                Ok(()) => whole.free(entry),
                // I1 cannot be shown: the range stays taken for good, and its region with it.
                Err(_) => {
                    whole.books.lose(entry.bytes);
                    whole.books.log_reap(entry.number, false);
                }
            }
        }
        whole.books.log_gone();
    }
    shared.free_exposed_in_shards(&in_shards, synchronized.is_ok());
    if let Err(error) = synchronized {
        tracing::error!(pool = shared.name, %error, fragments, "memory cannot be synchronized: dropped ranges are lost");
    }
}

/// Gives back the parts of regions in which no fragment lies any more.
fn give_back_parts(shared: &Shared) {
    let leaving = mem::take(&mut shared.books().leaving);
    for (index, part, backing) in leaving {
        let bytes = backing.bytes(part);
        // I1: the fragments that lay in it are free.
        let given_back = backing.give_back(part);
        let mut books = shared.books();
        books.reserved -= bytes;
        books.made_room += 1;
        // It is there, since it is not released before its parts are gone (J2).
        if let Some(region) = books.regions.get_mut(index) {
            region.reserved -= bytes;
        }
        books.log_part_back(index, bytes);
        if let Err(error) = given_back {
            books.lose(bytes);
            drop(books);
            tracing::error!(pool = shared.name, %error, bytes, "a part of a region cannot be given back: it is lost");
        }
    }
}

/// Releases empty regions: all of them when someone waits for it or the pool is closing, else those above what the
/// pool retains.
fn release_empty_regions(shared: &Shared, asked: u64) {
    let empty = {
        let mut books = shared.books();
        let keep = match (shared.closing.load(Ordering::Acquire), asked > books.made) {
            (true, _) => 0,
            (false, true) => books.keep,
            (false, false) => shared.options.retain_bytes,
        };
        books.log_trim(keep);
        take_empty_regions(&mut books, keep)
    };
    for Region { raw, reserved, backing, .. } in empty {
        let released = match backing {
            Some(backing) if backing.is_lost() => Err("a part of it was not given back".into()),
            // SAFETY: the range came from this memory and is in the books no more. I1: it holds no live fragment. J2: its parts are gone,
            // and none is lost.
            Some(_) => shared.memory.parted().and_then(|parted| unsafe { parted.release_range(raw) }),
            // SAFETY: the region came from this memory and is in the books no more. I1: it holds no live fragment, and
            // those it held were synchronized before their ranges were freed.
            None => unsafe { shared.memory.release(raw) },
        };
        let mut books = shared.books();
        books.reserved -= reserved;
        books.made_room += 1;
        if let Err(error) = released {
            books.lose(reserved);
            drop(books);
            tracing::error!(pool = shared.name, %error, bytes = reserved, "a region cannot be released: it is lost");
        }
    }
}

/// Takes empty regions out of the books, except for the first ones that fit into `keep` bytes.
fn take_empty_regions(books: &mut Books, mut keep: u64) -> Vec<Region> {
    let mut taken = Vec::new();
    let empty = books.regions.iter().filter(|(_, region)| region.space.is_empty());
    for (index, region) in empty {
        match &region.backing {
            Some(backing) if backing.is_gone() => taken.push(index),
            Some(_) => {}
            None if region.reserved <= keep => keep -= region.reserved,
            None => taken.push(index),
        }
    }
    let mut remove = |index| {
        let region = books.regions.try_remove(index)?;
        books.log_release(index, region.reserved);
        Some(region)
    };
    taken.into_iter().filter_map(&mut remove).collect()
}
