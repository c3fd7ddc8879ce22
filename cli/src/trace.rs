//! `tensorhold trace`: a recorded pool over time, as a trace that Perfetto (<https://ui.perfetto.dev>) and `chrome://tracing` show.
//!
//! It is JSON in the Trace Event Format's object form, written event by event. The pool is a process with two counters (phase
//! `C`), live and reserved bytes, and instants (`i`) where the reaper looked for empty regions and where the pool closed.
//! Each region is a process too, so that viewers keep together what lies in it: its fragments are asynchronous spans (`b`
//! to `e`, which belong together by category and id), since they begin and end in no order. A span has the fragment's
//! name, its size and offset, and an instant (`n`) where the last owner had gone. What was live at the end of the log ends there.
//! Fragments without a byte lie nowhere and are left out.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::slice;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};
use tensorhold::allocator::Bytes;
use tensorhold::allocator::events::{Event, Header, Log};

use crate::args::TraceArgs;
use crate::{output, replay};

pub(crate) fn run(args: &TraceArgs) -> anyhow::Result<()> {
    let log = replay::read(&args.log)?;
    output::print_to(args.out.as_deref(), slice::from_ref(&args.log), |out| write(out, &log))
}

/// The pool's process; regions follow. Viewers take process 0 for the system's idle one.
const POOL: u64 = 1;
const FIRST_REGION: u64 = 2;

/// An event of the format.
#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    ph: char,
    /// Microseconds.
    ts: f64,
    pid: u64,
    tid: u64,
    #[serde(flatten)]
    of: Of,
    #[serde(skip_serializing_if = "Value::is_null")]
    args: Value,
}

/// What only some phases have.
#[derive(Serialize)]
#[serde(untagged)]
enum Of {
    Nothing {},
    Span { cat: &'static str, id: String },
    Instant { s: char },
}

fn write(out: &mut dyn Write, log: &Log) -> io::Result<()> {
    let Header { pool, memory, granule, .. } = &log.header;
    let about = json!({ "pool": pool, "memory": memory, "granule": granule });
    write!(out, "{{\"displayTimeUnit\":\"ns\",\"otherData\":{about},\"traceEvents\":[")?;
    let mut trace = Trace {
        out,
        first: true,
        now: 0.0,
        spans: BTreeMap::new(),
        regions: BTreeMap::new(),
        live: 0,
        reserved: 0,
    };
    trace.name_process(POOL, &format!("pool {pool}"))?;
    for (time, event) in &log.events {
        trace.now = *time as f64 / 1000.0;
        trace.event(event)?;
    }
    trace.end()?;
    writeln!(out, "\n]}}")
}

struct Trace<'a> {
    out: &'a mut dyn Write,
    first: bool,
    now: f64,
    /// The fragments and blocks that are there, by number.
    spans: BTreeMap<u64, Span>,
    /// The sizes of the regions that are there.
    regions: BTreeMap<u64, u64>,
    live: u64,
    reserved: u64,
}

struct Span {
    label: Arc<str>,
    region: u64,
    offset: u64,
    bytes: u64,
    cat: &'static str,
}

