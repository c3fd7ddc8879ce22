//! The descriptor cache, with capacities of its own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use rustix::fs::OFlags;
use rustix::io::fcntl_dupfd_cloexec;
use tempfile::TempDir;

use super::descriptor_cache::{CachedFile, DescriptorCache, FileLease, Opened, WhenFull, is_full};
use super::{Engine, FileSource, Read, Uring, buffer_at};
use crate::error::Error;
use crate::test_support::fork::in_child;

/// A folder with `count` files, each of which holds its number, and their sources.
fn files(cache: &'static DescriptorCache, count: usize) -> (TempDir, Vec<FileSource>) {
    let folder = tempfile::tempdir().unwrap();
    let sources = (0..count).map(|number| {
        let path = folder.path().join(number.to_string());
        fs::write(&path, format!("{number:04}")).unwrap();
        FileSource::open_in(cache, &path).unwrap()
    });
    let sources = sources.collect();
    (folder, sources)
}

fn assert_reads(source: &FileSource, number: usize) {
    let mut bytes = [0; 4];
    assert_eq!(source.read(&mut bytes, 0).unwrap(), 4);
    assert_eq!(bytes, format!("{number:04}").as_bytes());
}

/// Counts those that live, and the most that lived at a time.
#[derive(Debug, Default)]
struct Census {
    now: AtomicUsize,
    most: AtomicUsize,
}

struct Member(Arc<Census>);

impl Member {
    fn new(census: &Arc<Census>) -> Self {
        let now = census.now.fetch_add(1, Ordering::SeqCst) + 1;
        census.most.fetch_max(now, Ordering::SeqCst);
        Self(Arc::clone(census))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The files with descriptors of their own that are counted.
fn counted(sources: &[FileSource], census: &Arc<Census>) -> Vec<CachedFile> {
    let counted = sources.iter().map(|source| {
        let census = Arc::clone(census);
        source.with_flags(OFlags::empty(), Some(Box::new(move |_| Ok(Box::new(Member::new(&census))))))
    });
    counted.collect()
}

fn read(file: &FileLease) -> usize {
    let mut bytes = [0; 4];
    assert_eq!(rustix::io::pread(file.as_fd(), &mut bytes, 0).unwrap(), 4);
    String::from_utf8_lossy(&bytes).parse().unwrap()
}

#[test]
fn any_number_of_files_is_read_with_few_descriptors() {
    let cache = DescriptorCache::new(|| 3);
    let (_folder, sources) = files(cache, 40);
    let census = Arc::new(Census::default());
    let counted = counted(&sources, &census);
    for _ in 0..2 {
        for (number, file) in counted.iter().enumerate() {
            assert_eq!(read(&file.lease(WhenFull::Wait).unwrap()), number);
            assert_reads(&sources[number], number);
        }
    }
    assert!(census.most.load(Ordering::SeqCst) <= 3);
    drop(counted);
    assert_eq!(census.now.load(Ordering::SeqCst), 0, "the owner's drop closes a file");
}

#[test]
fn an_open_file_is_leased_again_and_one_that_was_not_used_is_closed_first() {
    let cache = DescriptorCache::new(|| 3);
    let (_folder, sources) = files(cache, 5);
    let files: Vec<_> = sources.iter().map(|source| source.with_flags(OFlags::empty(), None)).collect();
    drop(sources);
    let id = |file: usize| files[file].lease(WhenFull::Wait).unwrap().id();
    let first = [id(0), id(1), id(2)];
    // File 0 is used again, so its neighbour goes.
    assert_eq!(id(0), first[0]);
    id(3);
    assert!(files[0].lease_if_open().is_some() && files[1].lease_if_open().is_none());
    assert_eq!(id(0), first[0]);
    assert_ne!(id(1), first[1], "an id is not used again");
}

#[test]
fn a_leased_file_stays_open_and_who_may_not_wait_is_refused() {
    let cache = DescriptorCache::new(|| 2);
    let (_folder, sources) = files(cache, 3);
    let leases = [sources[0].lease().unwrap(), sources[1].lease().unwrap()];
    assert!(is_full(&sources[2].cached().lease(WhenFull::Refuse).unwrap_err()));
    assert_eq!([read(&leases[0]), read(&leases[1])], [0, 1]);
    drop(leases);
    assert_eq!(read(&sources[2].cached().lease(WhenFull::Refuse).unwrap()), 2);
}

#[test]
fn who_waits_for_a_descriptor_gets_it_when_a_lease_is_returned() {
    let cache = DescriptorCache::new(|| 1);
    let (_folder, sources) = files(cache, 8);
    let lease = sources[0].lease().unwrap();
    let (sender, done) = mpsc::channel();
    thread::scope(|scope| {
        for (number, source) in sources.iter().enumerate().skip(1) {
            let sender = sender.clone();
            scope.spawn(move || {
                assert_reads(source, number);
                sender.send(number).unwrap();
            });
        }
        assert!(done.try_recv().is_err());
        drop(lease);
        let mut numbers: Vec<usize> = done.iter().take(7).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    });
}

#[test]
fn many_threads_read_many_files_with_few_descriptors() {
    let cache = DescriptorCache::new(|| 3);
    let (_folder, sources) = files(cache, 20);
    let census = Arc::new(Census::default());
    let (files, start) = (counted(&sources, &census), Barrier::new(8));
    thread::scope(|scope| {
        for thread in 0..8 {
            let (files, start) = (&files, &start);
            scope.spawn(move || {
                start.wait();
                for round in 0..200 {
                    let number = (thread * 7 + round * 3) % files.len();
                    assert_eq!(read(&files[number].lease(WhenFull::Wait).unwrap()), number);
                }
            });
        }
    });
    assert!(census.most.load(Ordering::SeqCst) <= 3);
}

#[test]
fn a_file_that_changed_while_it_was_closed_is_not_read() {
    let cache = DescriptorCache::new(|| 1);
    let (folder, sources) = files(cache, 4);
    // The last is open, the others are not.
    let path = |number: usize| folder.path().join(number.to_string());
    fs::write(path(4), "0000").unwrap();
    fs::rename(path(4), path(0)).unwrap();
    fs::write(path(1), "1111").unwrap();
    fs::remove_file(path(2)).unwrap();
    for source in &sources[..3] {
        let error = source.read(&mut [0; 4], 0).unwrap_err();
        assert!(matches!(error, Error::FileChanged { .. }), "{error}");
    }
    assert_reads(&sources[3], 3);
}

/// An opener that is refused while `most` of the files that the census counts are open.
fn limited(census: &Arc<Census>, most: usize) -> impl Fn() -> io::Result<Opened> + Send + Sync + use<> {
    let census = Arc::clone(census);
    move || {
        if census.now.load(Ordering::SeqCst) >= most {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        Ok((Arc::new(File::open("/dev/null")?), Some(Box::new(Member::new(&census)))))
    }
}

#[test]
fn where_the_system_has_no_descriptor_left_idle_files_are_closed() {
    let (cache, census) = (DescriptorCache::new(|| 100), Arc::new(Census::default()));
    let files: Vec<_> = (0..9).map(|_| CachedFile::new(cache, limited(&census, 2))).collect();
    for file in &files {
        file.lease(WhenFull::Wait).unwrap();
    }
    // Leased, they are not idle: who may not wait is refused, and who waits gets the first that is returned.
    let [one, two] = [0, 1].map(|file: usize| files[file].lease(WhenFull::Wait).unwrap());
    assert!(is_full(&files[2].lease(WhenFull::Refuse).unwrap_err()));
    thread::scope(|scope| {
        let waits = scope.spawn(|| drop(files[2].lease(WhenFull::Wait).unwrap()));
        drop(one);
        waits.join().unwrap();
    });
    drop(two);
    // A ring, say.
    let made = cache.make(|| match census.now.load(Ordering::SeqCst) {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EMFILE)),
    });
    made.unwrap();
}

#[test]
fn where_no_file_can_be_closed_the_error_is_that_of_the_system() {
    let (cache, census) = (DescriptorCache::new(|| 100), Arc::new(Census::default()));
    for when_full in [WhenFull::Wait, WhenFull::Refuse] {
        let error = CachedFile::new(cache, limited(&census, 0)).lease(when_full).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    }
    let made: io::Result<()> = cache.make(|| Err(io::Error::from_raw_os_error(libc::ENFILE)));
    assert_eq!(made.unwrap_err().raw_os_error(), Some(libc::ENFILE));
    // Two at once do not wait for each other.
    let start = Barrier::new(2);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                start.wait();
                CachedFile::new(cache, limited(&census, 0)).lease(WhenFull::Wait).unwrap_err();
            });
        }
    });
}

