//! `tensorhold map`: regions, fragments and holes as a picture (SVG) that a browser shows.
//!
//! A region is a block of rows, read like text: each row stands for as many bytes. Neighbours have different colours, holes are
//! hatched. A pointer that rests on a fragment is told its name, size and offset.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::Path;

use anyhow::{Context, ensure};
use tensorhold::allocator::{Bytes, RegionSnapshot, Snapshot};

use crate::args::MapArgs;
use crate::{device, load, output, target};

pub(crate) fn run(args: &MapArgs) -> anyhow::Result<()> {
    let (snapshot, inputs) = match &args.snapshot {
        Some(file) => {
            let bytes = read_snapshot(file)?;
            let snapshot = serde_json::from_slice(&bytes).with_context(|| {
                format!("read {file:?}: it is no snapshot of a pool; name a file that the library wrote as JSON from a pool's snapshot")
            })?;
            (snapshot, vec![file.clone()])
        }
        None => {
            let path = args.path.as_deref().context("name a checkpoint, or a --snapshot")?;
            let inputs = match &args.out {
                // Before the load, which can take long.
                Some(out) => {
                    let inputs = target::inputs(path, &args.options.set)?;
                    target::check(out, &inputs)?;
                    inputs
                }
                None => Vec::new(),
            };
            let loaded = load::load(path, &args.options, device::choose(args.options.device)?)?;
            (loaded.weights.pool().snapshot(), inputs)
        }
    };
    output::print_to(args.out.as_deref(), &inputs, |out| draw(out, &snapshot))
}

/// No snapshot is longer: that of a million tensors takes half of it.
const MAX_SNAPSHOT_BYTES: u64 = 256 << 20;

/// Reads a snapshot, which may come through a pipe.
fn read_snapshot(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(output::system("open", path))?;
    file.take(MAX_SNAPSHOT_BYTES + 1).read_to_end(&mut bytes).map_err(output::system("read", path))?;
    let limit = Bytes(MAX_SNAPSHOT_BYTES);
    ensure!(
        bytes.len() as u64 <= MAX_SNAPSHOT_BYTES,
        "read {path:?}: got more than {limit}, expected at most that of a snapshot; name a file that the library wrote as JSON from a pool's snapshot"
    );
    Ok(bytes)
}

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 20.0;
const ROW: f64 = 22.0;
/// Between rows.
const GAP: f64 = 3.0;
/// The rows of the largest region; the others have as many as their bytes are worth.
const ROWS: u64 = 24;

/// Draws a snapshot.
fn draw(out: &mut dyn Write, snapshot: &Snapshot) -> io::Result<()> {
    let largest = snapshot.regions.iter().map(|region| region.bytes).max().unwrap_or(0);
    // At least a byte, so that an empty pool is drawn too.
    let row_bytes = largest.div_ceil(ROWS).max(1);
    let rows = |region: &RegionSnapshot| region.bytes.div_ceil(row_bytes);
    let all_rows: u64 = snapshot.regions.iter().map(rows).sum();
    let height = MARGIN * 3.0 + 40.0 + all_rows as f64 * (ROW + GAP) + snapshot.regions.len() as f64 * 44.0;
    writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" font-family="sans-serif" font-size="13">
<defs><pattern id="hole" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="6" height="6" fill="#fff"/><rect width="2" height="6" fill="#bbb"/></pattern></defs>
<rect width="100%" height="100%" fill="#fff"/>"##
    )?;
    let stats = &snapshot.stats;
    text(out, MARGIN + 10.0, 18, &format!("pool {:?}", snapshot.pool))?;
    let (reserved, live) = (Bytes(stats.reserved_bytes), Bytes(stats.live_bytes));
    let summary = format!(
        "{} of {live} live in {} of {reserved}; {}; a row is {}",
        output::count(stats.fragments, "fragment"),
        output::count(stats.regions, "region"),
        holes(stats.free_bytes, stats.largest_free_bytes),
        Bytes(row_bytes)
    );
    text(out, MARGIN + 32.0, 13, &summary)?;
    let mut top = MARGIN * 2.0 + 40.0;
    for (number, region) in snapshot.regions.iter().enumerate() {
        let given_back = match region.bytes.saturating_sub(region.reserved_bytes) {
            gone if gone > 0 && region.reserved_bytes > 0 => format!(", {} of it given back", Bytes(gone)),
            _ => String::new(),
        };
        let about = format!(
            "region {number} at {:#x}: {}{given_back}, {}, {}",
            region.address,
            Bytes(region.bytes),
            output::count(region.fragments.len(), "fragment"),
            holes(region.free_bytes, region.largest_free_bytes)
        );
        text(out, top + 4.0, 13, &about)?;
        top += 14.0;
        draw_region(out, region, row_bytes, top)?;
        top += rows(region) as f64 * (ROW + GAP) + 30.0;
    }
    if !snapshot.empty.is_empty() {
        text(
            out,
            top,
            13,
            &format!("{} without a byte, which lie nowhere", output::count(snapshot.empty.len(), "fragment")),
        )?;
    }
    writeln!(out, "</svg>")
}

