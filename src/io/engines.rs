//! [`Engines`]: the engines that a load reads with.

use std::sync::Arc;

use super::residency::Probe;
use super::{Buffered, Direct, Engine, Uring, gds};

/// One engine for each backend. Tests replace them.
#[derive(Debug, Clone)]
pub(crate) struct Engines {
    pub(crate) buffered: Arc<dyn Engine>,
    pub(crate) direct: Arc<dyn Engine>,
    pub(crate) uring: Arc<dyn Engine>,
    /// Finds cuFile, when there is something for it to read.
    pub(crate) gds: Arc<dyn gds::Provider>,
    /// Makes a probe of the page cache, for one file.
    pub(crate) probe: fn() -> Probe,
}

impl Default for Engines {
    fn default() -> Self {
        Self {
            buffered: Arc::new(Buffered),
            direct: Arc::new(Direct),
            uring: Arc::new(Uring::default()),
            gds: Arc::new(gds::System),
            probe: Probe::default,
        }
    }
}
