//! Texts that are no safetensors file: pointers, pages, replies of servers, JSON and the like.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use tensorhold_allocator::{Brief, Quoted};

use super::{EMPTY, FETCH, Foreign, MARK, REPAIR};

const LFS: &str = "fetch the file that it stands for: git lfs pull";

/// Texts that stand for a file that is elsewhere, by their beginnings.
const POINTERS: &[(&str, &str, &str)] = &[
    ("version https://git-lfs.github.com/spec/", "a Git LFS pointer", LFS),
    ("version https://hawser.github.com/spec/", "a Git LFS pointer", LFS),
    ("# xet version", "a pointer of Git Xet", "fetch the file that it stands for: git xet pull"),
    ("/annex/objects/", "a pointer of git-annex", "fetch the file that it stands for: git annex get"),
    ("outs:", "a pointer of DVC", "fetch the file that it stands for: dvc pull"),
];

/// What a text is, by its first bytes and its length; `None` for bytes that are no text.
pub(super) fn identify(start: &[u8], file_len: u64) -> Option<Foreign> {
    reply(start).or_else(|| {
        let Decoded { text, encoding } = decode(start)?;
        let is_whole = start.len() as u64 == file_len;
        Some(of_text(&text, encoding, is_whole))
    })
}

/// A reply of a server with its header fields, as `curl -i` saves it. Its body may be no text.
fn reply(start: &[u8]) -> Option<Foreign> {
    let version = start.strip_prefix(b"HTTP/")?.first()?;
    if !version.is_ascii_digit() {
        return None;
    }
    let line = start.split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
    let line = String::from_utf8_lossy(line);
    let is_success = line.split_whitespace().nth(1).is_some_and(|status| status.starts_with('2'));
    let remedy = match is_success {
        true => "fetch the file again without the reply's header fields: curl without -i",
        false => FETCH,
    };
    Some(Foreign::new(format!("an HTTP reply that begins with {}", Quoted(&line)), remedy))
}

/// The text of some bytes.
struct Decoded<'a> {
    text: Cow<'a, str>,
    /// What follows the name of the text where it is not UTF-8.
    encoding: &'static str,
}

/// The text that bytes are in UTF-8, UTF-16 or an encoding that extends ASCII; `None` where they are none.
fn decode(start: &[u8]) -> Option<Decoded<'_>> {
    let is_text = |text: &str| !text.chars().any(|c| c.is_control() && !c.is_whitespace());
    let utf_16 = |bytes: &[u8], number: fn([u8; 2]) -> u16| {
        let units = bytes.as_chunks::<2>().0.iter().map(|&unit| number(unit));
        let text = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        Decoded { text: Cow::Owned(text), encoding: " in UTF-16" }
    };
    let decoded = match start {
        [0xff, 0xfe, rest @ ..] => utf_16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf_16(rest, u16::from_be_bytes),
        [first, 0, second, 0, ..] if first.is_ascii() && second.is_ascii() => {
            utf_16(start, u16::from_le_bytes)
        }
        [0, first, 0, second, ..] if first.is_ascii() && second.is_ascii() => {
            utf_16(start, u16::from_be_bytes)
        }
        _ => in_bytes(start.strip_prefix(MARK).unwrap_or(start))?,
    };
    is_text(&decoded.text).then_some(decoded)
}

/// The text of bytes of which those below 128 are ASCII.
fn in_bytes(start: &[u8]) -> Option<Decoded<'_>> {
    // What was read may end within a character.
    match std::str::from_utf8(start) {
        Ok(text) => Some(Decoded { text: text.into(), encoding: "" }),
        Err(error) if error.error_len().is_none() => {
            let text = std::str::from_utf8(start.get(..error.valid_up_to())?).ok()?;
            Some(Decoded { text: text.into(), encoding: "" })
        }
        Err(_) => {
            // Latin-1, but for the control characters that other encodings replace. Data are seldom ASCII for the most part.
            let ascii = start.iter().filter(|byte| byte.is_ascii()).count();
            let character = |byte: &u8| match byte {
                0x80..=0x9f => char::REPLACEMENT_CHARACTER,
                byte => char::from(*byte),
            };
            let text = Cow::Owned(start.iter().map(character).collect());
            (ascii > start.len() / 2)
                .then_some(Decoded { text, encoding: " in an encoding other than UTF-8" })
        }
    }
}

