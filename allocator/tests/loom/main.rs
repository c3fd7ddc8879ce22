//! Races, in every order that matters (up to a bound on preemptions): run by `scripts/test` with `--cfg loom`.
//!
//! What a fragment's bytes are to threads, cells are here: loom refuses an access to a cell that is not ordered after the last one,
//! and a cell remembers who owns it. So a range that is used again, or released, before its last use has ended fails a model (I1).
#![cfg(loom)]

mod device;
mod memory;
mod parts;
mod pool;
mod shards;
mod streams;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memory::Addresses;
use tensorhold_allocator::{Fragment, Memory, Pool, PoolBuilder, Request, Sharding};

/// Tries the orders in which threads can meet, where a thread gives way at most this many times though it could go on.
fn model(preemptions: usize, check: impl Fn() + Send + Sync + 'static) {
    model_after(|| (), preemptions, move |()| check());
}

/// As [`model`], but in one order until `set_up` is done, and from [`loom::stop_exploring`] on.
fn model_after<T: 'static>(
    set_up: impl Fn() -> T + Send + Sync + 'static,
    preemptions: usize,
    check: impl Fn(T) + Send + Sync + 'static,
) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.expect_explicit_explore = true;
    let orders = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&orders);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let set = set_up();
        loom::explore();
        check(set);
    });
    let orders = orders.load(Ordering::Relaxed);
    println!("{orders} orders");
    assert!(orders >= 20, "threads that meet do so in more than {orders} orders");
}

fn builder() -> (Arc<Addresses>, PoolBuilder) {
    builder_over(Addresses::default())
}

fn builder_over(memory: Addresses) -> (Arc<Addresses>, PoolBuilder) {
    let memory = Arc::new(memory);
    let builder = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>);
    (memory, builder)
}

fn pool() -> (Arc<Addresses>, Pool) {
    let (memory, builder) = builder();
    (memory, builder.region_bytes(4096).build().unwrap())
}

/// A pool that has room for this many bytes and cannot grow.
fn pool_of(bytes: u64) -> (Arc<Addresses>, Pool) {
    let (memory, builder) = builder();
    (memory, builder.region_bytes(bytes).limit_bytes(bytes).build().unwrap())
}

/// As [`pool_of`], over memory that only the CPU uses.
fn cpu_pool_of(bytes: u64) -> (Arc<Addresses>, Pool) {
    let (memory, builder) = builder_over(Addresses::of_the_cpu());
    (memory, builder.region_bytes(bytes).limit_bytes(bytes).build().unwrap())
}

/// Its region has spans of 1 KiB, in which fragments of 256 bytes lie; it cannot grow.
fn sharded() -> (Arc<Addresses>, Pool) {
    let (memory, builder) = builder();
    let builder = builder.sharding(Sharding::Always);
    (memory, builder.region_bytes(SHARED).limit_bytes(SHARED).build().unwrap())
}

const SHARED: u64 = 32 << 10;

fn place(pool: &Pool, bytes: u64) -> Fragment {
    pool.place("t", Request::new(bytes, 256)).unwrap()
}
