//! `tensorhold load --events`, and what `replay` and `trace` make of the log.

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{checkpoint, failure, json, run, stdout};

/// The log of a load of the small checkpoint, in its folder.
fn record(folder: &Path) -> PathBuf {
    let log = folder.join("events.jsonl");
    let printed = stdout(&run("load", folder, &["--device", "cpu", "--events", log.to_str().unwrap()]));
    assert!(printed.starts_with("loaded 3 tensors"), "{printed}");
    log
}

#[test]
fn the_log_of_a_load_tells_of_the_batch_and_of_its_end() {
    let folder = checkpoint();
    let text = fs::read_to_string(record(folder.path())).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["tensorhold_events"], &lines[0]["pool"]), (&json!(1), &json!("host")));
    let cut = lines.iter().find_map(|line| line[1].get("cut")).unwrap();
    let parts: Vec<_> = cut["p"].as_array().unwrap().iter().map(|part| (&part[2], &part[3])).collect();
    let expected = [(12, "a.bias"), (24, "a.weight"), (20, "b.weight")].map(|(b, l)| (json!(b), json!(l)));
    assert_eq!(parts, expected.iter().map(|(b, l)| (b, l)).collect::<Vec<_>>());
    let reaped = lines.iter().filter_map(|line| line[1].get("reap")?.as_array()).map(Vec::len);
    assert_eq!(reaped.sum::<usize>(), 3);
    assert!(lines.iter().any(|line| line[1].get("release").is_some()));
    assert!(lines.iter().any(|line| line[1] == "close"));
    assert_eq!(lines[lines.len() - 1]["end"], json!(lines.len() - 2));
}

#[test]
fn a_load_in_parts_says_so_and_its_log_tells_of_them() {
    let folder = checkpoint();
    let log = folder.path().join("events.jsonl");
    let arguments = ["--device", "cpu", "--parts", "require", "--events", log.to_str().unwrap()];
    let printed = stdout(&run("load", folder.path(), &arguments));
    assert!(printed.contains("regions   in parts"), "{printed}");
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("\"in_parts\":true") && text.contains("{\"part\":"), "{text}");
    let trace = json(&run("trace", &log, &[]));
    let mut counts =
        trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["name"] == "reserved bytes");
    assert_eq!(counts.next_back().unwrap()["args"]["bytes"], json!(0));
    stdout(&run("verify", folder.path(), &["--device", "cpu", "--parts", "auto"]));
}

#[test]
fn a_load_that_fails_leaves_a_log_too() {
    let folder = checkpoint();
    let log = folder.path().join("events.jsonl");
    let options = ["--device", "cpu", "--select", "none", "--events", log.to_str().unwrap()];
    assert!(failure(&run("load", folder.path(), &options), 1).contains("no tensor's name matches"));
    assert!(fs::read_to_string(&log).unwrap().contains("\"end\":"));
    let nowhere = run("load", folder.path(), &["--device", "cpu", "--events", "/nowhere/log"]);
    assert!(failure(&nowhere, 1).contains("/nowhere/log"));
}

#[test]
fn a_replay_compares_policies() {
    let folder = checkpoint();
    let log = record(folder.path());
    let replayed = json(&run("replay", &log, &["--json"]));
    assert_eq!(replayed["header"]["pool"], json!("host"));
    let policies = replayed["policies"].as_array().unwrap();
    for policy in policies {
        // A block, three parts, three ranges freed.
        assert_eq!((&policy["operations"], &policy["failures"]), (&json!(7), &json!(0)));
        assert_eq!(policy["digest"], replayed["recorded"]["digest"]);
        // Three tensors at multiples of 256.
        assert_eq!(policy["peak_live_bytes"], json!(532));
        assert_eq!(policy["smallest_space_bytes"], json!(768));
        assert!(policy["nanoseconds_per_operation"].as_f64().unwrap() > 0.0);
    }
    let names: Vec<_> = policies.iter().map(|policy| policy["policy"].as_str().unwrap()).collect();
    assert!(names.contains(&"best-fit") && names.contains(&"planned"), "{names:?}");

    let small = json(&run("replay", &log, &["--json", "--policy", "best-fit", "--capacity", "531"]));
    assert_eq!(small["policies"].as_array().unwrap().len(), 1);
    assert_eq!(small["policies"][0]["failures"], json!(1));
    assert_eq!(small["policies"][0]["peak_reserved_bytes"], json!(531));
}

#[test]
fn a_replay_is_a_table_for_people() {
    let folder = checkpoint();
    let printed = stdout(&run("replay", &record(folder.path()), &["--policy", "best-fit"]));
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[0].starts_with("pool host over host: ") && lines[0].contains("in 1 region"), "{printed}");
    assert_eq!(lines.len(), 4, "{printed}");
    let column = lines[2].find("failures").unwrap() + "failures".len();
    assert!(lines[3].starts_with("best-fit ") && lines[3][..column].ends_with(" 0"), "{printed}");
    assert!(lines[3].ends_with(" as recorded"), "{printed}");
}

