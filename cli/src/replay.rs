//! `tensorhold replay`: what a policy makes of a recorded pool.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use tensorhold::allocator::Bytes;
use tensorhold::allocator::events::{Header, Log, LogError};
use tensorhold::allocator::replay::{self, Policy, Recorded, Replayed, Room};

use crate::args::ReplayArgs;
use crate::output::{self, count, printable};

pub(crate) fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let log = read(&args.log)?;
    let room = args.capacity.map_or(Room::Growing, Room::Capacity);
    let policies = if args.policies.is_empty() { Policy::ALL } else { &args.policies };
    let document = Document {
        header: &log.header,
        events: log.events.len(),
        capacity_bytes: args.capacity,
        recorded: replay::recorded(&log),
        policies: policies.iter().map(|&policy| Row::new(&log, policy, room)).collect(),
    };
    output::print(|out| match args.json {
        true => output::write_json(out, &document),
        false => document.write_text(out),
    })
}

/// Reads an event log.
pub(crate) fn read(path: &Path) -> anyhow::Result<Log> {
    let file = File::open(path).map_err(output::system("open", path))?;
    match Log::read(BufReader::new(file)) {
        Err(LogError::Read { source, .. }) => Err(output::system("read", path)(source).into()),
        read => read.with_context(|| format!("read {path:?}")),
    }
}

#[derive(Serialize)]
struct Document<'a> {
    header: &'a Header,
    events: usize,
    capacity_bytes: Option<u64>,
    recorded: Recorded,
    policies: Vec<Row>,
}

/// What became of a policy.
#[derive(Serialize)]
struct Row {
    policy: Policy,
    #[serde(flatten)]
    replayed: Replayed,
    fragmentation_at_peak: f64,
    /// `None` if no space will do, of whatever size.
    smallest_space_bytes: Option<u64>,
    /// That as a multiple of the most that was live in it.
    smallest_space_of_peak: Option<f64>,
    nanoseconds_per_operation: f64,
}

impl Row {
    fn new(log: &Log, policy: Policy, room: Room) -> Self {
        let replayed = replay::replay(log, policy, room);
        let smallest = replay::smallest_space(log, policy);
        let of_peak = smallest.map(|bytes| {
            let peak = replay::replay(log, policy, Room::Capacity(bytes)).peak_live_bytes;
            bytes as f64 / peak.max(1) as f64
        });
        Self {
            policy,
            fragmentation_at_peak: replayed.fragmentation_at_peak(),
            smallest_space_bytes: smallest,
            smallest_space_of_peak: of_peak,
            nanoseconds_per_operation: replay::nanoseconds_per_operation(log, policy, room),
            replayed,
        }
    }
}

impl Document<'_> {
    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let (pool, memory) = (printable(&self.header.pool), printable(&self.header.memory));
        let recorded = &self.recorded;
        writeln!(
            out,
            "pool {pool} over {memory}: {}, at most {} reserved in {} as recorded",
            count(self.events, "event"),
            Bytes(recorded.peak_reserved_bytes),
            count(recorded.regions as usize, "region"),
        )?;
        match self.capacity_bytes {
            Some(bytes) => writeln!(out, "replayed in one space of {}", Bytes(bytes))?,
            None => writeln!(out, "replayed in regions that grow as the pool's do")?,
        }
        let head = ["policy", "operations", "failures", "peak live", "peak reserved", "regions"];
        let tail = ["scattered at peak", "smallest space", "of peak", "ns/operation", "placed"];
        let mut rows = vec![head.iter().chain(&tail).map(|name| (*name).to_owned()).collect()];
        rows.extend(self.policies.iter().map(|row| row.cells(recorded)));
        write_table(out, &rows)
    }
}

impl Row {
    fn cells(&self, recorded: &Recorded) -> Vec<String> {
        let Replayed { operations, failures, regions, peak_live_bytes, peak_reserved_bytes, digest, .. } =
            &self.replayed;
        let none = || "none".to_owned();
        let as_recorded = if *digest == recorded.digest { " as recorded" } else { "" };
        vec![
            self.policy.to_string(),
            operations.to_string(),
            failures.to_string(),
            Bytes(*peak_live_bytes).to_string(),
            Bytes(*peak_reserved_bytes).to_string(),
            regions.to_string(),
            format!("{:.1} %", 100.0 * self.fragmentation_at_peak),
            self.smallest_space_bytes.map_or_else(none, |bytes| Bytes(bytes).to_string()),
            self.smallest_space_of_peak.map_or_else(none, |of_peak| format!("{of_peak:.3}")),
            format!("{:.1}", self.nanoseconds_per_operation),
            format!("{digest}{as_recorded}"),
        ]
    }
}

/// Columns as wide as their widest cell; the first and the last are to the left, numbers to the right.
fn write_table(out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            match column {
                0 => write!(out, "{cell:width$}")?,
                _ if column + 1 == columns => write!(out, "  {cell}")?,
                _ => write!(out, "  {cell:>width$}")?,
            }
        }
        writeln!(out)?;
    }
    Ok(())
}
