//! Files that are something else than they should be, told by their first bytes. Only messages depend on this: whether a file is accepted has been
//! decided before.

use std::borrow::Cow;

use super::header::{MAX_HEADER_LEN, PREFIX_LEN};

#[cfg(test)]
mod tests;
mod text;

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
const CONVERT: &str = "convert it, or fetch the model's .safetensors files";
const GGML: &str =
    "load it with a runtime for GGUF, such as llama.cpp, or fetch the model's .safetensors files";
const REPAIR: &str = "write it with a safetensors library, or fetch it again as binary data";
const PICTURE: &str =
    "name a checkpoint: if this was downloaded as one, check the address, and fetch it again";
const APPLE: &str = "name the file without ._ at the start of its name";
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
    (0, b"\x89PNG", "a PNG image", PICTURE),
    (0, b"\xff\xd8\xff", "a JPEG image", PICTURE),
    (0, b"GIF87a", "a GIF image", PICTURE),
    (0, b"GIF89a", "a GIF image", PICTURE),
    (0, b"\0\x05\x16\x07", "an AppleDouble file, in which macOS keeps attributes of another file", APPLE),
    (0, b"\0\x05\x16\0", "an AppleSingle file, in which macOS keeps a file with its attributes", UNPACK),
    (
        0,
        b"\0\0\0\x01Bud1",
        "a .DS_Store file, in which macOS keeps the view of a folder",
        "name a checkpoint",
    ),
    (0, b"\xcf\xfa\xed\xfe", "a program or a shared library (Mach-O)", "name a checkpoint"),
    (0, b"MZ\x90\0", "a program or a shared library (PE)", "name a checkpoint"),
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
        .or_else(|| protobuf(start))
        .or_else(|| message_pack(start, file_len))
        .or_else(|| zlib(start, file_len))
        .or_else(|| text::identify(start, file_len))
}

