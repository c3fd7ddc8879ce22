//! How many reads past the page cache are in flight.
//!
//! Most disks are busy with few reads of a mebibyte. More make some virtual disks slower: those copy what they read, and more
//! memory than a processor's cache holds is in the way of that (`docs/performance.md`). So a load begins with few, tries four times as
//! many for a moment, twice, and goes on with those if the disk was clearly quicker both times.

use std::time::{Duration, Instant};

/// So many bytes are in flight at first, and [`LEAST`] reads.
pub(super) const FIRST_BYTES: u64 = 8 << 20;

/// One read goes on while what another brought is taken care of.
const LEAST: usize = 2;

/// A rate is that of so many bytes or more, and of so long: longer than the disk's own ups and downs of a moment.
const RATE_BYTES: u64 = 64 << 20;
const RATE_TIME: Duration = Duration::from_millis(40);

/// More reads have to bring a quarter more bytes: less may be chance.
const WORTH_IT: f64 = 1.25;

/// After a trial that was not worth it, the next is so many rates later; after the next, twice as many.
const FIRST_PAUSE: u32 = 16;

/// So many times as many reads are tried.
const MORE: usize = 4;

/// The reads in flight of one reader.
#[derive(Debug)]
pub(super) struct Depth {
    now: usize,
    most: usize,
    state: State,
    /// Since when so many bytes have been read; `None` until the reads that were in flight before have ended.
    since: Option<Instant>,
    bytes: u64,
    /// Reads in flight when the depth was last changed, which have not ended yet.
    before: usize,
    pause: u32,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// So many rates pass before the next trial.
    Paused(u32),
    Trial(Trial),
    /// There can be no more.
    Settled,
}

/// Whether more reads are quicker.
#[derive(Debug, Clone, Copy)]
struct Trial {
    few: usize,
    many: usize,
    taken: usize,
    /// Bytes a second with few and with many, in turns.
    rates: [f64; TURNS],
}

impl Trial {
    fn was_worth_it(&self) -> bool {
        let [few_first, many_first, few_then, many_then] = self.rates;
        many_first.min(many_then) >= few_first.max(few_then) * WORTH_IT
    }
}

/// Twice with as many reads as before, and twice with more: a disk's ups and downs are seldom in step with that.
const TURNS: usize = 4;

impl Depth {
    /// Of reads of so many bytes, of which at most so many can be in flight.
    pub(super) fn new(most: usize, read_bytes: u64) -> Self {
        let first = (FIRST_BYTES / read_bytes.max(1)) as usize;
        let now = first.max(LEAST).min(most);
        let state = if now < most { State::Paused(0) } else { State::Settled };
        Self { now, most, state, since: None, bytes: 0, before: 0, pause: FIRST_PAUSE }
    }

    /// How many reads are to be in flight.
    pub(super) fn get(&self) -> usize {
        self.now
    }

    /// A read of so many bytes has ended at this moment.
    pub(super) fn ended(&mut self, bytes: u64, at: Instant) {
        if let State::Settled = self.state {
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
        // Where the depth stays, the next rate begins at once.
        self.since = (self.before == 0).then_some(at);
    }

    fn rate(&mut self, rate: f64) {
        self.state = match self.state {
            State::Settled => State::Settled,
            State::Paused(more @ 1..) => State::Paused(more - 1),
            State::Paused(0) => {
                let (few, many) = (self.now, (self.now * MORE).min(self.most));
                self.set(many);
                State::Trial(Trial { few, many, taken: 1, rates: [rate; TURNS] })
            }
            State::Trial(mut trial) => {
                trial.rates[trial.taken] = rate;
                trial.taken += 1;
                if trial.taken < TURNS {
                    self.set(if trial.taken % 2 == 0 { trial.few } else { trial.many });
                    State::Trial(trial)
                } else if trial.was_worth_it() {
                    if trial.many == self.most { State::Settled } else { State::Paused(0) }
                } else {
                    self.set(trial.few);
                    let pause = self.pause;
                    self.pause = pause.saturating_mul(2);
                    State::Paused(pause)
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

    /// Reads so many bytes by reads of a mebibyte from a disk that brings so many bytes a second at each depth. Returns the depths, each
    /// with the bytes that were read at it.
    fn depths(bytes: u64, most: usize, rate: impl Fn(usize) -> f64) -> Vec<(usize, u64)> {
        let (mut depth, mut at, mut read) = (Depth::new(most, 1 << 20), Instant::now(), Vec::new());
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
        assert_eq!(Depth::new(7, 16 << 20).get(), 2);
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