fn of_text(text: &str, encoding: &str, is_whole: bool) -> Foreign {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Foreign::new("a text file of white space alone", EMPTY);
    }
    let pointer = POINTERS.iter().find(|(beginning, ..)| trimmed.starts_with(beginning));
    if let Some(&(_, what, remedy)) = pointer {
        return Foreign::new(what, remedy);
    }
    let is = |beginning: &str| {
        trimmed.get(..beginning.len()).is_some_and(|found| found.eq_ignore_ascii_case(beginning))
    };
    if ["<!doctype html", "<html", "<head", "<body", "<script", "<!--"].into_iter().any(is) {
        return Foreign::new(format!("an HTML page{encoding}{}", titled(trimmed, "title")), FETCH);
    }
    if is("<?xml") || is("<error>") {
        return Foreign::new(format!("an XML document{encoding}{}", titled(trimmed, "code")), FETCH);
    }
    if is_json(trimmed) {
        return json(trimmed);
    }
    if is_whole && is_path(trimmed) {
        let what = format!("the text {}, as of a symbolic link that was stored as a file", Quoted(trimmed));
        return Foreign::new(what, "fetch the file that it stands for");
    }
    let remedy = if is_whole && is_refusal(trimmed) { FETCH } else { "name the safetensors file" };
    let line = trimmed.lines().next().unwrap_or_default();
    Foreign::new(format!("a text file{encoding} that begins with {}", Quoted(line)), remedy)
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

/// Whether a text is JSON, or the beginning of such: an object up to its first key, or the whole of an array, as far as it is there. Programs write
/// values such as NaN into objects, and TOML and INI begin with words in brackets.
fn is_json(text: &str) -> bool {
    if let Some(members) = text.strip_prefix('{') {
        let members = members.trim_start();
        if members.is_empty() || members.starts_with('}') {
            return true;
        }
        let mut key = serde_json::Deserializer::from_str(members).into_iter::<String>();
        return match key.next() {
            Some(Ok(_)) => {
                let rest = members.get(key.byte_offset()..).unwrap_or_default().trim_start();
                rest.is_empty() || rest.starts_with(':')
            }
            Some(Err(error)) => error.is_eof(),
            None => true,
        };
    }
    text.starts_with('[')
        && serde_json::from_str::<IgnoredAny>(text).map_or_else(|error| error.is_eof(), |_| true)
}

/// Whether a line is the path of a file, as of a link: it is relative to a folder, or its last name has an extension. Data in base64 have neither.
fn is_path(line: &str) -> bool {
    let is_character = |c: char| c.is_alphanumeric() || "._-+@~/ ".contains(c);
    let last = line.rsplit('/').next().unwrap_or_default();
    let has_extension = last.rsplit_once('.').is_some_and(|(stem, extension)| {
        !stem.is_empty()
            && (1..=16).contains(&extension.len())
            && extension.chars().all(char::is_alphanumeric)
    });
    let is_relative = line.starts_with("./") || line.starts_with("../");
    line.contains('/')
        && line.len() <= 1024
        && !line.contains(char::is_whitespace)
        && line.chars().all(is_character)
        && (is_relative || has_extension)
        && !last.is_empty()
}

/// Whether a short text is what a server says instead of a file.
fn is_refusal(text: &str) -> bool {
    const WORDS: [&str; 24] = [
        "not found",
        "no such",
        "not exist",
        "forbidden",
        "unauthorized",
        "unauthenticated",
        "authenticat",
        "denied",
        "not allowed",
        "error",
        "invalid",
        "bad request",
        "bad gateway",
        "unavailable",
        "timeout",
        "timed out",
        "too many requests",
        "rate limit",
        "quota",
        "gated",
        "restricted",
        "expired",
        "log in",
        "sign in",
    ];
    let is_status = |text: &str| {
        let status = text.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        status.len() == 3 && matches!(status.as_bytes().first(), Some(b'4' | b'5'))
    };
    let first = text.lines().next().unwrap_or_default();
    let lower = first.to_lowercase();
    // Notes and sources have more lines, begin with a mark, or call functions.
    let is_call =
        first.as_bytes().windows(2).any(|pair| matches!(pair, [name, b'('] if name.is_ascii_alphanumeric()));
    text.len() <= 1000
        && text.lines().count() <= 5
        && !is_call
        && !first.contains('=')
        && !text.starts_with(['#', '"', '/', '-'])
        && (is_status(text) || WORDS.iter().any(|word| lower.contains(word)))
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
