//! Files that the command writes to: none that it reads, and no block device.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::ensure;
use rustix::io::Errno;
use tensorhold::{Device, Loader};

use crate::args::WeightSet;
use crate::output::system;

/// The files that a load of this checkpoint can read. Reads the headers, so it fails where a load fails at its beginning.
///
/// Those of a folder include files that are left out, and every index.
pub(crate) fn inputs(path: &Path, set: &WeightSet) -> anyhow::Result<Vec<PathBuf>> {
    let inspection = set.of(Loader::new(Device::host()).checkpoint(path)?).inspect()?;
    let mut files = vec![path.to_owned()];
    files.extend(inspection.files.iter().map(|file| file.path.to_path_buf()));
    files.extend(inspection.left_out.into_iter().map(|file| file.path));
    if path.is_dir() {
        let entries = fs::read_dir(path).map_err(system("list", path))?;
        let entries = entries.map(|entry| entry.map(|entry| entry.path()));
        let entries = entries.collect::<io::Result<Vec<_>>>().map_err(system("list", path))?;
        let is_index = |path: &PathBuf| path.as_os_str().as_encoded_bytes().ends_with(b".index.json");
        files.extend(entries.into_iter().filter(is_index));
    }
    Ok(files)
}

/// Fails if `path` leads to one of the inputs, a block device, a directory or a socket. It need not exist.
pub(crate) fn check(path: &Path, inputs: &[PathBuf]) -> anyhow::Result<()> {
    match fs::metadata(path) {
        Ok(found) => refuse(path, &found, inputs),
        // What else is wrong with the path, the system says when the file is made.
        Err(_) => Ok(()),
    }
}

/// Makes an empty file at `path`, or empties the one that is there, after [`check`]. FIFOs and character devices are opened as they are.
pub(crate) fn create(path: &Path, inputs: &[PathBuf]) -> anyhow::Result<File> {
    // Before it is opened, since opening a device can have effects; and after, since another file may have taken its place.
    check(path, inputs)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.map_err(system("create", path))?;
    let found = file.metadata().map_err(system("look at", path))?;
    refuse(path, &found, inputs)?;
    if found.is_file() {
        file.set_len(0).map_err(system("truncate", path))?;
    }
    Ok(file)
}

fn refuse(path: &Path, found: &Metadata, inputs: &[PathBuf]) -> anyhow::Result<()> {
    let kind = found.file_type();
    if kind.is_dir() {
        return Err(system("create", path)(Errno::ISDIR.into()).into());
    }
    ensure!(
        !kind.is_socket(),
        "write {path:?}: got a socket, which cannot be opened, expected a file; name a regular file, a FIFO or a character device"
    );
    ensure!(
        !kind.is_block_device(),
        "write {path:?}: got a block device, expected a file; name a regular file, a FIFO or a character device"
    );
    // What is written to a FIFO, a terminal or the null device does not change what was read from it.
    if !kind.is_file() {
        return Ok(());
    }
    let identity = |of: &Metadata| (of.dev(), of.ino());
    let is_same =
        |input: &&PathBuf| fs::metadata(input).is_ok_and(|input| identity(&input) == identity(found));
    match inputs.iter().find(is_same) {
        Some(input) => anyhow::bail!(
            "write {path:?}: it is the same file as the input {input:?}, expected another one; name another file"
        ),
        None => Ok(()),
    }
}
