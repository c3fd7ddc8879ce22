//! The library: where it is, and the few of its functions that are called.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_int, c_uint, c_void};
use std::mem::offset_of;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::{fmt, fs, ptr};

use libloading::Library;
use tensorhold_allocator::{MemoryId, Process};

use super::direct::Mode;
use super::status::Status;
use super::{Missing, Place};
use crate::error::Remedy;

/// A registered file.
pub(super) type RawHandle = *mut c_void;

/// A batch of reads.
pub(super) type RawBatch = *mut c_void;

/// `CUfileDescr_t`: the file to register.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Descriptor {
    kind: c_int,
    file: FileOrPointer,
    operations: *const c_void,
}

/// A union of a number and a pointer, which is as long and aligned as that.
#[derive(Debug)]
#[repr(C, align(8))]
struct FileOrPointer(RawFd);

impl Descriptor {
    /// The one of an open file.
    pub(super) fn of(file: RawFd) -> Self {
        const LINUX_FILE: c_int = 1;
        Self { kind: LINUX_FILE, file: FileOrPointer(file), operations: ptr::null() }
    }
}

/// `CUfileDrvProps_t`: what the driver says of itself.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Properties {
    pub(super) major: c_uint,
    pub(super) minor: c_uint,
    pub(super) poll_threshold: usize,
    /// In KiB.
    pub(super) max_direct_io: usize,
    /// A bit for each kind of storage that is read directly.
    pub(super) storage: c_uint,
    pub(super) control: c_uint,
    pub(super) features: c_uint,
    pub(super) max_cache: c_uint,
    pub(super) per_buffer_cache: c_uint,
    pub(super) max_pinned: c_uint,
    pub(super) max_batch: c_uint,
    pub(super) batch_timeout: c_uint,
}

/// `CUfileIOParams_t`: a read of a batch.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct BatchRead {
    pub(super) mode: c_int,
    pub(super) base: *mut c_void,
    pub(super) file_offset: libc::off_t,
    pub(super) offset: libc::off_t,
    pub(super) bytes: usize,
    pub(super) file: RawHandle,
    pub(super) operation: c_int,
    pub(super) cookie: *mut c_void,
}

/// `CUfileIOEvents_t`: what became of a read of a batch.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct BatchEvent {
    pub(super) cookie: *mut c_void,
    pub(super) status: c_int,
    /// Bytes, or a negative error.
    pub(super) returned: isize,
}

// As the compiler lays out the header's structures on 64-bit machines.
const _: () = assert!(size_of::<Descriptor>() == 24 && offset_of!(Descriptor, file) == 8);
const _: () = assert!(size_of::<Properties>() == 56 && offset_of!(Properties, max_batch) == 48);
const _: () = assert!(size_of::<BatchRead>() == 64 && offset_of!(BatchRead, file) == 40);
const _: () = assert!(size_of::<BatchEvent>() == 24 && offset_of!(BatchEvent, returned) == 16);

/// Declares the table, and finds its functions by their names.
macro_rules! table {
    ($($field:ident = $name:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of the library that are called (D1).
        #[derive(Debug, Clone, Copy)]
        pub(super) struct Table {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Table {
            fn find(library: &Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the header declares the function so; the library stays loaded for as long as the table (D1).
                    $($field: unsafe { *library.get($name.as_bytes()).map_err(|_| $name)? },)*
                })
            }
        }
    };
}

table! {
    version = "cuFileGetVersion": fn(*mut c_int) -> Status;
    driver_open = "cuFileDriverOpen": fn() -> Status;
    properties = "cuFileDriverGetProperties": fn(*mut Properties) -> Status;
    handle_register = "cuFileHandleRegister": fn(*mut RawHandle, *const Descriptor) -> Status;
    handle_deregister = "cuFileHandleDeregister": fn(RawHandle);
    buffer_register = "cuFileBufRegister": fn(*const c_void, usize, c_int) -> Status;
    buffer_deregister = "cuFileBufDeregister": fn(*const c_void) -> Status;
    read = "cuFileRead": fn(RawHandle, *mut c_void, usize, libc::off_t, libc::off_t) -> isize;
    batch_set_up = "cuFileBatchIOSetUp": fn(*mut RawBatch, c_uint) -> Status;
    batch_submit = "cuFileBatchIOSubmit": fn(RawBatch, c_uint, *mut BatchRead, c_uint) -> Status;
    batch_status =
        "cuFileBatchIOGetStatus": fn(RawBatch, c_uint, *mut c_uint, *mut BatchEvent, *mut libc::timespec) -> Status;
    batch_destroy = "cuFileBatchIODestroy": fn(RawBatch);
}

