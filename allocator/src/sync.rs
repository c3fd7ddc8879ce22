//! What threads share state with: the standard library's, or loom's, which tries the orders in which threads can meet
//! (`tests/loom.rs`). `Arc` is the standard library's in both.

#[cfg(not(loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, atomic};

#[cfg(loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard, atomic};

/// A static of each thread.
#[cfg(not(loom))]
macro_rules! per_thread {
    (static $name:ident: $type:ty = $value:expr;) => {
        std::thread_local! {
            static $name: $type = const { $value };
        }
    };
}

#[cfg(loom)]
pub(crate) use loom::thread_local as per_thread;

/// A static, which in a model is made anew for each order.
#[cfg(not(loom))]
macro_rules! global {
    (static $name:ident: $type:ty = $value:expr;) => {
        static $name: $type = $value;
    };
}

#[cfg(loom)]
macro_rules! global {
    (static $name:ident: $type:ty = $value:expr;) => {
        loom::lazy_static! {
            static ref $name: $type = $value;
        }
    };
}

pub(crate) use global;
#[cfg(not(loom))]
pub(crate) use per_thread;

#[cfg(not(loom))]
mod parker {
    use std::io;
    use std::sync::OnceLock;
    use std::thread::{self, Thread};
    use std::time::Duration;

    /// Where one thread waits until others wake it. A wake that comes before is not lost.
    #[derive(Debug, Default)]
    pub(crate) struct Parker(OnceLock<Thread>);

    impl Parker {
        /// Starts the thread that will wait here.
        pub(crate) fn start(&self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
            let handle = thread::Builder::new().name(name.into()).spawn(run)?;
            // The only `set`; before it there is no one who could want to wake the thread.
            let _ = self.0.set(handle.thread().clone());
            Ok(())
        }

        pub(crate) fn wake(&self) {
            if let Some(thread) = self.0.get() {
                thread.unpark();
            }
        }

        /// Whether this is the thread that waits here.
        pub(crate) fn is_here(&self) -> bool {
            self.0.get().is_some_and(|thread| thread.id() == thread::current().id())
        }

        /// Waits until it is woken, or for no reason.
        pub(crate) fn wait(&self) {
            thread::park();
        }

        /// As [`wait`](Self::wait), but not for longer than this.
        pub(crate) fn wait_timeout(&self, patience: Duration) {
            thread::park_timeout(patience);
        }
    }
}

/// The same of a lock and a condition: loom's own `unpark` also lets a thread go that waits for a lock.
#[cfg(loom)]
mod parker {
    use std::io;
    use std::sync::PoisonError;
    use std::time::Duration;

    use super::{Condvar, Mutex};

    #[derive(Debug, Default)]
    pub(crate) struct Parker {
        woken: Mutex<bool>,
        wake: Condvar,
    }

    impl Parker {
        pub(crate) fn start(&self, _: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
            loom::thread::spawn(run);
            Ok(())
        }

        pub(crate) fn wake(&self) {
            *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.wake.notify_one();
        }

        /// No fence and no memory of the models calls back.
        pub(crate) fn is_here(&self) -> bool {
            false
        }

        pub(crate) fn wait(&self) {
            let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
            while !*woken {
                woken = self.wake.wait(woken).unwrap_or_else(PoisonError::into_inner);
            }
            *woken = false;
        }

        /// Time does not pass in a model: others run instead.
        pub(crate) fn wait_timeout(&self, _: Duration) {
            loom::thread::yield_now();
        }
    }
}

pub(crate) use parker::Parker;
