//! Files that are something else than they should be, told by their first bytes. Only messages depend on this: whether a file is accepted has been
//! decided before.

use std::borrow::Cow;

use tensorhold_allocator::{Brief, Quoted};

use super::header::{MAX_HEADER_LEN, PREFIX_LEN};

/// What is read of a file to tell what it is, in bytes.
pub(crate) const START_BYTES: usize = 64 << 10;

/// What a file is, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Foreign {
    what: Cow<'static, str>,
    remedy: &'static str,
}

impl Foreign {
    fn new(what: impl Into<Cow<'static, str>>, remedy: &'static str) -> Self {
        Self { what: what.into(), remedy }
    }

    /// The problem with a file that should be something else, such as `a safetensors file`.
    pub(crate) fn instead_of(&self, expected: &str) -> String {
        let Self { what, remedy } = self;
        format!("it is {what}, expected {expected}; {remedy}")
    }
}

const FETCH: &str = "a download saved it instead of the file: check the address and the access rights, and fetch the file again";
const TORCH: &str = "load it in torch with weights_only=True, and write its state dict with safetensors.torch.save_file, or fetch the model's .safetensors files";
const UNPACK: &str = "unpack it first";
const LFS: &str = "fetch the file that it stands for: git lfs pull";
const CONVERT: &str = "convert it, or fetch the model's .safetensors files";
const GGML: &str =
    "load it with a runtime for GGUF, such as llama.cpp, or fetch the model's .safetensors files";
const REPAIR: &str = "write it with a safetensors library, or fetch it again as binary data";
const EMPTY: &str = "a download or a copy wrote nothing: fetch or write it again";

