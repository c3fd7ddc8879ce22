//! A library with cuFile's functions over memory of the host (`tests/fake-cufile`), for tests on machines without it.

use std::ffi::{CString, c_char, c_long};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libloading::Library;
use tempfile::TempDir;

use super::open::{Guards, open};
use super::{CuFile, Gds, Missing, Provider};
use crate::device::Device;
use crate::io::faulty::{Faults, Faulty};
use crate::io::{Engine, FileSource};

/// A copy of the library of one's own, and a folder for what it writes.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) folder: TempDir,
    pub(crate) path: PathBuf,
    loaded: Library,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    /// With flags of the compiler.
    pub(crate) fn with(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libcufile.so.0");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake-cufile/fake.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-pthread"]).args(flags);
        let output = compiler.arg(source).arg("-o").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // SAFETY: the library has no initialisers.
        let loaded = unsafe { Library::new(&path) }.unwrap();
        Self { folder, path, loaded }
    }

    /// Has something be so, or go wrong.
    pub(crate) fn set(&self, name: &str, value: i64) -> &Self {
        let name = CString::new(name).unwrap();
        // SAFETY: declared so in the source; the name is valid for the call.
        unsafe {
            let set = self.loaded.get::<unsafe extern "C" fn(*const c_char, c_long)>(b"fake_set").unwrap();
            set(name.as_ptr(), value);
        }
        self
    }

    /// What has happened.
    pub(crate) fn get(&self, name: &str) -> i64 {
        let name = CString::new(name).unwrap();
        // SAFETY: as above.
        unsafe {
            let get = self.loaded.get::<unsafe extern "C" fn(*const c_char) -> c_long>(b"fake_get").unwrap();
            get(name.as_ptr())
        }
    }

    /// Has the opening of the driver write a log there.
    pub(crate) fn log_to(&self, path: &Path) {
        let path = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: as above.
        unsafe {
            let log = self.loaded.get::<unsafe extern "C" fn(*const c_char)>(b"fake_log").unwrap();
            log(path.as_ptr());
        }
    }

    pub(super) fn guards(&self) -> Guards {
        let modules = self.folder.path().join("modules");
        std::fs::write(&modules, "").unwrap();
        let patience = Duration::from_secs(60);
        Guards { modules, patience, folder: self.folder.path().into(), log_wanted: false }
    }

    pub(crate) fn open(&self) -> Result<Arc<CuFile>, Missing> {
        open(vec![self.path.clone()], self.guards())
    }

    /// Nothing is registered any more, and no batch is left.
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(["handles", "buffers", "batches"].map(|name| self.get(name)), [0; 3]);
    }
}

/// The fake for the loads of a test, with an engine that may be faulty.
#[derive(Debug)]
pub(crate) struct Fakes {
    pub(crate) fake: Fake,
    pub(crate) faults: Faults,
    /// Whether it says that it may read directly.
    pub(crate) likely: bool,
    /// Whether it reads directly whatever the tests' files are on.
    pub(crate) direct: bool,
    /// As the process has one cuFile.
    pub(crate) opened: OnceLock<Result<Arc<CuFile>, Missing>>,
}

impl Fakes {
    pub(crate) fn new(fake: Fake) -> Self {
        Self { fake, faults: Faults::default(), likely: false, direct: false, opened: OnceLock::new() }
    }
}

impl Provider for Fakes {
    fn open(&self) -> Result<Arc<CuFile>, Missing> {
        self.opened.get_or_init(|| self.fake.open()).clone()
    }

    fn serves(&self, device: &Device) -> bool {
        !device.is_host_accessible()
    }

    fn is_likely(&self) -> bool {
        self.likely
    }

    fn check_directness(&self, cufile: &CuFile, file: &FileSource) -> io::Result<()> {
        if self.direct { Ok(()) } else { super::direct::check_file(cufile, file) }
    }

    fn engine(&self, cufile: &Arc<CuFile>) -> Arc<dyn Engine> {
        Arc::new(Faulty::new(Gds::new(Arc::clone(cufile)), self.faults.clone()))
    }
}
