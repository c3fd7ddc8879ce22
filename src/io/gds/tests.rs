//! What cuFile does and does not, by a library that does the same over memory of the host.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::fcntl_dupfd_cloexec;
use tensorhold_allocator::{Fragment, Pool, Request};

use super::fake::Fake;
use super::open::{Guards, open};
use super::{CuFile, Gds, Handle, Mode, Registered};
use crate::device::Device;
use crate::io::conformance::{Targets, conforms_on};
use crate::io::descriptor_cache::{CachedFile, DescriptorCache};
use crate::io::{Completion, Engine, FileSource, Queue, Read, WhenFull, buffer_at};
use crate::test_support::fork::in_child;

const BLOCK: u64 = 4096;

/// An engine, a file of twelve blocks and a bit for it, and memory that is registered.
struct Bench {
    fake: Fake,
    cufile: Arc<CuFile>,
    pool: Pool,
    file: FileSource,
    bytes: Vec<u8>,
    _file: tempfile::NamedTempFile,
}

impl Bench {
    fn new(fake: Fake) -> Self {
        let cufile = fake.open().unwrap();
        let pool = Pool::builder(Arc::new(Registered::new(&Device::host(), &cufile))).build().unwrap();
        let bytes: Vec<u8> = (0..12 * BLOCK + 77).map(|n| (n * n % 251) as u8).collect();
        let mut named = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        named.write_all(&bytes).unwrap();
        named.as_file().sync_all().unwrap();
        let file = FileSource::open(named.path()).unwrap();
        Self { fake, cufile, pool, file, bytes, _file: named }
    }

    fn memory(&self) -> Fragment {
        self.pool.place("t", Request::new(self.bytes.len() as u64 + BLOCK, BLOCK)).unwrap()
    }

    /// Reads so many bytes from the start with a queue of that depth, and returns what came of it and what is there then.
    fn read(&self, depth: usize, bytes: usize) -> (io::Result<usize>, Vec<u8>) {
        let (engine, memory) = (Gds::new(Arc::clone(&self.cufile)), self.memory());
        let access = engine.open(&self.file, WhenFull::Wait).unwrap();
        let file = access.file.lease(WhenFull::Wait).unwrap();
        let mut queue = engine.queue(depth).unwrap();
        // SAFETY: the fragment outlives the queue.
        let buffers = &mut [unsafe { buffer_at(memory.as_ptr().cast_mut(), bytes) }];
        let read = Read { ticket: 0, file: &file, offset: 0, buffers, cached_only: false };
        // SAFETY: as above, and the lease outlives the queue too.
        let result = unsafe { queue.submit(read) }.and_then(|()| queue.complete()?.result);
        drop(queue);
        (result, memory.as_bytes().unwrap()[..bytes].to_vec())
    }
}

#[test]
fn cufile_conforms_one_by_one_and_in_batches() {
    let fake = Fake::new();
    let cufile = fake.open().unwrap();
    for _ in 0..2 {
        let device = Device::host();
        let pool = Pool::builder(Arc::new(Registered::new(&device, &cufile))).build().unwrap();
        conforms_on(&Gds::new(Arc::clone(&cufile)), true, &Targets { device: &device, pool: &pool });
        drop(pool);
        // The next round meets reads that stop short, and events that only say that nothing has happened.
        fake.set("short", 1000).set("batch_short", 700).set("pending", 5);
    }
    assert!(fake.get("batch_reads") > 0 && fake.get("reads") > 0 && fake.get("unregistered") == 0);
    assert_eq!((fake.get("handles"), fake.get("batches"), fake.get("opens")), (0, 0, 1));
}