/// What a file is that is no safetensors file, and what to do about it, as an error says it: `it is a Git LFS pointer, expected a safetensors file; fetch
/// the file that it stands for: git lfs pull`. For callers that read headers themselves, of a file whose header they have refused.
///
/// `start` is the file's first bytes, 64 KiB or all that it has, and `file_len` its length in bytes. `None` when they do not say.
pub fn foreign_format(start: &[u8], file_len: u64) -> Option<String> {
    let start = start.get(..START_BYTES).unwrap_or(start);
    identify(start, file_len).map(|found| found.instead_of("a safetensors file"))
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

/// Pickles, which torch wrote before it wrote zip archives.
fn pickle(start: &[u8]) -> Option<Foreign> {
    /// A pickled number that torch puts first.
    const TORCH_MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let [0x80, 2..=5, rest @ ..] = start else { return early_pickle(start) };
    if rest.starts_with(TORCH_MAGIC) {
        return Some(Foreign::new(
            "a checkpoint of torch.save in its format from before torch 1.6 (pickles)",
            TORCH,
        ));
    }
    // What follows the protocol: a frame, a container, a class, a memo, or a string.
    let opcodes = b"\x95}](c\x8c\x8d\x58\x4b\x8a\x7d\x85\x86\x87N";
    rest.first().filter(|opcode| opcodes.contains(opcode))?;
    Some(Foreign::new(PICKLE, TORCH))
}

const PICKLE: &str = "a pickle, as torch.save and pickle.dump write";

/// Pickles of protocols 0 and 1, which have no mark: a container that is memoized, or a class.
fn early_pickle(start: &[u8]) -> Option<Foreign> {
    /// Modules whose classes begin pickles of arrays.
    const MODULES: [&[u8]; 7] =
        [b"torch", b"numpy", b"collections", b"copy_reg", b"copyreg", b"__builtin__", b"builtins"];
    let is_memo = |next: &[u8]| match next {
        [b'q', ..] => true,
        [b'p', digits @ ..] => digits.split(|&byte| byte == b'\n').next().is_some_and(|digits| {
            (1..=9).contains(&digits.len())
                && digits.len() + 1 < next.len()
                && digits.iter().all(u8::is_ascii_digit)
        }),
        _ => false,
    };
    let is_pickle = match start {
        [b'(', b'd' | b'l' | b't', next @ ..] => is_memo(next) && next.first() == Some(&b'p'),
        [b'}' | b']' | b')', b'q', _, next, ..] => b"(.X]}K".contains(next),
        [b'c', class @ ..] => {
            let mut lines = class.splitn(3, |&byte| byte == b'\n');
            let (module, name) = (lines.next()?, lines.next()?);
            let is_name = |name: &[u8]| {
                name.first().is_some_and(|byte| !byte.is_ascii_digit())
                    && name.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.')
            };
            let root = module.split(|&byte| byte == b'.').next()?;
            let is_known = MODULES.contains(&root) || lines.next().is_some_and(is_memo);
            is_name(module) && is_name(name) && is_known
        }
        _ => false,
    };
    is_pickle.then(|| Foreign::new(PICKLE, TORCH))
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

/// Protocol buffers without a mark, by fields that SentencePiece and TensorFlow put first.
fn protobuf(start: &[u8]) -> Option<Foreign> {
    const SAVED: &str = "a protocol buffer, such as a TensorFlow model";
    let after = |length: u8, rest: &'_ [u8]| -> Option<u8> {
        let (name, next) = rest.split_at_checked(usize::from(length))?;
        // Pieces of a tokenizer are UTF-8; names of nodes are ASCII.
        let is_name = std::str::from_utf8(name).is_ok_and(|name| !name.chars().any(char::is_control));
        next.first().copied().filter(|_| is_name)
    };
    match start {
        [0x0a, 3..=127, 0x0a, length @ 1..=120, rest @ ..] => match after(*length, rest)? {
            0x15 => Some(Foreign::new(
                "a tokenizer of SentencePiece (a protocol buffer)",
                "name the checkpoint beside it",
            )),
            0x12 => Some(Foreign::new(SAVED, CONVERT)),
            _ => None,
        },
        // A node whose length takes two bytes.
        [0x0a, 128..=255, 1..=127, 0x0a, length @ 1..=120, rest @ ..] if after(*length, rest)? == 0x12 => {
            Some(Foreign::new(SAVED, CONVERT))
        }
        // The version of a SavedModel, and a graph whose length takes two bytes or more.
        [0x08, 0x01, 0x12, 128..=255, ..] => Some(Foreign::new(SAVED, CONVERT)),
        _ => None,
    }
}

/// MessagePack: a map whose first key is a name.
fn message_pack(start: &[u8], file_len: u64) -> Option<Foreign> {
    const FLAX: &str = "restore it with flax.serialization.msgpack_restore, and write its arrays with safetensors.flax.save_file, or fetch the model's .safetensors files";
    let entries = match start {
        [0x81..=0x8f, entries @ ..] | [0xde, _, _, entries @ ..] | [0xdf, _, _, _, _, entries @ ..] => {
            entries
        }
        _ => return None,
    };
    let (length, rest) = match entries {
        [mark @ 0xa1..=0xbf, rest @ ..] => (mark & 0x1f, rest),
        [0xd9, length @ 1..=255, rest @ ..] => (*length, rest),
        _ => return None,
    };
    let (key, value) = rest.split_at_checked(usize::from(length))?;
    let is_key = key.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') && !value.is_empty();
    (is_key && !has_length(start, file_len))
        .then(|| Foreign::new("a MessagePack file, as Flax writes (.msgpack)", FLAX))
}

/// A stream of zlib: two bytes whose sum is a multiple of 31, and a block of a kind that exists.
fn zlib(start: &[u8], file_len: u64) -> Option<Foreign> {
    let [0x78, level @ (0x01 | 0x5e | 0x9c | 0xda), block, ..] = start else { return None };
    // `x^` may begin a text.
    let is_text =
        *level == 0x5e && start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
    (block & 6 != 6 && !is_text && !has_length(start, file_len)).then(|| {
        Foreign::new(
            "data compressed by zlib",
            "unpack it first: zlib-flate -uncompress, or Python's zlib.decompress",
        )
    })
}

/// Whether a file begins with a number that can be the length of its header.
fn has_length(start: &[u8], file_len: u64) -> bool {
    start.first_chunk::<8>().is_some_and(|prefix| fits(u64::from_le_bytes(*prefix), file_len))
}
