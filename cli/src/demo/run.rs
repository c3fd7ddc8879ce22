//! The demo, step by step.

use std::time::Instant;

use super::folder::Folder;
use super::shapes::{self, Shard};
use super::{size, write};
use crate::args::{DemoArgs, LoadOptions};
use crate::output::{self, count, print, rate};
use crate::{device, load, verify};

pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let chosen = device::choose(args.device)?;
    print(|out| {
        writeln!(out, "devices: {}", device::found())?;
        writeln!(out, "using: {}", chosen.device)
    })?;

    let mut folder = Folder::open(args.dir.as_deref())?;
    let bytes = match args.bytes {
        Some(bytes) => bytes,
        None => size::suitable(&chosen.device, folder.path())?,
    };
    write_checkpoint(&mut folder, bytes, args.seed)?;
    let path = folder.path().to_owned();
    // From here on a checkpoint that is to be kept is kept, whatever happens: it may be what explains a failure.
    let folder = match args.keep {
        true => {
            folder.keep();
            None
        }
        false => Some(folder),
    };

    let loaded = load::load(&path, &LoadOptions::default(), chosen)?;
    print(|out| loaded.write_text(out))?;
    let verification = verify::compare(&loaded.weights, |_| true)?;
    print(|out| verification.write_text(out))?;
    verification.check()?;

    let Some(folder) = folder else { return print(|out| writeln!(out, "kept in {}", path.display())) };
    folder.remove()?;
    print(|out| writeln!(out, "removed from {}", path.display()))
}

fn write_checkpoint(folder: &mut Folder, bytes: u64, seed: u64) -> anyhow::Result<()> {
    size::check_disk(folder.path(), bytes)?;
    let shards = shapes::llama(bytes);
    let bytes = shards.iter().map(Shard::bytes).sum();
    let bar = output::bar("writing", bytes);
    let started = Instant::now();
    write::write(&shards, seed, |name| folder.create(name), |written| bar.inc(written))?;
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let tensors = count(shards.iter().map(|shard| shard.tensors.len()).sum(), "tensor");
    let (files, path) = (count(shards.len(), "shard"), folder.path().display());
    print(|out| writeln!(out, "wrote {tensors} in {files} to {path}, {}", rate(bytes, seconds)))
}
