//! The pool that a load places its tensors in, and the file that its events go to, where they are recorded (`load --events`).

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use tensorhold::Device;
use tensorhold::allocator::events::{self, EventLog};
use tensorhold::allocator::{Pool, PoolBuilder};

use crate::args::LoadOptions;
use crate::output::system;
use crate::target;

/// A pool for the tensors of a load.
pub(crate) fn builder(device: &Device, options: &LoadOptions) -> PoolBuilder {
    let builder = Pool::builder(device.memory()).name(device.name());
    builder.region_parts(options.parts.unwrap_or_default())
}

/// A pool that is recorded.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) pool: Pool,
    log: EventLog,
    file: File,
    path: PathBuf,
}

impl Recording {
    /// Makes the pool, and the file before a checkpoint is loaded from `source`: a file that cannot be written costs no load, and a checkpoint that
    /// cannot be read no file.
    pub(crate) fn start(
        path: &Path,
        source: &Path,
        device: &Device,
        options: &LoadOptions,
    ) -> anyhow::Result<Self> {
        let inputs = target::inputs(source, &options.set)?;
        // A load has an event or two for each tensor, and those are in memory anyway.
        let (recorder, log) = events::recorder(usize::MAX);
        let pool = builder(device, options).events(recorder).build()?;
        let file = target::create(path, &inputs)?;
        Ok(Self { pool, log, file, path: path.to_owned() })
    }

    /// Closes the pool and writes what has happened in it.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.pool.close();
        self.log.write_to(BufWriter::new(self.file)).map_err(system("write", &self.path))?;
        Ok(())
    }
}
