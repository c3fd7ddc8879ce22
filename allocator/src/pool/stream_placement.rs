//! Placing in the order of a stream: ranges that were dropped are used again though their uses have not ended.

use std::mem;
use std::sync::Arc;

use crate::core::pool_core::{Block, Books, Entry, Home, Shared};
use crate::error::{Error, Result};
use crate::fragment::Fragment;
use crate::memory::MemoryError;
use crate::offsets::Request;
use crate::reclaim::pending::Pending;
use crate::stream::OrderedStream;
use crate::stream::uses::{Recorded, Uses};
use crate::sync::MutexGuard;

/// A range that waited for fences, taken out of the books to be used again. If it is not, it waits again: also where a stream panics.
struct Taken<'a> {
    shared: &'a Shared,
    /// `None` once it is used again.
    pending: Option<Pending>,
}

impl Taken<'_> {
    fn uses(&self) -> &[Recorded] {
        self.pending.as_ref().map_or(&[], |pending| &pending.uses)
    }

    /// As [`Books::split`].
    fn split(
        &self,
        books: &mut Books,
        request: Request,
    ) -> std::result::Result<(Block, Option<Entry>), String> {
        let pending = self.pending.as_ref().ok_or("it is used again already")?;
        books.split(&pending.entry, request, self.shared.options.granule)
    }

    /// It is in other entries from now on. Returns its uses.
    fn use_again(&mut self, books: &mut Books) -> Vec<Recorded> {
        let Some(Pending { entry, uses, .. }) = self.pending.take() else { return Vec::new() };
        books.dropped.bytes -= entry.bytes;
        books.log_reap(entry.number, true);
        books.log_gone();
        uses
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let Some(Pending { entry, uses, .. }) = self.pending.take() else { return };
        let mut books = self.shared.books();
        books.dropped.bytes -= entry.bytes;
        books.dropped.wait_for(entry, uses);
        drop(books);
        self.shared.wake_reaper();
    }
}

impl Shared {
    /// As [`Pool::place_on`](crate::Pool::place_on).
    pub(crate) fn place_on(
        self: &Arc<Self>,
        label: Arc<str>,
        request: Request,
        stream: &dyn OrderedStream,
    ) -> Result<Fragment> {
        self.check_process("place")?;
        stream.check().map_err(|source| self.refused(request, source))?;
        // Asked before the books are locked: streams are others' code.
        let id = stream.id();
        let mut books = self.open_books(&label)?;
        self.take_back_to_place(&mut books);
        if let Some(block) = books.fit(request) {
            return Ok(self.enter(books, label, request, block, Uses::default()));
        }
        if self.shards.get().is_some() {
            // So that what was dropped there is seen, and can be divided.
            drop(books);
            self.dissolve_shards();
            books = self.open_books(&label)?;
            if let Some(block) = books.fit(request) {
                return Ok(self.enter(books, label, request, block, Uses::default()));
            }
        }
        let Books { dropped, regions, .. } = &mut *books;
        // Of a region that is backed in parts, a range is not used again; what lies in a span came just now.
        let region = |home: Home| regions.get(home.region).filter(|_| home.shard.is_none());
        let whole = |home: Home| region(home).filter(|region| region.backing.is_none());
        let address = |home: Home| Some(whole(home)?.address(home.offset));
        let Some(pending) = dropped.take(request, id, address) else {
            drop(books);
            let (books, block) = self.take_block(&label, request, self.options.region_bytes)?;
            return Ok(self.enter(books, label, request, block, Uses::default()));
        };
        drop(books);
        let mut taken = Taken { shared: self, pending: Some(pending) };
        let after = self.come_after(stream, taken.uses(), request)?;
        let mut books = self.books();
        let (block, left) = match taken.split(&mut books, request) {
            Ok(parts) => parts,
            Err(problem) => {
                drop(books);
                return Err(self.broken_batch(1, problem));
            }
        };
        // In the log it goes, and comes anew as what it was divided into.
        let mut uses = taken.use_again(&mut books);
        if let Some(mut left) = left {
            books.log_left(&mut left);
            books.dropped.wait_for(left, mem::take(&mut uses));
        }
        let fragment = self.enter(books, label, request, block, Uses::new(false, after));
        // Fences go without the lock.
        drop(uses);
        Ok(fragment)
    }

    /// Makes a stream wait for the uses on others, and returns what then stands for all of them.
    fn come_after(
        &self,
        stream: &dyn OrderedStream,
        uses: &[Recorded],
        request: Request,
    ) -> Result<Vec<Recorded>> {
        let id = stream.id();
        let refused = |source| self.refused(request, source);
        if uses.iter().all(|use_| use_.stream == id) {
            return Ok(uses.to_vec());
        }
        for use_ in uses.iter().filter(|use_| use_.stream != id) {
            stream.wait_for(&use_.fence).map_err(refused)?;
        }
        // By O3 and O2 it passes after all of them.
        Ok(vec![Recorded { stream: id, fence: stream.record().map_err(refused)?, writes: true }])
    }

    fn refused(&self, request: Request, source: MemoryError) -> Error {
        Error::Stream { pool: self.name.clone(), bytes: request.size, source }
    }

    fn enter(
        self: &Arc<Self>,
        mut books: MutexGuard<'_, Books>,
        label: Arc<str>,
        request: Request,
        block: Block,
        uses: Uses,
    ) -> Fragment {
        let slot = books.enter(label, request.size, Some(block.home));
        books.log_alloc(slot, request.align);
        drop(books);
        Fragment::new(block.address, request.size, self, slot, uses)
    }
}
