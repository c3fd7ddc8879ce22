//! The kernels' own source, compiled for the CPU by the C++ compiler (`emulator/main.cpp`), gives what the reference gives, and touches no byte
//! that it should not: each read and write is checked. Without a C++ compiler the tests are ignored, and counted as such.

#[path = "support/blocks.rs"]
mod blocks;
#[path = "support/inputs.rs"]
mod inputs;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use blocks::{cases, noise};
use inputs::inputs;
use libtest_mimic::{Arguments, Failed, Trial};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tensorhold_kernels::{Block, Conversion, Counts, Launch, Overflow, Span, Type, pairs, repack};

type Test = fn(&Path) -> Result<(), Failed>;

fn main() {
    let arguments = Arguments::from_args();
    let folder = tempfile::tempdir().unwrap();
    let emulator = if arguments.list { None } else { compiled(folder.path()) };
    let tests: &[(&str, Test)] = &[
        ("every_conversion_gives_what_the_reference_gives", conversions),
        ("conversions_of_blocks_give_what_the_reference_gives", converted_blocks),
        ("repack_copies_from_any_offset_to_any_other", repacks),
        ("gather_copies_what_the_indices_say_and_nothing_else", gathers),
    ];
    let trials = tests.iter().map(|&(name, test)| {
        let emulator = emulator.clone();
        Trial::test(name, move || test(&emulator.ok_or("there is no C++ compiler")?))
    });
    let trials = trials.map(|trial| trial.with_ignored_flag(emulator.is_none())).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(folder);
    conclusion.exit();
}

/// The emulator, if there is a compiler; a compiler that refuses the source fails the test.
fn compiled(folder: &Path) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator/main.cpp");
    let program = folder.join("emulator");
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-O1", "-ffp-contract=off"]);
    let output = compiler.arg(source).arg("-o").arg(&program).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(program)
}

/// A launch, with the memory that it works on.
struct Job {
    launch: Launch,
    source: (u64, Vec<u8>),
    target: (u64, Vec<u8>),
}

/// What each job's target and counters become.
fn run(emulator: &Path, jobs: &[Job]) -> Result<Vec<(Vec<u8>, Counts)>, Failed> {
    let mut given = Vec::new();
    for Job { launch, source, target } in jobs {
        let (name, task) = (launch.kernel.name().to_bytes(), &launch.task);
        given.extend((name.len() as u64).to_le_bytes());
        given.extend(name);
        given.extend(u64::from(launch.grid).to_le_bytes());
        let addresses = [task.readable, task.readable_end, task.source, task.target];
        let rest = [task.run, task.tally, task.flags];
        let levels = [task.counts, task.source_strides, task.target_strides];
        for number in addresses.iter().chain(levels.as_flattened()).chain(&rest) {
            given.extend(number.to_le_bytes());
        }
        for (address, bytes) in [source, target] {
            given.extend(address.to_le_bytes());
            given.extend((bytes.len() as u64).to_le_bytes());
            given.extend(bytes);
        }
    }
    let mut child =
        Command::new(emulator).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().ok_or("no pipe")?;
    // An emulator that ends early says why on its standard error.
    let writer = thread::spawn(move || drop(stdin.write_all(&given)));
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| "the writer panicked")?;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    let mut rest = &output.stdout[..];
    let results = jobs.iter().map(|job| {
        let (target, behind) = rest.split_at_checked(job.target.1.len()).ok_or("too little output")?;
        let (counters, behind) = behind.split_at_checked(16).ok_or("too little output")?;
        rest = behind;
        let counter = |n: usize| counters.as_chunks().0.get(n).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Ok((target.to_vec(), Counts { out_of_range: counter(0), nan: counter(1) }))
    });
    results.collect()
}

const SOURCE: u64 = 0x10_0000_0000;
const TARGET: u64 = 0x20_0000_0000;
const COUNTERS: u64 = 0x30_0000_0000;
const GUARD: usize = 32;

/// A target of that many bytes at that offset, between guard bytes, and its span.
fn guarded(bytes: usize, offset: u64) -> ((u64, Vec<u8>), Span) {
    let span = Span { address: TARGET + GUARD as u64 + offset, bytes: bytes as u64 };
    ((TARGET + offset, noise(bytes + 2 * GUARD, 7)), span)
}

fn conversions(emulator: &Path) -> Result<(), Failed> {
    let (mut jobs, mut expected) = (Vec::new(), Vec::new());
    for (n, (from, to)) in pairs().enumerate() {
        for overflow in [Overflow::Torch, Overflow::Saturating, Overflow::NonSaturating] {
            if to.bytes() > 1 && overflow != Overflow::Torch {
                continue;
            }
            let conversion = Conversion::new(from, to)?.overflow(overflow);
            let mut source = inputs(from);
            if from.bytes() > 2 {
                // A part, since one thread after the other is slow.
                let elements = source.chunks_exact(from.bytes()).skip(n).step_by(41);
                source = elements.flat_map(<[u8]>::to_vec).collect();
            }
            for (skip, source_offset, counters) in
                [(0, 0, Some(COUNTERS)), (1, 1 + n as u64 % 15, None), (3, 8, Some(COUNTERS))]
            {
                let part = source[skip * from.bytes()..].to_vec();
                let elements = part.len() / from.bytes();
                // The vectors of the target begin elsewhere each time.
                let offset = (skip * to.bytes()) as u64;
                let (mut target, span) = guarded(elements * to.bytes(), offset);
                let source_span = Span { address: SOURCE + source_offset, bytes: part.len() as u64 };
                let block = Block::whole(elements as u64);
                let mut launch = Launch::convert(&conversion, &block, source_span, span, counters)?;
                launch.grid = launch.grid.min(3);
                jobs.push(Job {
                    launch,
                    source: (SOURCE + source_offset, part.clone()),
                    target: target.clone(),
                });
                let counts =
                    conversion.convert_counted(&part, &mut target.1[GUARD..GUARD + elements * to.bytes()])?;
                let counts = counters.map_or(Counts::default(), |_| counts);
                expected.push((format!("{from} to {to}, {overflow:?}, from {skip}"), target.1, counts));
            }
        }
    }
    compare(emulator, &jobs, expected)
}

