//! The crate's one error type.

mod remedy;
mod system;
mod wording;

use std::io;
use std::path::{Path, PathBuf};

use tensorhold_allocator::{Bytes, Quoted};

pub use self::remedy::{Remedy, Vocabulary};
use self::system::{explained, explained_for_thread};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. A failed call leaves nothing behind (I4): I/O is drained, memory goes back, and the process can
/// load again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to open, make or name a file, or to look at it.
    #[error("{operation} {path:?}: {}", explained(source).of(path))]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Something that is not a regular file stands where one should.
    #[error("{}", wording::rust(self))]
    NotAFile {
        /// What was to be opened.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The system failed to read.
    #[error("read {} of {path:?} at offset {offset}: {}", Bytes(*bytes), explained(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// Where the read began.
        offset: u64,
        /// How many bytes were asked for.
        bytes: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// A file cannot be read by the backend that was required.
    #[error("{}", wording::rust(self))]
    Backend {
        /// What was required.
        backend: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        detail: String,
    },
    /// A path is no checkpoint, or a folder holds an incomplete one, or several.
    #[error("{}", wording::rust(self))]
    Checkpoint {
        /// Where it should be.
        path: PathBuf,
        /// What is there, and what to do.
        problem: String,
    },
    /// An index is damaged, or does not fit the files.
    #[error("read index {path:?}: {problem}")]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong: got, expected and what to do.
        problem: String,
    },
    /// A file's header is damaged, or does not fit the file.
    #[error("read header of {path:?}: {problem}")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong: got, expected and what to do.
        problem: String,
    },
    /// Bytes in memory are no safetensors file.
    #[error("read the given bytes as a safetensors file: {problem}")]
    Bytes {
        /// What is wrong: got, expected and what to do.
        problem: String,
    },
    /// Two files hold tensors of the same name.
    #[error("load tensor {}: {}", Quoted(name), twice(first, second))]
    DuplicateTensor {
        /// The tensor.
        name: String,
        /// A file that holds it.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// A file is not what it was when it was opened: by the load, or with the checkpoint that it loads from (I5).
    #[error(
        "load {path:?}: the file changed since it was opened: {change}; open it again when no one writes to it"
    )]
    FileChanged {
        /// The file.
        path: PathBuf,
        /// What is different.
        change: String,
    },
    /// A loader without files.
    #[error("{}", wording::rust(self))]
    NoFiles,
    /// An option that cannot be followed.
    #[error("{}", wording::rust(self))]
    Option {
        /// The option.
        option: &'static str,
        /// What was asked for.
        got: String,
        /// What is possible.
        expected: String,
        /// What to do about it.
        remedy: Remedy,
    },
    /// A setting in the environment that makes no sense.
    #[error("setting {variable}: got {got}, expected {expected}; correct or unset it")]
    Setting {
        /// The variable.
        variable: &'static str,
        /// Its value, or what follows from it.
        got: String,
        /// What it may say.
        expected: String,
    },
    /// The tensors of a load do not fit into its memory budget.
    #[error("{}", wording::rust(self))]
    OverBudget {
        /// Bytes that the tensors take, with the padding that aligns them.
        needed: u64,
        /// The budget, in bytes.
        budget: u64,
        /// How many tensors there are.
        tensors: usize,
        /// The largest of them, with their bytes.
        largest: Vec<(String, u64)>,
    },
    /// No batches fit into the memory budget, or into what their pool has left, however short they are and though none is read ahead.
    #[error(
        "load in batches within {limit}: tensor {tensor}, {} with {} that are kept by then, needs {} of device memory, expected \
         at most {}, though each tensor is a batch and none is read ahead: the load is already fully serial; the largest tensors \
         are {}; raise the limit, keep fewer tensors, or load parts of them",
        Bytes(*bytes), Bytes(*kept), Bytes(*needed).beside(&[*budget]), Bytes(*budget).beside(&[*needed]), named(largest),
        tensor = Quoted(tensor)
    )]
    InfeasibleBudget {
        /// What sets the limit: `memory_budget`, or the pool.
        limit: &'static str,
        /// The limit, in bytes.
        budget: u64,
        /// Bytes that are needed at least.
        needed: u64,
        /// The tensor at which they are.
        tensor: String,
        /// Bytes of that tensor.
        bytes: u64,
        /// Bytes of the tensors before it that are kept, with the padding that aligns them.
        kept: u64,
        /// The largest tensors, with their bytes.
        largest: Vec<(String, u64)>,
    },
    /// The system failed to write.
    #[error("write {} of {path:?} at offset {offset}: {}", Bytes(*bytes), explained(source))]
    Write {
        /// Where the file was to be.
        path: PathBuf,
        /// Where the write began.
        offset: u64,
        /// How many bytes were to be written.
        bytes: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// A file cannot be saved to a path: it leads to something other than a regular file or a new name, or to where this user may not write.
    #[error("save to {path:?}: {problem}")]
    Target {
        /// The path.
        path: PathBuf,
        /// What is wrong: got, expected and what to do.
        problem: String,
        /// The system's reason, where it refuses.
        source: Option<io::Error>,
    },
    /// There is no room for files that are to be written.
    #[error(
        "save to {folder:?}: not enough space: needed {} and {} to stay free, got {} free; free some, or save elsewhere",
        Bytes(*needed).beside(&[*free]), Bytes(*spare), Bytes(*free).beside(&[*needed, needed.saturating_add(*spare)])
    )]
    Space {
        /// Where they were to be written.
        folder: PathBuf,
        /// Bytes of the files that go to its file system.
        needed: u64,
        /// Bytes that were to stay free.
        spare: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// What was to make the bytes of a tensor for a file failed.
    #[error(
        "save tensor {name}: got no {} from {offset} on, expected its function to fill the buffer; see its own error",
        Bytes(*bytes), name = Quoted(name)
    )]
    Fill {
        /// The tensor.
        name: String,
        /// Where the bytes begin in the tensor.
        offset: u64,
        /// How many were to be made.
        bytes: u64,
        /// The function's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Files are not what was written together.
    #[error("check the set of {path:?}: {problem}")]
    ShardSet {
        /// The file.
        path: PathBuf,
        /// What is wrong: got, expected and what to do.
        problem: String,
    },
    /// The system refused to start a single reader thread.
    #[error("start reader threads: {}", explained_for_thread(source))]
    Thread {
        /// The system's reason.
        source: io::Error,
    },
    /// A thread of a load panicked: code of a driver, a stream or a memory from outside this crate did so there.
    #[error(
        "{operation}: a thread of the load panicked: {message}; correct the driver, stream or memory that it called"
    )]
    Panicked {
        /// What the thread did.
        operation: &'static str,
        /// What it panicked with.
        message: String,
    },
    /// A forked child uses what belongs to the process that it was forked from.
    #[error(
        "{operation}: it belongs to the process that this one was forked from, whose threads this one does not have; make another in this process, or fork before"
    )]
    Forked {
        /// What was tried.
        operation: &'static str,
    },
    /// The progress callback broke the load off.
    #[error("load: cancelled by the progress callback after {} of {}", Bytes(*done_bytes), Bytes(*total_bytes))]
    Cancelled {
        /// Bytes read by then.
        done_bytes: u64,
        /// Bytes to read in all.
        total_bytes: u64,
    },
    /// There is no tensor of that name.
    #[error("{}", wording::rust(self))]
    UnknownTensor {
        /// What was asked for.
        name: String,
        /// The name most like it, if one is.
        nearest: Option<String>,
        /// How many tensors there are.
        tensors: usize,
    },
    /// A tensor cannot be used like that.
    #[error("{}", wording::rust(self))]
    Tensor {
        /// What was tried.
        operation: &'static str,
        /// The tensor.
        name: String,
        /// What it is, or what was asked for.
        got: String,
        /// What is possible.
        expected: String,
        /// What to do about it.
        remedy: Remedy,
    },
    /// A device or its driver cannot do as asked.
    #[error("{}", wording::rust(self))]
    Device {
        /// The device's name.
        device: String,
        /// What was tried.
        operation: &'static str,
        /// What the driver says, with its code.
        detail: String,
        /// What to do about it.
        remedy: Remedy,
    },
    /// A process group, or one of its ranks, cannot do as asked.
    #[error("{}", wording::rust(self))]
    Group {
        /// What was tried.
        operation: &'static str,
        /// This rank.
        rank: usize,
        /// How many ranks there are.
        size: usize,
        /// What is wrong: got and expected.
        detail: String,
        /// What to do about it.
        remedy: Remedy,
    },
    /// The pool could not place the tensors, or a region could not be reserved.
    #[error(transparent)]
    Memory(tensorhold_allocator::Error),
}

