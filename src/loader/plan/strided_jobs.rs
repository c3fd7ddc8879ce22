//! Jobs of transformed tensors, whose elements are strided in the file.
//!
//! In the file, the elements of a transformed tensor lie in runs, on levels with strides. In the region they
//! are dense. A job reads one *block*: runs whose bytes in the file lie close enough together for one read.
//! How the runs of a block are read through the page cache is decided for each tensor ([`reading`]). Direct
//! reads, which read whole disk blocks, always read a block from its first byte to its last. Runs that are
//! long or far apart become jobs of their own, which are ordinary jobs if nothing is converted.
//!
//! ```text
//! file   |..aaa.....bbb.....ccc..|.....   one block, of three runs
//! runs   |aaabbbccc|                      three reads; at most a conversion remains
//! span   |aaa.....bbb.....ccc|            one read; the runs are gathered from it
//! ```
//!
//! # Invariants
//! - **P4** Each element of a transformed tensor is in exactly one block, which maps it to its place in the
//!   region.
//! - **P5** The span of a block in the file, and its span in the region, are at most as long as the longest
//!   span of a job.

use tensorhold_kernels::Block;

use super::jobs::{Extent, Job, JobTransform, Limits, Piece, Plan, StridedRead};
use crate::loader::transform::{CutReads, Level, TensorTransform, TensorTransforms};
use crate::report::Choice;

/// Reading this many bytes from the page cache takes as long as starting another read
/// (`docs/performance.md`). Runs that are further apart are read one by one.
const CALL_BYTES: u64 = 3 << 10;

/// Repetitions of an outer level that are further apart than this do not share a span.
const FAR_BYTES: u64 = 16 << 10;

/// Runs of this length, or this far apart, become jobs of their own: virtual disks may account for reads in
/// units of this size.
const ALONE_BYTES: u64 = 256 << 10;

/// The most units in a word that kernels read or write.
const WORD_UNITS: u64 = 16;

/// The longest span of a block in the file: direct reads read all of it.
const BLOCK_BYTES: u64 = 1 << 20;

/// The longest spans of a block, in the file and in the region. If the CPU transforms, both fit into one span
/// of a job.
pub(crate) fn transform_job_bytes(limits: Limits, on_device: bool) -> u64 {
    match on_device {
        true => limits.span.min(BLOCK_BYTES),
        // Also short enough for a processor's cache.
        false => (limits.span / 2).min(BLOCK_BYTES / 2),
    }
}

/// The faster way to read a tensor's runs through the page cache: one by one if reading the gaps takes longer
/// than the additional calls.
pub(crate) fn reading(transform: &TensorTransform, cut_reads: CutReads) -> StridedRead {
    match (transform.strided.gap(), cut_reads) {
        (None, _) | (_, CutReads::Rows) => StridedRead::Span,
        (Some(_), CutReads::Parts) => StridedRead::Runs,
        (Some(gap), CutReads::Auto) if gap * transform.unit >= CALL_BYTES => StridedRead::Runs,
        (Some(_), CutReads::Auto) => StridedRead::Span,
    }
}

/// Divides one tensor into jobs.
pub(super) struct StridedPlanner<'a> {
    plan: &'a mut Plan,
    limits: Limits,
    /// The tensor's number in the load.
    tensor: usize,
    extent: Extent,
    /// The tensor's place in the regions.
    region: usize,
    offset: u64,
    /// Index of the transform.
    number: usize,
    transform: &'a TensorTransform,
    reading: StridedRead,
    on_device: bool,
}

impl<'a> StridedPlanner<'a> {
    pub(super) fn plan(
        plan: &'a mut Plan,
        limits: Limits,
        transforms: &'a TensorTransforms,
        number: usize,
        extent: Extent,
        (region, offset): (usize, u64),
    ) {
        let (tensor, transform) = &transforms.tensors[number];
        let (tensor, on_device) = (*tensor, transforms.on_device);
        let reading = reading(transform, transforms.cut_reads);
        let mut planner =
            Self { plan, limits, tensor, extent, region, offset, number, transform, reading, on_device };
        if transform.strided.run > 0 {
            planner.level(0, 0, 0);
        }
    }

    /// The most units of the file, and of the region, that a block may span.
    fn room(&self) -> (u64, u64) {
        let bytes = transform_job_bytes(self.limits, self.on_device);
        ((bytes / self.transform.unit).max(1), (bytes / self.transform.target_unit).max(1))
    }

