//! The kernels beside a copy of the device, and their CPU reference beside a copy of memory, measured in the same rounds; all bytes are checked.
//!
//! Rates are of bytes read plus written. Rounds alternate between the cases, and what is printed are medians.
//!
//! Settings: `BENCH_BYTES` is how much the larger side of a case has on the device (1 GiB), `BENCH_HOST_BYTES` on the host (256 MiB), `BENCH_ROUNDS` the
//! number of rounds (5 at least), `BENCH_BLOCKS` the size of the grids, in place of the one that a launch says.

#[path = "../../tests/gpu/driver.rs"]
mod driver;
mod gpu;
mod host;

use std::env;

fn number(variable: &str) -> Option<usize> {
    env::var(variable).ok().and_then(|value| value.parse().ok())
}

fn rounds() -> usize {
    number("BENCH_ROUNDS").unwrap_or(7).max(5)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A table of cases beside the first: bytes read and written, and the seconds of each round.
fn print(title: &str, limit: &str, cases: Vec<(String, u64, Vec<f64>)>) {
    println!("{title}\n| case | bytes read + written | ms | GB/s | of {limit} |\n|---|---|---|---|---|");
    let rates = cases.into_iter().map(|(name, bytes, seconds)| (name, bytes, median(seconds)));
    let mut first = None;
    for (name, bytes, seconds) in rates {
        let rate = bytes as f64 / 1e9 / seconds;
        let ratio = rate / *first.get_or_insert(rate);
        println!("| {name} | {bytes} | {:.3} | {rate:.1} | {ratio:.3} |", seconds * 1e3);
    }
    println!();
}

/// Bytes of every value.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = vec![0; bytes.next_multiple_of(8)];
    for word in noise.as_chunks_mut::<8>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state.to_le_bytes();
    }
    noise.truncate(bytes);
    noise
}

fn main() {
    // Cargo runs benches as tests too, to see that they run.
    let short = !env::args().any(|argument| argument == "--bench");
    host::run(if short { 1 << 20 } else { number("BENCH_HOST_BYTES").unwrap_or(256 << 20) });
    gpu::run(if short { 1 << 20 } else { number("BENCH_BYTES").unwrap_or(1 << 30) });
}