/// cuFile, with its driver open (D1).
pub(crate) struct CuFile {
    table: Table,
    /// Such as 1150 for 1.15.
    version: c_int,
    properties: Properties,
    path: PathBuf,
    /// Some read's end is not known (D4).
    lost: AtomicBool,
    /// That opened the driver.
    process: Process,
    /// Why memory was last not registered. Reads into it take a longer way, and are as right.
    refusal: Mutex<Option<String>>,
    /// First addresses and lengths of what is registered (D3).
    registered: RwLock<BTreeMap<usize, usize>>,
    /// By the id of a device's memory, the id of what of it is registered here.
    ids: Mutex<HashMap<MemoryId, MemoryId>>,
}

/// The oldest that serves: 1.7, of CUDA 12.2, the first that takes files that are open for cached reads.
const MIN_VERSION: c_int = 1070;

pub(super) const INSTALL: &str = "install cuFile (libcufile of CUDA 12.2 or newer, or the package nvidia-cufile of PyPI), or say \
                                  where it is with TENSORHOLD_CUFILE, or use Backend::Auto";

/// A library that was found, whose driver is not open yet.
pub(super) struct Found {
    table: Table,
    version: c_int,
    path: PathBuf,
}

impl Found {
    /// Loads the first of these that is there, for good.
    ///
    /// # Errors
    /// When none is there, or it lacks a function or is too old.
    pub(super) fn load(candidates: &[PathBuf]) -> Result<Self, Missing> {
        let mut refusals = Vec::new();
        for path in candidates {
            // SAFETY: loading cuFile runs its initialisers, which are made to be run in any process.
            match unsafe { Library::new(path) } {
                Ok(library) => return Self::of(library, path),
                Err(error) => refusals.push(error.to_string()),
            }
        }
        let said = refusals.first().map_or_else(|| "there is nowhere to look".into(), Clone::clone);
        Err(Missing::new(format!("cuFile is not to be found: {said}"), INSTALL))
    }

