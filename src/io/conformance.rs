//! The suite that every engine has to pass.

use std::collections::BTreeSet;
use std::io::Write;

use tensorhold_allocator::{Fragment, Pool, Request};

use super::{Buffered, Direct, Engine, FileSource, OpenFile, Queue, Read, Uring, WhenFull, buffer_at};
use crate::device::Device;

const BLOCK: usize = 4096;

/// A file on a disk, whose last block is not whole, and what it holds.
fn file() -> (tempfile::NamedTempFile, FileSource, Vec<u8>) {
    let mut state = 1_u64;
    let bytes: Vec<u8> = (0..41 * BLOCK + 1234)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect();
    // On a machine that the tests were not built on, too.
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/target");
    std::fs::create_dir_all(folder).unwrap();
    let mut file = tempfile::NamedTempFile::new_in(folder).unwrap();
    file.write_all(&bytes).unwrap();
    file.as_file().sync_all().unwrap();
    let source = FileSource::open(file.path()).unwrap();
    (file, source, bytes)
}

/// What reads land in: memory of a pool, and the device that it is of.
pub(super) struct Targets<'a> {
    pub(super) device: &'a Device,
    pub(super) pool: &'a Pool,
}

struct Target<'a> {
    device: &'a Device,
    memory: Fragment,
}

impl<'a> Targets<'a> {
    fn target(&self, bytes: usize) -> Target<'a> {
        let memory = self.pool.place("t", Request::new(bytes as u64, BLOCK as u64)).unwrap();
        Target { device: self.device, memory }
    }
}

impl Target<'_> {
    fn start(&mut self) -> *mut u8 {
        self.memory.as_ptr().cast_mut()
    }

    /// What is there. No read is in flight.
    fn bytes(&self, offset: usize, bytes: usize) -> Vec<u8> {
        let (mut read, stream) = (vec![0; bytes], self.device.take_stream().unwrap());
        // SAFETY: the fragment is longer, and both stay until the copy has ended below.
        unsafe {
            let from = self.memory.as_ptr().wrapping_add(offset);
            stream.copy_to_host(read.as_mut_ptr(), from, bytes as u64)
        }
        .unwrap();
        stream.synchronize().unwrap();
        self.device.keep_stream(stream);
        read
    }
}

/// Reads, blocks counted from the file's start, with one ticket each; as many at once as the queue takes.
fn read_blocks(
    queue: &mut dyn Queue,
    file: &OpenFile,
    target: &mut Target<'_>,
    blocks: &[usize],
    each: usize,
) {
    let start = target.start();
    let (mut next, mut in_flight, mut free) = (0, 0, (0..queue.depth()).collect::<Vec<_>>());
    let mut ended = BTreeSet::new();
    while next < blocks.len() || in_flight > 0 {
        if let Some(ticket) = free.pop().filter(|_| next < blocks.len()) {
            let place = start.wrapping_add(next * each);
            // SAFETY: the place lies in the fragment, which outlives the loop; each has one read.
            let buffer = unsafe { buffer_at(place, each) };
            let read = Read {
                ticket,
                file,
                offset: (blocks[next] * BLOCK) as u64,
                buffers: &mut [buffer],
                cached_only: false,
            };
            // SAFETY: as above; the file outlives the queue.
            unsafe { queue.submit(read) }.unwrap();
            (next, in_flight) = (next + 1, in_flight + 1);
        } else {
            let completion = queue.complete().unwrap();
            assert!(completion.result.unwrap() > 0);
            assert!(ended.insert((next, completion.ticket)) && !free.contains(&completion.ticket));
            free.push(completion.ticket);
            in_flight -= 1;
        }
    }
}

fn conforms(engine: &dyn Engine, deep: bool) {
    let device = Device::host();
    let pool = Pool::builder(device.memory()).build().unwrap();
    conforms_on(engine, deep, &Targets { device: &device, pool: &pool });
}

