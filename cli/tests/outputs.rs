//! The files that the command writes to: what it reads, and what is no file, stays as it is.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use support::{checkpoint, command, failure, run, stderr, stdout, write};
use tempfile::TempDir;

/// A folder with a checkpoint of one file, `model.safetensors`, and a log of its load, `events`.
fn folder() -> (TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (model, log) = (folder.path().join("model.safetensors"), folder.path().join("events"));
    write(&model, &[("a", &[2, 3])]);
    stdout(&load(&model, &log));
    (folder, model, log)
}

fn load(model: &Path, events: &Path) -> Output {
    run("load", model, &["--device", "cpu", "--events", events.to_str().unwrap()])
}

fn map(model: &Path, out: &Path) -> Output {
    run("map", model, &["--device", "cpu", "--out", out.to_str().unwrap()])
}

fn trace(log: &Path, out: &Path) -> Output {
    run("trace", log, &["--out", out.to_str().unwrap()])
}

#[test]
fn an_output_that_is_an_input_is_refused_by_every_name_that_it_has() {
    let (folder, model, log) = folder();
    for (input, write) in [
        (&model, load as fn(&Path, &Path) -> Output),
        (&model, map as fn(&Path, &Path) -> Output),
        (&log, trace as fn(&Path, &Path) -> Output),
    ] {
        let before = fs::read(input).unwrap();
        let (link, hard) = (folder.path().join("link"), folder.path().join("hard"));
        symlink(input, &link).unwrap();
        fs::hard_link(input, &hard).unwrap();
        for (input, output) in [(input, input), (input, &link), (input, &hard), (&link, input)] {
            let message = failure(&write(input, output), 1);
            assert!(message.contains("the same file as the input"), "{message}");
            assert!(message.contains("; name another file"), "{message}");
            assert!(fs::read(input).unwrap() == before, "{output:?} has changed");
        }
        fs::remove_file(link).unwrap();
        fs::remove_file(hard).unwrap();
    }
}

#[test]
fn a_snapshot_is_not_overwritten_by_its_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot.json");
    let pool = tensorhold::allocator::Pool::builder(tensorhold::Device::host().memory()).build().unwrap();
    let text = serde_json::to_string(&pool.snapshot()).unwrap();
    fs::write(&path, &text).unwrap();
    let output = command().args(["map", "--snapshot"]).arg(&path).arg("--out").arg(&path).output().unwrap();
    assert!(failure(&output, 1).contains("the same file as the input"));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn every_file_of_a_folder_is_an_input_even_one_that_is_left_out() {
    let folder = checkpoint();
    write(&folder.path().join("model.fp16.safetensors"), &[("a.bias", &[3])]);
    for name in ["model-00002-of-00002.safetensors", "model.safetensors.index.json", "model.fp16.safetensors"]
    {
        let path = folder.path().join(name);
        let before = fs::read(&path).unwrap();
        for write in [load, map] {
            let message = failure(&write(folder.path(), &path), 1);
            assert!(message.contains("the same file as the input"), "{message}");
            assert!(fs::read(&path).unwrap() == before, "{name} has changed");
        }
    }
    stdout(&load(folder.path(), &folder.path().join("events.json")));
    stdout(&load(folder.path(), &folder.path().join("events.json")));
}

#[test]
fn a_checkpoint_that_cannot_be_read_leaves_the_outputs_as_they_were() {
    let (folder, _, log) = folder();
    let (broken, missing) = (folder.path().join("broken.safetensors"), folder.path().join("missing"));
    fs::write(&broken, b"short").unwrap();
    let before = fs::read(&log).unwrap();
    for input in [&broken, &missing] {
        for write in [load, map, trace] {
            failure(&write(input, &log), 1);
            assert!(fs::read(&log).unwrap() == before, "{input:?}");
            let new = folder.path().join("new");
            failure(&write(input, &new), 1);
            assert!(!new.exists(), "{input:?}");
        }
    }
}

#[test]
fn a_longer_file_is_replaced_as_a_whole() {
    let (folder, model, log) = folder();
    for (input, write) in [(&model, load as fn(&Path, &Path) -> Output), (&model, map), (&log, trace)] {
        let output = folder.path().join("old");
        fs::write(&output, vec![b'x'; 1 << 20]).unwrap();
        stdout(&write(input, &output));
        assert!(fs::metadata(&output).unwrap().len() < 1 << 20);
        assert!(!fs::read(&output).unwrap().ends_with(b"x"));
    }
}

#[test]
fn a_directory_is_refused() {
    let (folder, model, log) = folder();
    for output in [load(&model, folder.path()), map(&model, folder.path()), trace(&log, folder.path())] {
        let message = failure(&output, 1);
        assert!(message.contains("it is a directory, not a file"), "{message}");
    }
}

#[test]
fn a_socket_is_refused() {
    let (folder, model, log) = folder();
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for output in [load(&model, &socket), map(&model, &socket), trace(&log, &socket)] {
        let message = failure(&output, 1);
        assert!(message.contains("got a socket, which cannot be opened, expected a file"), "{message}");
    }
}

#[test]
fn a_block_device_is_refused() {
    let (folder, model, log) = folder();
    let device = folder.path().join("disk");
    // No driver has this number: not even a mistake writes to a disk.
    let made = Command::new("mknod").arg(&device).args(["b", "240", "77"]).stderr(Stdio::null()).status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: it takes root to make a block device");
        return;
    }
    for output in [load(&model, &device), map(&model, &device), trace(&log, &device)] {
        let message = failure(&output, 1);
        assert!(message.contains("got a block device, expected a file"), "{message}");
    }
}

#[test]
fn fifos_the_null_device_and_standard_output_are_written_to() {
    let (folder, model, log) = folder();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for (input, write) in [(&model, load as fn(&Path, &Path) -> Output), (&model, map), (&log, trace)] {
        stdout(&write(input, Path::new("/dev/null")));
        let reader = thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo).unwrap()
        });
        stdout(&write(input, &fifo));
        assert!(!reader.join().unwrap().is_empty());
    }
    assert_eq!(stderr(&trace(&log, Path::new("/dev/stdout"))), "");
    let through = trace(&log, Path::new("/dev/stdout"));
    assert!(stdout(&through).contains("traceEvents"));
}