#[test]
fn a_handle_is_that_of_its_file_when_a_descriptors_number_is_used_again() {
    let bench = Bench::new(Fake::new());
    let cache = DescriptorCache::new(|| 1);
    let files = [1_u8, 2].map(|byte| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[byte; BLOCK as usize]).unwrap();
        let cufile = Arc::clone(&bench.cufile);
        CachedFile::new(cache, move || {
            let file = Arc::new(fs::File::from(fcntl_dupfd_cloexec(&file, 900)?));
            let handle = Handle::register(&cufile, &file)?;
            Ok((file, Some(Box::new(handle))))
        })
    });
    let (engine, memory) = (Gds::new(Arc::clone(&bench.cufile)), bench.memory());
    let (mut queues, mut numbers) = ([1, 4].map(|depth| engine.queue(depth).unwrap()), Vec::new());
    for round in 0..6 {
        let file = files[round % 2].lease(WhenFull::Wait).unwrap();
        numbers.push(file.as_fd().as_raw_fd());
        assert_eq!(bench.fake.get("handles"), 1, "a handle goes with its descriptor");
        for queue in &mut queues {
            // SAFETY: the fragment outlives the queues, and there is one read at a time.
            let buffers = &mut [unsafe { buffer_at(memory.as_ptr().cast_mut(), BLOCK as usize) }];
            let read = Read { ticket: 0, file: &file, offset: 0, buffers, cached_only: false };
            // SAFETY: as above; the lease outlives the completion.
            unsafe { queue.submit(read) }.unwrap();
            assert_eq!(queue.complete().unwrap().result.unwrap(), BLOCK as usize);
            let expected = 1 + (round % 2) as u8;
            assert!(memory.as_bytes().unwrap()[..BLOCK as usize].iter().all(|&byte| byte == expected));
        }
    }
    assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
    drop((queues, files));
    assert_eq!(bench.fake.get("handles"), 0);
}

#[test]
fn memory_is_registered_whole_while_it_is_reserved() {
    let bench = Bench::new(Fake::new());
    let fragments = [bench.memory(), bench.memory()];
    assert_eq!(bench.fake.get("buffers"), bench.pool.stats().regions as i64);
    assert_eq!(bench.fake.get("buffer_bytes"), bench.pool.stats().reserved_bytes as i64);
    assert!(bench.cufile.is_registered(fragments[1].as_ptr()));
    drop(fragments);
    bench.pool.trim();
    bench.fake.assert_nothing_left();
    assert_eq!(bench.pool.stats().lost_bytes, 0);
}

#[test]
fn memory_that_is_not_registered_is_read_into_all_the_same() {
    let bench = Bench::new(Fake::new());
    bench.fake.set("buffer_error", 5036);
    for depth in [1, 8] {
        let (result, read) = bench.read(depth, 3 * BLOCK as usize);
        assert_eq!(result.unwrap(), 3 * BLOCK as usize);
        assert!(read == bench.bytes[..read.len()]);
    }
    assert!(bench.fake.get("unregistered") > 0);
    let why = bench.cufile.refusal().unwrap();
    assert!(why.contains("5036") && why.contains("BAR1"), "{why}");
    bench.pool.trim();
    assert_eq!(bench.pool.stats().lost_bytes, 0);
}

#[test]
fn memory_whose_registration_stays_is_not_released() {
    let bench = Bench::new(Fake::new());
    let fragment = bench.memory();
    bench.fake.set("deregister_error", 5030);
    drop(fragment);
    bench.pool.trim();
    assert!(bench.pool.stats().lost_bytes > 0 || bench.pool.stats().reserved_bytes > 0);
}

#[test]
fn an_errno_and_an_error_of_the_library_are_told_apart() {
    let bench = Bench::new(Fake::new());
    bench.fake.set("errno", libc::EIO.into()).set("faults", 1);
    assert_eq!(bench.read(1, 4096).0.unwrap_err().raw_os_error(), Some(libc::EIO));
    bench.fake.set("errno", libc::EINTR.into()).set("faults", 1);
    assert_eq!(bench.read(1, 4096).0.unwrap_err().kind(), io::ErrorKind::Interrupted);
    bench.fake.set("read_error", 5008).set("faults", 1);
    let error = bench.read(1, 4096).0.unwrap_err();
    assert!(super::is_from_library(&error) && error.to_string().contains("5008"), "{error}");
    for (returns, errno) in [(-i64::from(libc::EIO), Some(libc::EIO)), (-5010, None), (-1, None)] {
        bench.fake.set("batch_returns", returns).set("faults", 1);
        assert_eq!(bench.read(8, 4096).0.unwrap_err().raw_os_error(), errno);
    }
    // Once the fault has gone, it reads as before.
    let (result, read) = bench.read(8, 4096);
    assert!(result.unwrap() == 4096 && read == bench.bytes[..4096]);
}

#[test]
fn what_is_longer_than_a_batch_takes_is_read_by_itself() {
    let fake = Fake::new();
    fake.set("max_direct_io", 8);
    let bench = Bench::new(fake);
    let (result, read) = bench.read(8, 5 * BLOCK as usize);
    assert!(result.unwrap() == read.len() && read == bench.bytes[..read.len()]);
    assert_eq!((bench.fake.get("reads"), bench.fake.get("batch_reads")), (1, 0));
    bench.read(8, 2 * BLOCK as usize).0.unwrap();
    assert_eq!(bench.fake.get("batch_reads"), 1);
}

