//! The CPU reference.

use std::thread;
use std::time::Instant;

use half::bf16;
use tensorhold_kernels::{Conversion, Type};

use crate::{noise, print, rounds};

const PAIRS: [(Type, Type); 9] = [
    (Type::F32, Type::BF16),
    (Type::F32, Type::F16),
    (Type::F32, Type::F8_E4M3),
    (Type::BF16, Type::F32),
    (Type::F16, Type::BF16),
    (Type::BF16, Type::F8_E4M3),
    (Type::F8_E4M3, Type::BF16),
    (Type::F64, Type::F32),
    (Type::I8, Type::BF16),
];

/// Both in `threads` parts that belong together, each given to a thread.
fn in_parts(
    threads: usize,
    source: (&[u8], usize),
    target: (&mut [u8], usize),
    work: impl Fn(&[u8], &mut [u8]) + Sync,
) -> f64 {
    let part = (source.0.len() / source.1).div_ceil(threads);
    let parts = source.0.chunks(part * source.1).zip(target.0.chunks_mut(part * target.1));
    let started = Instant::now();
    thread::scope(|scope| {
        let work = &work;
        for (source, target) in parts {
            scope.spawn(move || work(source, target));
        }
    });
    started.elapsed().as_secs_f64()
}

pub(crate) fn run(bytes: usize) {
    let source = noise(bytes);
    // Touched before it is timed.
    let mut target = noise(bytes);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut threads = vec![1, 2, cores.min(16)];
    threads.dedup();
    for threads in threads.into_iter().filter(|&threads| threads <= cores) {
        // As many bytes in all as F32 to BF16.
        let copied = bytes / 4 * 3;
        let mut cases = vec![("copy".to_owned(), 2 * copied as u64, Vec::new())];
        let mut lengths = Vec::new();
        for (from, to) in PAIRS {
            let elements = bytes / from.bytes().max(to.bytes());
            lengths.push((elements * from.bytes(), elements * to.bytes()));
            let moved = elements * (from.bytes() + to.bytes());
            cases.push((format!("{from} to {to}"), moved as u64, Vec::new()));
        }
        for round in 0..=rounds() {
            let seconds =
                in_parts(threads, (&source[..copied], 1), (&mut target[..copied], 1), |source, target| {
                    target.copy_from_slice(source);
                });
            let mut all = vec![seconds];
            for ((from, to), (read, written)) in PAIRS.into_iter().zip(&lengths) {
                let conversion = Conversion::new(from, to).unwrap();
                let parts = ((&source[..*read], from.bytes()), (&mut target[..*written], to.bytes()));
                all.push(in_parts(threads, parts.0, parts.1, |source, target| {
                    conversion.convert(source, target).unwrap();
                }));
                if round == 0 && (from, to) == (Type::F32, Type::BF16) {
                    check(&source[..*read], &target[..*written]);
                }
            }
            // The first round is to warm up, and to check.
            if round > 0 {
                cases.iter_mut().zip(all).for_each(|(case, seconds)| case.2.push(seconds));
            }
        }
        print(&format!("host, {threads} of {cores} threads, medians of {} rounds", rounds()), "copy", cases);
    }
}

/// The others are held to torch by the tests of the crate.
fn check(source: &[u8], target: &[u8]) {
    for (from, to) in source.as_chunks().0.iter().zip(target.as_chunks().0) {
        assert_eq!(bf16::from_f32_const(f32::from_le_bytes(*from)).to_bits(), u16::from_le_bytes(*to));
    }
}
