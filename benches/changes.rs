//! Loads that convert and cut tensors on their way, beside loads that leave them as they are. All files are in the page cache.
//!
//! - `convert`: F32 to BF16, beside the same files unconverted: seconds for the same bytes of files.
//! - `columns`: part 1 of 8 of each matrix, by columns, beside a file that has just these bytes.
//! - `rows`: the same by rows.
//!
//! Each case has its other ways besides, by the switches that force them. Rounds alternate between all of a case, and what is printed are
//! medians, and for each the ratio of the unchanged load's time to its own. All bytes are checked before anything is timed.
//!
//! Settings: `BENCH_BYTES`, of each checkpoint (1 GB by default), `BENCH_FOLDER`, where files are made and removed (else the temporary directory),
//! `BENCH_ROUNDS` (7 by default), `BENCH_DEVICE` (`cpu`, else the first CUDA device if there is one), `BENCH_CASES` (`convert,columns,rows`).

mod support;

use std::env;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use support::shapes::{Shard, Spec};
use tensorhold::kernels::{Type, convert};
use tensorhold::{Cut, CutReads, DType, Device, Loader, TransformOn, Weights};

const RANK: usize = 1;
const WORLD: usize = 8;

/// A way to load: its name, and what it asks for of which files.
type Way<'a> = (&'a str, Box<dyn Fn() -> Loader + 'a>);

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn shards(bytes: u64, dtype: Dtype) -> Vec<Shard> {
    let mut shards = support::shapes::llama(bytes * 16 / dtype.bitsize() as u64);
    shards.iter_mut().flat_map(|shard| &mut shard.tensors).for_each(|tensor| tensor.dtype = dtype);
    shards
}

fn write(folder: &Path, shards: &[Shard]) -> Vec<PathBuf> {
    fs::create_dir_all(folder).unwrap();
    support::write::write(shards, 1, |name| Ok(File::create(folder.join(name))?), |_| ()).unwrap();
    shards.iter().map(|shard| folder.join(&shard.name)).collect()
}

fn map(path: &Path) -> Mmap {
    // SAFETY: no one writes to the files of a benchmark.
    unsafe { Mmap::map(&File::open(path).unwrap()) }.unwrap()
}

/// The part of a matrix along a dimension, by rows and columns; all of anything else.
fn part(shape: &[usize], data: &[u8], dim: usize) -> (Vec<usize>, Vec<u8>) {
    let &[rows, columns] = shape else { return (shape.to_vec(), data.to_vec()) };
    let row_bytes = data.len() / rows;
    let length = shape[dim].div_ceil(WORLD);
    let (start, end) = ((RANK * length).min(shape[dim]), ((RANK + 1) * length).min(shape[dim]));
    if dim == 0 {
        return (vec![end - start, columns], data[start * row_bytes..end * row_bytes].to_vec());
    }
    let bytes = row_bytes / columns;
    let rows_of = data.chunks(row_bytes).flat_map(|row| &row[start * bytes..end * bytes]);
    (vec![rows, end - start], rows_of.copied().collect())
}

/// One file that has just the parts.
fn write_parts(files: &[PathBuf], dim: usize, to: &Path) {
    let (mut specs, mut parts) = (Vec::new(), Vec::new());
    for path in files {
        let map = map(path);
        let tensors = SafeTensors::deserialize(&map).unwrap();
        for (name, tensor) in tensors.iter() {
            let (shape, data) = part(tensor.shape(), tensor.data(), dim);
            specs.push(Spec { name: name.to_owned(), dtype: tensor.dtype(), shape });
            parts.push(data);
        }
    }
    let mut file = BufWriter::new(File::create(to).unwrap());
    file.write_all(&support::write::header(&specs)).unwrap();
    parts.iter().for_each(|part| file.write_all(part).unwrap());
    file.into_inner().unwrap().sync_all().unwrap();
}

/// The weights are what a file holds, or what that converts to.
fn check(weights: &Weights, files: &[PathBuf], to: Option<Type>) {
    let mut tensors = 0;
    for path in files {
        let map = map(path);
        for (name, tensor) in SafeTensors::deserialize(&map).unwrap().iter() {
            let mut expected = tensor.data().to_vec();
            if let Some(to) = to {
                let mut converted = vec![0; expected.len() / 4 * to.bytes()];
                convert(Type::F32, to, &expected, &mut converted).unwrap();
                expected = converted;
            }
            let view = weights.view(name).unwrap();
            assert_eq!(view.shape(), tensor.shape(), "{name}");
            assert!(view.to_host().unwrap() == expected, "the bytes of {name} differ");
            tensors += 1;
        }
    }
    assert_eq!(weights.len(), tensors);
}

