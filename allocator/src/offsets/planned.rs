//! The layout of a batch whose sizes are known: a bump, no search.

use std::borrow::Borrow;

use smallvec::SmallVec;

use super::{Request, align_up};

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

    /// The offset of a request, the first multiple of its alignment behind what has been placed; `None` when it does
    /// not fit, or its alignment is not a power of two. An empty request takes no space, so it does not align the next.
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

    /// Bytes from the start to the end of what has been placed.
    pub const fn used(&self) -> u64 {
        self.used
    }
}

/// Where a request of a batch is placed. An empty one lies nowhere: its placement means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Index in [`Layout::regions`].
    pub region: u32,
    /// Offset in that region, in bytes.
    pub offset: u64,
    /// The size asked for, in bytes.
    pub bytes: u64,
}

/// What a region of a layout needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionShape {
    /// Exactly the bytes needed.
    pub size: u64,
    /// The largest alignment asked for in it.
    pub align: u64,
}

/// A planned batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// The regions; none if every request is empty.
    pub regions: SmallVec<[RegionShape; 4]>,
    /// One for each request, in their order. Regions and, within each, offsets ascend.
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

/// Lays requests out in order, in one region or in as few as `region_limit` bytes each allow without reordering.
///
/// A request larger than the limit gets a region of its own size.
///
/// # Errors
/// When an alignment is not a power of two, or the sizes overflow.
pub fn lay_out(
    requests: impl IntoIterator<Item: Borrow<Request>>,
    region_limit: Option<u64>,
) -> Result<Layout, LayoutError> {
    let (limit, requests) = (region_limit.unwrap_or(u64::MAX), requests.into_iter());
    let mut layout =
        Layout { regions: SmallVec::new(), placements: Vec::with_capacity(requests.size_hint().0) };
    let (mut bump, mut align, mut region) = (Bump::new(0), 1, 0);
    for (index, request) in requests.enumerate() {
        let request: &Request = request.borrow();
        if !request.align.is_power_of_two() {
            return Err(LayoutError::Alignment { index, align: request.align });
        }
        let offset = match bump.place_aligned(*request) {
            Some(offset) => offset,
            None => {
                // The current region is full, or there is none yet.
                let overflow = LayoutError::Overflow { index, size: request.size };
                if bump.used() > 0 {
                    if region_limit.is_none() {
                        return Err(overflow);
                    }
                    layout.regions.push(RegionShape { size: bump.used(), align });
                }
                region = u32::try_from(layout.regions.len()).map_err(|_| overflow)?;
                bump = Bump::new(limit.max(request.size));
                align = 1;
                bump.place_aligned(*request).ok_or(overflow)?
            }
        };
        if request.size > 0 {
            align = align.max(request.align);
        }
        layout.placements.push(Placement { region, offset, bytes: request.size });
    }
    if bump.used() > 0 {
        layout.regions.push(RegionShape { size: bump.used(), align });
    }
    Ok(layout)
}
