//! Cutting a changed tensor into jobs. Pure: no I/O, no memory.
//!
//! A changed tensor's elements lie in its file as runs, on levels with strides; where they go they are dense. A *part* is a block of those runs
//! whose bytes in the file lie close enough together to be read at once, and a job has one part. How a part's runs are read through the page cache
//! is decided for each tensor ([`reading`]). Past the page cache, where reads are of whole blocks, a part is always read from its first byte to its
//! last. Runs that are long, or far apart, are jobs of their own; where nothing is converted, such as of any other tensor.
//!
//! ```text
//! file        |..aaa.....bbb.....ccc..|.....   one part, of three runs
//! by runs     |aaabbbccc|                      three reads; what is left is to convert them, if that is wanted
//! as a whole  |aaa.....bbb.....ccc|            one read; runs are gathered from it
//! ```
//!
//! # Invariants
//! - **P4** Each element of a changed tensor is in exactly one part, and goes to its place in the region. None lies in two.
//! - **P5** What a part takes in the file, and what it takes in the region, is no longer than the longest span of a job.

use tensorhold_kernels::Block;

use super::asked::CutReads;
use super::change::{Change, Changes};
use super::plan::{Extent, Job, Limits, Piece, Plan};
use super::strided::Level;

/// How a part's runs are read through the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Each by a read of its own, one behind the other.
    Runs,
    /// From the first byte to the last.
    Whole,
}

/// What a job has of a changed tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Index of the change.
    pub(super) change: usize,
    /// From the bytes that the job has in the file to its span.
    pub(super) block: Block,
    pub(super) reading: Reading,
    /// Bytes of the runs in the file.
    pub(super) run_bytes: u64,
    /// The device transforms what readers through the page cache leave in staging memory.
    pub(super) on_device: bool,
    /// How far behind a multiple of 256 that begins in its slot, so that its elements' words lie as their places' do: a kernel then reads each word
    /// once.
    pub(super) phase: u64,
}

impl Part {
    /// Whether readers through the page cache leave elements dense: by runs, or because there is but one.
    pub(super) fn is_dense(&self) -> bool {
        self.reading == Reading::Runs || self.block.counts == [1; 3]
    }
}

/// Reading so many bytes from the page cache takes as long as beginning another read (`docs/performance.md`): runs that are further apart are read
/// one by one.
const CALL_BYTES: u64 = 3 << 10;

/// What is so far apart is not read together as a whole, though several repetitions are.
const FAR_BYTES: u64 = 16 << 10;

/// What is so long, or so far apart, is worth a job of its own: virtual disks may count what is read in blocks of so much.
const ALONE_BYTES: u64 = 256 << 10;

/// No word that kernels read or write has more units.
const WORD_UNITS: u64 = 16;

/// A part takes no more than this in the file: what is read past the page cache is read as a whole.
const PART_BYTES: u64 = 1 << 20;

/// The longest parts, in the file and in the region. Where the CPU transforms them, both fit into one span.
pub(super) fn part_bytes(limits: Limits, on_device: bool) -> u64 {
    match on_device {
        true => limits.span.min(PART_BYTES),
        // And stay in a processor's cache.
        false => (limits.span / 2).min(PART_BYTES / 2),
    }
}

/// How a tensor's runs are best read through the page cache: one by one if what lies between them takes longer to read than a call.
pub(super) fn reading(change: &Change, asked: CutReads) -> Reading {
    match (change.strided.gap(), asked) {
        (None, _) | (_, CutReads::Rows) => Reading::Whole,
        (Some(_), CutReads::Parts) => Reading::Runs,
        (Some(gap), CutReads::Auto) if gap * change.unit >= CALL_BYTES => Reading::Runs,
        (Some(_), CutReads::Auto) => Reading::Whole,
    }
}

/// Cuts one tensor.
pub(super) struct Cutter<'a> {
    pub(super) plan: &'a mut Plan,
    pub(super) limits: Limits,
    /// Its number in the batch, where its first byte is, and where it goes.
    pub(super) tensor: usize,
    pub(super) extent: Extent,
    pub(super) region: usize,
    pub(super) offset: u64,
    pub(super) number: usize,
    pub(super) change: &'a Change,
    pub(super) reading: Reading,
    pub(super) on_device: bool,
}

impl<'a> Cutter<'a> {
    pub(super) fn cut(
        plan: &'a mut Plan,
        limits: Limits,
        changes: &'a Changes,
        number: usize,
        extent: Extent,
        (region, offset): (usize, u64),
    ) {
        let (tensor, change) = &changes.changed[number];
        let (tensor, on_device) = (*tensor, changes.on_device);
        let reading = reading(change, changes.cut_reads);
        let mut cutter =
            Self { plan, limits, tensor, extent, region, offset, number, change, reading, on_device };
        if change.strided.run > 0 {
            cutter.level(0, 0, 0);
        }
    }