#[test]
fn a_batch_takes_no_more_than_the_library_does() {
    let fake = Fake::new();
    fake.set("max_batch", 3);
    let bench = Bench::new(fake);
    let engine = Gds::new(Arc::clone(&bench.cufile));
    assert_eq!(engine.queue(64).unwrap().depth(), 3);
    bench.fake.set("setup_error", 5039);
    let message = engine.queue(64).err().unwrap().to_string();
    assert!(message.contains("set up a batch") && message.contains("5039"), "{message}");
}

#[test]
fn where_a_reads_end_is_not_known_its_memory_stays_and_no_more_is_read() {
    let bench = Bench::new(Fake::new());
    let (engine, memory) = (Gds::new(Arc::clone(&bench.cufile)), bench.memory());
    let access = engine.open(&bench.file, WhenFull::Wait).unwrap();
    let file = access.file.lease(WhenFull::Wait).unwrap();
    let mut queue = engine.queue(8).unwrap();
    for ticket in 0..3 {
        // SAFETY: the fragment is kept by its pool, as the end of this test shows.
        let buffers = &mut [unsafe { buffer_at(memory.as_ptr().cast_mut(), 4096) }];
        let read = Read { ticket, file: &file, offset: 0, buffers, cached_only: false };
        // SAFETY: as above.
        unsafe { queue.submit(read) }.unwrap();
    }
    bench.fake.set("status_error", 5041);
    let message = queue.complete().map(|Completion { result, .. }| result).unwrap_err().to_string();
    assert!(message.contains("how a batch stands"), "{message}");
    drop(queue);
    assert!(engine.queue(1).is_err() && engine.queue(8).is_err());
    drop((memory, engine, file, access));
    bench.pool.trim();
    // The range is not used again, its region stays registered, and the file and the batches stay.
    assert!(bench.pool.stats().lost_bytes > 0, "{:?}", bench.pool.stats());
    assert_eq!(["handles", "buffers", "batches"].map(|name| bench.fake.get(name)), [1, 1, 2]);
}

#[test]
fn a_batch_that_is_dropped_waits_for_its_reads() {
    let bench = Bench::new(Fake::new());
    let (engine, memory) = (Gds::new(Arc::clone(&bench.cufile)), bench.memory());
    let access = engine.open(&bench.file, WhenFull::Wait).unwrap();
    let file = access.file.lease(WhenFull::Wait).unwrap();
    let mut queue = engine.queue(8).unwrap();
    for ticket in 0..8 {
        // SAFETY: the fragment outlives the queue, and each read has a place of its own.
        let buffer = unsafe { buffer_at(memory.as_ptr().cast_mut().wrapping_add(ticket * 4096), 4096) };
        let (offset, buffers) = (ticket as u64 * BLOCK, &mut [buffer]);
        let read = Read { ticket, file: &file, offset, buffers, cached_only: false };
        // SAFETY: as above.
        unsafe { queue.submit(read) }.unwrap();
    }
    queue.complete().unwrap().result.unwrap();
    assert!(bench.fake.get("batch_reads") < 8, "some are in flight");
    drop(queue);
    assert!(memory.as_bytes().unwrap()[..8 * 4096] == bench.bytes[..8 * 4096]);
    drop((memory, engine, file, access));
    bench.pool.trim();
    bench.fake.assert_nothing_left();
}

#[test]
fn a_file_that_is_refused_says_so_and_what_to_do() {
    let bench = Bench::new(Fake::new());
    bench.fake.set("handle_error", 5027);
    let error = Gds::new(Arc::clone(&bench.cufile)).open(&bench.file, WhenFull::Wait).unwrap_err();
    let message = error.to_string();
    assert!(error.kind() == io::ErrorKind::Unsupported && message.contains("/run/udev"), "{message}");
}

