//! Without privileges and with little locked memory, `io_uring` reads without registered buffers.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

#[test]
fn little_locked_memory_is_enough() {
    let folder = support::checkpoint();
    for path in
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).chain([folder.path().into()])
    {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // Lowering one's own limit needs no privileges; root has to become someone else, since the limit is not for it.
    let mut command = Command::new("prlimit");
    command.arg("--memlock=65536:65536");
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]);
    }
    let program = fs::canonicalize(env!("CARGO_BIN_EXE_tensorhold")).unwrap();
    // A copy where anyone may run it.
    let copy = folder.path().join("tensorhold");
    fs::copy(program, &copy).unwrap();
    let output =
        command.arg(copy).args(["verify", "--device", "cpu", "--backend", "io-uring"]).arg(folder.path());
    let output = output.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