impl From<tensorhold_allocator::Error> for Error {
    fn from(error: tensorhold_allocator::Error) -> Self {
        match error {
            tensorhold_allocator::Error::Forked { operation, .. } => Self::Forked { operation },
            error => Self::Memory(error),
        }
    }
}

impl Error {
    /// The error for a name that none of so many tensors has, with the one most like it.
    pub(crate) fn unknown_tensor<'a>(
        name: &str,
        known: impl Iterator<Item = &'a str>,
        tensors: usize,
    ) -> Self {
        // A search among very many names would cost more than the hint is worth, and so would one among long names.
        let length = name.len();
        let is_near = |known: &&str| known.len().abs_diff(length) <= known.len().max(length) / 2;
        let mut left = if length <= MAX_HINT_BYTES { MAX_HINT_PAIRS } else { 0 };
        let candidates = known.take(10_000).filter(is_near).take_while(|known| {
            let pairs = known.len() * length;
            let is_worth_it = pairs <= left;
            left = left.saturating_sub(pairs);
            is_worth_it
        });
        let similar = candidates.map(|known| (strsim::normalized_levenshtein(known, name), known));
        let nearest = similar.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(similarity, _)| *similarity > 0.6);
        Self::UnknownTensor { name: name.into(), nearest: nearest.map(|(_, known)| known.into()), tensors }
    }
}

