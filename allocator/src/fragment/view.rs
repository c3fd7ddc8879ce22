//! Views: borrows of fragments.

use std::marker::PhantomData;
use std::ptr::NonNull;

/// A borrow of a [`Fragment`](crate::Fragment): an address and a length, free to copy.
///
/// ```compile_fail
/// # use tensorhold_allocator::{HostMemory, Pool, Request};
/// # let pool = Pool::new(HostMemory::new()).unwrap();
/// let fragment = pool.place("t", Request::new(16, 16)).unwrap();
/// let view = fragment.view();
/// drop(fragment); // cannot move out of `fragment` because it is borrowed
/// view.len();
/// ```
#[derive(Debug, Clone, Copy)]
pub struct FragmentView<'a> {
    address: NonNull<u8>,
    bytes: u64,
    owner: PhantomData<&'a [u8]>,
}

// SAFETY: like the `&[u8]` it stands for.
unsafe impl Send for FragmentView<'_> {}
// SAFETY: like the `&[u8]` it stands for.
unsafe impl Sync for FragmentView<'_> {}

impl<'a> FragmentView<'a> {
    /// # Safety
    /// An owner of the range is borrowed for `'a`.
    #[inline]
    pub(super) unsafe fn new(address: NonNull<u8>, bytes: u64) -> Self {
        Self { address, bytes, owner: PhantomData }
    }

    #[inline]
    pub(super) fn address(self) -> NonNull<u8> {
        self.address
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// First address; see [`Fragment::as_ptr`](crate::Fragment::as_ptr).
    pub fn as_ptr(&self) -> *const u8 {
        self.address.as_ptr()
    }

    /// A view of the `bytes` bytes from `offset`; `None` if they do not lie within this one.
    pub fn slice(self, offset: u64, bytes: u64) -> Option<FragmentView<'a>> {
        if offset.checked_add(bytes)? > self.bytes {
            return None;
        }
        // SAFETY: offset <= self.bytes was checked, and the range is one allocation (M1).
        let address = unsafe { self.address.add(offset as usize) };
        Some(FragmentView { address, bytes, owner: PhantomData })
    }

    /// The bytes.
    ///
    /// # Safety
    /// The view is of a fragment that [is host-accessible](crate::Fragment::is_host_accessible) and [has no pending
    /// writes](crate::Fragment::has_pending_writes).
    pub unsafe fn as_bytes(self) -> &'a [u8] {
        // SAFETY: the caller says that M2 holds; I1: the owner is borrowed for 'a. Writers hold `&mut Fragment` of
        // the only owner, so there is none, and by the caller's promise no earlier one is at work still.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.bytes as usize) }
    }
}

/// A borrow of the only owner of a range, for writing.
#[derive(Debug)]
pub struct FragmentViewMut<'a> {
    address: NonNull<u8>,
    bytes: u64,
    owner: PhantomData<&'a mut [u8]>,
}

// SAFETY: like the `&mut [u8]` it stands for.
unsafe impl Send for FragmentViewMut<'_> {}
// SAFETY: like the `&mut [u8]` it stands for.
unsafe impl Sync for FragmentViewMut<'_> {}

impl FragmentViewMut<'_> {
    /// # Safety
    /// The only owner of the range is borrowed mutably for the view's lifetime, and no recorded use is under way.
    #[inline]
    pub(super) unsafe fn new(address: NonNull<u8>, bytes: u64) -> Self {
        Self { address, bytes, owner: PhantomData }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Borrows the range for reading.
    pub fn as_view(&self) -> FragmentView<'_> {
        FragmentView { address: self.address, bytes: self.bytes, owner: PhantomData }
    }

    /// First address; see [`Fragment::as_ptr`](crate::Fragment::as_ptr).
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.address.as_ptr()
    }
}
