//! The log as a file of JSON lines. A file is not trusted: reading checks that a pool can have produced the events, and errors
//! name the line.

use std::io::{self, BufRead, Read as _, Write};

use serde::{Deserialize, Serialize};

use super::event::{Header, Timed, VERSION};
use super::ledger::Ledger;
use crate::quoted::Quoted;

/// A longer line is no event: a batch of a million fragments has a tenth of it.
const MAX_LINE_BYTES: u64 = 1 << 30;

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    end: u64,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The file cannot be read.
    #[error("read line {line} of an event log: the reader failed")]
    Read {
        /// Which line, counted from 1.
        line: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// The first line is not that of an event log.
    #[error(
        "it is no event log: it begins with {start}, expected the line of a log that has its version as \"tensorhold_events\"; name a file that \
         events were recorded to"
    )]
    NoLog {
        /// The quoted start of the first line; or that it is not text.
        start: String,
    },
    /// A line is invalid.
    #[error("read line {line} of an event log: {problem}; record the log again")]
    Line {
        /// Which line, counted from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The last line is missing.
    #[error(
        "read line {line} of an event log: expected another event or the last line, got the end of the file: it was cut \
         short; record the log again, or to use what there is append the line {{\"end\":{events}}}"
    )]
    Truncated {
        /// The line that is not there, counted from 1.
        line: u64,
        /// How many events there are.
        events: u64,
    },
}

/// A log that was read and checked: a pool can have produced its events.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Log {
    /// Describes the pool.
    pub header: Header,
    /// The events, in order.
    pub events: Vec<Timed>,
}

impl Log {
    /// Reads a log and checks it, in memory as large as the file.
    ///
    /// # Errors
    /// When the reader fails, the file is truncated, or an event cannot follow those before it.
    pub fn read(input: impl BufRead) -> Result<Self, LogError> {
        let mut lines = Lines { input, line: 0, text: Vec::new() };
        let broken = |line, problem| LogError::Line { line, problem };
        if !lines.next()? {
            return Err(broken(1, "expected the header, got an empty file".into()));
        }
        if !is_header(&lines.text) {
            let start = match std::str::from_utf8(&lines.text) {
                Ok(text) => Quoted(text).to_string(),
                Err(_) => "bytes that are no text".into(),
            };
            return Err(LogError::NoLog { start });
        }
        let header = parse_header(&lines.text).map_err(|problem| broken(1, problem))?;
        let mut ledger = Ledger::new(&header);
        let mut events = Vec::new();
        loop {
            if !lines.next()? {
                return Err(LogError::Truncated { line: lines.line, events: events.len() as u64 });
            }
            if lines.text.starts_with(b"{") {
                check_end(&lines.text, events.len() as u64).map_err(|problem| broken(lines.line, problem))?;
                break;
            }
            let (time, event): Timed = serde_json::from_slice(&lines.text)
                .map_err(|error| broken(lines.line, format!("expected an event, got other JSON: {error}")))?;
            ledger.enter(time, &event).map_err(|problem| broken(lines.line, problem))?;
            events.push((time, event));
        }
        match lines.next()? {
            true => Err(broken(lines.line, "expected nothing after the last line, got another".into())),
            false => Ok(Self { header, events }),
        }
    }
}

/// Whether a line is an object that names the version of a log, whatever else is wrong with it.
fn is_header(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Marked {
        #[serde(rename = "tensorhold_events")]
        _version: serde::de::IgnoredAny,
    }
    serde_json::from_slice::<Marked>(line).is_ok() && line.trim_ascii_start().starts_with(b"{")
}

fn parse_header(line: &[u8]) -> Result<Header, String> {
    #[derive(Deserialize)]
    struct Version {
        tensorhold_events: u32,
    }
    // The version first: another one may have other fields.
    let version: Version = serde_json::from_slice(line).map_err(|error| format!("the header: {error}"))?;
    if version.tensorhold_events != VERSION {
        return Err(format!("expected version {VERSION}, got {}", version.tensorhold_events));
    }
    let header: Header = serde_json::from_slice(line).map_err(|error| format!("the header: {error}"))?;
    match header.granule.is_power_of_two() {
        true => Ok(header),
        false => Err(format!("the header: expected a power of two as the granule, got {}", header.granule)),
    }
}

fn check_end(line: &[u8], events: u64) -> Result<(), String> {
    let End { end } =
        serde_json::from_slice(line).map_err(|error| format!("expected the last line, got {error}"))?;
    match end == events {
        true => Ok(()),
        false => Err(format!("expected {end} events before the last line, got {events}")),
    }
}

/// Lines, one at a time.
struct Lines<R> {
    input: R,
    /// The number of the line that was read last, from 1.
    line: u64,
    text: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// Reads the next line, without its end; `false` behind the last one.
    fn next(&mut self) -> Result<bool, LogError> {
        self.line += 1;
        self.text.clear();
        let read = self.input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut self.text);
        let read = read.map_err(|source| LogError::Read { line: self.line, source })?;
        if read as u64 == MAX_LINE_BYTES {
            let problem = format!("expected an event, got more than {MAX_LINE_BYTES} bytes");
            return Err(LogError::Line { line: self.line, problem });
        }
        if self.text.last() == Some(&b'\n') {
            self.text.pop();
        }
        Ok(read > 0)
    }
}

/// Writes a log piece by piece, as events are [taken](super::EventLog::take) from a running pool.
///
/// ```
/// use std::sync::Arc;
/// use tensorhold_allocator::events::{self, Event, Log, LogWriter};
/// use tensorhold_allocator::{HostMemory, Pool, Request};
///
/// let (recorder, log) = events::recorder(1000);
/// let pool = Pool::builder(Arc::new(HostMemory::new())).events(recorder).build()?;
/// let mut writer = LogWriter::new(Vec::new(), &log.header().expect("the pool has been built"))?;
/// let fragments = ["a", "b", "c"].map(|label| {
///     let fragment = pool.place(label, Request::new(4096, 256));
///     writer.write(&log.take()).map(|()| fragment)
/// });
/// let file = writer.finish()?;
/// let log = Log::read(&file[..])?;
/// assert_eq!(log.events.iter().filter(|(_, event)| matches!(event, Event::Alloc { .. })).count(), 3);
/// # drop(fragments);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LogWriter<W> {
    out: W,
    events: u64,
}

impl<W: Write> LogWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// When `out` refuses.
    pub fn new(out: W, header: &Header) -> io::Result<Self> {
        let mut writer = Self { out, events: 0 };
        writer.line(header)?;
        Ok(writer)
    }

    /// Writes the events that follow those written before.
    ///
    /// # Errors
    /// When the underlying writer refuses.
    pub fn write(&mut self, events: &[Timed]) -> io::Result<()> {
        for event in events {
            self.line(event)?;
            self.events += 1;
        }
        Ok(())
    }

    /// Writes the last line, without which the log counts as truncated, and flushes.
    ///
    /// # Errors
    /// When the underlying writer refuses.
    pub fn finish(mut self) -> io::Result<W> {
        self.line(&End { end: self.events })?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.out.write_all(b"\n")
    }
}
