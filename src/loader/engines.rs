//! The engines that a load reads with. Tests put others in their place.

use std::sync::Arc;

use crate::io::gds;
use crate::io::residency::Probe;
use crate::io::{Buffered, Direct, Engine, Uring};

#[derive(Debug, Clone)]
pub(super) struct Engines {
    pub(super) buffered: Arc<dyn Engine>,
    pub(super) direct: Arc<dyn Engine>,
    pub(super) uring: Arc<dyn Engine>,
    /// What finds cuFile, when there is something for it to read.
    pub(super) gds: Arc<dyn gds::Provider>,
    /// What asks what is cached, for one file.
    pub(super) probe: fn() -> Probe,
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
