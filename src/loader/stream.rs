//! [`TensorStream`]: tensors as their bytes land.

use std::iter::FusedIterator;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tensorhold_allocator::Reserved;

use super::beside::is_own;
use super::progress::Callback;
use super::run::Run;
use super::work::Control;
use crate::error::{Error, Result};
use crate::fork::OfProcess;
use crate::tensor::Tensor;
use crate::weights::Weights;

/// A load under way, and the tensors that have landed; see [`Loader::stream`](crate::Loader::stream).
///
/// An iterator over the tensors, each given once: as they land or, after [`in_file_order`](Self::in_file_order), in the
/// order of their bytes. An error is the last item. Dropping the stream stops the load and waits for its reads; what
/// has been given stays. If the progress callback panics, so does the call that waits for the load's end. The callback cannot wait for its own
/// load: asked there, the stream stops it and ends. In a forked child, the stream gives an error and ends, and its drop does nothing.
///
/// A file that changes during the load may be found out after tensors of it have been given: an engine that serves
/// what it was given waits for [`finish`](Self::finish) before it trusts it.
#[derive(Debug)]
pub struct TensorStream {
    /// `None` once given.
    tensors: Vec<Option<Tensor>>,
    /// `None` once it has been waited for.
    running: Option<OfProcess<Running>>,
    weights: Option<Weights>,
    order: Option<FileOrder>,
}

/// The load's thread, and what it shares with the stream.
#[derive(Debug)]
struct Running {
    /// Numbers of tensors that have landed.
    landed: Receiver<usize>,
    control: Arc<Control>,
    thread: JoinHandle<Result<Weights>>,
}

/// How far a stream is that gives tensors in the order of their bytes.
#[derive(Debug)]
struct FileOrder {
    /// Of the tensors before this one, all have been given.
    next: usize,
    /// By tensor: whether it has landed and waits to be given.
    landed: Vec<bool>,
}

impl TensorStream {
    /// Begins the load, which takes the callback.
    pub(super) fn start(run: Run, mut reserved: Reserved, callback: &mut Option<Callback>) -> Result<Self> {
        let (sender, landed) = mpsc::channel();
        let (bases, control) = (reserved.bases(), Arc::clone(&run.control));
        let ready = match run.make(&mut reserved).ready() {
            Ok(ready) => ready,
            Err(error) => return Err(run.failed(reserved, error)),
        };
        let tensors = ready.tensors.iter().cloned().map(Some).collect();
        let mut callback = callback.take();
        let load = move || run.stream(reserved, &bases, ready, callback.as_mut(), sender);
        let thread = thread::Builder::new().name("tensorhold-load".into());
        let thread = thread.spawn(load).map_err(|source| Error::Thread { source })?;
        let running = Some(OfProcess::new(Running { landed, control, thread }));
        Ok(Self { tensors, running, weights: None, order: None })
    }

    /// Gives the tensors that have not been given yet in the order of their bytes, file by file.
    pub fn in_file_order(mut self) -> Self {
        let landed = || vec![false; self.tensors.len()];
        self.order.get_or_insert_with(|| FileOrder { next: 0, landed: landed() });
        self
    }

    /// Waits for the rest, and returns all tensors.
    ///
    /// # Errors
    /// What stopped the load, unless the stream has given that error already; that it was cancelled, if the load's own callback asks; that it is the
    /// parent's, in a child that was forked before it had ended.
    pub fn finish(mut self) -> Result<Weights> {
        // The weights own the tensors; these would count as others' handles.
        self.tensors.clear();
        self.join()?;
        self.weights.take().ok_or(Error::Cancelled { done_bytes: 0, total_bytes: 0 })
    }

    /// Waits for the load to end.
    fn join(&mut self) -> Result<()> {
        let Some(running) = &self.running else { return Ok(()) };
        if let Some(running) = running.get().filter(|running| is_own(&running.thread)) {
            running.control.stop();
            return Ok(());
        }
        let Some(Running { thread, .. }) = self.running.take().and_then(OfProcess::into_inner) else {
            return Err(Error::Forked { operation: "wait for a stream of tensors" });
        };
        match thread.join() {
            Ok(Ok(weights)) => self.weights = Some(weights),
            Ok(Err(error)) => {
                // I4: the last owners of what did not arrive.
                self.tensors.clear();
                return Err(error);
            }
            // The callback panicked: so does its caller.
            Err(panic) => {
                self.tensors.clear();
                std::panic::resume_unwind(panic)
            }
        }
        Ok(())
    }

    /// What [`next`](Iterator::next) gives, if that is there within so long; `None` if it is not, and then a later call gives it. For callers that look
    /// at other things while they wait.
    pub fn next_within(&mut self, patience: Duration) -> Option<Option<Result<Tensor>>> {
        // What is later than the clock can say is never.
        match self.next_landed(Instant::now().checked_add(patience)) {
            Err(RecvTimeoutError::Timeout) => None,
            landed => Some(self.give(landed.ok())),
        }
    }

    /// The next tensor that has landed; an error when there are no more, or none until then.
    fn next_landed(&mut self, until: Option<Instant>) -> Result<usize, RecvTimeoutError> {
        let running = self.running.as_ref().and_then(OfProcess::get);
        let running = running.filter(|running| !is_own(&running.thread));
        let Running { landed, .. } = running.ok_or(RecvTimeoutError::Disconnected)?;
        let receive = || match until {
            Some(until) => landed.recv_timeout(until.saturating_duration_since(Instant::now())),
            None => landed.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let Some(order) = &mut self.order else { return receive() };
        // Over what was given before the order was asked for.
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

    /// A tensor that has landed, or how the load ended.
    fn give(&mut self, landed: Option<usize>) -> Option<Result<Tensor>> {
        let Some(number) = landed else { return self.join().err().map(Err) };
        let tensor = self.tensors.get_mut(number)?.take()?;
        // SAFETY: I3: its jobs have landed, and it is given for the first time.
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
        if let Some(Running { control, thread, .. }) = self.running.take().and_then(OfProcess::into_inner) {
            control.stop();
            if !is_own(&thread) {
                // Its memory is back when this returns, but for what was given.
                let _ = thread.join();
            }
        }
    }
}
