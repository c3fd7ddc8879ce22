//! [`Loader`]: the files of a load, and its options, chained by value.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

use tensorhold_allocator::{Pool, RegionParts};
use tensorhold_kernels::Overflow;

use super::checkpoint::Checkpoint;
use super::options::Options;
use super::progress::{Callback, Progress};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::format::Named;
use crate::io::Backend;
use crate::loader::metadata;
use crate::loader::transform::{Cut, CutReads, DTYPES, Rule, TransformOn};
use crate::tensor::TensorInfo;

/// Loads checkpoints onto a device. Options are chained by value; [`load`](Self::load) loads the tensors.
///
/// ```no_run
/// use tensorhold::{Device, Loader};
///
/// let weights = Loader::new(Device::host())
///     .checkpoint("llama/")?
///     .select(|tensor| !tensor.name.starts_with("vision."))
///     .load()?;
/// println!("{:.1} GB/s", weights.report().gigabytes_per_second());
/// # Ok::<(), tensorhold::Error>(())
/// ```
#[must_use = "nothing is loaded before `load` is called"]
pub struct Loader {
    pub(super) device: Device,
    /// A checkpoint that was opened before.
    pub(super) opened: Option<Checkpoint>,
    pub(super) named: Vec<Named>,
    pub(super) options: Options,
    pub(super) callback: Option<Callback>,
    /// The callback ignores the progress.
    pub(super) only_interrupts: bool,
}

impl Loader {
    /// A loader onto `device`, with no files yet.
    pub fn new(device: Device) -> Self {
        Self {
            device,
            opened: None,
            named: Vec::new(),
            options: Options::default(),
            callback: None,
            only_interrupts: false,
        }
    }

    /// A loader of an open checkpoint.
    fn of(checkpoint: &Checkpoint) -> Self {
        let device = checkpoint.device().clone();
        let (opened, options) = (Some(checkpoint.clone()), checkpoint.options().clone());
        Self { device, opened, named: Vec::new(), options, callback: None, only_interrupts: false }
    }

    /// Adds safetensors files. Their errors come from [`load`](Self::load).
    pub fn files(mut self, files: impl IntoIterator<Item: AsRef<Path>>) -> Self {
        let files = files.into_iter().map(|file| file.as_ref().to_path_buf());
        self.named.push(Named::Files(files.collect()));
        self
    }

    /// Adds the files of a checkpoint: a directory, an index (`.json`), or a single safetensors file. Links
    /// are followed.
    ///
    /// From a directory, one set of weights is loaded (`docs/checkpoints.md` has the full rules): the set
    /// with a well-known name (`model`, then `diffusion_pytorch_model`, ..., `consolidated`, and adapters
    /// last), without a variant unless [`variant`](Self::variant) requests one. An index decides which files
    /// are in the set. Without an index, the set of shards (`model-00001-of-00002.safetensors`) has to be
    /// complete. If no name is well-known, all other files are loaded together. Names that begin with a dot
    /// are ignored. The [report](crate::Report::left_out) lists the files that are left out.
    ///
    /// # Errors
    /// When the path is missing or cannot be read, or a directory holds no weights. Other errors come from
    /// [`load`](Self::load) and the other calls that read: several sets without precedence, an incomplete
    /// set, an invalid index or file.
    pub fn checkpoint(mut self, path: impl AsRef<Path>) -> Result<Self> {
        self.named.push(metadata::with_descriptors(|| Named::resolve(path.as_ref()))?);
        Ok(self)
    }

    /// The types that [`dtype`](Self::dtype) and [`dtype_by`](Self::dtype_by) can convert to.
    pub const DTYPES: [DType; 5] = DTYPES;

