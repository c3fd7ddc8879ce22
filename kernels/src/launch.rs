//! [`Launch`]: a kernel, with its grid and its parameter, checked as far as the host can see. `cuda/task.h` is the device's side.

use crate::block::Block;
use crate::convert::Conversion;
use crate::error::{Error, Result};
use crate::image::Kernel;

/// A range of device memory. Device and host addresses are the same numbers where memory is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// Its first byte.
    pub address: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The parameter of every kernel, by value: a copy of runs of elements. Laid out as the device has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Task {
    /// The first byte that may be read.
    pub readable: u64,
    /// The end of what may be read.
    pub readable_end: u64,
    /// The first byte of the first run.
    pub source: u64,
    /// The first byte of the first run's place.
    pub target: u64,
    /// How many runs there are, outermost level first.
    pub counts: [u64; 3],
    /// From one run to the next in the source, in bytes.
    pub source_strides: [u64; 3],
    /// From one run to the next in the target, in bytes.
    pub target_strides: [u64; 3],
    /// A run's elements of the source's type, or bytes of a copy.
    pub run: u64,
    /// The address of the counters of values out of range and NaN; or 0.
    pub tally: u64,
    /// 1 where values beyond an 8-bit float's range become its largest.
    pub flags: u64,
}

/// What to launch: `kernel`, over a one-dimensional grid of `grid` blocks of `block` threads, without dynamic shared memory, with `task` as its one
/// parameter.
///
/// The memory has to stay as it is until the kernel has ended: nothing writes what it reads, and nothing else touches what it writes. A grid of any
/// other size from 1 on gives the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// The function, and the image that has it.
    pub kernel: Kernel,
    /// Blocks.
    pub grid: u32,
    /// Threads in a block.
    pub block: u32,
    /// The parameter.
    pub task: Task,
}

/// Threads in a block: a constant of the device's source.
const BLOCK: u32 = 256;

/// More blocks than this go round: so many that all processors end at about the same time, and few enough that starting them is nothing.
const MOST_BLOCKS: u64 = 16_384;

/// Runs that are shorter, in bytes, go by elements: words that are cut at the edges of runs are slow.
const SHORT_RUN: u64 = 64;

impl Launch {
    /// The conversion of a block of `source` into `target`. `counters` is where two 64-bit numbers lie that counts are added to: of values out of
    /// range, and of NaN, as in [`Counts`](crate::Counts).
    ///
    /// Any alignment of the source does; the target is aligned to its elements, and is best aligned to 16 bytes.
    ///
    /// # Errors
    /// [`Error::Length`] and [`Error::Block`] as [`Conversion::gather`]; [`Error::Address`] when a span ends beyond all addresses, the target or the
    /// counters are not aligned to their elements, or overlap the source.
    pub fn convert(
        conversion: &Conversion,
        block: &Block,
        source: Span,
        target: Span,
        counters: Option<u64>,
    ) -> Result<Self> {
        let operation = "launch a conversion";
        let (from, to) = (conversion.from(), conversion.to());
        let kernel = Kernel::convert(from, to).ok_or(Error::Unsupported { from, to })?;
        let mut task = task(operation, block, (source, from.bytes()), (target, to.bytes()))?;
        aligned(operation, "target", target.address, to.bytes() as u64)?;
        if let Some(address) = counters {
            aligned(operation, "counters", address, 8)?;
            apart(operation, "counters", Span { address, bytes: 16 }, source)?;
            apart(operation, "counters", Span { address, bytes: 16 }, target)?;
            task.tally = address;
        }
        task.flags = conversion.saturates().into();
        let lanes = 16 / from.bytes().max(to.bytes()) as u64;
        Self::over(operation, kernel, task, words_of_runs(task.run, lanes))
    }

    /// The copy of a block of `source` into `target`, both of elements of `element_bytes`. Any alignment of both does.
    ///
    /// # Errors
    /// As [`gather`](crate::gather); [`Error::Address`] when a span ends beyond all addresses, or the two overlap.
    pub fn gather(element_bytes: usize, block: &Block, source: Span, target: Span) -> Result<Self> {
        let operation = "launch a gather";
        let mut task = task(operation, block, (source, element_bytes), (target, element_bytes))?;
        // Checked: all of the source has at least as many bytes.
        task.run = task.run.saturating_mul(element_bytes as u64);
        let strides = task.source_strides.iter().chain(&task.target_strides).copied();
        let all = strides.fold(task.source | task.target | task.run | 16, |all, stride| all | stride);
        let log2 = all.trailing_zeros();
        if log2 == 4 || task.run < SHORT_RUN {
            let kernel = Kernel::gather_words(log2 as usize);
            return Self::over(operation, kernel, task, task.run >> log2);
        }
        Self::over(operation, Kernel::gather(), task, words_of_runs(task.run, 16))
    }

