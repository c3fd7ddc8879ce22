//! Room for the files that a process may have open.

use std::fs::File;
use std::thread;

use rustix::io::fcntl_dupfd_cloexec;

/// So many open files there is room for afterwards: what most systems allow a process, less a few.
const FILES: i32 = 1000;

/// Has the system make room for more open files than a process begins with, on a thread that no one waits for: a context takes longer to make, but
/// may be there already.
///
/// Linux gives a process a table of 64 or 256, and a larger one when that is full. If the process has several threads by then, whoever opens
/// the next file waits for all processors to pass a quiet state (`synchronize_rcu` in `expand_fdtable`, fs/file.c): 15 to
/// 25 ms, a fifth of what four gigabytes in many files take.
pub(super) fn make_room() {
    let make = || {
        let made = File::open("/dev/null").and_then(|file| Ok(fcntl_dupfd_cloexec(&file, FILES)?));
        if let Err(error) = made {
            tracing::debug!(%error, "no room is made for more open files");
        }
    };
    // Without a thread, those who open many files wait.
    let _ = thread::Builder::new().name("tensorhold-files".into()).spawn(make);
}