    fn of(library: Library, path: &Path) -> Result<Self, Missing> {
        let table = Table::find(&library).map_err(|name| {
            Missing::new(format!("the cuFile at {path:?} is too old: it has no {name}"), INSTALL)
        })?;
        // D1: it stays loaded, whatever comes.
        std::mem::forget(library);
        let mut version = 0;
        // SAFETY: the library is loaded; `version` is valid for the write.
        let status = unsafe { (table.version)(&raw mut version) };
        if status.check("tell its version").is_err() || version < MIN_VERSION {
            let (got, least) = (Version(version), Version(MIN_VERSION));
            let detail = format!("the cuFile at {path:?} is of version {got}, expected at least {least}");
            return Err(Missing::new(detail, INSTALL));
        }
        Ok(Self { table, version, path: path.to_path_buf() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the driver. This may take a second, and has been seen to take for ever: not on a thread that anyone waits for.
    ///
    /// # Errors
    /// When the library refuses.
    pub(super) fn open_driver(self) -> Result<CuFile, Missing> {
        let path = &self.path;
        let refused = |error| {
            Missing::new(format!("the cuFile at {path:?} does not start: {error}"), Remedy::CUFILE_NEEDS)
        };
        // SAFETY: the library is loaded, and CUDA has been initialised by whoever made the device.
        let opened = unsafe { (self.table.driver_open)() }.check("open its driver");
        opened.or_else(|error| if error.is_already_open() { Ok(()) } else { Err(refused(error)) })?;
        let mut properties = Properties::default();
        // SAFETY: as above; valid for the write.
        unsafe { (self.table.properties)(&raw mut properties) }
            .check("tell its properties")
            .map_err(refused)?;
        Ok(CuFile {
            table: self.table,
            version: self.version,
            properties,
            path: self.path,
            lost: AtomicBool::new(false),
            process: Process::current(),
            refusal: Mutex::default(),
            registered: RwLock::default(),
            ids: Mutex::default(),
        })
    }
}

impl CuFile {
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// How it reads.
    pub(crate) fn mode(&self) -> Mode {
        Mode::of(&self.properties)
    }

    /// A bit for each kind of storage that it reads directly.
    pub(super) fn storage(&self) -> u32 {
        self.properties.storage
    }

    /// The longest read of a batch, in bytes.
    pub(crate) fn max_batch_read(&self) -> u64 {
        (self.properties.max_direct_io as u64).saturating_mul(1024)
    }

    /// The most reads of a batch.
    pub(crate) fn max_batch(&self) -> usize {
        self.properties.max_batch as usize
    }

    /// Its name and version, for reports.
    pub(crate) fn describe(&self) -> String {
        format!("cuFile {} at {}", Version(self.version), self.path.display())
    }

    /// Notes that it did not say whether a read has ended (D4).
    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Which memory a device's is when it is registered here (M4).
    pub(super) fn id_of(&self, memory: MemoryId) -> MemoryId {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        *ids.entry(memory).or_insert_with(MemoryId::new)
    }

    /// Whether this is a forked child of the process that opened the driver: then handles, registrations and batches are the parent's.
    pub(super) fn is_of_parent(&self) -> bool {
        !self.process.is_current()
    }

    /// Notes what has been registered.
    pub(super) fn add(&self, base: usize, bytes: usize) {
        self.registered.write().unwrap_or_else(PoisonError::into_inner).insert(base, bytes);
    }

    /// Notes that memory was not registered, and why.
    pub(super) fn refuse(&self, why: String) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// Why memory was last not registered.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether an address is in memory that is registered.
    pub(crate) fn is_registered(&self, start: *const u8) -> bool {
        let registered = self.registered.read().unwrap_or_else(PoisonError::into_inner);
        let below = registered.range(..=start.addr()).next_back();
        below.is_some_and(|(&base, &bytes)| start.addr() - base < bytes)
    }

    /// Notes that it is not registered any more; whether it was.
    pub(super) fn remove(&self, base: usize) -> bool {
        self.registered.write().unwrap_or_else(PoisonError::into_inner).remove(&base).is_some()
    }

    /// An address as cuFile takes it.
    pub(super) fn place(&self, start: *mut u8) -> Place {
        let registered = self.registered.read().unwrap_or_else(PoisonError::into_inner);
        let below = registered.range(..=start as usize).next_back();
        match below.map(|(&base, &bytes)| (start as usize - base, bytes)) {
            Some((offset, bytes)) if offset < bytes => {
                Place { base: start.wrapping_sub(offset).cast(), offset: offset as libc::off_t }
            }
            _ => Place { base: start.cast(), offset: 0 },
        }
    }
}

impl fmt::Debug for CuFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CuFile")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("properties", &self.properties)
            .finish_non_exhaustive()
    }
}

struct Version(c_int);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// The library's file, under the only name that every package of it has.
const FILE: &str = "libcufile.so.0";

/// Where the library may be, the likeliest first: where the linker looks, which finds one that is loaded already; beside CUDA; in folders of
/// Python packages, of which `environments` are roots.
pub(super) fn candidates(environments: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from(FILE)];
    let mut toolkits = matching(Path::new("/usr/local"), |name| name == "cuda" || name.starts_with("cuda-"));
    toolkits.sort_unstable();
    for toolkit in toolkits {
        let targets = matching(&toolkit.join("targets"), |name| name.ends_with("-linux"));
        found.extend(targets.into_iter().map(|target| target.join("lib").join(FILE)));
    }
    let system = ["/usr/local", "/usr"].map(PathBuf::from);
    for root in environments.iter().chain(&system) {
        for python in matching(&root.join("lib"), |name| name.starts_with("python3")) {
            for packages in ["site-packages", "dist-packages"] {
                // `nvidia/cufile` of CUDA 12, `nvidia/cu13` of CUDA 13.
                let parts = matching(&python.join(packages).join("nvidia"), |name| name.starts_with("cu"));
                found.extend(parts.into_iter().map(|part| part.join("lib").join(FILE)));
            }
        }
    }
    // The linker's own search is no path.
    found.retain(|path| !path.is_absolute() || path.exists());
    found
}

/// The paths of what is in a folder and has such a name.
fn matching(folder: &Path, name: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_str().is_some_and(&name)).map(|entry| entry.path()).collect()
}
