//! [`Usage`]: the byte counts of a pool.

/// Counts that change with the entries and regions.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// In regions, those being reserved or released included.
    reserved: u64,
    /// In live fragments of the pool's books.
    live: u64,
    /// In live fragments of the shards, as they last reported: never less than there is.
    live_in_shards: u64,
    high_water: u64,
    /// Never used again: their memory failed to synchronize or to release.
    lost: u64,
}

/// Byte counts of the books, without what shards keep to themselves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByteCounts {
    pub(crate) reserved: u64,
    pub(crate) live: u64,
    pub(crate) free: u64,
    pub(crate) largest_free: u64,
    pub(crate) high_water: u64,
    pub(crate) lost: u64,
}

impl Usage {
    pub(super) fn reserved(&self) -> u64 {
        self.reserved
    }

    /// In live fragments of the pool's books, without those of the shards.
    pub(super) fn live(&self) -> u64 {
        self.live
    }

    /// The most bytes that have been live.
    pub(super) fn high_water(&self) -> u64 {
        self.high_water
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn reserve(&mut self, bytes: u64) {
        self.reserved += bytes;
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.reserved -= bytes;
    }

    #[inline]
    pub(super) fn enter(&mut self, bytes: u64) {
        self.live += bytes;
        self.raise_high_water();
    }

    #[inline]
    pub(super) fn leave(&mut self, bytes: u64) {
        self.live -= bytes;
    }

    /// A shard reports its live bytes, and before reported `previous`.
    pub(super) fn report_shard(&mut self, previous: u64, live: u64) {
        self.live_in_shards = self.live_in_shards - previous + live;
        self.raise_high_water();
    }

    /// Counts bytes as lost. A memory that hands out again what it refused to take back could lose any number.
    pub(super) fn lose(&mut self, bytes: u64) {
        self.lost = self.lost.saturating_add(bytes);
    }

    #[inline]
    fn raise_high_water(&mut self) {
        self.high_water = self.high_water.max(self.live + self.live_in_shards);
    }
}
