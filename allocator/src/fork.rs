//! Knowing that this process is a forked child.
//!
//! A child has its parent's memory but not its threads: no reaper would ever serve a drop, and a lock that another
//! thread held at the fork stays locked. A handler that runs in the child counts the fork; whoever remembers the count
//! from before sees the difference with one load.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

static FORKS: AtomicU64 = AtomicU64::new(0);

/// The process in which something was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(u64);

impl Process {
    /// This process. The first call installs the handler.
    pub(crate) fn current() -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| {
            extern "C" fn count_fork() {
                FORKS.fetch_add(1, Ordering::Relaxed);
            }
            // Miri knows neither forks nor their handlers.
            if cfg!(miri) {
                return;
            }
            // SAFETY: the handler only increments an atomic, which is safe after fork, and lives as long as the
            // program. On failure (no memory) forks go unseen, as they would without it.
            let code = unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
            if code != 0 {
                tracing::warn!(code, "pthread_atfork failed: drops in forked children will not be ignored");
            }
        });
        Self(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this still is that process, and not a child forked from it.
    pub(crate) fn is_current(self) -> bool {
        self.0 == FORKS.load(Ordering::Relaxed)
    }
}