/// Why a tensor is there twice, and what to do.
fn twice(first: &Path, second: &Path) -> String {
    let plain = |path: &Path| path.strip_prefix(".").unwrap_or(path).to_path_buf();
    if plain(first) == plain(second) {
        return format!("its file {first:?} is named twice, expected once; name each file once");
    }
    let remedy = match first.parent() == second.parent() {
        true => {
            "if one is a copy of the other, as in another precision, name one of the two instead of their folder, or those files that \
             belong together"
        }
        false => "name only one of them",
    };
    format!(
        "it is in {first:?} and in {second:?}, expected in one file; {remedy}, or an index that says which one counts"
    )
}

/// For longer names no similar one is looked for.
const MAX_HINT_BYTES: usize = 1000;

/// A comparison takes as many steps as the two names have pairs of bytes; so many are worth it. Names of 80 bytes are all compared.
const MAX_HINT_PAIRS: usize = 10_000 * 80 * 80;

/// Tensors and their bytes.
fn named(tensors: &[(String, u64)]) -> String {
    let tensors = tensors.iter().map(|(name, bytes)| format!("{} ({})", Quoted(name), Bytes(*bytes)));
    tensors.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_blames_the_limit_that_was_reached_and_not_the_disk() {
        let source = |errno| io::Error::from_raw_os_error(errno);
        let path = PathBuf::from("model.safetensors");
        let errors = |errno| {
            [
                Error::Io { operation: "open", path: path.clone(), source: source(errno) },
                Error::Read { path: path.clone(), offset: 0, bytes: 8, source: source(errno) },
                Error::Write { path: path.clone(), offset: 0, bytes: 8, source: source(errno) },
            ]
        };
        for (errno, limit, remedy) in [
            (libc::EMFILE, "RLIMIT_NOFILE", "ulimit -n"),
            (libc::ENFILE, "fs.file-max", "fs.file-max"),
            (libc::ENOMEM, "lacks the memory", "free memory"),
        ] {
            for message in errors(errno).map(|error| error.to_string()) {
                assert!(message.contains(limit) && message.contains(remedy), "{message}");
                assert!(!message.contains("disk"), "{message}");
            }
        }
        assert!(errors(libc::EIO).iter().all(|error| error.to_string().contains("disk")));
        let message = Error::Thread { source: source(libc::EAGAIN) }.to_string();
        assert!(message.contains("RLIMIT_NPROC") && message.contains("ulimit -u"), "{message}");
    }

    #[test]
    fn a_tensor_that_is_there_twice_says_how_to_name_it_once() {
        for (first, second, words) in [
            ("m.safetensors", "m.safetensors", ["\"m.safetensors\" is named twice", "name each file once"]),
            ("m.safetensors", "./m.safetensors", ["is named twice", "name each file once"]),
            ("a/m.safetensors", "a/n.safetensors", ["is in \"a/m.safetensors\"", "instead of their folder"]),
            ("a/m.safetensors", "b/m.safetensors", ["and in \"b/m.safetensors\"", "name only one of them"]),
        ] {
            let error =
                Error::DuplicateTensor { name: "x".into(), first: first.into(), second: second.into() };
            let message = error.to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }

    #[test]
    fn a_similar_name_is_looked_for_as_long_as_that_takes_few_steps() {
        let hinted = |bytes: usize, others: usize| {
            let mut names: Vec<String> = (0..others).map(|number| format!("{number:0bytes$}")).collect();
            names.push("x".repeat(bytes));
            let wrong = "x".repeat(bytes - 1) + "y";
            let error = Error::unknown_tensor(&wrong, names.iter().map(|name| &**name), names.len());
            matches!(error, Error::UnknownTensor { nearest: Some(_), .. })
        };
        assert!(hinted(20, 9_999) && hinted(MAX_HINT_BYTES, 10));
        assert!(!hinted(20, 10_000) && !hinted(MAX_HINT_BYTES, 100));
    }
}