    /// Loads this variant of the weights from directories, such as `fp16` for `model.fp16.safetensors`, its
    /// shards or their index. A directory without the variant is an error, which lists the existing variants.
    /// The name of a file or index that is passed itself has to contain the variant. Default: the weights
    /// without a variant, or the only variant.
    ///
    /// An empty name, or one with a `/`, is an [`Error::Option`](crate::Error::Option) of the call that
    /// reads.
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.options.variant = Some(variant.into());
        self
    }

    /// Loads only the tensors that `wanted` accepts. It is called for each tensor after the headers are
    /// parsed, before the bytes of any tensor are read; for a checkpoint that is [opened](Self::open), at
    /// that time only. Default: all tensors.
    pub fn select(mut self, wanted: impl Fn(&TensorInfo) -> bool + Send + 'static) -> Self {
        self.options.select = Some(Rule::new(wanted));
        self
    }

    /// Converts all tensors of F64, F32, F16 and BF16 to this type while loading: one of F32, F16, BF16,
    /// F8_E4M3 and F8_E5M2. Integers, booleans and types quantized to eight bits or fewer are not converted,
    /// since they are indexes or have scales. [`dtype_by`](Self::dtype_by) converts those too, and takes
    /// precedence. `docs/kernels.md` specifies the rounding.
    ///
    /// ```
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let file = folder.path().join("model.safetensors");
    /// # let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    /// # let data = [1.5_f32, -2.0].map(f32::to_le_bytes).concat();
    /// # std::fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
    /// use tensorhold::{DType, Device, Loader};
    ///
    /// let weights = Loader::new(Device::host()).files([file]).dtype(DType::BF16).load()?;
    /// assert_eq!(weights.view("w")?.dtype(), DType::BF16);
    /// assert_eq!(weights.view("w")?.to_host()?, [0xc0, 0x3f, 0x00, 0xc0]);
    /// # Ok::<(), tensorhold::Error>(())
    /// ```
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.options.transform.dtype = Some(dtype);
        self
    }

    /// Converts each tensor to the type that the rule returns, while loading. If it returns `None`,
    /// [`dtype`](Self::dtype) applies. The rule is called with the selected tensors as described in their
    /// files, before the bytes of any tensor are read. A pair of types without a conversion is an error at
    /// that time.
    ///
    /// The rule of a checkpoint that is [opened](Self::open) is called at that time, and again by each load
    /// from it, by one load at a time. It must not load from that checkpoint itself, nor wait for a thread
    /// that does: that would be a deadlock.
    pub fn dtype_by(mut self, rule: impl Fn(&TensorInfo) -> Option<DType> + Send + 'static) -> Self {
        self.options.transform.dtype_rule = Some(Rule::new(rule));
        self
    }

    /// The result for values that are too large for an 8-bit float. Default: that of torch.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.options.transform.overflow = overflow;
        self
    }

    /// Counts the values of each converted tensor that are out of range of the new type, and NaN:
    /// [`Report::converted`](crate::Report::converted). This makes the load slightly slower.
    pub fn count_conversions(mut self) -> Self {
        self.options.transform.counts = true;
        self
    }

    /// Loads part `rank` of `world` equal parts of a tensor, along dimension `dim`: the same as
    /// [`cut`](Self::cut) with [`Cut::shard`].
    pub fn shard(self, name: impl Into<String>, dim: usize, rank: usize, world: usize) -> Self {
        self.cut(name, Cut::shard(dim, rank, world))
    }

    /// Loads `length` elements of a tensor along dimension `dim`, from `start` on: the same as
    /// [`cut`](Self::cut) with [`Cut::narrow`].
    pub fn narrow(self, name: impl Into<String>, dim: usize, start: usize, length: usize) -> Self {
        self.cut(name, Cut::narrow(dim, start, length))
    }

    /// Loads a part of a tensor, and reads little of the rest. The part is dense, as any tensor, and the
    /// tensor's [description](TensorInfo) is that of the part. Several cuts are applied in the order of the
    /// calls, before a conversion. A tensor or a part that does not exist is an error before the bytes of any
    /// tensor are read.
    pub fn cut(mut self, name: impl Into<String>, cut: Cut) -> Self {
        self.options.transform.cuts.add(name.into(), cut);
        self
    }

    /// Loads a part of each tensor for which the rule returns cuts: an `Option` of one, or several, which are
    /// applied in order. The rule is called with the selected tensors as described in their files. Otherwise
    /// as [`cut`](Self::cut).
    ///
    /// As with [`dtype_by`](Self::dtype_by), the rule must not load from the checkpoint that it belongs to.
    pub fn cut_by<C: IntoIterator<Item = Cut>>(
        mut self,
        rule: impl Fn(&TensorInfo) -> C + Send + 'static,
    ) -> Self {
        let rule = move |tensor: &TensorInfo| rule(tensor).into_iter().collect();
        self.options.transform.cuts.add_rule(Rule::new(rule));
        self
    }

    /// Where tensors are converted, and gathered from whole rows. The result is the same. Default: on the
    /// device if its driver has transforms, else on the CPU.
    pub fn transform_on(mut self, place: TransformOn) -> Self {
        self.options.transform.transform_on = place;
        self
    }

    /// How parts of rows are read through the page cache. The result is the same. Default: the faster way,
    /// chosen for each tensor.
    pub fn cut_reads(mut self, reads: CutReads) -> Self {
        self.options.transform.cut_reads = reads;
        self
    }

    /// Number of reader threads, 1 to 1024. Default: one for each core, at most 16. Loads onto a device leave
    /// an eighth of the cores to copies, unless the files are on tmpfs, whose small pages take longer to
    /// read.
    pub fn threads(mut self, threads: usize) -> Self {
        self.options.threads = Some(threads);
        self
    }

    /// The most staging memory of all threads together, in bytes; at least 128 KiB. Default: 64 MiB. Loads
    /// that read in place use none.
    pub fn staging_bytes(mut self, bytes: u64) -> Self {
        self.options.staging_bytes = Some(bytes);
        self
    }

    /// The most device memory that the load may take, in bytes: its tensors, including alignment padding, and
    /// cuFile's scratch. A load that would take more is an error before the bytes of any tensor are read. If
    /// only cuFile's scratch exceeds the budget, other readers replace cuFile. [Batches](Self::batches) are
    /// planned to fit. Default: no limit.
    ///
    /// The budget applies to this load, and counts its tensors wherever in the pool they are placed. The
    /// limit of a [pool](Self::pool) applies to all users of the pool together. A load has to be within both.
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.options.memory_budget = Some(bytes);
        self
    }

    /// Calls `progress` on the thread that called [`load`](Self::load): before the first byte, as bytes
    /// arrive, and at the end. Breaking cancels the load, which then frees its memory and returns
    /// [`Error::Cancelled`](crate::Error::Cancelled). If the callback panics, so does the load, after its
    /// readers have ended. If several files hold a tensor and a long index names one of them, the load may
    /// detect that late and start again; the count then restarts. A process that the callback forks has no
    /// readers: it must exit or execute another program without returning from the callback.
    pub fn progress(mut self, progress: impl FnMut(&Progress) -> ControlFlow<()> + Send + 'static) -> Self {
        self.callback = Some(Box::new(progress));
        self.only_interrupts = false;
        self
    }

    /// Calls `interrupted` whenever [`progress`](Self::progress) would be called, and cancels the load when
    /// it returns `true`. It receives no progress, so a load may start with files that their index has not
    /// confirmed yet. The last call of `progress` or `interrupt` takes effect.
    pub fn interrupt(mut self, mut interrupted: impl FnMut() -> bool + Send + 'static) -> Self {
        let ask = move |_: &Progress| {
            if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        self.callback = Some(Box::new(ask));
        self.only_interrupts = true;
        self
    }

    /// Places the tensors in this pool, which must be over the device's memory. Loads that share a pool share
    /// its limit and statistics. Default: a new pool, which the weights own.
    pub fn pool(mut self, pool: &Pool) -> Self {
        self.options.pool = Some(pool.clone());
        self
    }

    /// Whether a pool that the load makes returns memory to the device tensor by tensor, or region by region
    /// when all of its tensors have been dropped. Default: region by region. Does not apply to a
    /// [pool](Self::pool) of the caller.
    pub fn region_parts(mut self, parts: RegionParts) -> Self {
        self.options.region_parts = parts;
        self
    }

    /// Takes staging memory from this pool, which must be over the device's [staging
    /// memory](crate::Device::staging_memory). The bytes that the pool
    /// [retains](crate::allocator::PoolBuilder::retain_bytes) stay pinned for the next load. Default: memory
    /// of the load, freed at its end.
    pub fn staging(mut self, pool: &Pool) -> Self {
        self.options.staging = Some(pool.clone());
        self
    }

    /// Takes cuFile's scratch from this pool, which must be over [`gds_memory`](crate::gds_memory) of the
    /// device. The bytes that the pool [retains](crate::allocator::PoolBuilder::retain_bytes) stay registered
    /// for the next load. Default: memory of the load, registered once and freed at its end.
    pub fn scratch(mut self, pool: &Pool) -> Self {
        self.options.scratch = Some(pool.clone());
        self
    }

    /// How files are read. Default: the value of `TENSORHOLD_BACKEND`, or [`Backend::Auto`].
    pub fn backend(mut self, backend: Backend) -> Self {
        self.options.backend = Some(backend);
        self
    }

    /// Reads with other engines.
    #[cfg(test)]
    pub(super) fn engines(mut self, engines: crate::io::Engines) -> Self {
        self.options.engines = engines;
        self
    }
}

impl Checkpoint {
    /// A loader of the checkpoint's tensors with the options that it was opened with: for whole loads,
    /// streams and batches, and with other options. Files that are added to the loader are opened by its
    /// load.
    pub fn loader(&self) -> Loader {
        Loader::of(self)
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("device", &self.device)
            .field("named", &self.named)
            .finish_non_exhaustive()
    }
}
