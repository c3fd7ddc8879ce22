//! [`Passes`]: which passes of the reaper were requested, and which are over.

/// Passes of the reaper, numbered from 1 by their requests. A pass serves all requests made before it began.
#[derive(Debug, Default)]
pub(crate) struct Passes {
    requested: u64,
    done: u64,
    /// The last request that waits for fences.
    waits_for_fences: u64,
    /// Bytes of empty regions that the requests under way keep.
    keep: u64,
    ended: bool,
}

/// A pass that has begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass {
    /// The last request that it serves.
    number: u64,
    /// Whether a request waits for fences.
    pub(crate) waits_for_fences: bool,
}

impl Passes {
    /// Requests a pass and returns its number. Empty regions of `keep` bytes in total may stay.
    pub(crate) fn request(&mut self, waits_for_fences: bool, keep: u64) -> u64 {
        self.requested += 1;
        // Another request may be under way: the smaller number holds for both.
        self.keep = if self.done + 1 == self.requested { keep } else { keep.min(self.keep) };
        if waits_for_fences {
            self.waits_for_fences = self.requested;
        }
        self.requested
    }

    /// Whether the pass with this number is over, or none will follow.
    pub(crate) fn is_over(&self, number: u64) -> bool {
        self.done >= number || self.ended
    }

    pub(crate) fn begin(&self) -> Pass {
        Pass { number: self.requested, waits_for_fences: self.waits_for_fences > self.done }
    }

    /// Bytes of empty regions that a pass keeps; `None` if no one requested it.
    pub(crate) fn keep(&self, pass: Pass) -> Option<u64> {
        (pass.number > self.done).then_some(self.keep)
    }

    /// Ends a pass. Returns whether another was requested since it began.
    pub(crate) fn finish(&mut self, pass: Pass) -> bool {
        self.done = pass.number;
        self.requested != pass.number
    }

    /// No pass follows: the reaper ends, or has panicked.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    pub(crate) fn have_ended(&self) -> bool {
        self.ended
    }
}
