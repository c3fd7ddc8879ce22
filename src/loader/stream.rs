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
use crate::tensor::Tensor;
use crate::weights::Weights;

/// A load under way, and the tensors that have landed; see [`Loader::stream`](crate::Loader::stream).
///
/// An iterator over the tensors, each given once: as they land or, after [`in_file_order`](Self::in_file_order), in the
/// order of their bytes. An error is the last item. Dropping the stream stops the load and waits for its reads; what
/// has been given stays. If the progress callback panics, so does the call that waits for the load's end. The callback cannot wait for its own
/// load: asked there, the stream stops it and ends.
///
/// A file that changes during the load may be found out after tensors of it have been given: an engine that serves
/// what it was given waits for [`finish`](Self::finish) before it trusts it.
#[derive(Debug)]
pub struct TensorStream {
    tensors: Vec<Tensor>,
    landed: Receiver<usize>,
    control: Arc<Control>,
    /// `None` once it has been waited for.
    load: Option<JoinHandle<Result<Weights>>>,
    weights: Option<Weights>,
    /// In file order: the tensor to give next, and which have landed.
    order: Option<(usize, Vec<bool>)>,
}

impl TensorStream {
    pub(super) fn start(run: Run, mut reserved: Reserved, mut callback: Option<Callback>) -> Result<Self> {
        let (sender, landed) = mpsc::channel();
        let (bases, control) = (reserved.bases(), Arc::clone(&run.control));
        let ready = match run.make(&mut reserved).ready() {
            Ok(ready) => ready,
            Err(error) => return Err(run.failed(reserved, error)),
        };
        let tensors = ready.tensors.iter().cloned().collect();
        let load = move || run.stream(reserved, &bases, ready, callback.as_mut(), sender);
        let thread = thread::Builder::new().name("tensorhold-load".into());
        let load = thread.spawn(load).map_err(|source| Error::Thread { source })?;
        Ok(Self { tensors, landed, control, load: Some(load), weights: None, order: None })
    }

    /// Gives the tensors in the order of their bytes, file by file, from here on.
    pub fn in_file_order(mut self) -> Self {
        self.order = Some((0, vec![false; self.tensors.len()]));
        self
    }

    /// Waits for the rest, and returns all tensors.
    ///
    /// # Errors
    /// What stopped the load, unless the stream has given that error already, or the load's own callback asks; then that it was cancelled.
    pub fn finish(mut self) -> Result<Weights> {
        // The weights own the tensors; these would count as others' handles.
        self.tensors.clear();
        self.join()?;
        self.weights.take().ok_or(Error::Cancelled { done_bytes: 0, total_bytes: 0 })
    }

    /// Waits for the load to end.
    fn join(&mut self) -> Result<()> {
        let Some(load) = self.load.take() else { return Ok(()) };
        if is_own(&load) {
            self.control.stop();
            return Ok(());
        }
        match load.join() {
            Ok(Ok(weights)) => self.weights = Some(weights),
            Ok(Err(error)) => {
                // I4: the last owners of what did not arrive.
                self.tensors.clear();
                return Err(error);
            }
            // The callback panicked: so does its caller.
            Err(panic) => std::panic::resume_unwind(panic),
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
        let receive = |landed: &Receiver<usize>| match until {
            Some(until) => landed.recv_timeout(until.saturating_duration_since(Instant::now())),
            None => landed.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        if self.load.as_ref().is_some_and(is_own) {
            return Err(RecvTimeoutError::Disconnected);
        }
        let Some((next, landed)) = &mut self.order else { return receive(&self.landed) };
        while !*landed.get(*next).ok_or(RecvTimeoutError::Disconnected)? {
            landed[receive(&self.landed)?] = true;
        }
        *next += 1;
        Ok(*next - 1)
    }

    /// A tensor that has landed, or how the load ended.
    fn give(&mut self, landed: Option<usize>) -> Option<Result<Tensor>> {
        let Some(number) = landed else { return self.join().err().map(Err) };
        let tensor = self.tensors.get(number)?;
        // SAFETY: I3: its jobs have landed, and it is given for the first time.
        unsafe { tensor.landed() };
        Some(Ok(tensor.clone()))
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
        self.control.stop();
        if let Some(load) = self.load.take().filter(|load| !is_own(load)) {
            // Its memory is back when this returns, but for what was given.
            let _ = load.join();
        }
    }
}