    /// The copy of all of `source` into all of `target`. Any alignment of the source does, and of the target, which is best aligned to 16 bytes.
    ///
    /// # Errors
    /// As [`repack`](crate::repack); [`Error::Address`] when a span ends beyond all addresses, or the two overlap.
    pub fn repack(source: Span, target: Span) -> Result<Self> {
        let operation = "launch a repack";
        if source.bytes != target.bytes {
            let expected = format!("the source's {}", source.bytes);
            return Err(Error::Length { operation, what: "target", got: target.bytes, expected });
        }
        let task = task(operation, &Block::whole(source.bytes), (source, 1), (target, 1))?;
        Self::over(operation, Kernel::repack(), task, words_of_runs(task.run, 16))
    }

    /// `words` of each run over a grid.
    fn over(operation: &'static str, kernel: Kernel, task: Task, words: u64) -> Result<Self> {
        let runs: u128 = task.counts.iter().map(|&count| u128::from(count)).product();
        let total = runs.saturating_mul(words.into());
        // Indexes have 64 bits in the device, and go beyond the end by less than a grid.
        if total > u128::from(u64::MAX / 2) {
            let detail = format!("{total} words, expected less than 2^63");
            return Err(Error::Block { operation, detail });
        }
        let blocks = (total as u64).div_ceil(kernel.words * u64::from(BLOCK));
        Ok(Self { kernel, grid: blocks.clamp(1, MOST_BLOCKS) as u32, block: BLOCK, task })
    }
}

/// As the device counts them: a run that begins within a word touches one more.
fn words_of_runs(run: u64, lanes: u64) -> u64 {
    run.saturating_add(2 * lanes - 2) / lanes
}

/// The task of a block, checked, without what only conversions have. Levels of one run have no strides.
fn task(
    operation: &'static str,
    block: &Block,
    (source, source_size): (Span, usize),
    (target, target_size): (Span, usize),
) -> Result<Task> {
    let end = |what, span: Span| {
        span.address.checked_add(span.bytes).ok_or(Error::Address {
            operation,
            what,
            address: span.address,
            detail: format!("has {} bytes, expected it to end below 2^64", span.bytes),
        })
    };
    let readable_end = end("source", source)?;
    end("target", target)?;
    let elements = block.check(operation, (source.bytes, source_size), (target.bytes, target_size))?;
    if elements == 0 {
        let nothing = Task {
            readable: source.address,
            readable_end,
            source: source.address,
            target: target.address,
            counts: [0; 3],
            source_strides: [0; 3],
            target_strides: [0; 3],
            run: 0,
            tally: 0,
            flags: 0,
        };
        return Ok(nothing);
    }
    apart(operation, "target", target, source)?;
    // In bytes, and below the length of the span, as was checked.
    let bytes = |stride: u64, size: usize, count: u64| if count > 1 { stride * size as u64 } else { 0 };
    Ok(Task {
        readable: source.address,
        readable_end,
        source: source.address + block.source_offset * source_size as u64,
        target: target.address + block.target_offset * target_size as u64,
        counts: block.counts,
        source_strides: std::array::from_fn(|n| bytes(block.source_strides[n], source_size, block.counts[n])),
        target_strides: std::array::from_fn(|n| bytes(block.target_strides[n], target_size, block.counts[n])),
        run: block.run,
        tally: 0,
        flags: 0,
    })
}

fn aligned(operation: &'static str, what: &'static str, address: u64, to: u64) -> Result<()> {
    if address.is_multiple_of(to) {
        return Ok(());
    }
    Err(Error::Address { operation, what, address, detail: format!("is not aligned to {to} bytes") })
}

fn apart(operation: &'static str, what: &'static str, span: Span, from: Span) -> Result<()> {
    let before = span.address.saturating_add(span.bytes) <= from.address;
    let behind = from.address.saturating_add(from.bytes) <= span.address;
    if before || behind || span.bytes == 0 || from.bytes == 0 {
        return Ok(());
    }
    let detail = format!(
        "overlaps the {} bytes at {:#x}, expected memory of its own: {} bytes",
        from.bytes, from.address, span.bytes
    );
    Err(Error::Address { operation, what, address: span.address, detail })
}
