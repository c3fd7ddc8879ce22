//! Reading headers that cost much for their length, beside the `safetensors` crate, which reads the same files.
//!
//! `inspect` reads, checks and keeps all of a header; `load` reads it in two steps where it is long. The crate gets the file's bytes read into memory, which
//! is timed too. Both have to accept, or to refuse. Figures are medians.
//!
//! Settings: `BENCH_BYTES` is the length of a header (15,000,000 by default), `BENCH_ROUNDS` the number of rounds (5), `BENCH_ONLY` a part of the names.

#[path = "../tests/support/hostile.rs"]
mod hostile;

use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs};

use hostile::Hostile;
use safetensors::SafeTensors;
use tensorhold::{Device, Loader};

fn number(variable: &str, default: usize) -> usize {
    env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// The median of some rounds, and whether the file was accepted.
fn median(rounds: usize, mut accepts: impl FnMut() -> bool) -> (Duration, bool) {
    let mut accepted = false;
    let mut times: Vec<_> = (0..rounds)
        .map(|_| {
            let started = Instant::now();
            accepted = accepts();
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    (times[times.len() / 2], accepted)
}

fn compare(folder: &Path, hostile: &Hostile, rounds: usize) {
    let path = folder.join("model.safetensors");
    fs::write(&path, hostile.file()).unwrap();
    let (theirs, accepted) = median(rounds, || SafeTensors::deserialize(&fs::read(&path).unwrap()).is_ok());
    let loader = || Loader::new(Device::host()).files([&path]);
    let (inspected, inspects) = median(rounds, || loader().inspect().is_ok());
    let (loaded, loads) = median(rounds, || loader().load().is_ok());
    let verdict = |accepted: bool| if accepted { "right" } else { "wrong" };
    let agreed = match (accepted, inspects, loads) {
        (a, b, c) if a == b && b == c => verdict(a).to_owned(),
        (a, b, c) => format!("crate {}, inspect {}, load {}", verdict(a), verdict(b), verdict(c)),
    };
    let ratio = |ours: Duration| ours.as_secs_f64() / theirs.as_secs_f64();
    println!(
        "{:34} {:>12} {:9.1} {:9.1} {:6.2} {:9.1} {:6.2}  {agreed}",
        hostile.what,
        hostile.header.len(),
        theirs.as_secs_f64() * 1e3,
        inspected.as_secs_f64() * 1e3,
        ratio(inspected),
        loaded.as_secs_f64() * 1e3,
        ratio(loaded),
    );
}

/// An index of 1,000 files, whose tensors are in order or alternate between the files: how long it takes to load.
fn compare_indexes(folder: &Path, rounds: usize) {
    const FILES: usize = 1000;
    const EACH: usize = 100;
    let file = |number: usize| format!("model-{number:05}.safetensors");
    for number in 0..FILES {
        let entry = |n: usize| format!(r#""{number}.{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
        let header = format!("{{{}}}", (0..EACH).map(entry).collect::<Vec<_>>().join(","));
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        fs::write(folder.join(file(number)), bytes).unwrap();
    }
    let entry = |number: usize, n: usize| format!(r#""{number}.{n}":"{}""#, file(number));
    let in_order = (0..FILES * EACH).map(|all| entry(all / EACH, all % EACH)).collect::<Vec<_>>();
    let alternating = (0..FILES * EACH).map(|all| entry(all % FILES, all / FILES)).collect::<Vec<_>>();
    for (what, entries) in [("in order", in_order), ("alternating", alternating)] {
        let index = format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","));
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        let load = || Loader::new(Device::host()).checkpoint(folder).and_then(Loader::load).is_ok();
        let (loaded, _) = median(rounds, load);
        println!(
            "index of {FILES} files, {} tensors, {what}: {:.0} ms",
            FILES * EACH,
            loaded.as_secs_f64() * 1e3
        );
    }
}

fn main() {
    let (bytes, rounds) = (number("BENCH_BYTES", 15_000_000), number("BENCH_ROUNDS", 5));
    let only = env::var("BENCH_ONLY").unwrap_or_default();
    let folder = tempfile::tempdir().unwrap();
    println!(
        "{:34} {:>12} {:>9} {:>9} {:>6} {:>9} {:>6}",
        "header", "bytes", "crate ms", "inspect", "ratio", "load ms", "ratio"
    );
    for headers in [hostile::right(bytes), hostile::wrong(bytes)] {
        for hostile in headers.iter().filter(|hostile| hostile.what.contains(&only)) {
            compare(folder.path(), hostile, rounds);
        }
    }
    if only.is_empty() || only == "index" {
        compare_indexes(tempfile::tempdir().unwrap().path(), rounds);
    }
}
