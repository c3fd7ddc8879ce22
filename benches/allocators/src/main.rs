//! tensorhold's allocator beside others, on one machine and in one run. See README.md.
//!
//! Contestants take turns, round by round, in one process. What each does is checked: all blocks are placed, live ones
//! do not overlap, and the space is empty at the end. One that fails a case is told of and left out of the case from then on.

mod cases;
mod contestants;
mod report;
mod traces;

use std::process::ExitCode;

use cases::{batch, churn, threads};
use contestants::{Entry, SharedEntry};
use report::Report;
use traces::{Batch, MIXED, SMALL, Trace, shuffled};

const USAGE: &str = "usage: bench-allocators [--rounds N] [--cases batch,churn,threads,scaling] [--only NAME,NAME] [--out FILE.csv]";

const CASES: [&str; 4] = ["batch", "churn", "threads", "scaling"];

/// How many ever larger spaces a contestant is timed in at most, until it does not fail.
const TRIES: usize = 20;

struct Options {
    rounds: usize,
    cases: Vec<String>,
    /// Parts of names; none stands for all.
    only: Vec<String>,
    out: Option<String>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let list = |value: String| value.split(',').map(str::to_owned).collect();
        let cases = CASES.map(str::to_owned).to_vec();
        let mut options = Self { rounds: 5, cases, only: Vec::new(), out: None };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or(USAGE)?;
            match name.as_str() {
                "--rounds" => options.rounds = value.parse().map_err(|_| USAGE)?,
                "--cases" => options.cases = list(value),
                "--only" => options.only = list(value),
                "--out" => options.out = Some(value),
                _ => return Err(USAGE.into()),
            }
        }
        let known = options.cases.iter().all(|case| CASES.contains(&case.as_str()));
        if known && options.rounds > 0 { Ok(options) } else { Err(USAGE.into()) }
    }

    fn has_case(&self, case: &str) -> bool {
        self.cases.iter().any(|chosen| chosen == case)
    }

    fn has(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }
}

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    println!("{}\n{}\n{}", report::date(), report::machine(), report::toolchain());
    println!("{} rounds; medians, with the smallest and the largest of the rounds behind", options.rounds);
    let mut entries = contestants::all();
    entries.retain(|entry| options.has(&entry.name));
    let mut shared = contestants::shared();
    shared.retain(|entry| options.has(&entry.name));
    let mut report = Report::default();
    if options.has_case("batch") {
        run_batch(&mut report, options, &entries);
        contestants::forget_pages();
    }
    if options.has_case("churn") {
        run_churn(&mut report, options, &entries);
        contestants::forget_pages();
    }
    if options.has_case("threads") {
        run_threads(&mut report, options, &shared);
    }
    if options.has_case("scaling") {
        run_scaling(&mut report, options, &shared);
    }
    let command: Vec<String> = std::env::args().collect();
    options.out.as_ref().map_or(Ok(()), |path| report.write(path, &format!("command: {}", command.join(" "))))
}

/// Whose turn it is: in the first round in their order, later in one that looks random.
fn turns<T>(round: usize, of: &[T]) -> impl Iterator<Item = usize> {
    let in_order = (0..of.len()).collect();
    if round == 1 { in_order } else { shuffled(round as u64, of.len()) }.into_iter()
}

fn run_batch(report: &mut Report, options: &Options, entries: &[Entry]) {
    let batch = Batch::llama_8b();
    let per_tensor = |nanoseconds: f64| nanoseconds / batch.sizes.len() as f64;
    let mut over = Vec::new();
    for entry in entries {
        let smallest = (entry.smallest_batch)(&batch);
        over.push(smallest.as_ref().copied().unwrap_or_default());
        match smallest {
            Ok(over) => report.add("pair", &entry.name, 1, "over_percent", over as f64 / 10.0),
            Err(why) => {
                ["list", "pair"].into_iter().for_each(|case| report.fail(case, &entry.name, why.clone()))
            }
        }
    }
    for round in 1..=options.rounds {
        for planned in [contestants::planned, contestants::pool_planned] {
            match planned(&batch) {
                Ok(times) => {
                    times.into_iter().filter(|(name, _)| options.has(name)).for_each(|(name, time)| {
                        report.add("list", &name, round, "ns_per_tensor", per_tensor(time));
                    })
                }
                Err(why) => report.fail("list", "tensorhold, planned", why),
            }
        }
        for (entry, over) in turns(round, entries).map(|at| (&entries[at], over[at])) {
            if report.failed("pair", &entry.name) {
                continue;
            }
            match (entry.batch)(&batch, batch::capacity(&batch, over)) {
                Ok(times) => {
                    report.add("list", &entry.name, round, "ns_per_tensor", per_tensor(times.placed));
                    report.add("pair", &entry.name, round, "ns_in_order", per_tensor(times.pair_in_order));
                    report.add("pair", &entry.name, round, "ns_shuffled", per_tensor(times.pair_shuffled));
                }
                Err(why) => {
                    ["list", "pair"].into_iter().for_each(|case| report.fail(case, &entry.name, why.clone()))
                }
            }
        }
    }
    report.print(
        "list",
        "The 290 tensors of Llama 3 8B, placed in order",
        &[("ns_per_tensor", "ns a tensor", 1)],
    );
    let columns = [
        ("over_percent", "smallest region, % over", 1),
        ("ns_in_order", "ns a pair, freed in order", 1),
        ("ns_shuffled", "ns a pair, freed in a random order", 1),
    ];
    report.print("pair", "The same placed and freed, in the smallest region that holds them", &columns);
}

