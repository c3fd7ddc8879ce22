//! How often a read is tried again that the system broke off.

use std::io;

/// Reads of the same bytes, one after the other, that brought none of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Retries {
    interrupted: u32,
    others: u32,
}

/// A signal interrupts one read. Many signals, as of a profiler, interrupt many.
const MOST_INTERRUPTED: u32 = 256;

/// Reads that may wait have no reason to say that they would have to, and none to end within a block.
const MOST_OTHERS: u32 = 16;

impl Retries {
    /// Whether to try again after this error; counts the trial.
    pub(crate) fn allow(&mut self, error: &io::Error) -> bool {
        match error.kind() {
            io::ErrorKind::Interrupted => count(&mut self.interrupted, MOST_INTERRUPTED),
            io::ErrorKind::WouldBlock => count(&mut self.others, MOST_OTHERS),
            _ => false,
        }
    }

    /// Whether to try again after a read that ended within a block; counts the trial.
    pub(crate) fn allow_part(&mut self) -> bool {
        count(&mut self.others, MOST_OTHERS)
    }

    /// The error after which no more is tried; says how often that was done.
    pub(crate) fn explain(self, error: io::Error) -> io::Error {
        match self.interrupted + self.others {
            0 => error,
            retries => {
                io::Error::new(error.kind(), format!("{error}, also when tried again {retries} times"))
            }
        }
    }
}

fn count(trials: &mut u32, most: u32) -> bool {
    let allowed = *trials < most;
    *trials += u32::from(allowed);
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_reads_are_tried_again_for_longer_than_others_and_failed_ones_never() {
        for (kind, most) in [
            (io::ErrorKind::Interrupted, MOST_INTERRUPTED),
            (io::ErrorKind::WouldBlock, MOST_OTHERS),
            (io::ErrorKind::Other, 0),
        ] {
            let (mut retries, error) = (Retries::default(), io::Error::from(kind));
            assert_eq!((0..1000).filter(|_| retries.allow(&error)).count(), most as usize);
            let explained = retries.explain(error);
            assert_eq!(explained.kind(), kind);
            assert_eq!(explained.to_string().contains(&format!("tried again {most} times")), most > 0);
        }
    }
}
