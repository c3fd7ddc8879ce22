//! Stream-ordered reuse: a dropped range is used again on a stream before its recorded uses have ended.

use std::sync::Arc;

use super::growth::take_block;
use crate::books::{Books, PendingRange, RegionBlock};
use crate::core::PoolCore;
use crate::error::{Error, MemoryError, Result};
use crate::fragment::Fragment;
use crate::offsets::Request;
use crate::reclaim::{dissolve_shards, take_back_for_placement};
use crate::stream::OrderedStream;
use crate::stream::uses::{RecordedUse, Uses};
use crate::sync::MutexGuard;

/// A pending range that was claimed for another use. If it is not used, also because a stream panics, it waits again.
struct Claim<'a> {
    core: &'a PoolCore,
    /// `None` once it is used.
    range: Option<PendingRange>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(range) = self.range.take() {
            self.core.books().return_claim(range);
            self.core.wake_reaper();
        }
    }
}

/// As [`Pool::place_on`](crate::Pool::place_on).
pub(super) fn place_on(
    core: &PoolCore,
    label: Arc<str>,
    request: Request,
    stream: &dyn OrderedStream,
) -> Result<Fragment> {
    core.check_process("place")?;
    stream.check().map_err(|source| refused(core, request, source))?;
    // Asked before the books are locked: streams are others' code.
    let id = stream.id();
    let mut books = core.open_books(&label)?;
    take_back_for_placement(core, &mut books);
    if let Some(block) = books.fit(request) {
        return Ok(enter(core, books, label, request, block, Uses::default()));
    }
    if core.shard_slice().is_some() {
        // So that pending ranges of shards can be claimed, and divided.
        drop(books);
        dissolve_shards(core);
        books = core.open_books(&label)?;
        if let Some(block) = books.fit(request) {
            return Ok(enter(core, books, label, request, block, Uses::default()));
        }
    }
    let Some(range) = books.claim_pending(request, id) else {
        drop(books);
        let (books, block) = take_block(core, &label, request, core.config().region_bytes)?;
        return Ok(enter(core, books, label, request, block, Uses::default()));
    };
    drop(books);
    let mut claim = Claim { core, range: Some(range) };
    let after = come_after(core, stream, claim.uses(), request)?;
    let mut books = core.books();
    let (block, uses) = match claim.reuse(&mut books, request) {
        Ok(reused) => reused,
        Err(problem) => {
            drop(books);
            return Err(core.config().broken_batch(1, problem));
        }
    };
    let fragment = enter(core, books, label, request, block, Uses::new(false, after));
    // Fences are dropped without the lock.
    drop(uses);
    Ok(fragment)
}

impl Claim<'_> {
    fn uses(&self) -> &[RecordedUse] {
        self.range.as_ref().map_or(&[], |range| &range.uses)
    }

    /// Takes what a request needs of the range. The remainder stays pending. Returns the block, and the uses that no range waits for
    /// any more.
    fn reuse(
        &mut self,
        books: &mut Books,
        request: Request,
    ) -> std::result::Result<(RegionBlock, Vec<RecordedUse>), String> {
        let range = self.range.as_ref().ok_or("it is used again already")?;
        let (block, remainder) = books.split(&range.entry, request, self.core.config().granule)?;
        let uses = self.range.take().map(|range| books.reuse(range, remainder));
        Ok((block, uses.unwrap_or_default()))
    }
}

/// Makes a stream wait for the uses on other streams. Returns uses that stand for all of them.
fn come_after(
    core: &PoolCore,
    stream: &dyn OrderedStream,
    uses: &[RecordedUse],
    request: Request,
) -> Result<Vec<RecordedUse>> {
    let id = stream.id();
    let refused = |source| refused(core, request, source);
    if uses.iter().all(|use_| use_.stream == id) {
        return Ok(uses.to_vec());
    }
    for use_ in uses.iter().filter(|use_| use_.stream != id) {
        stream.wait_for(&use_.fence).map_err(refused)?;
    }
    // By O3 and O2 it passes after all of them.
    Ok(vec![RecordedUse { stream: id, fence: stream.record().map_err(refused)?, writes: true }])
}

fn refused(core: &PoolCore, request: Request, source: MemoryError) -> Error {
    Error::Stream { pool: core.config().name.clone(), bytes: request.size, source }
}

fn enter(
    core: &PoolCore,
    mut books: MutexGuard<'_, Books>,
    label: Arc<str>,
    request: Request,
    block: RegionBlock,
    uses: Uses,
) -> Fragment {
    let slot = books.enter(label, request.size, request.align, Some(block.location));
    drop(books);
    Fragment::new(block.address, request.size, core, slot, uses)
}
