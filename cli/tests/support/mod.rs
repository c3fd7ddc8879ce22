//! What the tests of the command share: small checkpoints, and running it.
#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The command, with no setting of the caller's environment.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tensorhold"));
    for setting in tensorhold::settings::ALL {
        command.env_remove(setting);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a subcommand on a path, with options.
pub(crate) fn run(subcommand: &str, path: &Path, options: &[&str]) -> Output {
    command().arg(subcommand).arg(path).args(options).output().unwrap()
}

/// What a successful run printed; its standard error stayed empty.
pub(crate) fn stdout(output: &Output) -> String {
    let printed = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{}", stderr(output));
    assert_eq!(stderr(output), "");
    printed
}

/// The JSON that a successful run printed.
pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap()
}

/// The message of a run that failed with this exit code and printed no result.
pub(crate) fn failure(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}", stderr(output));
    assert!(output.stdout.is_empty());
    stderr(output)
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Writes a safetensors file of F32 tensors.
pub(crate) fn write(path: &Path, tensors: &[(&str, &[usize])]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(name, shape)| {
            (0..4 * shape.iter().product::<usize>()).map(|i| (i * 7 + name.len()) as u8).collect()
        })
        .collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape), bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A checkpoint of two shards: `a.bias` [3] and `a.weight` [2, 3], 36 bytes; `b.weight` [5, 1], 20 bytes.
pub(crate) fn checkpoint() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    write(&file("model-00001-of-00002.safetensors"), &[("a.bias", &[3]), ("a.weight", &[2, 3])]);
    write(&file("model-00002-of-00002.safetensors"), &[("b.weight", &[5, 1])]);
    let index = json!({
        "metadata": { "total_size": 56 },
        "weight_map": {
            "a.bias": "model-00001-of-00002.safetensors",
            "a.weight": "model-00001-of-00002.safetensors",
            "b.weight": "model-00002-of-00002.safetensors",
        },
    });
    fs::write(file("model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}
