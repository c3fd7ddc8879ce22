//! [`TensorStream`]: tensors in the order in which their bytes arrive.

use std::iter::FusedIterator;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tensorhold_allocator::Reserved;

use super::execute::ReservedLoad;
use super::parallel::is_current;
use super::progress::Callback;
use crate::error::{Error, Result};
use crate::fork::OfProcess;
use crate::loader::pipeline::LoadControl;
use crate::tensor::Tensor;
use crate::weights::Weights;

/// A load in progress, and the tensors that have arrived; see [`Loader::stream`](crate::Loader::stream).
///
/// An iterator that returns each tensor once: as it arrives or, after [`in_file_order`](Self::in_file_order),
/// in the order of the bytes in the files. An error is the last item. Dropping the stream stops the load and
/// waits for its reads; returned tensors stay. If the progress callback panics, so does the call that waits
/// for the end of the load. The callback cannot wait for its own load: a call of `next` there stops the load
/// and ends the stream. In a forked child, the stream returns an error and ends, and its drop does nothing.
///
/// A change of a file during the load may be detected after tensors of it have been returned. A server that
/// uses them should wait for [`finish`](Self::finish) before it trusts them.
#[derive(Debug)]
pub struct TensorStream {
    /// `None` once returned.
    tensors: Vec<Option<Tensor>>,
    /// `None` once the thread has been joined.
    running: Option<OfProcess<StreamThread>>,
    weights: Option<Weights>,
    order: Option<FileOrder>,
}

/// The thread of the load, and the state that it shares with the stream.
#[derive(Debug)]
struct StreamThread {
    /// Numbers of tensors that have landed.
    landed: Receiver<usize>,
    control: Arc<LoadControl>,
    thread: JoinHandle<Result<Weights>>,
}

/// The position of a stream in file order.
#[derive(Debug)]
struct FileOrder {
    /// All tensors before this one have been returned.
    next: usize,
    /// By tensor: whether it has landed.
    landed: Vec<bool>,
}

impl TensorStream {
    /// Starts the load, and takes the callback.
    ///
    /// # Errors
    /// When the tensors cannot be built, which leaves the callback in place, or no thread can be started.
    pub(super) fn start(
        load: ReservedLoad,
        mut reserved: Reserved,
        callback: &mut Option<Callback>,
    ) -> Result<Self> {
        let (sender, landed) = mpsc::channel();
        let (bases, control) = (reserved.bases(), Arc::clone(&load.control));
        let ready = match load.build_tensors(&mut reserved).ready() {
            Ok(ready) => ready,
            Err(error) => return Err(load.failed(reserved, error)),
        };
        let tensors = ready.tensors.iter().cloned().map(Some).collect();
        let mut callback = callback.take();
        let fill = move || load.stream(reserved, &bases, ready, callback.as_mut(), sender);
        let thread = thread::Builder::new().name("tensorhold-load".into());
        let thread = thread.spawn(fill).map_err(|source| Error::Thread { source })?;
        let running = Some(OfProcess::new(StreamThread { landed, control, thread }));
        Ok(Self { tensors, running, weights: None, order: None })
    }

    /// Returns the remaining tensors in the order of their bytes, file by file.
    pub fn in_file_order(mut self) -> Self {
        let landed = || vec![false; self.tensors.len()];
        self.order.get_or_insert_with(|| FileOrder { next: 0, landed: landed() });
        self
    }

    /// Waits for the end of the load, and returns all tensors.
    ///
    /// # Errors
    /// The error that stopped the load, unless the stream has returned it already. [`Error::Cancelled`], if
    /// the load's own callback calls this. [`Error::Forked`], in a child that was forked before the load
    /// ended.
    pub fn finish(mut self) -> Result<Weights> {
        // These handles would count as other owners of the weights' tensors.
        self.tensors.clear();
        self.join()?;
        self.weights.take().ok_or(Error::Cancelled { done_bytes: 0, total_bytes: 0 })
    }

    /// Waits for the end of the load.
    fn join(&mut self) -> Result<()> {
        let Some(running) = &self.running else { return Ok(()) };
        if let Some(running) = running.get().filter(|running| is_current(&running.thread)) {
            running.control.stop();
            return Ok(());
        }
        let Some(StreamThread { thread, .. }) = self.running.take().and_then(OfProcess::into_inner) else {
            return Err(Error::Forked { operation: "wait for a stream of tensors" });
        };
        match thread.join() {
            Ok(Ok(weights)) => self.weights = Some(weights),
            Ok(Err(error)) => {
                // I4: these are the last owners of tensors that have not arrived.
                self.tensors.clear();
                return Err(error);
            }
            // A panic of the callback propagates to the caller.
            Err(panic) => {
                self.tensors.clear();
                std::panic::resume_unwind(panic)
            }
        }
        Ok(())
    }

    /// Waits up to `timeout` for the item of [`next`](Iterator::next); `None` if it does not arrive in time,
    /// and a later call returns it. For callers that do other work while they wait.
    pub fn next_within(&mut self, timeout: Duration) -> Option<Option<Result<Tensor>>> {
        // A deadline beyond the range of the clock is none.
        match self.next_landed(Instant::now().checked_add(timeout)) {
            Err(RecvTimeoutError::Timeout) => None,
            landed => Some(self.give(landed.ok())),
        }
    }

    /// The next tensor that has landed. An error if there are no more, or none by the deadline.
    fn next_landed(&mut self, deadline: Option<Instant>) -> Result<usize, RecvTimeoutError> {
        let running = self.running.as_ref().and_then(OfProcess::get);
        let running = running.filter(|running| !is_current(&running.thread));
        let StreamThread { landed, .. } = running.ok_or(RecvTimeoutError::Disconnected)?;
        let receive = || match deadline {
            Some(deadline) => landed.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            None => landed.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let Some(order) = &mut self.order else { return receive() };
        // Skips tensors that were returned before.
        while self.tensors.get(order.next).ok_or(RecvTimeoutError::Disconnected)?.is_none() {
            order.next += 1;
        }
        while !order.landed.get(order.next).copied().unwrap_or_default() {
            let number = receive()?;
            if let Some(landed) = order.landed.get_mut(number) {
                *landed = true;
            }
        }
        Ok(order.next)
    }

    /// Returns a tensor that has landed, or the error that ended the load.
    fn give(&mut self, landed: Option<usize>) -> Option<Result<Tensor>> {
        let Some(number) = landed else { return self.join().err().map(Err) };
        let tensor = self.tensors.get_mut(number)?.take()?;
        // SAFETY: I3: its jobs have landed, and it is returned for the first time.
        unsafe { tensor.landed() };
        Some(Ok(tensor))
    }
}

impl Iterator for TensorStream {
    type Item = Result<Tensor>;

    fn next(&mut self) -> Option<Result<Tensor>> {
        let landed = self.next_landed(None).ok();
        self.give(landed)
    }
}

impl FusedIterator for TensorStream {}

impl Drop for TensorStream {
    fn drop(&mut self) {
        if let Some(StreamThread { control, thread, .. }) =
            self.running.take().and_then(OfProcess::into_inner)
        {
            control.stop();
            if !is_current(&thread) {
                // All memory is freed when this returns, except that of returned tensors.
                let _ = thread.join();
            }
        }
    }
}
