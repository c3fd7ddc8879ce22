//! The reference implementation passes the suite for memories.
#![cfg(feature = "conformance")]

use std::sync::Arc;

use tensorhold_allocator::{HostMemory, conformance};

#[test]
fn host_memory_conforms() {
    conformance::memory(Arc::new(HostMemory::new()));
}