/// An engine reads as its users rely on, from the page cache and past it; a `deep` one takes as many reads as it is asked to.
pub(super) fn conforms_on(engine: &dyn Engine, deep: bool, targets: &Targets<'_>) {
    for cached in [true, false] {
        reads_a_file(engine, deep, targets, cached);
    }
}

fn reads_a_file(engine: &dyn Engine, deep: bool, targets: &Targets<'_>, cached: bool) {
    let (_file, source, bytes) = file();
    if !cached {
        rustix::fs::fadvise(&*source.lease().unwrap(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    let access = engine.open(&source, WhenFull::Wait).unwrap();
    let file = access.file.lease(WhenFull::Wait).unwrap();
    assert!(access.alignment.is_power_of_two() && access.alignment as usize <= BLOCK);

    // All blocks in any order, the last of which is not whole, more than the queue takes at once, prepared or not.
    let blocks: Vec<usize> = (0..42).map(|n| n * 5 % 42).collect();
    for depth in [1, 4, 16] {
        let mut target = targets.target(blocks.len() * BLOCK);
        let mut queue = engine.queue(depth).unwrap();
        assert!(queue.depth() >= 1 && (queue.depth() == depth || !deep));
        if depth == 4 {
            let start = target.start();
            for ticket in 0..queue.depth() {
                // SAFETY: the fragment outlives the queue.
                unsafe { queue.prepare(ticket, start, blocks.len() * BLOCK) };
            }
        }
        read_blocks(&mut *queue, &file, &mut target, &blocks, BLOCK);
        drop(queue);
        for (place, block) in blocks.iter().enumerate() {
            let expected = bytes.chunks(BLOCK).nth(*block).unwrap();
            assert!(target.bytes(place * BLOCK, expected.len()) == expected, "block {block}");
        }
    }

    // The end of the file: what there is, and then nothing.
    let mut target = targets.target(2 * BLOCK);
    let mut queue = engine.queue(4).unwrap();
    for (block, expected) in [(40, BLOCK + 1234), (41, 1234), (42, 0)] {
        // SAFETY: the fragment outlives the queue, and there is one read at a time.
        let buffer = unsafe { buffer_at(target.start(), 2 * BLOCK) };
        let (offset, buffers) = ((block * BLOCK) as u64, &mut [buffer]);
        let read = Read { ticket: 0, file: &file, offset, buffers, cached_only: false };
        // SAFETY: as above.
        unsafe { queue.submit(read) }.unwrap();
        assert_eq!(queue.complete().unwrap().result.unwrap(), expected, "block {block}");
        assert!(target.bytes(0, expected) == bytes[(block * BLOCK).min(bytes.len())..][..expected]);
    }
    assert!(queue.complete().is_err(), "nothing is in flight");

    // Dropped with reads in flight: it waits, and the memory can go.
    for ticket in 0..queue.depth() {
        // SAFETY: the fragment outlives the queue; the reads overlap, but no one looks at what they leave.
        let buffers = &mut [unsafe { buffer_at(target.start(), BLOCK) }];
        let read = Read { ticket, file: &file, offset: 0, buffers, cached_only: false };
        // SAFETY: as above.
        unsafe { queue.submit(read) }.unwrap();
    }
    drop(queue);
}

#[test]
fn buffered_reads_conform() {
    conforms(&Buffered, false);
}

#[test]
fn direct_reads_conform() {
    conforms(&Direct, false);
}

#[test]
fn io_uring_conforms() {
    conforms(&Uring::default(), true);
}

#[test]
fn an_engine_with_faults_that_never_happen_conforms() {
    conforms(&super::faulty::Faulty::new(Uring::default(), super::faulty::Faults::default()), true);
}

#[test]
fn a_file_that_another_took_the_place_of_is_not_reopened() {
    let (file, source, bytes) = file();
    let other = file.path().with_extension("other");
    std::fs::write(&other, &bytes).unwrap();
    std::fs::rename(&other, file.path()).unwrap();
    assert!(Direct.open(&source, WhenFull::Wait).is_err());
}
