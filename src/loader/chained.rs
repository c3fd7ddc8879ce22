//! The options of a load, chained by value.

use std::ops::ControlFlow;

use tensorhold_allocator::{Pool, RegionParts};
use tensorhold_kernels::Overflow;

use super::Loader;
use super::asked::{CutReads, TransformOn};
use super::cut::Cut;
use super::progress::Progress;
use super::rule::Rule;
use crate::dtype::DType;
use crate::io::Backend;
use crate::tensor::TensorInfo;

impl Loader {
    /// The types that [`dtype`](Self::dtype) and [`dtype_by`](Self::dtype_by) convert to.
    pub const DTYPES: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::F8_E4M3, DType::F8_E5M2];

    /// Loads the weights of this variant from directories: `fp16` of `model.fp16.safetensors`, say, of its shards or their index. A directory that has
    /// none is an error, which lists the variants that are there. A file or index that is named itself has to be of this variant by its name.
    /// Default: the weights without a variant, or those of the only variant that is there.
    ///
    /// An empty name, and one with a `/`, is an [`Error::Option`](crate::Error::Option) of the call that reads.
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.options.variant = Some(variant.into());
        self
    }

    /// Loads only the tensors that `wanted` accepts. It is asked about each tensor when the headers are known, before any tensor's bytes are read; for a
    /// checkpoint that is [opened](Self::open), then and not again. Default: all.
    pub fn select(mut self, wanted: impl Fn(&TensorInfo) -> bool + Send + 'static) -> Self {
        self.options.select = Some(Rule::new(wanted));
        self
    }

    /// Converts floats to this type, one of F32, F16, BF16, F8_E4M3 and F8_E5M2, on their way: all tensors of F64, F32, F16 and BF16. Integers,
    /// booleans and what is quantized to eight bits or fewer stay as they are, since they are indexes, or have scales;
    /// [`dtype_by`](Self::dtype_by) converts those, too, and is asked first. `docs/kernels.md` says how numbers are rounded.
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
        self.options.asked.dtype = Some(dtype);
        self
    }

    /// Converts each tensor to the type that the rule gives, on its way. Where it gives none, [`dtype`](Self::dtype) decides. The rule is given the
    /// selected tensors as their files have them, before any tensor's bytes are read; a pair of types without a conversion is an error then.
    ///
    /// The rule of a checkpoint that is [opened](Self::open) is asked then, and again by each load from it, by one at a time. It must not itself load
    /// from that checkpoint, nor wait for a thread that does: the load would wait for the rule, and the rule for the load.
    pub fn dtype_by(mut self, rule: impl Fn(&TensorInfo) -> Option<DType> + Send + 'static) -> Self {
        self.options.asked.dtype_rule = Some(Rule::new(rule));
        self
    }

    /// What becomes of values that are too large for an 8-bit float. Default: what torch does.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.options.asked.overflow = overflow;
        self
    }

    /// Counts, for each converted tensor, the values that are out of the new type's range, and NaN: [`Report::converted`](crate::Report::converted).
    /// That costs some time.
    pub fn count_conversions(mut self) -> Self {
        self.options.asked.counts = true;
        self
    }

    /// Loads part `rank` of `world` equal parts of a tensor, along dimension `dim`: the same as [`cut`](Self::cut) with [`Cut::shard`].
    pub fn shard(self, name: impl Into<String>, dim: usize, rank: usize, world: usize) -> Self {
        self.cut(name, Cut::shard(dim, rank, world))
    }

    /// Loads `length` elements of a tensor along dimension `dim`, from `start` on: the same as [`cut`](Self::cut) with [`Cut::narrow`].
    pub fn narrow(self, name: impl Into<String>, dim: usize, start: usize, length: usize) -> Self {
        self.cut(name, Cut::narrow(dim, start, length))
    }

    /// Loads a part of a tensor. Of the rest no more is read than is in the way. Parts are dense, as any tensor, and the tensor's
    /// [description](TensorInfo) is that of the part. Cuts are made one after the other, in the order in which they were asked for, and before a
    /// conversion. A name that no tensor has is an error, and so is a part that the tensor does not have, before any tensor's bytes are read.
    pub fn cut(mut self, name: impl Into<String>, cut: Cut) -> Self {
        self.options.asked.cuts.add(name.into(), cut);
        self
    }

    /// Loads a part of each tensor that the rule gives cuts for: an `Option` of one, or several, which are made one after the other. The
    /// rule is given the selected tensors as their files have them. As [`cut`](Self::cut) otherwise.
    ///
    /// As with [`dtype_by`](Self::dtype_by), the rule must not load from the checkpoint that it was given to.
    pub fn cut_by<C: IntoIterator<Item = Cut>>(
        mut self,
        rule: impl Fn(&TensorInfo) -> C + Send + 'static,
    ) -> Self {
        let rule = move |tensor: &TensorInfo| rule(tensor).into_iter().collect();
        self.options.asked.cuts.add_rule(Rule::new(rule));
        self
    }

    /// Where tensors are converted, and gathered from rows that are read as a whole. The bytes are the same. Default: on the device, where its
    /// driver has transforms, else on the CPU.
    pub fn transform_on(mut self, place: TransformOn) -> Self {
        self.options.asked.transform_on = place;
        self
    }

    /// How what is cut out of rows is read through the page cache. The bytes are the same. Default: tensor by tensor the quicker way.
    pub fn cut_reads(mut self, reads: CutReads) -> Self {
        self.options.asked.cut_reads = reads;
        self
    }

    /// How many threads read, 1 to 1024. Default: one for each core, at most 16; onto a device, an eighth of the cores is left to
    /// copies, unless the files are on tmpfs, whose small pages take longer to read.
    pub fn threads(mut self, threads: usize) -> Self {
        self.options.threads = Some(threads);
        self
    }

    /// How many bytes of staging memory all threads may use together, at least 128 KiB. Default: 64 MiB. None is used
    /// where files are read in place.
    pub fn staging_bytes(mut self, bytes: u64) -> Self {
        self.options.staging_bytes = Some(bytes);
        self
    }

    /// How much device memory the load may take, in bytes: that of its tensors, with the padding that aligns them, and what it needs besides,
    /// which is what cuFile reads into. A load that would take more is an error before any tensor's bytes are read; where cuFile alone is what
    /// would, other readers take its place. [Batches](Self::batches) are planned so that they fit. Default: no limit.
    ///
    /// The budget is the load's own, and counts its tensors wherever in the pool they are placed. The limit of a [pool](Self::pool) is for all
    /// who share it, and counts what they have placed: a load has to be within both.
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.options.memory_budget = Some(bytes);
        self
    }

    /// Calls `progress` on the thread that called [`load`](Self::load): before the first byte, as bytes arrive, and at
    /// the end. Breaking cancels the load, which then gives everything back and returns [`Error::Cancelled`](crate::Error::Cancelled). If it panics, so does
    /// the load, when its readers have ended. Where a long index names one of several files for a tensor that all of them have, the load may find that out late,
    /// and begin again: so does the count. A process that it forks has no readers, and must end or run another program without returning from it.
    pub fn progress(mut self, progress: impl FnMut(&Progress) -> ControlFlow<()> + Send + 'static) -> Self {
        self.callback = Some(Box::new(progress));
        self.only_interrupts = false;
        self
    }

    /// Asks `interrupted`, where [`progress`](Self::progress) would be called, whether to cancel the load. For those who want to know nothing else: they are
    /// told nothing, so a load may begin with files that have not been confirmed by their index yet. The later of the two calls holds.
    pub fn interrupt(mut self, mut interrupted: impl FnMut() -> bool + Send + 'static) -> Self {
        let ask = move |_: &Progress| {
            if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        self.callback = Some(Box::new(ask));
        self.only_interrupts = true;
        self
    }

    /// Places the tensors in this pool, which must be over the device's memory: loads that share a pool share its limit
    /// and statistics. Default: a pool of the weights' own.
    pub fn pool(mut self, pool: &Pool) -> Self {
        self.options.pool = Some(pool.clone());
        self
    }

    /// Whether the memory of the load's own pool goes back to the device tensor by tensor, or as a whole when the last of them has gone. Default: as a whole.
    /// A pool that is [named](Self::pool) has been made one way or the other.
    pub fn region_parts(mut self, parts: RegionParts) -> Self {
        self.options.region_parts = parts;
        self
    }

    /// Takes staging memory from this pool, which must be over the device's [staging
    /// memory](crate::Device::staging_memory). As many bytes as the pool [retains](crate::allocator::PoolBuilder::retain_bytes) of
    /// what is pinned for one load are there for the next. Default: memory of the load's own, which goes back at its end.
    pub fn staging(mut self, pool: &Pool) -> Self {
        self.options.staging = Some(pool.clone());
        self
    }

    /// Takes the scratch that cuFile reads into from this pool, which must be over [`gds_memory`](crate::gds_memory) of the device. As
    /// many bytes as the pool [retains](crate::allocator::PoolBuilder::retain_bytes) stay registered from one load to the next.
    /// Default: memory of the load's own, which is registered once and goes back at its end.
    pub fn scratch(mut self, pool: &Pool) -> Self {
        self.options.scratch = Some(pool.clone());
        self
    }

    /// How files are read. Default: [`Backend::Auto`], or what `TENSORHOLD_BACKEND` says.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.options.backend = Some(backend);
        self
    }
}
