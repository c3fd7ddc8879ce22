//! What goes to standard output and standard error, and how numbers are shown there.
//!
//! All sizes and rates in text are in binary units, as the library's reports and errors are, so that the numbers of a report can be compared, and bytes
//! over seconds is the rate that is shown. JSON has bytes, and `gigabytes_per_second` of 10^9 bytes.

use std::borrow::Cow;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Serialize, Serializer};
use tensorhold::allocator::{Brief, Bytes};
use tensorhold::{Error, LeftOut, Vocabulary};

use crate::target;

/// Writes a result to standard output. A reader that has gone has seen enough: that is no error.
pub(crate) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written.map_err(system("write", Path::new("standard output")))?),
    }
}

/// Writes a result to a file, which must not be one of the inputs, or, without one, to standard output.
pub(crate) fn print_to(
    file: Option<&Path>,
    inputs: &[PathBuf],
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> anyhow::Result<()> {
    let Some(file) = file else { return print(write) };
    let mut out = BufWriter::new(target::create(file, inputs)?);
    Ok(write(&mut out).and_then(|()| out.flush()).map_err(system("write", file))?)
}

/// Writes `value` as JSON, with a newline at its end.
pub(crate) fn write_json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// Serializes a path as text, in which bytes that are not UTF-8 are replaced by U+FFFD.
pub(crate) fn path_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// The error of the system for an operation on a file: it says what the cause is, and what helps.
pub(crate) fn system(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { operation, path: path.into(), source }
}

/// Writes an error and its sources to standard error, in the command's words.
pub(crate) fn print_error(error: &anyhow::Error) {
    let mut err = io::stderr().lock();
    for (number, error) in error.chain().enumerate() {
        let message = Vocabulary::Command.describe(error);
        let label = if number == 0 { "error" } else { "  caused by" };
        // Where standard error cannot be written, the exit code still tells.
        let _ = writeln!(err, "{label}: {message}");
    }
}

/// A bar of bytes on standard error; one that never shows if that is not a terminal.
///
/// It clears itself when its last handle is dropped.
pub(crate) fn bar(label: &'static str, total_bytes: u64) -> ProgressBar {
    const TEMPLATE: &str =
        "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
    let target = match io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total_bytes), target)
        .with_style(style.progress_chars("=> "))
        .with_prefix(label)
}

/// Bytes of tensors and files: `15.0 GiB`.
pub(crate) fn data(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

/// Files that are listed as left out; JSON has them all.
const LISTED: usize = 10;

/// What is left out of a checkpoint, a line for each file.
pub(crate) fn left_out(files: &[LeftOut]) -> impl Iterator<Item = String> {
    let lines = files.iter().take(LISTED);
    let lines =
        lines.map(|LeftOut { path, why, .. }| format!("{} ({why})", printable(&path.display().to_string())));
    let more = files.len().checked_sub(LISTED).filter(|more| *more > 0);
    lines.chain(more.map(|more| format!("{more} more")))
}

/// `1 tensor`, `2 tensors`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

/// Bytes in seconds, and the rate: `15.0 GiB in 0.345 s: 43.36 GiB/s`.
pub(crate) fn rate(bytes: u64, seconds: f64) -> String {
    let per_second = bytes as f64 / f64::from(1 << 30) / seconds.max(f64::MIN_POSITIVE);
    format!("{} in {seconds:.3} s: {per_second:.2} GiB/s", data(bytes))
}

/// A name from a file as it can be shown on a terminal: bounded, since a column is as wide as its longest row.
pub(crate) fn brief(text: &str) -> String {
    Brief(text).to_string()
}

/// A string from a file as it can be shown on a terminal: control characters are escaped.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::{count, data, printable, rate};

    #[test]
    fn bytes_over_seconds_is_the_rate_shown() {
        assert_eq!(rate(16 << 30, 0.5), "16.0 GiB in 0.500 s: 32.00 GiB/s");
        assert_eq!(data(17), "17 B");
        assert_eq!(data(1_536), "1.5 KiB");
    }

    #[test]
    fn one_is_singular() {
        assert_eq!([0, 1, 2].map(|n| count(n, "file")), ["0 files", "1 file", "2 files"]);
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("a\u{1b}[2Jß\n"), "a\\u{1b}[2Jß\\n");
        assert_eq!(printable("plain.ß"), "plain.ß");
    }
}
