//! Peers that place blocks in memory and keep their books there: links in free blocks, headers or tags beside live ones.
//!
//! They are given the start of one reservation of address space, in turn. Only the pages of their books are ever
//! touched, and those stay until [`forget_pages`].
//!
//! # Invariant
//! **S1** The reservation is readable and writable, stays mapped, and is used by one [`Lease`] at a time.

use std::alloc::Layout;
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use talc::base::binning::DefaultBinning;
use talc::source::Manual;

use super::{Contestant, GRANULE, largest};

/// How much is reserved, and what it is aligned to, so that blocks can be as aligned as a buddy system wants them.
const SPAN_BYTES: usize = 64 << 30;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// First address of the reservation.
fn span() -> *mut u8 {
    static BASE: OnceLock<usize> = OnceLock::new();
    let base = *BASE.get_or_init(|| {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a null hint lets the kernel choose: no existing mapping is replaced. It is never unmapped (S1).
        let mapped = unsafe { mmap_anonymous(ptr::null_mut(), 2 * SPAN_BYTES, access, flags) };
        let mapped = mapped.expect("128 GiB of address space");
        mapped.expose_provenance().next_multiple_of(SPAN_BYTES)
    });
    ptr::with_exposed_provenance_mut(base)
}

/// Gives the touched pages of the reservation back to the system.
pub(crate) fn forget_pages() {
    assert!(!TAKEN.load(Ordering::Acquire), "the reservation is in use");
    // SAFETY: S1, and no one uses it now.
    unsafe { madvise(span().cast::<c_void>(), SPAN_BYTES, Advice::LinuxDontNeed) }.expect("advice is taken");
}

/// The reservation, while it is used (S1).
struct Lease {
    capacity: usize,
}

impl Lease {
    fn take(capacity: u64) -> Result<Self, String> {
        let capacity = usize::try_from(capacity).ok().filter(|&capacity| capacity <= SPAN_BYTES);
        let capacity = capacity.ok_or("larger than the reservation")?;
        assert!(!TAKEN.swap(true, Ordering::Acquire), "the reservation is in use");
        Ok(Self { capacity })
    }

    fn bytes(&self) -> NonNull<[u8]> {
        NonNull::new(ptr::slice_from_raw_parts_mut(span(), self.capacity)).expect("no mapping at 0")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

fn layout(size: u64) -> Option<Layout> {
    Layout::from_size_align(size as usize, GRANULE as usize).ok()
}

/// A contestant that tells nothing about itself: `$allocate` and `$free` see the allocator, a layout and a pointer.
macro_rules! in_span {
    ($type:ident, $name:literal, $inner:ty, $new:expr, $allocate:expr, $free:expr) => {
        pub(crate) struct $type {
            space: $inner,
            lease: Lease,
            whole: u64,
        }

        impl Contestant for $type {
            type Live = (NonNull<u8>, Layout);

            fn name() -> String {
                $name.into()
            }

            fn new(capacity: u64) -> Result<Self, String> {
                let lease = Lease::take(capacity)?;
                let new: fn(NonNull<[u8]>) -> Option<$inner> = $new;
                let space = new(lease.bytes()).ok_or("the region is too small")?;
                let mut space = Self { space, lease, whole: 0 };
                space.whole = largest(&mut space, capacity);
                Ok(space)
            }

            #[inline]
            fn allocate(&mut self, size: u64) -> Option<(u64, Self::Live)> {
                let layout = layout(size)?;
                #[allow(clippy::redundant_closure_call, reason = "typed by the call")]
                let block: Option<NonNull<u8>> = ($allocate)(&mut self.space, layout);
                let block = block?;
                Some((block.as_ptr() as u64, (block, layout)))
            }

            #[inline]
            fn free(&mut self, (block, layout): Self::Live) {
                #[allow(clippy::redundant_closure_call, reason = "typed by the call")]
                ($free)(&mut self.space, block, layout);
            }

            fn is_empty(&mut self) -> bool {
                largest(self, self.lease.capacity as u64) == self.whole
            }
        }
    };
}

/// Blocks of up to 4 GiB, as the documentation's.
type Heap = buddy_system_allocator::Heap<33>;

in_span!(
    BuddyHeap,
    "buddy_system_allocator heap",
    Heap,
    |bytes| {
        let mut heap = Heap::empty();
        // SAFETY: S1.
        unsafe { heap.init(bytes.cast::<u8>().as_ptr() as usize, bytes.len()) };
        Some(heap)
    },
    |heap: &mut Heap, layout| heap.alloc(layout).ok(),
    // SAFETY: the block was placed by this heap with this layout, and its owner gives it up.
    |heap: &mut Heap, block, layout| unsafe { heap.dealloc(block, layout) }
);

/// The parameters that its global allocator has.
type Tlsf = rlsf::Tlsf<'static, usize, usize, { usize::BITS as usize }, { usize::BITS as usize }>;

in_span!(
    Rlsf,
    "rlsf",
    Box<Tlsf>,
    |bytes| {
        let mut tlsf = Box::new(Tlsf::new());
        // SAFETY: S1.
        unsafe { tlsf.insert_free_block_ptr(bytes) }.map(|_| tlsf)
    },
    |tlsf: &mut Box<Tlsf>, layout| tlsf.allocate(layout),
    // SAFETY: as above.
    |tlsf: &mut Box<Tlsf>, block, layout: Layout| unsafe { tlsf.deallocate(block, layout.align()) }
);

type TalcSpace = talc::base::Talc<Manual, DefaultBinning>;

in_span!(
    Talc,
    "talc",
    TalcSpace,
    |bytes| {
        let mut talc = TalcSpace::new(Manual);
        // SAFETY: S1.
        unsafe { talc.claim(bytes.cast::<u8>().as_ptr(), bytes.len()) }.map(|_| talc)
    },
    // SAFETY: no request is empty.
    |talc: &mut TalcSpace, layout| unsafe { talc.allocate(layout) },
    // SAFETY: as above.
    |talc: &mut TalcSpace, block: NonNull<u8>, layout| unsafe { talc.deallocate(block.as_ptr(), layout) }
);
