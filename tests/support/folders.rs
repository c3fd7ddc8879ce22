//! Folders of files and indexes, and what is loaded from them.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tensorhold::{Batching, Device, Error, LeftOut, Loader, Result, Weights};

use super::{bytes_tensor, write};

pub const INDEX: &str = "model.safetensors.index.json";

/// A folder of files, each with one tensor that has the file's name.
pub fn folder(files: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(&path, &[bytes_tensor(file, 7)]);
    }
    folder
}

/// Writes an index of these tensors, each with its file.
pub fn index(path: &Path, tensors: &[(&str, &str)]) {
    let entries: Vec<_> = tensors.iter().map(|(tensor, file)| format!(r#""{tensor}":"{file}""#)).collect();
    fs::write(path, format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","))).unwrap();
}

pub fn loader(path: &Path) -> Loader {
    Loader::new(Device::host()).checkpoint(path).unwrap()
}

/// The names of all tensors, the same by each way to load; or the error, the same too.
pub fn load(path: &Path, variant: Option<&str>) -> Result<Vec<String>> {
    let loader = || variant.into_iter().fold(loader(path), Loader::variant);
    let names = |weights: Weights| weights.names().map(str::to_owned).collect::<Vec<_>>();
    let loaded = loader().load().map(names);
    let inspected =
        loader().inspect().map(|found| found.tensors.iter().map(|info| info.name.to_string()).collect());
    let opened = loader().open().map(|opened| opened.names().map(str::to_owned).collect());
    let streamed = loader().stream().and_then(|stream| stream.finish()).map(names);
    let batches = loader().batches(Batching::new());
    let batched: Result<Vec<_>> = batches.and_then(|batches| batches.collect());
    let batched = batched.map(|batches| batches.into_iter().flat_map(names).collect());
    let text = |loaded: &Result<Vec<String>>| loaded.as_ref().map_err(ToString::to_string).cloned();
    for other in [inspected, opened, streamed, batched] {
        assert_eq!(text(&other), text(&loaded), "{path:?}");
    }
    loaded
}

#[track_caller]
pub fn assert_loads(folder: &TempDir, variant: Option<&str>, expected: &[&str]) {
    assert_eq!(load(folder.path(), variant).unwrap(), expected);
}

#[track_caller]
pub fn assert_refuses(folder: &TempDir, variant: Option<&str>, words: &[&str]) {
    let error = load(folder.path(), variant).expect_err("it is ambiguous or incomplete");
    let message = error.to_string();
    assert!(matches!(error, Error::Checkpoint { .. } | Error::Index { .. }), "{message}");
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
    assert!(message.len() < 1500, "{message}");
}

/// The names of the files that are left out, each with the reason.
pub fn left_out(left_out: &[LeftOut]) -> Vec<(String, String)> {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    left_out.iter().map(|left_out| (name(&left_out.path), left_out.why.clone())).collect()
}
