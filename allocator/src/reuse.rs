//! Placing in the order of a stream: ranges that were dropped are used again though their uses have not ended.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fence::OrderedStream;
use crate::fragment::Fragment;
use crate::memory::MemoryError;
use crate::offsets::Request;
use crate::pending::Pending;
use crate::shared::{Block, Books, Home, Shared};
use crate::sync::MutexGuard;
use crate::uses::{Recorded, Uses};

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
        // The books are locked again below, so the fences go after that lock does.
        let Pending { entry, uses, .. } = pending;
        let after = self.come_after(stream, &uses, request);
        let mut books = self.books();
        let split = match &after {
            Ok(_) => books.split(&entry, request, self.options.granule),
            Err(_) => Err(String::new()),
        };
        books.dropped.bytes -= entry.bytes;
        let (after, problem) = match (after, split) {
            (Ok(after), Ok((block, left))) => {
                // In the log it goes, and comes anew as what it was divided into.
                books.log_reap(entry.number, true);
                books.log_gone();
                if let Some(mut left) = left {
                    books.log_left(&mut left);
                    books.dropped.wait_for(left, uses);
                }
                return Ok(self.enter(books, label, request, block, Uses::new(false, after)));
            }
            (after, split) => (after, split.err().unwrap_or_default()),
        };
        books.dropped.wait_for(entry, uses);
        drop(books);
        self.wake_reaper();
        // What was recorded goes without the lock.
        after.and_then(|_| Err(self.broken_batch(1, problem)))
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
