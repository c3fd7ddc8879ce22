//! Writing the bytes of a draft, by several threads.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tensorhold_allocator::{Fragment, Pool, Request};

use super::draft::Draft;
use super::entry::{Entry, Source};
use crate::device::{Device, Stream};
use crate::error::{Error, Result};
use crate::tensor::TensorView;

/// Sources are read, and files written, in parts of at most so many bytes: each thread has a buffer of that length.
pub(super) const CHUNK_BYTES: u64 = 4 << 20;

/// What goes to one place of a file.
pub(super) struct Part<'s, 'a> {
    pub(super) shard: usize,
    pub(super) range: Range<u64>,
    pub(super) entry: &'s Entry,
    pub(super) source: &'s Source<'a>,
}

/// A chunk of a part.
struct Chunk<'p, 's, 'a> {
    part: &'p Part<'s, 'a>,
    /// From here on in the tensor.
    offset: u64,
    bytes: u64,
}

/// Writes all parts to their places, by so many threads, of which this is one. After the first failure no more is begun.
pub(super) fn fill(draft: &Draft, parts: &[Part<'_, '_>], threads: usize) -> Result<()> {
    let chunks: Vec<Chunk<'_, '_, '_>> = parts.iter().flat_map(chunks_of).collect();
    let (next, stop, pools) = (AtomicUsize::new(0), AtomicBool::new(false), Pools::default());
    let failure = Mutex::new(None);
    let work = || {
        let _ending = StopAtPanic(&stop);
        let mut writer = Writer { draft, pools: &pools, buffer: Vec::new(), lanes: Vec::new() };
        while !stop.load(Ordering::Relaxed)
            && let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed))
        {
            if let Err(error) = writer.write(chunk) {
                stop.store(true, Ordering::Relaxed);
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
        writer.end();
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(chunks.len()) {
            // The others are help: one that cannot be started is not missed.
            if thread::Builder::new().name("tensorhold-save".into()).spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// No more is begun when a source's function panics.
struct StopAtPanic<'a>(&'a AtomicBool);

impl Drop for StopAtPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

fn chunks_of<'p, 's, 'a>(part: &'p Part<'s, 'a>) -> impl Iterator<Item = Chunk<'p, 's, 'a>> {
    let total = part.range.end - part.range.start;
    (0..total.div_ceil(CHUNK_BYTES)).map(move |number| {
        let offset = number * CHUNK_BYTES;
        Chunk { part, offset, bytes: CHUNK_BYTES.min(total - offset) }
    })
}

/// Staging memory of the devices that tensors are on, for all threads.
#[derive(Default)]
struct Pools(Mutex<Vec<(Device, Pool)>>);

impl Pools {
    /// A buffer that the device copies to at full speed.
    fn buffer(&self, device: &Device) -> Result<Fragment> {
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = match pools.iter().find(|(other, _)| is_same(other, device)) {
            Some((_, pool)) => pool.clone(),
            None => {
                let pool =
                    Pool::builder(device.staging_memory()).name(format!("staging to save from {device}"));
                let pool = pool.region_bytes(CHUNK_BYTES).build()?;
                pools.push((device.clone(), pool.clone()));
                pool
            }
        };
        drop(pools);
        Ok(pool.place("staging", Request::new(CHUNK_BYTES, 4096))?)
    }
}

fn is_same(a: &Device, b: &Device) -> bool {
    Arc::ptr_eq(a.driver(), b.driver())
}

/// One thread's way from a device to files.
struct Lane {
    device: Device,
    stream: Box<dyn Stream>,
    buffer: Fragment,
}

/// What one thread writes with.
struct Writer<'w> {
    draft: &'w Draft,
    pools: &'w Pools,
    /// For what a function fills.
    buffer: Vec<u8>,
    lanes: Vec<Lane>,
}

impl Writer<'_> {
    fn write(&mut self, chunk: &Chunk<'_, '_, '_>) -> Result<()> {
        let Chunk { part, offset, bytes } = *chunk;
        let (at, end) = (part.range.start + offset, offset + bytes);
        match part.source {
            Source::Bytes(all) => self.draft.write_at(part.shard, at, slice(all, offset, end)),
            Source::Tensor(tensor) => match tensor.as_bytes() {
                Ok(all) => self.draft.write_at(part.shard, at, slice(all, offset, end)),
                Err(_) => {
                    // One on which something failed is not used again.
                    let mut lane = self.take_lane(tensor.device())?;
                    let bytes = lane.read(tensor, offset, bytes)?;
                    self.draft.write_at(part.shard, at, bytes)?;
                    self.lanes.push(lane);
                    Ok(())
                }
            },
            Source::Fill(fill) => {
                self.buffer.resize(bytes as usize, 0);
                let name = || part.entry.name().to_owned();
                fill(offset, &mut self.buffer).map_err(|source| Error::Fill {
                    name: name(),
                    offset,
                    bytes,
                    source,
                })?;
                self.draft.write_at(part.shard, at, &self.buffer)
            }
        }
    }

    /// The lane from a device.
    fn take_lane(&mut self, device: &Device) -> Result<Lane> {
        if let Some(place) = self.lanes.iter().position(|lane| is_same(&lane.device, device)) {
            return Ok(self.lanes.swap_remove(place));
        }
        Ok(Lane { device: device.clone(), stream: device.take_stream()?, buffer: self.pools.buffer(device)? })
    }

    /// Keeps the streams for others: each was synchronized after its last copy, and none has failed.
    fn end(self) {
        for Lane { device, stream, .. } in self.lanes {
            device.keep_stream(stream);
        }
    }
}

impl Lane {
    /// Copies a part of a tensor to the buffer.
    fn read(&mut self, tensor: &TensorView<'_>, offset: u64, bytes: u64) -> Result<&[u8]> {
        let from = tensor.as_ptr().wrapping_add(offset as usize);
        let to = self.buffer.as_ptr().cast_mut();
        // SAFETY: Q1, Y1: the source is in the device's memory, and Q2: the buffer in its staging memory. I1: the view keeps the source, and the chunk lies within
        // it (Y2). The buffer is this lane's alone and at least as long; it stays until the stream has been synchronized below (T2) or, should
        // that fail or a stream panic, until its pool has synchronized the memory (Q3).
        let copied = unsafe { self.stream.copy_to_host(to, from, bytes) };
        self.stream.synchronize().and(copied)?;
        let Some(whole) = self.buffer.as_bytes() else {
            let got = format!("staging memory of {} that the CPU does not read", self.device);
            let remedy = "give its driver staging memory of the host";
            return Err(tensor.error("save", got, "memory that the CPU reads", remedy));
        };
        Ok(slice(whole, 0, bytes))
    }
}

/// A part of bytes, which lies within them.
fn slice(bytes: &[u8], start: u64, end: u64) -> &[u8] {
    bytes.get(start as usize..end as usize).unwrap_or_default()
}
