//! [`Request`]: a size and an alignment.

/// A request for bytes at an aligned offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Size in bytes; 0 is valid.
    pub size: u64,
    /// Alignment in bytes, a power of two.
    pub align: u64,
}

impl Request {
    /// A request for `size` bytes at a multiple of `align`.
    pub const fn new(size: u64, align: u64) -> Self {
        Self { size, align }
    }
}

/// `offset` rounded up to a multiple of `align`, a power of two; `None` past `u64::MAX`.
#[inline]
pub(crate) const fn align_up(offset: u64, align: u64) -> Option<u64> {
    match offset.checked_add(align - 1) {
        Some(sum) => Some(sum & !(align - 1)),
        None => None,
    }
}