#[test]
fn a_damaged_log_is_named_with_its_line() {
    let folder = checkpoint();
    let log = record(folder.path());
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, text.replacen("\"r\":0", "\"r\":9", 1)).unwrap();
    for subcommand in ["replay", "trace"] {
        let message = failure(&run(subcommand, &log, &[]), 1);
        assert!(message.contains("events.jsonl") && message.contains("line 2 "), "{message}");
        let message = failure(&run(subcommand, Path::new("/nowhere/log"), &[]), 1);
        assert!(message.contains("/nowhere/log"), "{message}");
    }
}

/// A log with two regions, holes, a name that needs escapes, and fragments that are live at its end.
fn busy_log(folder: &Path) -> PathBuf {
    use std::sync::Arc;
    use tensorhold::allocator::{HostMemory, Pool, Request, events};

    let (recorder, log) = events::recorder(1000);
    let pool = Pool::builder(Arc::new(HostMemory::new())).region_bytes(4096).events(recorder);
    let pool = pool.build().unwrap();
    let place = |label: &str, bytes| pool.place(label, Request::new(bytes, 256)).unwrap();
    let (first, _second) = (place("a \"quoted\" \u{1b} name", 3000), place("second", 3000));
    let _empty = place("empty", 0);
    drop(first);
    pool.trim();
    let _third = place("third", 500);
    let path = folder.join("busy.jsonl");
    log.write_to(fs::File::create(&path).unwrap()).unwrap();
    path
}

#[test]
fn a_trace_is_in_the_trace_event_format() {
    let folder = tempfile::tempdir().unwrap();
    let trace = json(&run("trace", &busy_log(folder.path()), &[]));
    assert_eq!(trace["displayTimeUnit"], "ns");
    let events = trace["traceEvents"].as_array().unwrap();
    let mut open: HashMap<(String, String), (&Value, f64)> = HashMap::new();
    let (mut ended, mut counters, mut named) = (Vec::new(), HashMap::new(), HashMap::new());
    for event in events {
        // What every event has, and of which type.
        let (name, phase) = (event["name"].as_str().unwrap(), event["ph"].as_str().unwrap());
        let (time, pid) = (event["ts"].as_f64().unwrap(), event["pid"].as_u64().unwrap());
        assert!(event["tid"].is_u64() && time >= 0.0);
        let key = || (event["cat"].as_str().unwrap().to_owned(), event["id"].as_str().unwrap().to_owned());
        match phase {
            "M" => assert!(named.insert((pid, name), &event["args"]).is_none()),
            "C" => {
                let bytes = event["args"]["bytes"].as_u64().unwrap();
                let (most, last) = counters.get(name).copied().unwrap_or((0, 0));
                let _: u64 = last;
                counters.insert(name, (bytes.max(most), bytes));
            }
            "b" => assert!(open.insert(key(), (event, time)).is_none(), "{event}"),
            "n" => assert!(open[&key()].0["pid"] == event["pid"] && name == "retired"),
            "e" => {
                let (begun, at) = open.remove(&key()).unwrap();
                assert!(begun["name"] == event["name"] && begun["pid"] == event["pid"] && at <= time);
                ended.push((begun["name"].as_str().unwrap(), begun["args"]["bytes"].as_u64().unwrap(), pid));
            }
            "i" => assert!(["g", "p", "t"].contains(&event["s"].as_str().unwrap())),
            other => panic!("phase {other}: {event}"),
        }
        assert!(phase == "M" || named.contains_key(&(pid, "process_name")), "{event}");
    }
    assert!(open.is_empty(), "{open:?}");
    ended.sort_unstable();
    let expected = [
        ("a \"quoted\" \u{1b} name", 3000, 2),
        ("region 0", 4096, 2),
        ("region 1", 4096, 3),
        ("second", 3000, 3),
        ("third", 500, 3),
    ];
    assert_eq!(ended, expected);
    assert_eq!(named[&(1, "process_name")]["name"], "pool host");
    assert_eq!(named[&(2, "process_name")]["name"], "region 0, 4.0 KiB");
    assert_eq!((counters["live bytes"], counters["reserved bytes"]), ((6000, 3500), (8192, 4096)));
}

#[test]
fn a_trace_can_go_to_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (log, out) = (busy_log(folder.path()), folder.path().join("trace.json"));
    assert_eq!(stdout(&run("trace", &log, &["--out", out.to_str().unwrap()])), "");
    assert_eq!(fs::read_to_string(out).unwrap(), stdout(&run("trace", &log, &[])));
    assert!(failure(&run("trace", &log, &["--out", "/nowhere/t"]), 1).contains("/nowhere/t"));
}

#[test]
fn what_is_no_log_is_called_that() {
    let folder = checkpoint();
    let log = folder.path().join("notes.txt");
    fs::write(&log, "hello\n").unwrap();
    for subcommand in ["replay", "trace"] {
        let message = failure(&run(subcommand, &log, &[]), 1);
        assert!(message.contains("it is no event log: it begins with \"hello\""), "{message}");
        let message = failure(&run(subcommand, folder.path(), &[]), 1);
        assert!(message.contains("it is a directory, not a file; name a file"), "{message}");
    }
}
