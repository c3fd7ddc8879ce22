//! [`Weights`]: what a load returns.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tensorhold_allocator::{Closed, Held, Pool, StillHeld};

use crate::error::{Error, Result};
use crate::names::Names;
use crate::report::Report;
use crate::tensor::{Tensor, TensorInfo, TensorView, TensorViewMut};

/// The free-form strings that a safetensors file may carry in its header.
pub type Metadata = BTreeMap<String, String>;

/// Tensors in their order, and by name.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    tensors: Vec<Tensor>,
    names: Names,
}

impl Named {
    /// `names` has the numbers of the tensors.
    pub(crate) fn new(tensors: Vec<Tensor>, names: Names) -> Self {
        Self { tensors, names }
    }

    fn number(&self, name: &str) -> Option<usize> {
        self.names.find(name, |number| self.tensors[number].name())
    }

    fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(self.number(name)?)
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut Tensor> {
        let number = self.number(name)?;
        self.tensors.get_mut(number)
    }
}

impl Deref for Named {
    type Target = [Tensor];

    fn deref(&self) -> &[Tensor] {
        &self.tensors
    }
}

/// The loaded tensors of a checkpoint.
///
/// Views borrow from here, so neither [`close`](Self::close) nor a drop compiles while one lives:
///
/// ```compile_fail
/// # let weights = tensorhold::Loader::new(tensorhold::Device::host()).load()?;
/// let view = weights.view("model.norm.weight")?;
/// weights.close(); // cannot move out of `weights` because it is borrowed
/// println!("{view:?}");
/// # Ok::<(), tensorhold::Error>(())
/// ```
#[derive(Debug)]
pub struct Weights {
    tensors: Named,
    metadata: BTreeMap<PathBuf, Option<Arc<Metadata>>>,
    report: Report,
    pool: Pool,
    /// The pool was made for these weights alone, and closes with them.
    owns_pool: bool,
}

impl Weights {
    pub(crate) fn new(
        tensors: Named,
        metadata: BTreeMap<PathBuf, Option<Arc<Metadata>>>,
        report: Report,
        pool: Pool,
        owns_pool: bool,
    ) -> Self {
        Self { tensors, metadata, report, pool, owns_pool }
    }

    /// From now on the pool does not close with these weights.
    pub(crate) fn share_pool(&mut self) {
        self.owns_pool = false;
    }

    /// These weights with some tensors replaced by their namesakes; the others are shared. The report is that of the
    /// replacements.
    ///
    /// # Errors
    /// When a replacement has no namesake here, or one of another type or shape.
    pub(crate) fn with(&self, some: Weights) -> Result<Weights> {
        let mut tensors = self.tensors.clone();
        for tensor in some.tensors.tensors {
            let old = tensors.get_mut(tensor.name()).ok_or_else(|| self.unknown(tensor.name()))?;
            if (old.dtype(), old.shape()) != (tensor.dtype(), tensor.shape()) {
                let (got, expected) = (tensor.info().spelled(), old.info().spelled());
                return Err(old.view().error(
                    "replace",
                    got,
                    expected,
                    "convert it, or reload all of the checkpoint",
                ));
            }
            *old = tensor;
        }
        let mut metadata = self.metadata.clone();
        metadata.extend(some.metadata);
        Ok(Weights::new(tensors, metadata, some.report, self.pool.clone(), false))
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The names, file by file in the order of their bytes.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(Tensor::name)
    }

    /// The tensors, in the order of [`names`](Self::names).
    pub fn iter(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.tensors.iter().map(Tensor::view)
    }

    /// What a tensor is, if there is one of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(Tensor::info)
    }

    /// Borrows a tensor.
    ///
    /// # Errors
    /// When there is none of that name; the error names the nearest.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>> {
        Ok(self.get(name)?.view())
    }

    /// An owner of a tensor, which keeps the tensor's bytes beyond the weights.
    ///
    /// # Errors
    /// When there is none of that name; the error names the nearest.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.get(name).cloned()
    }

    /// Borrows a tensor for writing; `None` while someone else owns it too.
    ///
    /// # Errors
    /// When there is none of that name; the error names the nearest.
    pub fn get_mut(&mut self, name: &str) -> Result<Option<TensorViewMut<'_>>> {
        match self.tensors.number(name) {
            Some(number) => Ok(self.tensors.tensors[number].get_mut()),
            None => Err(self.unknown(name)),
        }
    }

    /// The files that were loaded, by the paths that they were opened under, sorted.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.metadata.keys().map(PathBuf::as_path)
    }

    /// The strings in a file's header, by the path that it was opened under. `None` when the header has no `__metadata__`, and for a file that is
    /// not among [`files`](Self::files).
    pub fn metadata(&self, file: impl AsRef<Path>) -> Option<&Metadata> {
        self.metadata.get(file.as_ref())?.as_deref()
    }

    /// How the load went.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The pool that the tensors are in.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Gives back every tensor that no one else owns, waits until that is done, and says what is still held: its
    /// memory goes when its last owner does. A pool of the weights' own closes with them.
    ///
    /// `released_bytes` and `held` speak of tensors: together they are all that was loaded. `pinned_bytes` are those of
    /// the regions that what is held keeps reserved, and `pending_bytes` what a device may still be using; both 0 with a pool that other weights share.
    /// A forked child gives nothing back: what its parent loaded is all held.
    pub fn close(self) -> Closed {
        let mut closed = Closed::default();
        if !self.pool.is_of_this_process() {
            let infos = self.tensors.iter().map(Tensor::info);
            closed.held =
                infos.map(|info| Held { name: Arc::clone(&info.name), bytes: info.nbytes }).collect();
            return closed;
        }
        for tensor in self.tensors.tensors {
            let bytes = tensor.nbytes();
            match tensor.release() {
                None => closed.released_bytes += bytes,
                Some(held) => closed.held.push(Held { name: Arc::clone(&held.info.name), bytes }),
            }
        }
        if self.owns_pool {
            let pool = self.pool.close();
            (closed.pinned_bytes, closed.pending_bytes) = (pool.pinned_bytes, pool.pending_bytes);
        } else {
            self.pool.trim();
        }
        closed
    }

    /// Closes the weights if no one else owns a tensor of theirs, and gives them back as they are otherwise.
    ///
    /// # Errors
    /// When a tensor is held, or a part of one.
    pub fn try_close(self) -> std::result::Result<Closed, Box<StillHeld<Self>>> {
        let held = self.tensors.iter().filter(|tensor| tensor.is_shared()).map(Tensor::info);
        let held = held.map(|info| Held { name: Arc::clone(&info.name), bytes: info.nbytes });
        let held: Vec<Held> = held.collect();
        if held.is_empty() {
            // No one can become an owner but through these weights.
            return Ok(self.close());
        }
        let asks = self.owns_pool && self.pool.is_of_this_process();
        let pinned_bytes = if asks { self.pool.stats().reserved_bytes } else { 0 };
        Err(Box::new(StillHeld::new(self, held, pinned_bytes)))
    }

    /// The tensors, each its own owner now, in the order of [`names`](Self::names). A pool of the weights' own goes when the last of them has gone.
    pub fn into_tensors(self) -> impl ExactSizeIterator<Item = Tensor> {
        self.tensors.tensors.into_iter()
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> Error {
        Error::unknown_tensor(name, self.names(), self.len())
    }
}
