//! `tensorhold demo`.

mod support;

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::json;
use support::{command, failure, json, run, stdout};

fn demo(options: &[&str], temporary: &Path) -> Output {
    command().arg("demo").args(["--device", "cpu"]).args(options).env("TMPDIR", temporary).output().unwrap()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn it_writes_loads_verifies_and_removes() {
    let temporary = tempfile::tempdir().unwrap();
    let printed = stdout(&demo(&["--bytes", "3MB"], temporary.path()));
    for part in ["devices: host", "using: host", "wrote ", "loaded ", "equal the files\n", "removed from "] {
        assert!(printed.contains(part), "{printed}");
    }
    assert!(is_empty(temporary.path()));
}

#[test]
fn what_is_kept_can_be_inspected() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("llama");
    let printed =
        stdout(&demo(&["--bytes", "3MB", "--keep", "--dir", folder.to_str().unwrap()], temporary.path()));
    assert!(printed.ends_with(&format!("kept in {}\n", folder.display())), "{printed}");
    let document = json(&run("inspect", &folder, &["--json"]));
    let bytes = document["total"]["bytes"].as_u64().unwrap();
    assert!(bytes.abs_diff(3_000_000) < 150_000, "{bytes}");
    assert_eq!(document["files"].as_array().unwrap().len(), 4);
    assert_eq!(document["tensors"][0]["dtype"], json!("BF16"));
}

#[test]
fn what_the_seed_is_decides_the_bytes() {
    let temporary = tempfile::tempdir().unwrap();
    let first_shard = |seed: &str, name: &str| {
        let folder = temporary.path().join(name);
        let options = ["--bytes", "1MB", "--keep", "--seed", seed, "--dir", folder.to_str().unwrap()];
        stdout(&demo(&options, temporary.path()));
        fs::read(folder.join("model-00001-of-00004.safetensors")).unwrap()
    };
    let first = first_shard("1", "a");
    assert!(first == first_shard("1", "b"));
    assert!(first != first_shard("2", "c"));
}

#[test]
fn a_failure_removes_what_was_written() {
    let temporary = tempfile::tempdir().unwrap();
    let theirs = temporary.path().join("model-00002-of-00004.safetensors");
    fs::write(&theirs, "theirs").unwrap();
    let output =
        demo(&["--bytes", "1MB", "--keep", "--dir", temporary.path().to_str().unwrap()], temporary.path());
    assert_eq!(output.status.code(), Some(1));
    assert!(support::stderr(&output).contains("name an empty folder with --dir"));
    assert_eq!(fs::read(&theirs).unwrap(), b"theirs");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1);
}

#[test]
fn more_than_the_disk_has_is_refused_before_writing() {
    let temporary = tempfile::tempdir().unwrap();
    let output = demo(&["--bytes", "900TB"], temporary.path());
    assert_eq!(output.status.code(), Some(1));
    let message = support::stderr(&output);
    assert!(message.contains("lower --bytes"), "{message}");
    assert!(is_empty(temporary.path()));
}

#[test]
fn a_device_that_is_not_there_is_an_error_before_anything_is_written() {
    let temporary = tempfile::tempdir().unwrap();
    let output =
        command().args(["demo", "--device", "cuda:999"]).env("TMPDIR", temporary.path()).output().unwrap();
    assert!(failure(&output, 1).contains("cuda:999"));
    assert!(is_empty(temporary.path()));
}
