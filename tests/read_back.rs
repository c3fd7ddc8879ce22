//! Reading tensors back from a device keeps its streams for reuse, and only those on which all went well.

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use support::{Spec, assert_holds, bytes_tensor, single, staged_host};
use tensorhold::allocator::Memory;
use tensorhold::{Device, DeviceKind, Driver, Error, Loader, Result, Stream, Weights};

/// What there is to know of the streams that tensors are read back on. Those of loads do not count.
#[derive(Debug, Default)]
struct Tally {
    /// How many there were.
    used: AtomicUsize,
    /// How many there are.
    live: AtomicUsize,
    /// What fails next, once.
    fault: Mutex<Option<Fault>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Copy,
    Synchronize,
}

impl Tally {
    fn used_and_live(&self) -> (usize, usize) {
        (self.used.load(Ordering::Relaxed), self.live.load(Ordering::Relaxed))
    }

    fn fail(&self, fault: Fault) {
        *self.fault.lock().unwrap() = Some(fault);
    }

    fn fails(&self, here: Fault) -> bool {
        self.fault.lock().unwrap().take_if(|fault| *fault == here).is_some()
    }
}

/// A staged device whose streams keep a tally, and copy to the host no sooner than they are synchronized.
#[derive(Debug)]
struct Tallied {
    driver: Arc<dyn Driver>,
    tally: Arc<Tally>,
}

fn device() -> (Device, Arc<Tally>) {
    let tally = Arc::<Tally>::default();
    let driver = Arc::clone(staged_host::device().driver());
    (Device::from_driver(Arc::new(Tallied { driver, tally: Arc::clone(&tally) })), tally)
}

// SAFETY: Q1, Q2: as the driver that it wraps. Q3: what is enqueued is made in `synchronize` or not at all. Q4: its kind promises nothing.
unsafe impl Driver for Tallied {
    fn name(&self) -> &str {
        "tallied"
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Other
    }

    fn memory(&self) -> Arc<dyn Memory> {
        self.driver.memory()
    }

    fn staging_memory(&self) -> Arc<dyn Memory> {
        self.driver.staging_memory()
    }

    fn stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(Late {
            stream: self.driver.stream()?,
            tally: Arc::clone(&self.tally),
            enqueued: Mutex::default(),
            counted: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }))
    }
}

struct Late {
    stream: Box<dyn Stream>,
    tally: Arc<Tally>,
    enqueued: Mutex<Option<Enqueued>>,
    counted: AtomicBool,
    failed: AtomicBool,
}

/// A copy to the host, not made yet.
struct Enqueued {
    to: *mut u8,
    from: *const u8,
    bytes: u64,
}

// SAFETY: whoever enqueued the copy promises both ranges until it is made, on whatever thread.
unsafe impl Send for Enqueued {}

impl Late {
    fn check(&self, here: Fault) -> Result<()> {
        assert!(!self.failed.load(Ordering::Relaxed), "a stream was used that had failed");
        if !self.tally.fails(here) {
            return Ok(());
        }
        self.failed.store(true, Ordering::Relaxed);
        Err(Error::Device {
            device: "tallied".into(),
            operation: "read back",
            detail: format!("{here:?} fails"),
            remedy: "try again".into(),
        })
    }
}

// SAFETY: T1 to T3: as the stream that it wraps; copies to the host are made in `synchronize`.
unsafe impl Stream for Late {
    unsafe fn copy_to_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        // SAFETY: passed on.
        unsafe { self.stream.copy_to_device(to, from, bytes) }
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        if !self.counted.swap(true, Ordering::Relaxed) {
            self.tally.used.fetch_add(1, Ordering::Relaxed);
            self.tally.live.fetch_add(1, Ordering::Relaxed);
        }
        self.check(Fault::Copy)?;
        let before = self.enqueued.lock().unwrap().replace(Enqueued { to, from, bytes });
        assert!(before.is_none(), "a stream was used that had work in flight");
        Ok(())
    }

    fn record(&self, event: usize) -> Result<()> {
        self.stream.record(event)
    }

    fn wait(&self, event: usize) -> Result<()> {
        self.stream.wait(event)
    }

    fn has_passed(&self, event: usize) -> Result<bool> {
        self.stream.has_passed(event)
    }

    fn synchronize(&self) -> Result<()> {
        if let Some(Enqueued { to, from, bytes }) = self.enqueued.lock().unwrap().take() {
            // SAFETY: whoever enqueued the copy promises both ranges until this stream has been synchronized.
            unsafe { self.stream.copy_to_host(to, from, bytes) }?;
            self.check(Fault::Synchronize)?;
        }
        self.stream.synchronize()
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        if *self.counted.get_mut() {
            self.tally.live.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn tensors() -> Vec<Spec> {
    (0..200).map(|n| bytes_tensor(&format!("t{n}"), n * 7 % 1000)).collect()
}

fn load(device: &Device, tensors: &[Spec]) -> Weights {
    let (_folder, path) = single(tensors);
    Loader::new(device.clone()).files([path]).load().unwrap()
}

#[test]
fn reading_many_tensors_back_makes_few_streams() {
    let ((device, tally), tensors) = (device(), tensors());
    for _ in 0..3 {
        assert_holds(&load(&device, &tensors), &tensors);
    }
    assert_eq!(
        tally.used_and_live(),
        (1, 1),
        "one at a time needs one stream, whichever clone of the device"
    );
}

#[test]
fn streams_that_failed_are_not_used_again() {
    let tensors = [bytes_tensor("t", 5000)];
    for fault in [Fault::Copy, Fault::Synchronize] {
        let (device, tally) = device();
        let weights = load(&device, &tensors);
        assert_holds(&weights, &tensors);
        tally.fail(fault);
        let error = weights.view("t").unwrap().to_host().unwrap_err();
        assert!(error.to_string().contains(&format!("{fault:?} fails")), "{error}");
        assert_eq!(tally.used_and_live(), (1, 0), "the stream that was kept had failed, and is gone");
        assert_holds(&weights, &tensors);
        assert_holds(&weights, &tensors);
        assert_eq!(tally.used_and_live(), (2, 1));
    }
}

#[test]
fn tensors_read_back_at_once_have_the_right_bytes_and_streams_of_their_own() {
    const THREADS: usize = 24;
    let ((device, tally), tensors) = (device(), tensors());
    let weights = load(&device, &tensors);
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..5 {
                    assert_holds(&weights, &tensors);
                }
            });
        }
    });
    let (_, live) = tally.used_and_live();
    assert!((1..=16).contains(&live), "{live} streams were kept");
}

#[test]
fn streams_that_are_kept_go_with_the_last_clone_of_the_device() {
    let ((device, tally), tensors) = (device(), tensors());
    let weights = load(&device, &tensors);
    assert_holds(&weights, &tensors);
    drop(device);
    let last = weights.tensor("t9").unwrap();
    weights.close();
    assert_eq!(last.to_host().unwrap(), tensors[9].bytes);
    assert_eq!(tally.used_and_live(), (1, 1));
    drop(last);
    assert_eq!(tally.used_and_live(), (1, 0));
}
