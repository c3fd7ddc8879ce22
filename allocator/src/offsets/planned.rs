//! The layout of a batch of known sizes: a bump, no search.

use std::borrow::Borrow;

use smallvec::SmallVec;

use super::request::{Request, align_up};

/// Places one request after the other in a space of a fixed capacity.
#[derive(Debug, Clone)]
pub struct Bump {
    capacity: u64,
    used: u64,
}

impl Bump {
    /// An empty space of `capacity` bytes.
    pub const fn new(capacity: u64) -> Self {
        Self { capacity, used: 0 }
    }

    /// The offset of a request: the first multiple of its alignment after the previous requests; `None` if it does not fit
    /// or its alignment is not a power of two. An empty request takes no space and does not align the next one.
    pub const fn place(&mut self, request: Request) -> Option<u64> {
        if request.align.is_power_of_two() { self.place_aligned(request) } else { None }
    }

    /// As `place`, for an alignment known to be a power of two.
    #[inline]
    const fn place_aligned(&mut self, request: Request) -> Option<u64> {
        if request.size == 0 {
            return Some(self.used);
        }
        let Some(offset) = align_up(self.used, request.align) else { return None };
        match offset.checked_add(request.size) {
            Some(end) if end <= self.capacity => {
                self.used = end;
                Some(offset)
            }
            _ => None,
        }
    }

    /// Bytes from the start to the end of the last request.
    pub const fn used(&self) -> u64 {
        self.used
    }
}

/// Where a request of a batch is placed. The placement of an empty request has no meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Index in [`Layout::regions`].
    pub region: u32,
    /// Offset in that region, in bytes.
    pub offset: u64,
    /// The requested size in bytes.
    pub bytes: u64,
}

/// Size and alignment of a region of a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionShape {
    /// Exactly the bytes needed.
    pub size: u64,
    /// The largest alignment of its requests.
    pub align: u64,
}

/// A planned batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// The regions; none if every request is empty.
    pub regions: SmallVec<[RegionShape; 4]>,
    /// One for each request, in order. Regions ascend, and offsets ascend within each region.
    pub placements: Vec<Placement>,
}

/// Why a batch cannot be laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// An alignment that is not a power of two.
    #[error("request {index}: alignment {align} is not a power of two")]
    Alignment {
        /// Which request.
        index: usize,
        /// Its alignment.
        align: u64,
    },
    /// The sizes add up to more than `u64::MAX` in one region, or there are more than 2^32 regions.
    #[error("request {index} of {size} bytes: the batch grows past 2^64 bytes or 2^32 regions")]
    Overflow {
        /// The request that no longer fits.
        index: usize,
        /// Its size in bytes.
        size: u64,
    },
}

/// Lays requests out in order, in one region, or in as few regions of up to `region_limit` bytes as their order allows.
///
/// A request larger than the limit gets a region of its own size. O(requests).
///
/// # Errors
/// When an alignment is not a power of two, or the sizes overflow.
pub fn lay_out(
    requests: impl IntoIterator<Item: Borrow<Request>>,
    region_limit: Option<u64>,
) -> Result<Layout, LayoutError> {
    // Each alignment waits where the offset will be: placing then neither grows a vector nor looks whether it has to.
    let waiting = |request: &Request| Placement { region: 0, offset: request.align, bytes: request.size };
    let mut placements: Vec<Placement> =
        requests.into_iter().map(|request| waiting(request.borrow())).collect();
    let mut regions = SmallVec::new();
    let mut open = OpenRegion { bump: Bump::new(0), aligns: 0, index: 0 };
    let mut index = 0;
    while let Some(rest) = placements.get_mut(index..) {
        index += open.fill(rest);
        let Some(unusual) = placements.get_mut(index) else { break };
        open.place_unusual(unusual, index, region_limit, &mut regions)?;
        index += 1;
    }
    regions.extend(open.shape());
    Ok(Layout { regions, placements })
}

/// Sums of three numbers up to this do not overflow.
const MODEST: u64 = u64::MAX >> 2;

/// The region that is being filled.
#[derive(Debug)]
struct OpenRegion {
    bump: Bump,
    /// The alignments in it, in one word.
    aligns: u64,
    /// In [`Layout::regions`].
    index: u32,
}

impl OpenRegion {
    /// Places what waits, up to the first that is out of the ordinary, and returns how many it has placed. Out of the
    /// ordinary is what does not fit, is empty or immodest, or whose alignment is not a power of two.
    fn fill(&mut self, waiting: &mut [Placement]) -> usize {
        let (mut used, mut aligns, region) = (self.bump.used, self.aligns, self.index);
        let limit = self.bump.capacity.min(MODEST);
        if used > limit {
            return 0;
        }
        let count = waiting.len();
        let unusual = waiting.iter_mut().position(|placement| {
            let (size, align) = (placement.bytes, placement.offset);
            let mask = align.wrapping_sub(1);
            // Less 1, nothing is the largest number.
            if (size.wrapping_sub(1) | mask) > MODEST || align & mask != 0 {
                return true;
            }
            // As a rule no padding is needed; to ask is quicker than to compute none.
            let offset = if used & mask == 0 { used } else { pad(used, mask) };
            let end = offset + size;
            if end > limit {
                return true;
            }
            (placement.region, placement.offset) = (region, offset);
            (used, aligns) = (end, aligns | align);
            false
        });
        (self.bump.used, self.aligns) = (used, aligns);
        unusual.unwrap_or(count)
    }

    /// Places any request, in a new region if need be.
    #[cold]
    fn place_unusual(
        &mut self,
        waiting: &mut Placement,
        index: usize,
        limit: Option<u64>,
        regions: &mut SmallVec<[RegionShape; 4]>,
    ) -> Result<(), LayoutError> {
        let (size, align) = (waiting.bytes, waiting.offset);
        if !align.is_power_of_two() {
            return Err(LayoutError::Alignment { index, align });
        }
        let offset = match self.bump.place_aligned(Request { size, align }) {
            Some(offset) => offset,
            None => {
                let (full, overflow) = (self.shape(), LayoutError::Overflow { index, size });
                if full.is_some() && limit.is_none() {
                    return Err(overflow);
                }
                regions.extend(full);
                self.index = u32::try_from(regions.len()).map_err(|_| overflow)?;
                self.bump = Bump { capacity: limit.unwrap_or(u64::MAX).max(size), used: size };
                self.aligns = 0;
                0
            }
        };
        if size > 0 {
            self.aligns |= align;
        }
        (waiting.region, waiting.offset) = (self.index, offset);
        Ok(())
    }

    /// What the region needs; `None` if it is empty.
    fn shape(&self) -> Option<RegionShape> {
        let align = 1 << self.aligns.checked_ilog2()?;
        Some(RegionShape { size: self.bump.used, align })
    }
}

/// A modest offset rounded up to a multiple of `mask + 1`.
#[cold]
const fn pad(offset: u64, mask: u64) -> u64 {
    (offset + mask) & !mask
}