impl Trace<'_> {
    fn event(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Grow { region, bytes } => {
                let name = format!("region {region}");
                self.name_process(FIRST_REGION + region, &format!("{name}, {}", Bytes(*bytes)))?;
                self.entry(
                    &name,
                    'b',
                    FIRST_REGION + region,
                    span("region", *region),
                    json!({ "bytes": bytes }),
                )?;
                self.regions.insert(*region, *bytes);
                self.reserved += bytes;
                self.count("reserved", self.reserved)?;
            }
            Event::Alloc { fragment, label, bytes: bytes @ 1.., align, region, offset } => {
                self.begin(*fragment, Span::new("fragment", label, *bytes, (*region, *offset)), *align)?;
                self.count("live", self.live)?;
            }
            Event::Take { block, label, bytes, align, region, offset } => {
                self.begin(*block, Span::new("block", label, *bytes, (*region, *offset)), *align)?;
                self.count("live", self.live)?;
            }
            Event::Cut { blocks, first, parts } => {
                let mut places = Vec::with_capacity(blocks.len());
                for block in blocks {
                    let place = self.spans.get(block).map_or((0, 0), |span| (span.region, span.offset));
                    places.push(place);
                    self.finish(*block)?;
                }
                for (number, part) in (*first..).zip(parts).filter(|(_, part)| part.bytes > 0) {
                    let (region, start) = places.get(part.block as usize).copied().unwrap_or_default();
                    let place = (region, start + part.offset);
                    self.begin(number, Span::new("fragment", &part.label, part.bytes, place), 1)?;
                }
                self.count("live", self.live)?;
            }
            Event::Retire(numbers) => numbers.iter().try_for_each(|number| self.mark(*number, "retired"))?,
            Event::Lose(numbers) => numbers.iter().try_for_each(|number| self.mark(*number, "lost"))?,
            Event::Reap(numbers) => {
                numbers.iter().try_for_each(|number| self.finish(*number))?;
                self.count("live", self.live)?;
            }
            Event::Release { region, bytes } => {
                self.regions.remove(region);
                self.finish_region(*region)?;
                self.reserved -= bytes;
                self.count("reserved", self.reserved)?;
            }
            Event::Part { bytes, .. } => {
                self.reserved -= bytes;
                self.count("reserved", self.reserved)?;
            }
            Event::Trim { keep } => {
                self.entry("trim", 'i', POOL, Of::Instant { s: 'p' }, json!({ "keep": keep }))?
            }
            Event::Close => self.entry("close", 'i', POOL, Of::Instant { s: 'g' }, Value::Null)?,
            _ => {}
        }
        Ok(())
    }

    /// Ends what has not ended.
    fn end(&mut self) -> io::Result<()> {
        let numbers: Vec<u64> = self.spans.keys().copied().collect();
        numbers.into_iter().try_for_each(|number| self.finish(number))?;
        let regions: Vec<u64> = self.regions.keys().copied().collect();
        regions.into_iter().try_for_each(|region| self.finish_region(region))
    }

    fn begin(&mut self, number: u64, new: Span, align: u64) -> io::Result<()> {
        let Span { label, region, offset, bytes, cat } = &new;
        let mut args = json!({ "bytes": bytes, "offset": offset, "number": number });
        if align > 1 {
            args["align"] = align.into();
        }
        self.entry(label, 'b', FIRST_REGION + region, span(cat, number), args)?;
        self.live += bytes;
        self.spans.insert(number, new);
        Ok(())
    }

    fn finish(&mut self, number: u64) -> io::Result<()> {
        let Some(Span { label, region, bytes, cat, .. }) = self.spans.remove(&number) else { return Ok(()) };
        self.live -= bytes;
        self.entry(&label, 'e', FIRST_REGION + region, span(cat, number), Value::Null)
    }

    fn finish_region(&mut self, region: u64) -> io::Result<()> {
        self.entry(
            &format!("region {region}"),
            'e',
            FIRST_REGION + region,
            span("region", region),
            Value::Null,
        )
    }

    fn mark(&mut self, number: u64, name: &str) -> io::Result<()> {
        let Some(Span { region, cat, .. }) = self.spans.get(&number) else { return Ok(()) };
        let (pid, of) = (FIRST_REGION + region, span(cat, number));
        self.entry(name, 'n', pid, of, Value::Null)
    }

    fn count(&mut self, what: &str, bytes: u64) -> io::Result<()> {
        self.entry(&format!("{what} bytes"), 'C', POOL, Of::Nothing {}, json!({ "bytes": bytes }))
    }

    fn name_process(&mut self, pid: u64, name: &str) -> io::Result<()> {
        self.entry("process_name", 'M', pid, Of::Nothing {}, json!({ "name": name }))?;
        self.entry("process_sort_index", 'M', pid, Of::Nothing {}, json!({ "sort_index": pid }))
    }

    fn entry(&mut self, name: &str, ph: char, pid: u64, of: Of, args: Value) -> io::Result<()> {
        self.out.write_all(if self.first { b"\n" } else { b",\n" })?;
        self.first = false;
        let entry = Entry { name, ph, ts: self.now, pid, tid: pid, of, args };
        Ok(serde_json::to_writer(&mut *self.out, &entry)?)
    }
}

impl Span {
    fn new(cat: &'static str, label: &Arc<str>, bytes: u64, (region, offset): (u64, u64)) -> Self {
        Self { label: Arc::clone(label), region, offset, bytes, cat }
    }
}

/// Names a span: viewers want numbers in hexadecimal digits.
fn span(cat: &'static str, id: u64) -> Of {
    Of::Span { cat, id: format!("{id:#x}") }
}