/// How much is free, and how much of it is not in the largest hole.
fn holes(free: u64, largest: u64) -> String {
    if free == 0 {
        return "nothing free".into();
    }
    let scattered = 100.0 * (1.0 - largest as f64 / free as f64);
    format!("{} free, {scattered:.0} % of it outside the largest hole", Bytes(free))
}

fn draw_region(out: &mut dyn Write, region: &RegionSnapshot, row_bytes: u64, top: f64) -> io::Result<()> {
    // Holes first: fragments lie on what they leave.
    stretch(out, (0, region.bytes), row_bytes, top, &Look { fill: "url(#hole)", name: "", title: "free" })?;
    for (number, fragment) in region.fragments.iter().enumerate() {
        // The golden angle: neighbours are far apart on the circle of hues.
        let fill = format!("hsl({:.0},60%,62%)", number as f64 * 137.508 % 360.0);
        let title = format!("{}: {} at {:#x}", fragment.label, Bytes(fragment.bytes), fragment.offset);
        let end = fragment.offset.saturating_add(fragment.bytes).min(region.bytes);
        let look = Look { fill: &fill, name: &fragment.label, title: &title };
        stretch(out, (fragment.offset, end), row_bytes, top, &look)?;
    }
    Ok(())
}

/// How bytes look: `name` is written where there is room for it, `title` is told to who points there.
struct Look<'a> {
    fill: &'a str,
    name: &'a str,
    title: &'a str,
}

/// So wide is a letter of a name, or less.
const LETTER: f64 = 6.6;

/// Draws the bytes from `start` to `end`, in as many rows as they lie in.
fn stretch(
    out: &mut dyn Write,
    (start, end): (u64, u64),
    row_bytes: u64,
    top: f64,
    look: &Look<'_>,
) -> io::Result<()> {
    let per_byte = (WIDTH - 2.0 * MARGIN) / row_bytes as f64;
    let (fill, name, title) = (look.fill, escaped(look.name), escaped(look.title));
    let name_width = (look.name.chars().count() + 1) as f64 * LETTER;
    let mut named = name.is_empty();
    let mut at = start;
    while at < end {
        let (row, column) = (at / row_bytes, at % row_bytes);
        let bytes = (end - at).min(row_bytes - column);
        let (x, y) = (MARGIN + column as f64 * per_byte, top + row as f64 * (ROW + GAP));
        let width = bytes as f64 * per_byte;
        writeln!(
            out,
            r#"<rect x="{x:.3}" y="{y:.1}" width="{width:.3}" height="{ROW}" fill="{fill}"><title>{title}</title></rect>"#
        )?;
        if !named && width > name_width {
            named = true;
            let (x, y) = (x + 4.0, y + ROW - 7.0);
            writeln!(
                out,
                r#"<text x="{x:.1}" y="{y:.1}" font-size="11" pointer-events="none">{name}</text>"#
            )?;
        }
        at += bytes;
    }
    Ok(())
}

fn text(out: &mut dyn Write, y: f64, size: u32, text: &str) -> io::Result<()> {
    writeln!(out, r#"<text x="{MARGIN}" y="{y:.1}" font-size="{size}">{}</text>"#, escaped(text))
}

/// A string from a file as it can stand in XML: no markup, no characters that XML does not have.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in output::brief(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => {
                let _ = write!(escaped, "{}", c.escape_unicode());
            }
            c => escaped.push(c),
        }
    }
    escaped
}
