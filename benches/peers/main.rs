//! The compiled part of the comparison with other loaders; `run` beside this file drives it. Each call does one thing
//! in a fresh process and prints one line of JSON.
//!
//! ```text
//! peers write SHAPE FOLDER [SCALE]        a checkpoint of that shape, and the digests of its tensors
//! peers sparse SHAPE FOLDER [SCALE]       the same without the tensors' bytes, which read as zeros and take no disk
//! peers load ENTRY FOLDER [DEVICE]        one load: `tensorhold`, `tensorhold-BACKEND` or `mapped`
//! peers limits FOLDER [DEVICE]            what the machine can do with these files when they are cached
//! peers limits-cold FOLDER [half]         what its disk can do: all of the files, or the second half of each
//! ```

mod digest;
mod limits;
mod load;
mod shapes;
#[path = "../support/mod.rs"]
mod support;

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tensorhold::Device;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let printed = match arguments[..] {
        ["write", shape, folder] => write(shape, Path::new(folder), 1.0)?,
        ["write", shape, folder, scale] => write(shape, Path::new(folder), scale.parse()?)?,
        ["sparse", shape, folder] => sparse(shape, Path::new(folder), 1.0)?,
        ["sparse", shape, folder, scale] => sparse(shape, Path::new(folder), scale.parse()?)?,
        ["load", entry, folder] => load::load(entry, Path::new(folder), &device("cuda:0")?)?,
        ["load", entry, folder, name] => load::load(entry, Path::new(folder), &device(name)?)?,
        ["limits", folder] => limits::cached(&files(Path::new(folder))?, &device("cuda:0")?)?,
        ["limits", folder, name] => limits::cached(&files(Path::new(folder))?, &device(name)?)?,
        ["limits-cold", folder] => limits::cold(&files(Path::new(folder))?, false)?,
        ["limits-cold", folder, "half"] => limits::cold(&files(Path::new(folder))?, true)?,
        // `cargo bench` runs every bench without arguments.
        [] => json!({ "skipped": "benches/peers/run drives this program" }),
        _ => bail!("unknown arguments {arguments:?}; see benches/peers/README.md"),
    };
    println!("{printed}");
    Ok(())
}

fn device(name: &str) -> Result<Device> {
    Ok(match name.strip_prefix("cuda:") {
        Some(ordinal) => Device::cuda(ordinal.parse()?)?,
        None => Device::host(),
    })
}

/// The safetensors files of a folder, in the order of their names.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    Ok(files)
}

fn write(shape: &str, folder: &Path, scale: f64) -> Result<Value> {
    let shards = shapes::shards(shape, scale).with_context(|| format!("there is no shape {shape:?}"))?;
    fs::create_dir_all(folder)?;
    support::write::write(&shards, 1, |name| Ok(fs::File::create(folder.join(name))?), |_| ())?;
    let digests = digest::of_files(&files(folder)?)?;
    fs::write(folder.join(digest::FILE), serde_json::to_vec(&digests)?)?;
    let bytes: u64 = shards.iter().map(support::shapes::Shard::bytes).sum();
    Ok(json!({ "shape": shape, "bytes": bytes, "files": shards.len(), "tensors": digests.len() }))
}

fn sparse(shape: &str, folder: &Path, scale: f64) -> Result<Value> {
    let shards = shapes::shards(shape, scale).with_context(|| format!("there is no shape {shape:?}"))?;
    fs::create_dir_all(folder)?;
    for shard in &shards {
        let header = support::write::header(&shard.tensors);
        let mut file = fs::File::create(folder.join(&shard.name))?;
        file.write_all(&header)?;
        file.set_len(header.len() as u64 + shard.bytes())?;
    }
    fs::write(folder.join("model.safetensors.index.json"), support::write::index(&shards))?;
    let bytes: u64 = shards.iter().map(support::shapes::Shard::bytes).sum();
    let tensors: usize = shards.iter().map(|shard| shard.tensors.len()).sum();
    Ok(json!({ "shape": shape, "bytes": bytes, "files": shards.len(), "tensors": tensors }))
}
