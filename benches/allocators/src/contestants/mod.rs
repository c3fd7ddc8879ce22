//! Who is compared, and what each has to do: place and free blocks in one space.
//!
//! A contestant is a type that implements [`Contestant`], or [`Shared`] if threads can use it at once, and has a line in
//! [`all`] or [`shared`].

mod btree;
mod gpu;
mod locked;
mod own;
mod pool;
mod spans;
mod units;

pub(crate) use own::planned;
pub(crate) use pool::planned as pool_planned;
pub(crate) use spans::forget_pages;

use crate::cases::{batch, churn, threads};
use crate::traces::{Batch, Trace};

/// What blocks are aligned to, and what sizes are rounded to where a contestant counts in units.
pub(crate) const GRANULE: u64 = 256;

/// A space that blocks are placed in.
pub(crate) trait Contestant: Sized {
    /// A placed block, as far as the contestant wants to be told of it when it is freed.
    type Live;

    /// What it is called in the tables.
    fn name() -> String;

    /// An empty space of so many bytes, a multiple of the granule.
    fn new(capacity: u64) -> Result<Self, String>;

    /// Places a block at a multiple of [`GRANULE`]: where it starts, counted from anywhere, and what frees it.
    fn allocate(&mut self, size: u64) -> Option<(u64, Self::Live)>;

    /// Frees a block.
    fn free(&mut self, live: Self::Live);

    /// Waits, once all blocks have been freed, until their memory can be had again.
    fn drain(&mut self) {}

    /// Whether the space is as it was when it was new.
    fn is_empty(&mut self) -> bool;
}

/// A space that threads use at once.
pub(crate) trait Shared: Sized + Sync {
    type Live: Send;
    fn name() -> String;
    fn new(capacity: u64) -> Result<Self, String>;
    fn allocate(&self, size: u64) -> Option<(u64, Self::Live)>;
    fn free(&self, live: Self::Live);
    fn drain(&self) {}
    fn is_empty(&self) -> bool;
}

impl<S: Shared> Contestant for S {
    type Live = S::Live;

    fn name() -> String {
        S::name()
    }

    fn new(capacity: u64) -> Result<Self, String> {
        S::new(capacity)
    }

    #[inline]
    fn allocate(&mut self, size: u64) -> Option<(u64, Self::Live)> {
        S::allocate(self, size)
    }

    #[inline]
    fn free(&mut self, live: Self::Live) {
        S::free(self, live);
    }

    fn drain(&mut self) {
        S::drain(self);
    }

    fn is_empty(&mut self) -> bool {
        S::is_empty(self)
    }
}

/// The cases of one thread, compiled for a contestant.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) smallest_batch: fn(&Batch) -> Result<u64, String>,
    pub(crate) batch: fn(&Batch, u64) -> Result<batch::Nanoseconds, String>,
    pub(crate) smallest_churn: fn(&Trace) -> Result<u64, String>,
    pub(crate) churn: fn(&Trace, u64) -> Result<Option<churn::Nanoseconds>, String>,
}

/// The case of many threads, compiled for a contestant.
pub(crate) struct SharedEntry {
    pub(crate) name: String,
    pub(crate) check: fn(&[Trace], u64) -> Result<(), String>,
    pub(crate) round: fn(&[Trace], u64) -> Result<f64, String>,
}

fn entry<C: Contestant>() -> Entry {
    Entry {
        name: C::name(),
        smallest_batch: batch::smallest::<C>,
        batch: batch::round::<C>,
        smallest_churn: churn::smallest::<C>,
        churn: churn::round::<C>,
    }
}

fn shared_entry<S: Shared>() -> SharedEntry {
    SharedEntry { name: S::name(), check: threads::check::<S>, round: threads::round::<S> }
}

/// All that place one block at a time.
pub(crate) fn all() -> Vec<Entry> {
    vec![
        entry::<own::BestFit>(),
        entry::<own::Segregated>(),
        entry::<locked::Locked<own::BestFit>>(),
        entry::<pool::Pool<false>>(),
        entry::<locked::Locked<btree::BTree>>(),
        entry::<units::RangeAlloc>(),
        entry::<units::OffsetAllocator>(),
        entry::<units::BuddyFrames>(),
        entry::<spans::BuddyHeap>(),
        entry::<spans::Rlsf>(),
        entry::<spans::Talc>(),
        entry::<gpu::GpuAllocator>(),
    ]
}

/// All that threads share.
pub(crate) fn shared() -> Vec<SharedEntry> {
    vec![
        shared_entry::<pool::Pool<false>>(),
        shared_entry::<pool::Pool<true>>(),
        shared_entry::<locked::Locked<own::BestFit>>(),
        shared_entry::<locked::Locked<btree::BTree>>(),
    ]
}

/// The largest block that a space grants now, by halving. For those that do not say whether they are empty: it is the
/// same at the end as at the start if what was freed has been joined again.
fn largest<C: Contestant>(space: &mut C, capacity: u64) -> u64 {
    let (mut granted, mut refused) = (0, capacity / GRANULE + 1);
    while refused - granted > 1 {
        let tried = granted + (refused - granted) / 2;
        match space.allocate(tried * GRANULE) {
            Some((_, live)) => {
                space.free(live);
                granted = tried;
            }
            None => refused = tried,
        }
    }
    granted
}
