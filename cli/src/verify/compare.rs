//! Compares tensors on their device with the files that they came from, piece by piece, with several threads.
//!
//! Memory is bounded: each thread holds one piece of a tensor, copied to the host, and a block of its file. Only a
//! tensor that cannot be narrowed to rows is one piece, whatever its size.

use std::collections::BTreeMap;
use std::fmt;
use std::panic;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use indicatif::ProgressBar;
use serde::Serialize;
use tensorhold::allocator::{Brief, Quoted};
use tensorhold::{Tensor, Weights};

use super::reference::Reference;
use crate::output;

/// About how much is copied from the device at once.
const PIECE_BYTES: u64 = 8 << 20;

/// How much is read from a file at once.
const BLOCK_BYTES: usize = 1 << 20;

/// More threads than this gain little, and each takes memory.
const MAX_THREADS: usize = 8;

/// What comparing found.
#[derive(Debug, Serialize)]
pub(crate) struct Verification {
    /// Tensors that were to be compared, and their bytes.
    pub(crate) tensors: usize,
    pub(crate) bytes: u64,
    /// Those that are wholly equal.
    pub(crate) equal_tensors: usize,
    pub(crate) equal_bytes: u64,
    pub(crate) seconds: f64,
    /// At most one for each tensor.
    pub(crate) differences: Vec<Difference>,
}

/// How a tensor differs from its file.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    tensor: String,
    #[serde(serialize_with = "output::path_text")]
    file: Arc<Path>,
    #[serde(flatten)]
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "differs")]
enum Kind {
    /// The first byte that differs, by its offset in the tensor.
    Byte { offset: u64, in_file: u8, on_device: u8 },
    /// Dtype, shape or size.
    Description { in_file: String, on_device: String },
    /// The file has it, the load does not.
    NotLoaded,
    /// The load has it, the file does not.
    NotInFile,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor {} of {:?}: {}", Quoted(&self.tensor), self.file, self.kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Byte { offset, in_file, on_device } => {
                write!(f, "byte {offset} is {in_file:#04x} in the file and {on_device:#04x} on the device")
            }
            Self::Description { in_file, on_device } => {
                write!(f, "it is {} in the file and {} on the device", Brief(in_file), Brief(on_device))
            }
            Self::NotLoaded => f.write_str("it is in the file and was not loaded"),
            Self::NotInFile => f.write_str("it was loaded and is not in the file"),
        }
    }
}

/// Compares everything in `weights` with the files, and looks for tensors in those files that are wanted and missing.
pub(crate) fn compare(weights: &Weights, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Verification> {
    let started = Instant::now();
    let mut files: BTreeMap<Arc<Path>, Reference> = BTreeMap::new();
    for tensor in weights.iter() {
        let path = &tensor.info().file;
        if !files.contains_key(path) {
            files.insert(Arc::clone(path), Reference::open(path)?);
        }
    }
    let mut differences: BTreeMap<Arc<str>, Difference> = BTreeMap::new();
    let mut differs = |tensor: Arc<str>, file: &Arc<Path>, kind| {
        let difference = Difference { tensor: tensor.to_string(), file: Arc::clone(file), kind };
        differences.entry(tensor).or_insert(difference);
    };
    let mut pieces = Vec::new();
    let (mut tensors, mut bytes) = (weights.len(), 0);
    for view in weights.iter() {
        bytes += view.nbytes();
        let info = view.info();
        match pieces_of(weights.tensor(&info.name)?, &files[&info.file]) {
            Ok(of_tensor) => pieces.extend(of_tensor),
            Err(kind) => differs(Arc::clone(&info.name), &info.file, kind),
        }
    }
    for (path, file) in &files {
        for name in file.names().into_iter().filter(|name| wanted(name) && weights.info(name).is_none()) {
            tensors += 1;
            differs(name.into(), path, Kind::NotLoaded);
        }
    }
    for (piece, kind) in compare_pieces(&pieces, &output::bar("verifying", bytes))? {
        let info = piece.part.info();
        differs(Arc::clone(&info.name), &info.file, kind);
    }
    let different_bytes = differences.keys().filter_map(|name| Some(weights.info(name)?.nbytes)).sum::<u64>();
    Ok(Verification {
        tensors,
        bytes,
        equal_tensors: tensors - differences.len(),
        equal_bytes: bytes - different_bytes,
        seconds: started.elapsed().as_secs_f64(),
        differences: differences.into_values().collect(),
    })
}

/// A part of a tensor and where its bytes are in the file.
struct Piece<'a> {
    part: Tensor,
    /// Of the part's first byte, in the tensor.
    offset: u64,
    file: &'a Reference,
    /// Of the tensor's first byte, in the file's data.
    file_offset: u64,
}

