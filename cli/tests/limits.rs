//! The command within the limits of its process.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
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
fn a_hundred_files_are_verified_mapped_and_recorded_where_16_may_be_open() {
    let folder = checkpoint(100);
    let path = folder.path().to_str().unwrap();
    let verified = json(&limited(16, &["verify", path, "--device", "cpu", "--json"]));
    assert_eq!((&verified["equal"], &verified["equal_tensors"]), (&json!(true), &json!(100)));
    let [picture, log] = ["map.svg", "events"].map(|name| folder.path().join(name));
    stdout(&limited(16, &["map", path, "--device", "cpu", "--out", picture.to_str().unwrap()]));
    assert!(fs::read_to_string(picture).unwrap().contains("100 fragments"));
    stdout(&limited(16, &["load", path, "--device", "cpu", "--events", log.to_str().unwrap()]));
    assert!(fs::read_to_string(log).unwrap().contains("\"end\":"));
}

/// A control group of version 1 with a limit of memory, below this process's own, and one in it without; both go when this is dropped.
struct Group(PathBuf);

impl Group {
    fn limited_to(bytes: u64) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = groups.lines().find_map(|line| Some(line.split_once(":memory:/")?.1))?;
        let outer = Path::new("/sys/fs/cgroup/memory").join(own);
        let outer = outer.join(format!("tensorhold-demo-{}", std::process::id()));
        fs::create_dir(&outer).ok()?;
        let group = Self(outer);
        fs::create_dir(group.inner()).ok()?;
        fs::write(group.0.join("memory.limit_in_bytes"), bytes.to_string()).ok()?;
        Some(group)
    }

    fn inner(&self) -> PathBuf {
        self.0.join("inner")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.inner());
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn the_demo_fits_into_the_limit_of_a_control_group_above_its_own() {
    let Some(group) = Group::limited_to(128 << 20) else {
        println!("skipped: it takes the right to make control groups of version 1 that limit memory");
        return;
    };
    let mut command = Command::new("sh");
    // The shell enters the group, and becomes the command.
    command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(group.inner());
    command.arg(env!("CARGO_BIN_EXE_tensorhold")).args(["demo", "--device", "cpu"]);
    for setting in tensorhold::settings::ALL {
        command.env_remove(setting);
    }
    let printed = stdout(&command.stdin(Stdio::null()).output().unwrap());
    assert!(printed.contains("equal the files"), "{printed}");
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