fn converted_blocks(emulator: &Path) -> Result<(), Failed> {
    let (mut jobs, mut expected) = (Vec::new(), Vec::new());
    let mut runner = TestRunner::deterministic();
    let all: Vec<(Type, Type)> = pairs().collect();
    for n in 0..600_u64 {
        let case = cases(60).new_tree(&mut runner)?.current();
        let (from, to) = all[n as usize % all.len()];
        let conversion = Conversion::new(from, to)?;
        let source = noise(case.source_elements() * from.bytes(), n + 1);
        let elements = case.target_elements();
        let (mut target, span) = guarded(elements * to.bytes(), n / 3 % 16 * to.bytes() as u64);
        let source_span = Span { address: SOURCE + n % 16, bytes: source.len() as u64 };
        let launch = Launch::convert(&conversion, &case.block(), source_span, span, Some(COUNTERS))?;
        jobs.push(Job { launch, source: (source_span.address, source.clone()), target: target.clone() });
        let inner = &mut target.1[GUARD..GUARD + elements * to.bytes()];
        let counts = conversion.gather_counted(&case.block(), &source, inner)?;
        expected.push((format!("{from} to {to}, {case:?}"), target.1, counts));
    }
    compare(emulator, &jobs, expected)
}

fn repacks(emulator: &Path) -> Result<(), Failed> {
    let (mut jobs, mut expected) = (Vec::new(), Vec::new());
    let lengths = (0..70).chain([100, 127, 128, 129, 255, 4096, 4099, 16_384 * 3 + 5]);
    for (n, bytes) in lengths.enumerate() {
        for source_offset in 0..16 {
            for target_offset in [0, 0, (n as u64 + source_offset) % 16] {
                let source = noise(bytes, source_offset + 1);
                let (mut target, span) = guarded(bytes, target_offset);
                let source_span = Span { address: SOURCE + source_offset, bytes: bytes as u64 };
                let launch = Launch::repack(source_span, span)?;
                jobs.push(Job {
                    launch,
                    source: (source_span.address, source.clone()),
                    target: target.clone(),
                });
                repack(&source, &mut target.1[GUARD..GUARD + bytes])?;
                let name = format!("{bytes} bytes from {source_offset} to {target_offset}");
                expected.push((name, target.1, Counts::default()));
            }
        }
    }
    compare(emulator, &jobs, expected)
}

fn gathers(emulator: &Path) -> Result<(), Failed> {
    let (mut jobs, mut expected) = (Vec::new(), Vec::new());
    let mut runner = TestRunner::deterministic();
    let mut kernels = std::collections::BTreeSet::new();
    for n in 0..1500_u64 {
        let case = cases(if n % 4 == 0 { 400 } else { 40 }).new_tree(&mut runner)?.current();
        let size = [1, 2, 4, 8, 16, 3][n as usize % 6];
        let source = noise(case.source_elements() * size, n + 1);
        let (mut target, span) =
            guarded(case.target_elements() * size, if n % 2 == 0 { 0 } else { n / 2 % 16 });
        let source_span =
            Span { address: SOURCE + if n % 3 == 0 { 0 } else { n / 3 % 16 }, bytes: source.len() as u64 };
        let launch = Launch::gather(size, &case.block(), source_span, span)?;
        kernels.insert(launch.kernel.name());
        jobs.push(Job { launch, source: (source_span.address, source.clone()), target: target.clone() });
        let bytes = case.target_elements() * size;
        let inner = &target.1[GUARD..GUARD + bytes];
        let copied = case.expected((&source, size), (inner, size), |from, to| to.copy_from_slice(from));
        target.1[GUARD..GUARD + bytes].copy_from_slice(&copied);
        expected.push((format!("{size} bytes each, {case:?}"), target.1, Counts::default()));
    }
    assert_eq!(kernels.len(), 6, "{kernels:?}");
    compare(emulator, &jobs, expected)
}

fn compare(emulator: &Path, jobs: &[Job], expected: Vec<(String, Vec<u8>, Counts)>) -> Result<(), Failed> {
    let results = run(emulator, jobs)?;
    assert_eq!(results.len(), expected.len());
    for ((job, (target, counts)), (name, wanted, wanted_counts)) in jobs.iter().zip(results).zip(expected) {
        let kernel = job.launch.kernel;
        if let Some(at) = target.iter().zip(&wanted).position(|(got, wanted)| got != wanted) {
            let (got, wanted) = (target[at], wanted[at]);
            return Err(format!("{kernel:?}, {name}: byte {at} is {got:#x}, expected {wanted:#x}").into());
        }
        assert_eq!(counts, wanted_counts, "{kernel:?}, {name}");
    }
    Ok(())
}