/// Checks a tensor's description, and cuts the tensor into pieces.
fn pieces_of<'a>(tensor: Tensor, file: &'a Reference) -> Result<Vec<Piece<'a>>, Kind> {
    let Some(info) = file.info(tensor.name()) else { return Err(Kind::NotInFile) };
    let (start, end) = info.data_offsets;
    let describe =
        |dtype: &dyn fmt::Display, shape: &[usize], bytes| format!("{dtype} {shape:?} of {bytes} bytes");
    let in_file = describe(&info.dtype, &info.shape, (end - start) as u64);
    let on_device = describe(&tensor.dtype(), tensor.shape(), tensor.nbytes());
    if in_file != on_device {
        return Err(Kind::Description { in_file, on_device });
    }
    let piece = |(part, offset)| Piece { part, offset, file, file_offset: start as u64 };
    Ok(parts(tensor).into_iter().map(piece).collect())
}

/// Cuts a tensor into runs of rows of its first dimension that has several; each part with its offset in the tensor.
fn parts(tensor: Tensor) -> Vec<(Tensor, u64)> {
    let (shape, nbytes) = (tensor.shape(), tensor.nbytes());
    if nbytes > PIECE_BYTES
        && let Some(dimension) = shape.iter().position(|&length| length > 1)
        && nbytes.is_multiple_of(shape[dimension] as u64)
    {
        let length = shape[dimension];
        let row_bytes = nbytes / length as u64;
        let rows = (PIECE_BYTES / row_bytes).max(1) as usize;
        let part = |start: usize| {
            let part = tensor.narrow(dimension, start, rows.min(length - start))?;
            Ok((part, start as u64 * row_bytes))
        };
        // Elements of less than a byte may not let themselves be cut; then the tensor is one part.
        if let Ok(parts) = (0..length).step_by(rows).map(part).collect::<tensorhold::Result<_>>() {
            return parts;
        }
    }
    vec![(tensor, 0)]
}

/// The pieces that differ, in their order: the first of a tensor has its first difference.
fn compare_pieces<'a, 'b>(
    pieces: &'a [Piece<'b>],
    bar: &ProgressBar,
) -> anyhow::Result<Vec<(&'a Piece<'b>, Kind)>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        let mut block = vec![0; BLOCK_BYTES];
        while let Some((index, piece)) = take(&next, pieces) {
            match piece.compare(&mut block) {
                Ok(None) => {}
                Ok(Some(kind)) => found.push((index, kind)),
                Err(error) => {
                    // No more pieces for anyone.
                    next.fetch_max(pieces.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
            bar.inc(piece.part.nbytes());
        }
        Ok(found)
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut found = thread::scope(|scope| {
        // This thread is one of them: the others are help, of which the system may refuse some.
        let start = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let workers: Vec<_> = (1..cores.min(MAX_THREADS)).map_while(start).collect();
        let mut found = work()?;
        for worker in workers {
            found.extend(worker.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?);
        }
        anyhow::Ok(found)
    })?;
    found.sort_by_key(|(index, _)| *index);
    Ok(found.into_iter().map(|(index, kind)| (&pieces[index], kind)).collect())
}

fn take<'a, T>(next: &AtomicUsize, items: &'a [T]) -> Option<(usize, &'a T)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    Some((index, items.get(index)?))
}

impl Piece<'_> {
    fn compare(&self, block: &mut [u8]) -> anyhow::Result<Option<Kind>> {
        let on_device = self.part.to_host()?;
        let mut offset = self.offset;
        for got in on_device.chunks(block.len()) {
            let expected = &mut block[..got.len()];
            self.file.read_exact_at(expected, self.file_offset + offset)?;
            if let Some((at, in_file, on_device)) = first_difference(expected, got) {
                return Ok(Some(Kind::Byte { offset: offset + at as u64, in_file, on_device }));
            }
            offset += got.len() as u64;
        }
        Ok(None)
    }
}

/// The first position where two slices of one length differ, and both bytes.
fn first_difference(left: &[u8], right: &[u8]) -> Option<(usize, u8, u8)> {
    // Comparing whole slices is far faster than byte by byte.
    if left == right {
        return None;
    }
    let mut pairs = left.iter().zip(right).enumerate();
    pairs.find(|(_, (left, right))| left != right).map(|(at, (&left, &right))| (at, left, right))
}
