//! Locks, atomics and thread-local state: of the standard library, or of loom, whose models try the orders in which threads can
//! run (`tests/loom`). `Arc` is the standard library's in both.

#[cfg(not(loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, atomic};

#[cfg(loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard, atomic};

#[cfg(loom)]
pub(crate) use once_lock::OnceLock;

/// The standard library's type, built from loom's: so models try threads that do not see the value yet.
#[cfg(loom)]
mod once_lock {
    use std::ptr;
    use std::sync::PoisonError;

    use super::Mutex;
    use super::atomic::{AtomicPtr, Ordering};

    #[derive(Debug)]
    pub(crate) struct OnceLock<T> {
        /// A leaked box, or null.
        value: AtomicPtr<T>,
        making: Mutex<()>,
    }

    impl<T> Default for OnceLock<T> {
        fn default() -> Self {
            Self { value: AtomicPtr::new(ptr::null_mut()), making: Mutex::default() }
        }
    }

    impl<T> OnceLock<T> {
        pub(crate) fn get(&self) -> Option<&T> {
            // SAFETY: what is set is a box's, and stays as long as the borrow, since it is taken out by value or mutable reference.
            unsafe { self.value.load(Ordering::Acquire).as_ref() }
        }

        pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
            if let Some(value) = self.get() {
                return value;
            }
            let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            self.get().unwrap_or_else(|| {
                let value = Box::into_raw(Box::new(make()));
                self.value.store(value, Ordering::Release);
                // SAFETY: as in `get`.
                unsafe { &*value }
            })
        }

        pub(crate) fn into_inner(mut self) -> Option<T> {
            self.take()
        }

        fn take(&mut self) -> Option<T> {
            let value = self.value.with_mut(|value| std::mem::replace(value, ptr::null_mut()));
            // SAFETY: it is a box's, which no one else has now.
            (!value.is_null()).then(|| *unsafe { Box::from_raw(value) })
        }
    }

    impl<T> Drop for OnceLock<T> {
        fn drop(&mut self) {
            self.take();
        }
    }
}

/// Orders what other threads did before they decremented the count, whose last value this thread has read, before what follows.
#[cfg(not(tsan))]
pub(crate) fn acquire(_: &atomic::AtomicUsize) {
    atomic::fence(atomic::Ordering::Acquire);
}

/// The same by a load: the thread sanitizer does not support fences.
#[cfg(tsan)]
pub(crate) fn acquire(count: &atomic::AtomicUsize) {
    count.load(atomic::Ordering::Acquire);
}

/// A thread-local static.
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

/// A static; in a loom model, each execution has a new one.
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

    /// A place where one thread waits until others wake it. A wake before the wait is not lost.
    #[derive(Debug, Default)]
    pub(crate) struct Parker(OnceLock<Thread>);

    impl Parker {
        /// Starts the thread that will wait here.
        pub(crate) fn start(&self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
            let handle = thread::Builder::new().name(name.into()).spawn(run)?;
            // The only `set`; before it, nothing wakes the thread.
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

        /// Waits until it is woken. May return spuriously.
        pub(crate) fn wait(&self) {
            thread::park();
        }

        /// As [`wait`](Self::wait), up to a timeout.
        pub(crate) fn wait_timeout(&self, patience: Duration) {
            thread::park_timeout(patience);
        }
    }
}

/// The same from a mutex and a condition variable: loom's `unpark` also wakes a thread that waits for a lock.
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

        /// No fence or memory of the models calls back.
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

        /// Time does not pass in a model: other threads run instead.
        pub(crate) fn wait_timeout(&self, _: Duration) {
            loom::thread::yield_now();
        }
    }
}

pub(crate) use parker::Parker;