fn run_churn(report: &mut Report, options: &Options, entries: &[Entry]) {
    for round in 1..=options.rounds {
        let trace = Trace::new(round as u64, churn::OPERATIONS, churn::LIVE, MIXED);
        for entry in turns(round, entries).map(|at| &entries[at]) {
            if report.failed("churn", &entry.name) {
                continue;
            }
            let timed = (entry.smallest_churn)(&trace).and_then(|smallest| {
                // One that places what comes as other threads have it may fail where it did not before.
                for timed in (smallest + 5..).step_by(5).take(TRIES) {
                    if let Some(times) = (entry.churn)(&trace, trace.of_peak(timed))? {
                        return Ok((smallest, timed, times));
                    }
                }
                Err("fails in a larger space than one that it did not fail in".into())
            });
            match timed {
                Ok((smallest, timed, times)) => {
                    report.add("churn", &entry.name, round, "of_peak", smallest as f64 / 100.0);
                    report.add("churn", &entry.name, round, "timed_of_peak", timed as f64 / 100.0);
                    report.add("churn", &entry.name, round, "mean_ns", times.mean);
                    report.add("churn", &entry.name, round, "p50_ns", times.p50);
                    report.add("churn", &entry.name, round, "p99_ns", times.p99);
                    report.add("churn", &entry.name, round, "p999_ns", times.p999);
                }
                Err(why) => report.fail("churn", &entry.name, why),
            }
        }
    }
    let columns = [
        ("of_peak", "smallest region, of the peak", 2),
        ("timed_of_peak", "timed in", 2),
        ("mean_ns", "mean ns", 1),
        ("p50_ns", "p50", 0),
        ("p99_ns", "p99", 0),
        ("p999_ns", "p99.9", 0),
    ];
    report.print("churn", "A million operations, about 1000 blocks live, 256 B to 64 MiB", &columns);
}

fn run_threads(report: &mut Report, options: &Options, entries: &[SharedEntry]) {
    let trace = |seed| Trace::new(seed, threads::OPERATIONS, threads::LIVE, MIXED);
    let traces: Vec<Trace> = (1..=threads::THREADS).map(trace).collect();
    let spaces = [("mops_twice", 2), ("mops_eightfold", 8)];
    let spaces = spaces.map(|(measure, times)| (measure, threads::capacity(&traces, times)));
    for entry in entries {
        if let Err(why) = (entry.check)(&traces, spaces[0].1) {
            report.fail("threads", &entry.name, why);
        }
    }
    for round in 1..=options.rounds {
        for (measure, capacity) in spaces {
            for entry in turns(round, entries).map(|at| &entries[at]) {
                if report.failed("threads", &entry.name) {
                    continue;
                }
                match (entry.round)(&traces, capacity) {
                    Ok(per_second) => {
                        report.add("threads", &entry.name, round, measure, per_second / 1e6);
                    }
                    Err(why) => report.fail("threads", &entry.name, why),
                }
            }
        }
    }
    let columns = [
        ("mops_twice", "million operations a second, in twice the peaks' bytes", 2),
        ("mops_eightfold", "in eight times", 2),
    ];
    report.print("threads", "8 threads, each with about 100 blocks live", &columns);
}

/// How many threads are tried, each with the name of its measure and its heading.
const SCALES: [(usize, &str, &str); 5] = [
    (1, "mops_1", "1 thread"),
    (2, "mops_2", "2"),
    (4, "mops_4", "4"),
    (8, "mops_8", "8"),
    (16, "mops_16", "16"),
];

/// As `run_threads`, by the number of threads, for mixed and for small sizes.
fn run_scaling(report: &mut Report, options: &Options, entries: &[SharedEntry]) {
    let sizes = [("scaling, mixed", MIXED, "256 B to 64 MiB"), ("scaling, small", SMALL, "256 B to 16 KiB")];
    for (case, doublings, range) in sizes {
        let most = SCALES.iter().map(|(threads, ..)| *threads).max().unwrap_or_default();
        let trace = |seed| Trace::new(seed, threads::OPERATIONS, threads::LIVE, doublings);
        let traces: Vec<Trace> = (1..=most as u64).map(trace).collect();
        for round in 1..=options.rounds {
            for (threads, measure, _) in SCALES {
                let traces = &traces[..threads];
                let capacity = threads::capacity(traces, 8);
                for entry in turns(round, entries).map(|at| &entries[at]) {
                    if report.failed(case, &entry.name) {
                        continue;
                    }
                    let checked = if round == 1 { (entry.check)(traces, capacity) } else { Ok(()) };
                    match checked.and_then(|()| (entry.round)(traces, capacity)) {
                        Ok(per_second) => report.add(case, &entry.name, round, measure, per_second / 1e6),
                        Err(why) => report.fail(case, &entry.name, why),
                    }
                }
            }
        }
        let columns = SCALES.map(|(_, measure, heading)| (measure, heading, 1));
        let title =
            format!("Million operations a second by threads, sizes {range}, each with about 100 blocks live");
        report.print(case, &title, &columns);
        report.print_quotients(case, "tensorhold Pool", "tensorhold BestFit, mutex", &columns);
    }
}
