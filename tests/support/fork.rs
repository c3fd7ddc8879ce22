//! Forked children that do one thing and end.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// A child that waits for a thread or a lock that it does not have is ended after so many seconds.
const PATIENCE_SECONDS: u32 = 60;

/// Does `work` in a forked child, without what comes at the end of a process. It has to return there, and in time.
pub fn in_child(work: impl FnOnce()) {
    // SAFETY: the allocator of this program (glibc's) can be used after a fork, and what else the child calls is what is tested. It leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: ends a child that hangs.
        unsafe { libc::alarm(PATIENCE_SECONDS) };
        let done = catch_unwind(AssertUnwindSafe(work));
        if let Err(panic) = &done {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
            let line = format!("in the child: {message}\n");
            // SAFETY: the bytes are there; past the test harness, whose locks may be taken.
            unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
        }
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    let mut status = -1;
    // SAFETY: `status` is valid for the write.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    let ended = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
    assert!(ended, "the child ended with status {status:#x}");
}