/// Formats by the bytes at an offset, with their names and remedies.
const MAGICS: &[(usize, &[u8], &str, &str)] = &[
    (0, b"GGUF", "a GGUF file", GGML),
    (0, b"lmgg", "a GGML file", GGML),
    (0, b"fmgg", "a GGML file (ggmf)", GGML),
    (0, b"tjgg", "a GGML file (ggjt)", GGML),
    (0, b"algg", "a GGML adapter (ggla)", GGML),
    (
        0,
        b"\x93NUMPY",
        "a NumPy array (.npy)",
        "load it with numpy.load, and write it with safetensors.numpy.save_file",
    ),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", CONVERT),
    (0, b"PAR1", "a Parquet file", "name a checkpoint: this is a table of data"),
    (0, b"ARROW1", "an Arrow file", "name a checkpoint: this is a table of data"),
    (0, b"SQLite format 3\0", "an SQLite database", "name a checkpoint"),
    (4, b"TFL3", "a TensorFlow Lite model", CONVERT),
    (0, b"\x1f\x8b\x08", "a gzip archive", "unpack it first: gunzip"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first: unzstd"),
    (0, b"\xfd7zXZ\0", "an xz archive", "unpack it first: unxz"),
    (4, b"\x31\x41\x59\x26\x53\x59", "a bzip2 archive", "unpack it first: bunzip2"),
    (0, b"\x04\x22\x4d\x18", "an lz4 archive", "unpack it first: unlz4"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (257, b"ustar", "a tar archive", "unpack it first: tar -xf"),
    (0, b"\x7fELF", "a program or a shared library (ELF)", "name a checkpoint"),
    (0, b"%PDF-", "a PDF document", FETCH),
    (0, b"\x89PNG", "a PNG image", FETCH),
];

/// Texts that stand for a file that is elsewhere, by their beginnings.
const POINTERS: &[(&str, &str, &str)] = &[
    ("version https://git-lfs.github.com/spec/", "a Git LFS pointer", LFS),
    ("version https://hawser.github.com/spec/", "a Git LFS pointer", LFS),
    ("# xet version", "a pointer of Git Xet", "fetch the file that it stands for: git xet pull"),
    ("/annex/objects/", "a pointer of git-annex", "fetch the file that it stands for: git annex get"),
    ("outs:", "a pointer of DVC", "fetch the file that it stands for: dvc pull"),
];

/// What a file is that is no safetensors file, by its first bytes ([`START_BYTES`], or all that it has) and its length. `None` when they do
/// not say.
pub(crate) fn identify(start: &[u8], file_len: u64) -> Option<Foreign> {
    if file_len == 0 {
        return Some(Foreign::new("an empty file", EMPTY));
    }
    if start.is_empty() || is_like_safetensors(start, file_len) {
        return None;
    }
    if start.len() >= PREFIX_LEN as usize && start.iter().all(|&byte| byte == 0) {
        let what = match start.len() as u64 == file_len {
            true => format!("{file_len} bytes of zeros"),
            false => format!("zeros, at least in its first {} bytes", start.len()),
        };
        let remedy = "a download that was broken off, or space that was only allocated, looks like this: fetch or write it again";
        return Some(Foreign::new(what, remedy));
    }
    let is_there = |&&(at, magic, ..): &&(usize, &[u8], &str, &str)| {
        start.get(at..).is_some_and(|rest| rest.starts_with(magic))
    };
    if let Some(&(_, _, what, remedy)) = MAGICS.iter().find(is_there) {
        return Some(Foreign::new(what, remedy));
    }
    zip(start)
        .or_else(|| pickle(start))
        .or_else(|| mangled(start, file_len))
        .or_else(|| onnx(start))
        .or_else(|| text(start, file_len))
}

/// What a file is that is no index of a checkpoint, by its bytes. `None` where it is JSON, about which its parser knows more.
pub(crate) fn identify_index(text: &[u8]) -> Option<Foreign> {
    let (start, file_len) = (text.get(..START_BYTES).unwrap_or(text), text.len() as u64);
    if is_like_safetensors(start, file_len) {
        return Some(Foreign::new("a safetensors file", "name it without .json, or name the index"));
    }
    let first = start.strip_prefix(MARK).unwrap_or(start).trim_ascii_start().first();
    let is_json = matches!(first, Some(b'{' | b'['));
    identify(start, file_len).filter(|_| !is_json)
}

/// A byte-order mark in UTF-8, which programs for text put before it.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Whether a header can have that length in a file.
fn fits(header_len: u64, file_len: u64) -> bool {
    (2..=MAX_HEADER_LEN.min(file_len.saturating_sub(PREFIX_LEN))).contains(&header_len)
}

/// Whether a file begins as a safetensors file does, whatever else is wrong. Its first bytes are a number, which may read as the mark of another format.
fn is_like_safetensors(start: &[u8], file_len: u64) -> bool {
    start.split_first_chunk::<8>().is_some_and(|(prefix, header)| {
        fits(u64::from_le_bytes(*prefix), file_len) && header.starts_with(b"{")
    })
}

/// A zip archive: torch, NumPy and others write such files, and name the entries in their own ways.
fn zip(start: &[u8]) -> Option<Foreign> {
    if !start.starts_with(b"PK\x03\x04") && !start.starts_with(b"PK\x05\x06") {
        return None;
    }
    let has = |name: &[u8]| start.windows(name.len()).any(|window| window == name);
    Some(if has(b"/data.pkl") || has(b"/.format_version") || has(b"/byteorder") || has(b"/constants.pkl") {
        Foreign::new("a checkpoint of torch.save (a zip archive of pickles)", TORCH)
    } else if has(b".npy") {
        let remedy = "load it with numpy.load, and write its arrays with safetensors.numpy.save_file";
        Foreign::new("an archive of NumPy arrays (.npz)", remedy)
    } else {
        let remedy = "if torch wrote it, load it there and write its state dict with safetensors.torch.save_file; else unpack it";
        Foreign::new("a zip archive, as torch.save writes", remedy)
    })
}

/// Pickles of protocols 2 to 5, which torch wrote before it wrote zip archives.
fn pickle(start: &[u8]) -> Option<Foreign> {
    /// A pickled number that torch puts first.
    const TORCH_MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let [0x80, 2..=5, rest @ ..] = start else { return None };
    if rest.starts_with(TORCH_MAGIC) {
        return Some(Foreign::new(
            "a checkpoint of torch.save in its format from before torch 1.6 (pickles)",
            TORCH,
        ));
    }
    // What follows the protocol: a frame, a container, a class, a memo, or a string.
    let opcodes = b"\x95}](c\x8c\x8d\x58\x4b\x8a\x7d\x85\x86\x87N";
    rest.first().filter(|opcode| opcodes.contains(opcode))?;
    Some(Foreign::new("a pickle, as torch.save and pickle.dump write", TORCH))
}

/// A safetensors file that something has changed: a header in the other byte order, or text where bytes should be.
fn mangled(start: &[u8], file_len: u64) -> Option<Foreign> {
    let (prefix, header) = start.split_first_chunk::<8>()?;
    let length = u64::from_le_bytes(*prefix);
    let fits = |length: u64| fits(length, file_len);
    if header.starts_with(b"{") && !fits(length) && fits(u64::from_be_bytes(*prefix)) {
        let what = "a file like a safetensors file, but with its header's length in big-endian byte order";
        return Some(Foreign::new(
            what,
            "write it with a safetensors library: all numbers are little-endian",
        ));
    }
    let unmarked = start.strip_prefix(MARK).and_then(|rest| rest.split_first_chunk::<8>());
    if unmarked.is_some_and(|(prefix, header)| header.starts_with(b"{") && fits(u64::from_le_bytes(*prefix)))
    {
        return Some(Foreign::new(
            "a safetensors file behind a byte-order mark, which programs for text add",
            REPAIR,
        ));
    }
    if fits(length) {
        if header.starts_with(MARK) {
            let what = "a file like a safetensors file, but with a byte-order mark before its header's JSON";
            return Some(Foreign::new(what, REPAIR));
        }
        let header = header.get(..length as usize).unwrap_or(header);
        if header.iter().all(|&byte| byte == 0) {
            let what = "a file like a safetensors file, but with zeros where its header should be";
            return Some(Foreign::new(what, "fetch or write it again: its first part never arrived"));
        }
    }
    None
}

/// An ONNX model: a protocol buffer whose first fields are a small version and the name of a producer.
fn onnx(start: &[u8]) -> Option<Foreign> {
    let [0x08, 1..=64, 0x12, length @ 1..=64, rest @ ..] = start else { return None };
    let (producer, next) = rest.split_at_checked(usize::from(*length))?;
    let is_name = producer.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    (is_name && matches!(next.first(), Some(0x1a | 0x22 | 0x2a | 0x32 | 0x3a)))
        .then(|| Foreign::new("an ONNX model", CONVERT))
}

/// Texts: pointers, pages, replies and the like.
fn text(start: &[u8], file_len: u64) -> Option<Foreign> {
    if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        return Some(Foreign::new("a text in UTF-16", FETCH));
    }
    let start = start.strip_prefix(MARK).unwrap_or(start);
    // What was read may end within a character.
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(start.get(..error.valid_up_to())?).ok()?
        }
        Err(_) => return None,
    };
    if text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let trimmed = text.trim_start();
    let pointer = POINTERS.iter().find(|(beginning, ..)| trimmed.starts_with(beginning));
    if let Some(&(_, what, remedy)) = pointer {
        return Some(Foreign::new(what, remedy));
    }
    let is = |beginning: &str| {
        trimmed.get(..beginning.len()).is_some_and(|found| found.eq_ignore_ascii_case(beginning))
    };
    if ["<!doctype html", "<html", "<head", "<body", "<script", "<!--"].into_iter().any(is) {
        return Some(Foreign::new(format!("an HTML page{}", titled(trimmed, "title")), FETCH));
    }
    if is("<?xml") || is("<error>") {
        return Some(Foreign::new(format!("an XML document{}", titled(trimmed, "code")), FETCH));
    }
    if trimmed.starts_with('{') || trimmed.starts_with('[') {
        return Some(json(trimmed));
    }
    let line = trimmed.trim_end();
    let is_path = |line: &str| line.contains('/') && !line.contains(char::is_whitespace);
    if is_path(line) && text.len() as u64 == file_len && line.len() < 4096 {
        let what = format!("the text {}, as of a symbolic link that was stored as a file", Quoted(line));
        return Some(Foreign::new(what, "fetch the file that it stands for"));
    }
    let line = line.lines().next().unwrap_or_default();
    Some(Foreign::new(format!("a text that begins with {}", Quoted(line)), FETCH))
}

/// What an element of a page says, if it is there.
fn titled(text: &str, element: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let found = lower.find(&format!("<{element}>")).and_then(|at| {
        let begin = at + element.len() + 2;
        let end = lower.get(begin..)?.find('<')?;
        text.get(begin..begin + end)
    });
    found.map_or_else(String::new, |found| format!(" that says {}", Quoted(found.trim())))
}

/// JSON that is no header of a safetensors file, or one without the length before it.
fn json(text: &str) -> Foreign {
    let has = |key: &str| text.contains(key);
    if has("\"weight_map\"") {
        Foreign::new(
            "the index of a checkpoint (JSON)",
            "name it *.safetensors.index.json, beside the files that it names",
        )
    } else if has("\"data_offsets\"") {
        let what =
            "the header of a safetensors file (JSON) without the 8 bytes of its length and without data";
        Foreign::new(what, REPAIR)
    } else if has("\"model_type\"") || has("\"architectures\"") || has("\"_class_name\"") {
        Foreign::new("a configuration (JSON)", "name the checkpoint beside it")
    } else {
        let line = text.lines().next().unwrap_or_default();
        Foreign::new(format!("a JSON text, {}", Brief(line)), FETCH)
    }
}
