//! [`QueueDepth`]: how many direct reads a reader keeps in flight.
//!
//! A few reads of a mebibyte saturate most disks. More make some virtual disks slower: those copy the data,
//! and buffers larger than a processor's cache slow that down (`docs/performance.md`). So a load starts with
//! few reads, tries four times as many for a moment, twice, and keeps them if the disk was clearly faster
//! both times.

use std::time::{Duration, Instant};

/// Bytes in flight at first; at least [`LEAST`] reads.
pub(super) const FIRST_BYTES: u64 = 8 << 20;

/// One read continues while the bytes of another are processed.
const LEAST: usize = 2;

/// A rate is measured over at least this many bytes and this time, so that short fluctuations of the disk
/// average out.
const RATE_BYTES: u64 = 64 << 20;
const RATE_TIME: Duration = Duration::from_millis(40);

/// More reads have to be faster by a quarter: less may be chance.
const WORTH_IT: f64 = 1.25;

/// Rates between a trial that failed and the next one. Doubles with each failure.
const FIRST_PAUSE: u32 = 16;

/// The factor by which a trial raises the number of reads.
const MORE: usize = 4;

/// The number of reads in flight of one reader.
#[derive(Debug)]
pub(super) struct QueueDepth {
    now: usize,
    most: usize,
    state: DepthState,
    /// Start of the current rate; `None` until the reads that were in flight before it have ended.
    since: Option<Instant>,
    bytes: u64,
    /// Reads that were in flight when the depth last changed, and have not ended yet.
    before: usize,
    pause: u32,
}

#[derive(Debug, Clone, Copy)]
enum DepthState {
    /// Rates until the next trial.
    Paused(u32),
    Trial(Trial),
    /// The depth is at its maximum.
    Settled,
}

/// A comparison of two depths.
#[derive(Debug, Clone, Copy)]
struct Trial {
    few: usize,
    many: usize,
    taken: usize,
    /// Bytes per second with few and with many reads, alternating.
    rates: [f64; TURNS],
}

impl Trial {
    fn was_worth_it(&self) -> bool {
        let [few_first, many_first, few_then, many_then] = self.rates;
        many_first.min(many_then) >= few_first.max(few_then) * WORTH_IT
    }
}

/// Two rates with the old number of reads alternate with two with more: fluctuations of a disk rarely follow
/// that pattern.
const TURNS: usize = 4;

impl QueueDepth {
    /// The depth for reads of `read_bytes` bytes, of which at most `most` can be in flight.
    pub(super) fn new(most: usize, read_bytes: u64) -> Self {
        let first = (FIRST_BYTES / read_bytes.max(1)) as usize;
        let now = first.max(LEAST).min(most);
        let state = if now < most { DepthState::Paused(0) } else { DepthState::Settled };
        Self { now, most, state, since: None, bytes: 0, before: 0, pause: FIRST_PAUSE }
    }

    /// The number of reads to keep in flight.
    pub(super) fn get(&self) -> usize {
        self.now
    }

    /// Records that a read of `bytes` bytes has ended.
    pub(super) fn ended(&mut self, bytes: u64, at: Instant) {
        if let DepthState::Settled = self.state {
            return;
        }
        self.before = self.before.saturating_sub(1);
        let Some(since) = self.since else {
            self.since = (self.before == 0).then_some(at);
            return;
        };
        self.bytes += bytes;
        let time = at.saturating_duration_since(since);
        if self.bytes < RATE_BYTES || time < RATE_TIME {
            return;
        }
        self.rate(self.bytes as f64 / time.as_secs_f64());
        self.bytes = 0;
        // If the depth stays, the next rate starts at once.
        self.since = (self.before == 0).then_some(at);
    }

    fn rate(&mut self, rate: f64) {
        self.state = match self.state {
            DepthState::Settled => DepthState::Settled,
            DepthState::Paused(more @ 1..) => DepthState::Paused(more - 1),
            DepthState::Paused(0) => {
                let (few, many) = (self.now, (self.now * MORE).min(self.most));
                self.set(many);
                DepthState::Trial(Trial { few, many, taken: 1, rates: [rate; TURNS] })
            }
            DepthState::Trial(mut trial) => {
                trial.rates[trial.taken] = rate;
                trial.taken += 1;
                if trial.taken < TURNS {
                    self.set(if trial.taken % 2 == 0 { trial.few } else { trial.many });
                    DepthState::Trial(trial)
                } else if trial.was_worth_it() {
                    if trial.many == self.most { DepthState::Settled } else { DepthState::Paused(0) }
                } else {
                    self.set(trial.few);
                    let pause = self.pause;
                    self.pause = pause.saturating_mul(2);
                    DepthState::Paused(pause)
                }
            }
        };
    }

    fn set(&mut self, depth: usize) {
        self.before = self.now;
        self.now = depth;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `bytes` bytes, a mebibyte at a time, from a disk with the given rate in bytes per second at each
    /// depth. Returns the depths, each with the bytes that were read at it.
    fn depths(bytes: u64, most: usize, rate: impl Fn(usize) -> f64) -> Vec<(usize, u64)> {
        let (mut depth, mut at, mut read) = (QueueDepth::new(most, 1 << 20), Instant::now(), Vec::new());
        for _ in 0..bytes >> 20 {
            let now = depth.get();
            at += Duration::from_secs_f64((1 << 20) as f64 / rate(now));
            depth.ended(1 << 20, at);
            match read.last_mut() {
                Some((last, bytes)) if *last == now => *bytes += 1 << 20,
                _ => read.push((now, 1 << 20)),
            }
        }
        read
    }

    #[test]
    fn a_disk_that_few_reads_keep_busy_gets_few() {
        for slower in [1.0, 0.8] {
            let read = depths(16 << 30, 48, |depth| if depth > 8 { 2.5e9 * slower } else { 2.5e9 });
            let more: u64 = read.iter().filter(|(depth, _)| *depth > 8).map(|(_, bytes)| bytes).sum();
            assert!(read[0].0 == 8 && more < (16 << 30) / 16, "{more} of {read:?}");
        }
    }

    #[test]
    fn a_disk_that_wants_many_reads_gets_them_soon() {
        // A hundred disks, or a network: each read takes five milliseconds, whatever the others do.
        let read = depths(4 << 30, 48, |depth| depth as f64 * (1 << 20) as f64 / 0.005);
        let few: u64 = read.iter().filter(|(depth, _)| *depth < 32).map(|(_, bytes)| bytes).sum();
        assert!(read.last().is_some_and(|(depth, _)| *depth == 48) && few < 256 << 20, "{few} of {read:?}");
    }

    #[test]
    fn two_long_reads_are_in_flight() {
        assert_eq!(QueueDepth::new(7, 16 << 20).get(), 2);
    }

    #[test]
    fn no_more_are_in_flight_than_can_be() {
        for most in 1..20 {
            assert!(
                depths(2 << 30, most, |depth| depth as f64 * 1e9).iter().all(|(depth, _)| *depth <= most)
            );
        }
    }
}
