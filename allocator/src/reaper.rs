//! The reaper: one thread for each pool, the only one that gives memory back.
//!
//! A pass takes all that was retired, waits for the memory's work to end (I1), returns the ranges to their regions'
//! free lists, and releases the regions that are empty. Then it parks until a drop, a [`Shared::settle`] or the close
//! of the pool wakes it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use crate::fragment::Record;
use crate::memory::RawRegion;
use crate::shared::{Books, Shared};

/// Starts the reaper of a pool.
pub(crate) fn start(shared: &Arc<Shared>) -> io::Result<()> {
    let theirs = Arc::clone(shared);
    let handle = thread::Builder::new().name("tensorhold-reap".into()).spawn(move || run(&theirs))?;
    // The only `set`; before it there is no fragment that could want to wake the thread.
    let _ = shared.reaper.set(handle.thread().clone());
    Ok(())
}

fn run(shared: &Shared) {
    loop {
        // Read before the queue is taken: whatever was retired before the asking is then in this pass.
        let asked = shared.books().asked;
        let records: Vec<Record> = shared.retired.take_all().collect();
        let idle = records.is_empty();
        give_back(shared, records);
        release_empty_regions(shared, asked);

        let mut books = shared.books();
        books.made = asked;
        // R2: a region that is being reserved is counted in `reserved` already.
        books.ended = shared.closing.load(Ordering::Acquire)
            && books.fragments.is_empty()
            && books.regions.is_empty()
            && books.reserved == 0;
        let (ended, up_to_date) = (books.ended, books.asked == asked);
        drop(books);
        shared.passed.notify_all();
        if ended {
            return;
        }
        if idle && up_to_date {
            thread::park();
        }
    }
}

/// Returns retired ranges to their regions, once nothing can touch them.
fn give_back(shared: &Shared, records: Vec<Record>) {
    if records.is_empty() {
        return;
    }
    // M3: all work submitted before the last drops has ended when this returns.
    let synchronized = shared.memory.synchronize();
    let mut books = shared.books();
    for record in &records {
        let Some(entry) = books.fragments.try_remove(record.slot) else { continue };
        books.live -= entry.bytes;
        let Some(home) = entry.home else { continue };
        if synchronized.is_err() {
            // I1 cannot be shown: the range stays taken for good, and its region with it.
            books.lost += entry.bytes;
        } else if let Some(region) = books.regions.get_mut(home.region) {
            // Each slot is entered with a key of its own and removed once, so the key is not stale.
            let freed = region.space.free(home.key);
            debug_assert!(freed.is_ok());
        }
    }
    if let Err(error) = synchronized {
        tracing::error!(pool = shared.name, %error, fragments = records.len(), "memory cannot be synchronized: dropped ranges are lost");
    }
}

/// Releases empty regions: all of them when someone waits for it or the pool is closing, else those above what the
/// pool retains.
fn release_empty_regions(shared: &Shared, asked: u64) {
    let empty = {
        let mut books = shared.books();
        let all = asked > books.made || shared.closing.load(Ordering::Acquire);
        take_empty_regions(&mut books, if all { 0 } else { shared.options.retain_bytes })
    };
    for (raw, size) in empty {
        // SAFETY: the region came from this memory and is in the books no more. I1: it holds no live fragment, and
        // those it held were synchronized before their ranges were freed.
        let released = unsafe { shared.memory.release(raw) };
        let mut books = shared.books();
        books.reserved -= size;
        if let Err(error) = released {
            books.lost += size;
            drop(books);
            tracing::error!(pool = shared.name, %error, bytes = size, "a region cannot be released: it is lost");
        }
    }
}

/// Takes empty regions out of the books, except for the first ones that fit into `keep` bytes.
fn take_empty_regions(books: &mut Books, mut keep: u64) -> Vec<(RawRegion, u64)> {
    let mut taken = Vec::new();
    books.regions.retain(|_, region| {
        let size = region.space.capacity();
        if !region.space.is_empty() {
            return true;
        }
        if size <= keep {
            keep -= size;
            return true;
        }
        taken.push((region.raw, size));
        false
    });
    taken
}
