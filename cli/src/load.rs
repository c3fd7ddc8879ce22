//! `tensorhold load`, and the load that `verify` and `demo` begin with.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

use serde::Serialize;
use tensorhold::allocator::Bytes;
use tensorhold::{DType, Loader, Pool, Report, Weights};

use crate::args::{LoadArgs, LoadOptions};
use crate::device::{self, Chosen};
use crate::output::{self, count, rate};
use crate::pool::{self, Recording};

pub(crate) fn run(args: &LoadArgs) -> anyhow::Result<()> {
    let chosen = device::choose(args.options.device)?;
    let record = |file| Recording::start(file, &args.path, &chosen.device, &args.options);
    let recording = args.events.as_deref().map(record).transpose()?;
    let pool = recording.as_ref().map(|recording| &recording.pool);
    let loaded = load_into(&args.path, &args.options, args.dtype, chosen, pool);
    let printed = loaded.and_then(|loaded| {
        output::print(|out| match args.json {
            true => output::write_json(out, &loaded.document()),
            false => loaded.write_text(out),
        })
    });
    // What led to a failure is worth knowing, too. The weights have gone, so the log tells of their end.
    let recorded = recording.map_or(Ok(()), Recording::finish);
    printed.and(recorded)
}

/// A loaded checkpoint.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) weights: Weights,
    device_why: String,
}

/// The JSON form of a load: the library's report, and what the command adds.
#[derive(Serialize)]
pub(crate) struct Document<'a> {
    #[serde(flatten)]
    report: &'a Report,
    gigabytes_per_second: f64,
    device_why: &'a str,
}

/// Loads the selected tensors onto the chosen device, with a progress bar.
pub(crate) fn load(path: &Path, options: &LoadOptions, chosen: Chosen) -> anyhow::Result<Loaded> {
    load_into(path, options, None, chosen, None)
}

/// As [`load`], converted, and into a pool, if they are given.
fn load_into(
    path: &Path,
    options: &LoadOptions,
    dtype: Option<DType>,
    chosen: Chosen,
    pool: Option<&Pool>,
) -> anyhow::Result<Loaded> {
    let own = match pool.is_none() && options.parts.is_some() {
        true => Some(pool::builder(&chosen.device, options).build()?),
        false => None,
    };
    let mut loader = options.set.of(Loader::new(chosen.device).checkpoint(path)?);
    if let Some(pool) = pool.or(own.as_ref()) {
        loader = loader.pool(pool);
    }
    if !options.selection.is_all() {
        let selection = options.selection.clone();
        loader = loader.select(move |tensor| selection.wants(&tensor.name));
    }
    if let Some(dtype) = dtype {
        loader = loader.dtype(dtype);
    }
    if let Some(threads) = options.threads {
        loader = loader.threads(threads.into());
    }
    if let Some(backend) = options.backend {
        loader = loader.backend(backend);
    }
    if let Some(bytes) = options.staging_bytes {
        loader = loader.staging_bytes(bytes);
    }
    let bar = output::bar("loading", 0);
    let loader = loader.progress(move |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
        ControlFlow::Continue(())
    });
    let weights = loader.load()?;
    options.selection.check_matched(weights.len())?;
    Ok(Loaded { weights, device_why: chosen.why })
}

impl Loaded {
    pub(crate) fn document(&self) -> Document<'_> {
        let report = self.weights.report();
        Document { report, gigabytes_per_second: report.gigabytes_per_second(), device_why: &self.device_why }
    }

    pub(crate) fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let report = self.weights.report();
        let (tensors, files) = (count(report.tensors, "tensor"), count(report.files, "file"));
        let total = report.times.total.as_secs_f64();
        writeln!(out, "loaded {tensors} from {files}, {}", rate(report.bytes, total))?;
        let mut line = |about: &str, what: String| writeln!(out, "  {about:<10}{what}");
        line("device", format!("{} ({})", report.device, self.device_why))?;
        let regions = count(report.regions, "region");
        let (memory, staging) = (Bytes(report.region_bytes), Bytes(report.staging_bytes));
        line("memory", format!("{memory} in {regions}, {staging} of staging"))?;
        let [plan, reserve, fill] =
            [report.times.plan, report.times.reserve, report.times.fill].map(|time| time.as_secs_f64());
        let jobs = count(report.jobs, "job");
        line("time", format!("plan {plan:.3} s, reserve {reserve:.3} s, fill {fill:.3} s in {jobs}"))?;
        for choice in &report.choices {
            line(choice.about, format!("{} ({})", choice.picked, choice.why))?;
        }
        output::left_out(&report.left_out).try_for_each(|file| line("left out", file))
    }
}
