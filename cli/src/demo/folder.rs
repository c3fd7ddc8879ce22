//! The folder that the demo writes to, which it leaves as it was.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::output::system;

/// A folder and the files made in it, removed again when this is dropped, unless they are to stay.
///
/// Only what was made here is removed. An interrupted process removes nothing.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// The folder was made here, too.
    made: bool,
    files: Vec<PathBuf>,
}

impl Folder {
    /// Opens a folder, or makes it if there is none (its parent has to be there), or makes a temporary one.
    pub(crate) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            let folder = tempfile::Builder::new().prefix("tensorhold-demo-").tempdir();
            let path = folder.context("create a temporary folder; name another with --dir")?.keep();
            return Ok(Self { path, made: true, files: Vec::new() });
        };
        let made = match fs::create_dir(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(system("create the folder", path)(error).into()),
        };
        Ok(Self { path: path.to_owned(), made, files: Vec::new() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a file; one that is there already is an error, and stays.
    pub(crate) fn create(&mut self, name: &str) -> anyhow::Result<File> {
        let path = self.path.join(name);
        let file = File::create_new(&path)
            .map_err(system("create", &path))
            .context("write the checkpoint; name an empty folder with --dir")?;
        self.files.push(path);
        Ok(file)
    }

    /// Leaves everything there.
    pub(crate) fn keep(mut self) {
        self.files.clear();
        self.made = false;
    }

    /// Removes what was made.
    pub(crate) fn remove(mut self) -> anyhow::Result<()> {
        Ok(self.clear().map_err(system("remove the checkpoint from", &self.path))?)
    }

    fn clear(&mut self) -> io::Result<()> {
        let mut result = Ok(());
        for file in self.files.drain(..) {
            result = result.and(fs::remove_file(file));
        }
        if std::mem::take(&mut self.made) {
            result = result.and(fs::remove_dir(&self.path));
        }
        result
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // On the way out of a failure there is already something to report.
        let _ = self.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::Folder;

    #[test]
    fn a_folder_that_was_made_goes_again() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("new");
        let mut folder = Folder::open(Some(&path)).unwrap();
        folder.create("a").unwrap();
        folder.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_failure_removes_what_was_made_and_nothing_else() {
        let outer = tempfile::tempdir().unwrap();
        fs::write(outer.path().join("theirs"), "data").unwrap();
        let mut folder = Folder::open(Some(outer.path())).unwrap();
        folder.create("ours").unwrap();
        assert!(folder.create("theirs").is_err());
        drop(folder);
        assert!(!outer.path().join("ours").exists());
        assert_eq!(fs::read(outer.path().join("theirs")).unwrap(), b"data");
    }

    #[test]
    fn what_is_kept_stays() {
        let mut folder = Folder::open(None).unwrap();
        let path = folder.path().to_owned();
        folder.create("a").unwrap();
        folder.keep();
        assert!(path.join("a").exists());
        fs::remove_dir_all(path).unwrap();
    }
}