    /// How many units of the file, and of the target, a part may have.
    fn room(&self) -> (u64, u64) {
        let bytes = part_bytes(self.limits, self.on_device);
        ((bytes / self.change.unit).max(1), (bytes / self.change.target_unit).max(1))
    }

    /// Cuts what is from this level on, once: it begins at these units of the file and of the target.
    fn level(&mut self, level: usize, source: u64, target: u64) {
        let strided = &self.change.strided;
        let Some(&Level { count, stride }) = strided.levels.get(level) else {
            return self.run(source, target, strided.run);
        };
        let (span, units) = (strided.span(level + 1), strided.units(level + 1));
        let (room, target_room) = self.room();
        // How many repetitions fit into a part.
        let fit = match room.checked_sub(span) {
            Some(rest) => (rest / stride + 1).min(target_room / units),
            None => 0,
        };
        let levels = strided.levels.len() - level;
        let far = if self.reading == Reading::Runs || levels == 1 { ALONE_BYTES } else { FAR_BYTES };
        let near = (stride - span) * self.change.unit < far && span * self.change.unit < ALONE_BYTES;
        if fit < 2 || !near || levels > 3 {
            return (0..count).for_each(|n| self.level(level + 1, source + n * stride, target + n * units));
        }
        let mut done = 0;
        while done < count {
            let now = fit.min(count - done);
            self.block(level, now, source + done * stride, target + done * units);
            done += now;
        }
    }

    /// One run.
    fn run(&mut self, source: u64, target: u64, run: u64) {
        let Change { unit, target_unit, .. } = *self.change;
        if self.change.conversion.is_none() {
            // A unit is a byte.
            let start = self.extent.start + source;
            let extent = Extent { start, bytes: run, ..self.extent };
            let mut done = 0;
            while done < run {
                done +=
                    self.plan.add(self.tensor, extent, self.region, self.offset + target, done, self.limits);
            }
            return;
        }
        let (room, target_room) = self.room();
        let mut done = 0;
        while done < run {
            let start = self.extent.start + (source + done) * unit;
            // Up to where files are cut, or to the next such place if no unit ends before this.
            let mut until = self.limits.until_cut(start);
            if until < unit {
                until = until.saturating_add(self.limits.cut.unwrap_or(0));
            }
            let units = (until / unit).min(room).min(target_room).min(run - done).max(1);
            let (source, target) = (source + done, target + done);
            self.add(Block::whole(units), (source, units * unit), (target, units * target_unit), units);
            done += units;
        }
    }

    /// So many repetitions of what is further in than this level.
    fn block(&mut self, level: usize, count: u64, source: u64, target: u64) {
        let strided = &self.change.strided;
        let mut block = Block::whole(strided.run);
        let mut units = strided.run;
        for (n, inner) in strided.levels.iter().enumerate().skip(level).rev() {
            // The innermost level is the last.
            let place = 3 - (strided.levels.len() - n);
            block.counts[place] = if n == level { count } else { inner.count };
            block.source_strides[place] = inner.stride;
            block.target_strides[place] = units;
            units *= block.counts[place];
        }
        let span = strided.span(level + 1) + (count - 1) * strided.levels[level].stride;
        let Change { unit, target_unit, .. } = *self.change;
        self.add(block, (source, span * unit), (target, units * target_unit), units);
    }

    /// Adds a job: from this unit of the file on, so many bytes; to this unit of the target, so many.
    fn add(
        &mut self,
        block: Block,
        (source, file_bytes): (u64, u64),
        (target, span): (u64, u64),
        units: u64,
    ) {
        let Change { unit, target_unit, conversion, .. } = self.change;
        let run_bytes = units * unit;
        let on_device = self.on_device && (conversion.is_some() || self.reading == Reading::Whole);
        let staged = match (on_device, self.reading) {
            (false, _) => span,
            (true, Reading::Runs) => run_bytes,
            (true, Reading::Whole) => file_bytes,
        };
        let offset = self.offset + target * target_unit;
        let phase = if on_device { offset / target_unit % WORD_UNITS * unit } else { 0 };
        let (first, part) = (self.plan.pieces.len(), self.plan.parts.len());
        self.plan.pieces.push(Piece { offset: 0, bytes: file_bytes });
        self.plan.parts.push(Part {
            change: self.number,
            block,
            reading: self.reading,
            run_bytes,
            on_device,
            phase,
        });
        self.plan.jobs.push(Job {
            file: self.extent.file,
            file_offset: self.extent.start + source * unit,
            file_bytes,
            region: self.region,
            offset,
            span,
            pieces: first..first + 1,
            tensors: self.tensor..self.tensor + 1,
            part: Some(part),
            is_tried: self.reading == Reading::Runs,
            staged,
            slot: 0,
        });
        self.plan.bytes += span;
    }
}
