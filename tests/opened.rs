//! What is opened of a checkpoint: regular files alone, and no more of them than a limit.

mod support;

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use support::{bytes_tensor, write};
use tensorhold::{Device, Error, Loader};

const INDEX: &str = "model.safetensors.index.json";

fn make_fifo(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends with a zero and is valid for the call.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

/// What can lie where a file should, and what it is called.
const OTHERS: [(&str, &str); 4] =
    [("fifo", "a FIFO"), ("socket", "a socket"), ("zeroes", "a character device"), ("folder", "a directory")];

/// Makes it; what has to stay open is returned.
fn make(other: &str, path: &Path) -> Option<UnixListener> {
    match other {
        "fifo" => make_fifo(path),
        "socket" => return Some(UnixListener::bind(path).unwrap()),
        "zeroes" => symlink("/dev/zero", path).unwrap(),
        _ => fs::create_dir(path).unwrap(),
    }
    None
}

fn load(path: &Path) -> Error {
    let loaded = Loader::new(Device::host()).checkpoint(path).and_then(Loader::load);
    loaded.expect_err("it is no checkpoint")
}

#[test]
fn what_is_no_regular_file_among_the_shards_is_an_error_that_names_it() {
    for (other, called) in OTHERS {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("a.safetensors"), &[bytes_tensor("x", 4)]);
        let path = folder.path().join("b.safetensors");
        let _open = make(other, &path);
        let error = load(folder.path());
        assert!(matches!(&error, Error::NotAFile { path: named, .. } if *named == path), "{error}");
        assert!(error.to_string().contains(called), "{error}");
    }
}

#[test]
fn an_index_that_is_no_regular_file_is_an_error_that_says_so() {
    for (other, called) in OTHERS {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("model.safetensors"), &[bytes_tensor("x", 4)]);
        let path = folder.path().join(INDEX);
        let _open = make(other, &path);
        let error = load(folder.path());
        assert!(matches!(&error, Error::Index { path: named, .. } if *named == path), "{error}");
        assert!(error.to_string().contains(called), "{error}");
    }
}

#[test]
fn a_shard_of_an_index_that_is_no_regular_file_is_an_error_that_names_it() {
    for (other, called) in OTHERS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        let _open = make(other, &path);
        fs::write(folder.path().join(INDEX), r#"{"weight_map": {"x": "b.safetensors"}}"#).unwrap();
        let error = load(folder.path());
        assert!(matches!(&error, Error::NotAFile { path: named, .. } if *named == path), "{error}");
        assert!(error.to_string().contains(called), "{error}");
    }
}

#[test]
fn an_index_beyond_the_limit_is_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("model.safetensors"), &[bytes_tensor("x", 4)]);
    let path = folder.path().join(INDEX);
    fs::File::create(&path).unwrap().set_len(8 << 40).unwrap();
    let error = load(folder.path());
    assert!(matches!(&error, Error::Index { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("8.0 TiB") && message.contains("at most 256.0 MiB"), "{message}");
}

#[test]
fn an_index_that_says_that_it_is_empty_is_read_up_to_its_end_and_a_shard_is_not() {
    // The kernel's own files have no length, and may have bytes all the same.
    let folder = tempfile::tempdir().unwrap();
    symlink("/proc/self/status", folder.path().join(INDEX)).unwrap();
    let error = load(folder.path());
    assert!(error.to_string().contains("expected the index of a checkpoint"), "{error}");
    symlink("/proc/self/status", folder.path().join("a.safetensors")).unwrap();
    let error = load(&folder.path().join("a.safetensors"));
    assert!(matches!(&error, Error::Header { .. }), "{error}");
    // Its first bytes would be taken for a length.
    assert!(error.to_string().contains("the file is 0 bytes"), "{error}");
}

#[test]
fn files_of_the_kernel_that_have_readers_wait_are_errors() {
    // A regular file, by what the system says; without the permission to open it, an error just the same.
    let endless = Path::new("/proc/kmsg");
    let folder = tempfile::tempdir().unwrap();
    symlink(endless, folder.path().join(INDEX)).unwrap();
    load(folder.path());
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(INDEX), r#"{"weight_map": {"x": "a.safetensors"}}"#).unwrap();
    symlink(endless, folder.path().join("a.safetensors")).unwrap();
    load(folder.path());
}