    /// Divides one repetition of this level and its inner levels, which starts at these units of the file and
    /// of the region.
    fn level(&mut self, level: usize, source: u64, target: u64) {
        let strided = &self.transform.strided;
        let Some(&Level { count, stride }) = strided.levels.get(level) else {
            return self.run(source, target, strided.run);
        };
        let (span, units) = (strided.span(level + 1), strided.units(level + 1));
        let (room, target_room) = self.room();
        // Repetitions that fit into a block.
        let fit = match room.checked_sub(span) {
            Some(rest) => (rest / stride + 1).min(target_room / units),
            None => 0,
        };
        let levels = strided.levels.len() - level;
        let far = if self.reading == StridedRead::Runs || levels == 1 { ALONE_BYTES } else { FAR_BYTES };
        let near = (stride - span) * self.transform.unit < far && span * self.transform.unit < ALONE_BYTES;
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
        let TensorTransform { unit, target_unit, .. } = *self.transform;
        if self.transform.conversion.is_none() {
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
            // Up to the next cut of the file, or to the one after it if no unit ends before.
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

    /// Adds a block of `count` repetitions of this level.
    fn block(&mut self, level: usize, count: u64, source: u64, target: u64) {
        let strided = &self.transform.strided;
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
        let TensorTransform { unit, target_unit, .. } = *self.transform;
        self.add(block, (source, span * unit), (target, units * target_unit), units);
    }

    /// Adds a job for a block, given the first unit and the length in bytes of its spans in the file and in
    /// the region.
    fn add(
        &mut self,
        block: Block,
        (source, file_bytes): (u64, u64),
        (target, span): (u64, u64),
        units: u64,
    ) {
        let TensorTransform { unit, target_unit, conversion, .. } = self.transform;
        let run_bytes = units * unit;
        let on_device = self.on_device && (conversion.is_some() || self.reading == StridedRead::Span);
        let staged = match (on_device, self.reading) {
            (false, _) => span,
            (true, StridedRead::Runs) => run_bytes,
            (true, StridedRead::Span) => file_bytes,
        };
        let offset = self.offset + target * target_unit;
        let phase = if on_device { offset / target_unit % WORD_UNITS * unit } else { 0 };
        let (first, index) = (self.plan.pieces.len(), self.plan.transforms.len());
        self.plan.pieces.push(Piece { offset: 0, bytes: file_bytes });
        self.plan.transforms.push(JobTransform {
            index: self.number,
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
            transform: Some(index),
            probes_by_reading: self.reading == StridedRead::Runs,
            staged,
            slot: 0,
        });
        self.plan.bytes += span;
    }
}

/// The choices of a plan about transforms and cuts, for the report.
pub(crate) fn choices(plan: &Plan, transforms: &TensorTransforms) -> Vec<Choice> {
    let mut choices = Vec::new();
    let cpu = plan.transforms.iter().filter(|job| !job.on_device && is_transformed(transforms, job)).count();
    let device = plan.transforms.iter().filter(|job| job.on_device).count();
    if cpu + device > 0 {
        let picked = if transforms.on_device { "on the device" } else { "on the CPU" };
        choices.push(Choice { about: "transforms", picked: picked.into(), why: transforms.why.into() });
    }
    let cut = |reading| {
        let of = move |job: &&JobTransform| job.reading == reading && is_strided(transforms, job);
        plan.transforms.iter().filter(of).count()
    };
    for (reading, picked, why) in [
        (StridedRead::Runs, "part by part", "what lies between them takes longer to read than a call"),
        (StridedRead::Span, "with their rows", "little lies between them"),
    ] {
        let count = cut(reading);
        if count > 0 {
            let why = match transforms.cut_reads {
                CutReads::Auto => format!("{count} jobs: {why}"),
                _ => format!("{count} jobs: as asked"),
            };
            choices.push(Choice { about: "cuts", picked: picked.into(), why });
        }
    }
    choices
}

/// Whether the bytes that a job reads through the page cache have to be converted or gathered.
pub(crate) fn is_transformed(transforms: &TensorTransforms, job: &JobTransform) -> bool {
    let converts = |(_, transform): &(usize, TensorTransform)| transform.conversion.is_some();
    job.reading == StridedRead::Span || transforms.tensors.get(job.index).is_some_and(converts)
}

fn is_strided(transforms: &TensorTransforms, job: &JobTransform) -> bool {
    transforms.tensors.get(job.index).is_some_and(|(_, transform)| !transform.strided.levels.is_empty())
}
