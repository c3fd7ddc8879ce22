//! Reports of the system about reads that are not trusted, or not for long.

use std::sync::Arc;

use super::{every, faulty_buffered, faulty_direct, tensors, uncached, with};
use crate::error::Error;
use crate::io::faulty::{Fault, Faulty};
use crate::io::{Backend, BackendKind, Direct, Engines, FileSource, FileSystem, Uring};
use crate::loader::Loader;
use crate::report::Report;
use crate::test_support::{assert_holds, devices, on_disk};

#[test]
fn a_read_that_is_said_to_have_brought_more_than_was_asked_for_is_an_error() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let fails = |loaded: Result<Report, Error>| match loaded {
        Err(Error::Read { source, .. }) => {
            assert!(source.to_string().contains("is said to have brought"), "{source}")
        }
        other => panic!("{other:?}"),
    };
    let long = every(Fault::Long);
    with(&path, Backend::Auto, &faulty_buffered(&long), fails, &tensors);
    with(&path, Backend::Require(BackendKind::Buffered), &faulty_buffered(&long), fails, &tensors);
    with(&path, Backend::Require(BackendKind::Direct), &faulty_direct(|| Direct, &long), fails, &tensors);
    with(
        &path,
        Backend::Require(BackendKind::IoUring),
        &faulty_direct(Uring::default, &long),
        fails,
        &tensors,
    );
}

/// Engines whose ring makes up what reads do not bring, on a file system of this kind.
fn stitching(file_system: fn(&FileSource) -> FileSystem) -> Engines {
    let uring = Faulty::new(Uring::on(file_system), every(Fault::Stitched(8192)));
    Engines { uring: Arc::new(uring), ..uncached() }
}

#[test]
fn a_ring_is_not_believed_where_it_may_make_up_what_reads_do_not_bring() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for device in devices() {
        // It does so here: no completion tells.
        let loader = Loader::new(device.clone()).files([&path]).engines(stitching(|_| FileSystem::EXT4));
        let weights = loader.load().unwrap();
        assert!(weights.view("t0").unwrap().to_host().unwrap() != tensors[0].bytes);
        for file_system in [|_: &FileSource| FileSystem::FUSE, |_: &FileSource| FileSystem::UNKNOWN] {
            let loader = Loader::new(device.clone()).files([&path]).engines(stitching(file_system));
            let weights = loader.load().unwrap();
            assert_holds(&weights, &tensors);
            let report = weights.report();
            assert_eq!(report.direct_bytes, report.bytes);
            let choice = report.choices.iter().find(|choice| choice.about == "backend").unwrap();
            assert!(
                choice.picked == "direct" && choice.why.contains("io_uring is not used for"),
                "{choice:?}"
            );
            let loader = Loader::new(device.clone()).files([&path]).engines(stitching(file_system));
            let error = loader.backend(Backend::Require(BackendKind::IoUring)).load().unwrap_err();
            assert!(matches!(error, Error::Backend { .. }), "{error:?}");
            let message = error.to_string();
            assert!(message.contains("io_uring may report bytes that it did not read"), "{message}");
        }
    }
}

/// Has the system answer a system call of this thread, and of those that it starts, with an error.
#[cfg(target_arch = "x86_64")]
fn deny(call: libc::c_long, errno: i32) {
    let code = |code: u32| code as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        // The call's number is the first word of what a filter is given.
        step(code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), 0, 0, 0),
        step(code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K), 0, 1, call as u32),
        step(code(libc::BPF_RET | libc::BPF_K), 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(code(libc::BPF_RET | libc::BPF_K), 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter are valid for the calls, which copy them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn where_a_ring_may_be_made_and_not_entered_auto_reads_directly_and_says_why() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for errno in [libc::EPERM, libc::ENOSYS, libc::EACCES, libc::EAGAIN, libc::EINTR] {
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                deny(libc::SYS_io_uring_enter, errno);
                for device in devices() {
                    let loader = Loader::new(device.clone()).files([&path]).engines(uncached());
                    let weights = loader.load().unwrap();
                    assert_holds(&weights, &tensors);
                    let choices = &weights.report().choices;
                    let direct = |choice: &&crate::report::Choice| {
                        choice.about == "backend" && choice.picked == "direct"
                    };
                    let why = &choices.iter().find(direct).expect("direct reads").why;
                    assert!(why.contains("io_uring is refused"), "{why}");
                    let required = Loader::new(device).files([&path]);
                    let error = required.backend(Backend::Require(BackendKind::IoUring)).load().unwrap_err();
                    assert!(error.to_string().contains("io-uring, which the system refuses"), "{error}");
                }
            });
            load.join().unwrap();
        });
    }
}