#[test]
fn what_is_missing_is_named_with_a_remedy() {
    let fake = Fake::new();
    let nowhere = vec![PathBuf::from("/nowhere/libcufile.so.0")];
    let missing = open(nowhere.clone(), fake.guards()).unwrap_err();
    assert!(
        missing.detail.contains("not to be found") && missing.remedy.to_string().contains("install cuFile")
    );
    // The first that is there is taken.
    assert!(open([nowhere, vec![fake.path.clone()]].concat(), fake.guards()).is_ok());

    let missing = Fake::with(&["-DWITHOUT_BATCHES"]).open().unwrap_err();
    assert!(missing.detail.contains("it has no cuFileBatchIOSetUp"), "{missing:?}");

    let old = Fake::new();
    let missing = old.set("version", 1060).open().unwrap_err();
    assert!(missing.detail.contains("version 1.6, expected at least 1.7"), "{missing:?}");
    assert_eq!(old.get("opens"), 0, "an old library's driver was opened");

    let missing = Fake::new().set("open_error", 5033).open().unwrap_err();
    assert!(missing.detail.contains("does not start") && missing.detail.contains("5033"), "{missing:?}");
    // Opened by others before.
    assert!(Fake::new().set("open_error", 5026).open().is_ok());

    let guards = Guards { modules: "/nowhere/modules".into(), ..fake.guards() };
    let missing = open(vec![fake.path.clone()], guards).unwrap_err();
    assert!(missing.detail.contains("for ever"), "{missing:?}");
    let message = missing.into_error().to_string();
    assert!(message.contains("backend") && message.contains("mount /proc"), "{message}");
}

#[test]
fn a_forked_child_makes_no_calls_for_what_its_parent_registered() {
    let bench = Bench::new(Fake::new());
    let (engine, memory) = (Gds::new(Arc::clone(&bench.cufile)), bench.memory());
    let access = engine.open(&bench.file, WhenFull::Wait).unwrap();
    let file = access.file.lease(WhenFull::Wait).unwrap();
    let mut queues = Some([1, 4].map(|depth| engine.queue(depth).unwrap()));
    let read = |queue: &mut dyn Queue| {
        // SAFETY: the fragment outlives the queues.
        let buffers = &mut [unsafe { buffer_at(memory.as_ptr().cast_mut(), BLOCK as usize) }];
        let read = Read { ticket: 0, file: &file, offset: 0, buffers, cached_only: false };
        // SAFETY: as above, and the lease outlives the queues too.
        unsafe { queue.submit(read) }
    };
    queues.as_mut().unwrap().iter_mut().for_each(|queue| read(&mut **queue).unwrap());
    let mut engine = Some(engine);
    let calls = || ["handles", "buffers", "batches", "reads", "batch_reads"].map(|name| bench.fake.get(name));
    let before = calls();
    in_child(|| {
        let [mut one, _] = queues.take().unwrap();
        let _ = one.complete();
        read(&mut *one).unwrap();
        let refused = one.complete().unwrap().result.unwrap_err().to_string();
        assert!(refused.contains("forked from"), "{refused}");
        drop(one);
        drop(engine.take());
        assert_eq!(calls(), before);
    });
    for mut queue in queues.unwrap() {
        assert_eq!(queue.complete().unwrap().result.unwrap(), BLOCK as usize);
    }
    drop((file, access, engine, memory));
    drop(bench.pool);
    drop(bench.cufile);
}

#[test]
fn a_driver_that_hangs_is_given_up_and_keeps_no_one() {
    let fake = Fake::new();
    fake.set("hang", 1);
    let guards = Guards { patience: Duration::from_millis(20), ..fake.guards() };
    let missing = open(vec![fake.path.clone()], guards).unwrap_err();
    assert!(missing.detail.contains("has not opened its driver within 20ms"), "{missing:?}");
    // Its thread goes on when the driver does.
    fake.set("hang", 0);
}

#[test]
fn the_log_does_not_stay_in_the_working_directory_unless_it_is_wanted() {
    let fake = Fake::new();
    let log = fake.folder.path().join("cufile.log");
    fake.log_to(&log);
    fake.open().unwrap();
    assert!(!log.exists() && fake.get("opens") == 1);
    open(vec![fake.path.clone()], Guards { log_wanted: true, ..fake.guards() }).unwrap();
    assert!(log.exists());
    // One that was there before is someone's.
    fs::write(&log, "mine\n").unwrap();
    fake.open().unwrap();
    assert!(fs::read_to_string(&log).unwrap().starts_with("mine\n"));
}

#[test]
fn the_mode_is_told() {
    let fake = Fake::new();
    assert_eq!(fake.open().unwrap().mode(), Mode::Compatible);
    fake.set("major", 2).set("storage", 1 << 4);
    assert_eq!(fake.open().unwrap().mode(), Mode::NvidiaFs);
    fake.set("major", 0).set("storage", 1 << 11);
    assert_eq!(fake.open().unwrap().mode(), Mode::P2pDma);
}