/// A file whose descriptor has the lowest free number from `number` on.
fn numbered(cache: &'static DescriptorCache, source: &FileSource, number: i32) -> CachedFile {
    let source = source.clone();
    CachedFile::new(cache, move || {
        let other: OwnedFd = fcntl_dupfd_cloexec(source.lease()?.as_fd(), number)?;
        Ok((Arc::new(other.into()), None))
    })
}

#[test]
fn a_ring_reads_the_right_file_when_a_descriptors_number_is_used_again() {
    let (_folder, sources) = files(DescriptorCache::new(|| 8), 2);
    let cache = DescriptorCache::new(|| 1);
    let files = [0, 1].map(|file: usize| numbered(cache, &sources[file], 800));
    let Ok(mut queue) = Uring::default().queue(2) else { return };
    let mut numbers = Vec::new();
    for round in 0..6 {
        let (lease, mut bytes) = (files[round % 2].lease(WhenFull::Wait).unwrap(), [0_u8; 4]);
        numbers.push(lease.as_fd().as_raw_fd());
        // SAFETY: the buffer stays until the completion has been taken below, and no one else touches it.
        let buffers = &mut [unsafe { buffer_at(bytes.as_mut_ptr(), bytes.len()) }];
        let read = Read { ticket: 0, file: &lease, offset: 0, buffers, cached_only: false };
        // SAFETY: as above; the lease outlives the completion.
        unsafe { queue.submit(read) }.unwrap();
        assert_eq!(queue.complete().unwrap().result.unwrap(), 4);
        assert_eq!(bytes, format!("{:04}", round % 2).as_bytes());
    }
    assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
}

#[test]
fn a_forked_child_opens_files_of_its_own_and_waits_for_no_lock_of_its_parent() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"0007").unwrap();
    let source = FileSource::open(file.path()).unwrap();
    let (ready, forked) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            source.cached().with_locks(|| {
                ready.wait();
                forked.wait();
            });
        });
        ready.wait();
        let mut inherited = Some(source.clone());
        in_child(|| {
            let refused = inherited.as_ref().unwrap().lease().unwrap_err();
            assert!(refused.to_string().contains("forked"), "{refused}");
            assert_reads(&FileSource::open(file.path()).unwrap(), 7);
            drop(inherited.take());
        });
        forked.wait();
    });
    assert_reads(&source, 7);
}
