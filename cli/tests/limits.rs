//! The command within the limits of its process.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::json;
use support::{json, stderr, stdout, write};
use tempfile::TempDir;

/// Runs a subcommand in a process that may have `files` files open.
fn limited(files: u64, arguments: &[&str]) -> Output {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={files}:{files}")).arg(env!("CARGO_BIN_EXE_tensorhold")).args(arguments);
    for setting in tensorhold::settings::ALL {
        command.env_remove(setting);
    }
    command.stdin(Stdio::null()).output().unwrap()
}

/// A checkpoint of `files` files with one tensor each.
fn checkpoint(files: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for number in 1..=files {
        let path = folder.path().join(format!("model-{number:05}-of-{files:05}.safetensors"));
        write(&path, &[(&format!("t{number}"), &[2, 3])]);
    }
    folder
}

#[test]
fn two_hundred_files_are_loaded_verified_inspected_and_mapped_where_64_may_be_open() {
    let folder = checkpoint(200);
    let path = folder.path().to_str().unwrap();
    let loaded = json(&limited(64, &["load", path, "--device", "cpu", "--json"]));
    assert_eq!(loaded["tensors"], json!(200));
    let verified = json(&limited(64, &["verify", path, "--device", "cpu", "--json"]));
    assert_eq!((&verified["equal"], &verified["equal_tensors"]), (&json!(true), &json!(200)));
    let inspected = stdout(&limited(64, &["inspect", path]));
    assert!(inspected.contains("t200"), "{inspected}");
    let map = stdout(&limited(64, &["map", path, "--device", "cpu"]));
    assert!(map.contains("200 fragments"), "{map}");
}

#[test]
fn where_no_thread_can_be_started_the_error_names_the_limit() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        println!("skipped: it takes root to become a user without other processes");
        return;
    }
    let folder = checkpoint(1);
    let readable = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("tensorhold");
    fs::copy(env!("CARGO_BIN_EXE_tensorhold"), &copy).unwrap();
    readable(folder.path());
    fs::read_dir(folder.path()).unwrap().for_each(|entry| readable(&entry.unwrap().path()));
    let mut command = Command::new("prlimit");
    command.args(["--nproc=1:1", "setpriv", "--reuid=61843", "--regid=61843", "--clear-groups"]);
    let output = command.arg("--bounding-set=-all").arg(copy).args(["load", "--device", "cpu"]);
    let output = output.arg(folder.path()).output().unwrap();
    let message = stderr(&output);
    assert!(!output.status.success() && message.contains("RLIMIT_NPROC"), "{message}");
    assert!(message.contains("ulimit -u") && message.contains("pids.max"), "{message}");
}