fn is_wanted(case: &str) -> bool {
    env::var("BENCH_CASES").map_or(true, |cases| cases.split(',').any(|wanted| wanted == case))
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

/// Alternates between the ways, of which the first is the unchanged load.
fn compare(case: &str, bytes: u64, ways: &[Way<'_>]) {
    let mut times = vec![Vec::new(); ways.len()];
    for round in 0..=number("BENCH_ROUNDS", 7) {
        for ((_, loader), times) in ways.iter().zip(&mut times) {
            let started = Instant::now();
            let weights = loader().load().unwrap();
            // The first round warms up.
            if round > 0 {
                times.push(started.elapsed());
            }
            weights.close();
        }
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    for ((name, _), seconds) in ways.iter().zip(&medians) {
        println!(
            "{case}: {name}: {seconds:.4} s, {:.2} GB/s of the unchanged load's bytes, ratio {:.3}",
            bytes as f64 / 1e9 / seconds,
            medians[0] / seconds
        );
    }
}

fn bytes_of(files: &[PathBuf]) -> u64 {
    files.iter().map(|file| fs::metadata(file).unwrap().len()).sum()
}

fn conversions(device: &Device, folder: &Path, bytes: u64) {
    let files = write(&folder.join("f32"), &shards(bytes, Dtype::F32));
    let plain = || Loader::new(device.clone()).files(&files);
    let convert = || plain().dtype(DType::BF16);
    let on_cpu = || convert().transform_on(TransformOn::Cpu);
    check(&plain().load().unwrap(), &files, None);
    for loader in [convert(), on_cpu(), convert().count_conversions()] {
        check(&loader.load().unwrap(), &files, Some(Type::BF16));
    }
    let ways: [Way<'_>; 4] = [
        ("as it is", Box::new(plain)),
        ("to BF16", Box::new(convert)),
        ("to BF16, counted", Box::new(|| convert().count_conversions())),
        ("to BF16 on the CPU", Box::new(on_cpu)),
    ];
    compare("convert", bytes_of(&files), &ways);
    println!("convert: {:?}", convert().load().unwrap().report());
    fs::remove_dir_all(folder.join("f32")).unwrap();
}

fn cuts(device: &Device, folder: &Path, bytes: u64) {
    let files = write(&folder.join("bf16"), &shards(bytes, Dtype::BF16));
    for (case, dim) in [("columns", 1), ("rows", 0)].into_iter().filter(|(case, _)| is_wanted(case)) {
        let own = [folder.join("part.safetensors")];
        write_parts(&files, dim, &own[0]);
        let plain = || Loader::new(device.clone()).files(&own);
        let cut = || {
            let loader = Loader::new(device.clone()).files(&files);
            loader.cut_by(move |tensor| (tensor.shape.len() == 2).then_some(Cut::chunk(dim, RANK, WORLD)))
        };
        let with_rows = || cut().cut_reads(CutReads::Rows);
        for loader in [plain(), cut(), with_rows(), with_rows().transform_on(TransformOn::Cpu)] {
            check(&loader.load().unwrap(), &own, None);
        }
        let mut ways: Vec<Way<'_>> =
            vec![("a file of its own", Box::new(plain)), ("out of the checkpoint", Box::new(cut))];
        if dim == 1 {
            ways.push(("with whole rows", Box::new(with_rows)));
            let on_cpu = || with_rows().transform_on(TransformOn::Cpu);
            ways.push(("with whole rows, on the CPU", Box::new(on_cpu)));
        }
        compare(case, bytes_of(&own), &ways);
        println!("{case}: {:?}", cut().load().unwrap().report());
        fs::remove_file(&own[0]).unwrap();
    }
    fs::remove_dir_all(folder.join("bf16")).unwrap();
}

fn main() {
    let bytes = number("BENCH_BYTES", 1_000_000_000);
    let made = match env::var_os("BENCH_FOLDER") {
        Some(folder) => fs::create_dir_all(&folder).and_then(|()| tempfile::tempdir_in(folder)),
        None => tempfile::tempdir(),
    };
    let folder = made.unwrap();
    let device = match env::var("BENCH_DEVICE").as_deref() {
        Ok("cpu") => Device::host(),
        _ => Device::cuda(0).unwrap_or_else(|_| Device::host()),
    };
    println!("{device}, {bytes} bytes");
    if is_wanted("convert") {
        conversions(&device, folder.path(), bytes);
    }
    cuts(&device, folder.path(), bytes);
}
