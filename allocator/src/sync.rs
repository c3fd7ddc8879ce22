//! What threads share state with: the standard library's, or loom's, which tries the orders in which threads can meet
//! (`tests/loom`). `Arc` is the standard library's in both.

#[cfg(not(loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, atomic};

#[cfg(loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard, atomic};

#[cfg(loom)]
pub(crate) use once_lock::OnceLock;

/// The standard library's, of what loom knows: so that it tries threads that do not see yet that there is a value.
#[cfg(loom)]
mod once_lock {
    use std::ptr;
    use std::sync::PoisonError;

    use super::Mutex;
    use super::atomic::{AtomicPtr, Ordering};

    #[derive(Debug)]
    pub(crate) struct OnceLock<T> {
        /// From a box, or null.
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

/// What happened before others let go of the count, whose last value this thread has read, happens before what follows.
#[cfg(not(tsan))]
pub(crate) fn acquire(_: &atomic::AtomicUsize) {
    atomic::fence(atomic::Ordering::Acquire);
}

/// The same by a read: the thread sanitizer does not know fences.
#[cfg(tsan)]
pub(crate) fn acquire(count: &atomic::AtomicUsize) {
    count.load(atomic::Ordering::Acquire);
}

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
