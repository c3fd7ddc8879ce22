//! Files behind FUSE, whose reads fail in the middle: each load ends in the right bytes or the right error.
//!
//! A test needs `/dev/fuse` and the right to mount; where one is missing, it is ignored, and counted as such.

#[path = "support/faulty_mount.rs"]
mod faulty_mount;
mod support;

use faulty_mount::{Fault, FaultKind, FaultyMount, Mode, keep_mounts_private};
use libtest_mimic::{Arguments, Trial};
use support::{
    Spec, assert_all_back, assert_holds, bytes_tensor, devices, drop_cached, file_bytes, header, pool_for,
};
use tensorhold::{Backend, BackendKind, Device, Error, Loader, Weights};

const DIRECT: Mode = Mode { direct_io: true, async_dio: false };
const DIRECT_AT_ONCE: Mode = Mode { direct_io: true, async_dio: true };
const CACHED: Mode = Mode { direct_io: false, async_dio: true };

const BACKENDS: [Backend; 4] = [
    Backend::Auto,
    Backend::Require(BackendKind::Buffered),
    Backend::Require(BackendKind::Direct),
    Backend::Require(BackendKind::IoUring),
];

const ERRORS: [FaultKind; 4] = [
    FaultKind::Errno(libc::EIO),
    FaultKind::Errno(libc::EINVAL),
    FaultKind::Errno(libc::EINTR),
    FaultKind::Errno(libc::EAGAIN),
];

fn main() {
    let probe = keep_mounts_private().and_then(|()| FaultyMount::new(Vec::new(), DIRECT));
    let missing = probe.is_err();
    drop(probe);
    let trial = |name: &str, test: fn()| {
        let run = move || {
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(missing)
    };
    let trials = vec![
        trial("faults_past_the_page_cache_end_in_the_right_bytes_or_an_error", || {
            let kinds = [&ERRORS[..], &[FaultKind::Short]].concat();
            each_fault_ends_well(&[DIRECT, DIRECT_AT_ONCE], &kinds);
        }),
        // Where the kernel caches, it takes a short read for the file's end and puts zeroes behind it: a file system must not do that.
        trial("faults_in_the_page_cache_end_in_the_right_bytes_or_an_error", || {
            each_fault_ends_well(&[CACHED], &ERRORS);
        }),
        trial("auto_reads_without_io_uring_and_says_why", auto_reads_without_io_uring),
        trial("io_uring_that_is_required_is_an_error_that_says_why_not", required_io_uring_is_an_error),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn tensors() -> Vec<Spec> {
    let sizes = [3_000_000, 100, 1_000_017, 77_777];
    sizes.iter().enumerate().map(|(n, &size)| bytes_tensor(&format!("t{n}"), size)).collect()
}

fn mount(tensors: &[Spec], mode: Mode) -> FaultyMount {
    let data: Vec<u8> = tensors.iter().flat_map(|tensor| tensor.bytes.iter().copied()).collect();
    FaultyMount::new(file_bytes(&header(tensors), &data), mode).unwrap()
}

fn load(mount: &FaultyMount, device: &Device, backend: Backend) -> Result<Weights, Error> {
    drop_cached(&mount.path(), 0, 0);
    let pool = pool_for(device);
    let loaded = Loader::new(device.clone()).files([mount.path()]).backend(backend).pool(&pool).load();
    if loaded.is_err() {
        assert_all_back(&pool);
    }
    loaded
}

fn each_fault_ends_well(modes: &[Mode], kinds: &[FaultKind]) {
    let tensors = tensors();
    for &mode in modes {
        let mount = mount(&tensors, mode);
        for backend in BACKENDS {
            let mut arrived = 0;
            for &kind in kinds {
                let mut met = 0;
                // Where a part of a read begins and within one; the kernel reads 128 KiB at a time, or a mebibyte.
                for at in [1 << 20, 2_333_333, 3_500_000] {
                    for times in [1, 3, u64::MAX] {
                        for device in devices() {
                            mount.set_fault(Some(Fault { at, kind, times }));
                            match load(&mount, &device, backend) {
                                Ok(weights) => {
                                    assert_holds(&weights, &tensors);
                                    arrived += 1;
                                }
                                Err(error) => assert_right(&error, kind, backend),
                            }
                            met += mount.met();
                        }
                    }
                }
                // A file that is not read meets none.
                assert!(met > 0 || backend == Backend::Require(BackendKind::IoUring), "{backend:?} {kind:?}");
            }
            assert!(arrived > 0 || backend == Backend::Require(BackendKind::IoUring), "{mode:?} {backend:?}");
        }
    }
}

fn assert_right(error: &Error, kind: FaultKind, backend: Backend) {
    let right = match (error, kind) {
        (Error::Backend { .. }, _) if backend == Backend::Require(BackendKind::IoUring) => true,
        // That is what the system says of direct reads that it does not have, too.
        (Error::Backend { .. }, FaultKind::Errno(libc::EINVAL)) => {
            backend == Backend::Require(BackendKind::Direct)
        }
        (Error::Read { source, .. }, FaultKind::Errno(errno)) => {
            source.kind() == std::io::Error::from_raw_os_error(errno).kind()
        }
        // A read that brings nothing says that the file ends there.
        (Error::Read { .. } | Error::FileChanged { .. }, FaultKind::Short) => true,
        _ => false,
    };
    assert!(right, "{kind:?} by {backend:?} is told as {error:?}");
}

fn auto_reads_without_io_uring() {
    let tensors = tensors();
    for mode in [DIRECT, DIRECT_AT_ONCE, CACHED] {
        let mount = mount(&tensors, mode);
        for device in devices() {
            let weights = load(&mount, &device, Backend::Auto).unwrap();
            assert_holds(&weights, &tensors);
            let report = weights.report();
            assert!(report.direct_bytes > 0, "{report:?}");
            let past =
                report.choices.iter().find(|choice| choice.about == "backend" && choice.picked == "direct");
            let why = &past.expect("direct reads").why;
            assert!(why.contains("io_uring is not used") && why.contains("on FUSE"), "{why}");
        }
    }
}

fn required_io_uring_is_an_error() {
    let tensors = tensors();
    for mode in [DIRECT, DIRECT_AT_ONCE, CACHED] {
        let mount = mount(&tensors, mode);
        for device in devices() {
            let error = load(&mount, &device, Backend::Require(BackendKind::IoUring)).unwrap_err();
            assert!(matches!(&error, Error::Backend { path, .. } if *path == mount.path()), "{error:?}");
            let message = error.to_string();
            assert!(message.contains("on FUSE") && message.contains("used on ext4"), "{message}");
        }
    }
}
