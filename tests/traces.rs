//! The committed logs of `benches/traces`, replayed: each policy places each of them where it did when `expected.json` was
//! written. With `BLESS=1` it is written anew, to be looked at before it is committed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tensorhold::allocator::events::{Event, Log};
use tensorhold::allocator::replay::{self, Digest, Policy, Replayed, Room};

/// What is expected of a policy.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Expected {
    growing: Replayed,
    smallest_space_bytes: Option<u64>,
    /// Of the replay in that space.
    smallest_space_digest: Option<Digest>,
}

type All = BTreeMap<String, BTreeMap<Policy, Expected>>;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/traces")
}

/// The logs by the names of their files.
fn logs() -> BTreeMap<String, Log> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    let read = |path: PathBuf| {
        let log = Log::read(BufReader::new(File::open(&path).unwrap()));
        (
            path.file_stem().unwrap().to_str().unwrap().to_owned(),
            log.unwrap_or_else(|error| panic!("{path:?}: {error}")),
        )
    };
    logs.map(read).collect()
}

fn replayed(log: &Log, policy: Policy) -> Expected {
    let smallest_space_bytes = replay::smallest_space(log, policy);
    let in_smallest = smallest_space_bytes.map(|bytes| replay::replay(log, policy, Room::Capacity(bytes)));
    Expected {
        growing: replay::replay(log, policy, Room::Growing),
        smallest_space_bytes,
        smallest_space_digest: in_smallest.map(|replayed| replayed.digest),
    }
}

#[test]
fn every_policy_places_the_committed_logs_where_it_did() {
    let of = |log: &Log| Policy::ALL.iter().map(|&policy| (policy, replayed(log, policy))).collect();
    let found: All = logs().iter().map(|(name, log)| (name.clone(), of(log))).collect();
    let path = folder().join("expected.json");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, serde_json::to_string_pretty(&found).unwrap() + "\n").unwrap();
    }
    let expected: All = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "logs");
    for (name, policies) in found {
        assert_eq!(policies, expected[&name], "{name}");
    }
}

#[test]
fn the_committed_loads_lie_where_the_pool_placed_them() {
    let logs = logs();
    let loads: Vec<_> = logs.iter().filter(|(name, _)| *name != "churn").collect();
    assert!(loads.len() >= 8, "{:?}", logs.keys());
    for (name, log) in loads {
        let replayed = replay::replay(log, Policy::BestFit, Room::Growing);
        assert_eq!(replayed.digest, replay::recorded(log).digest, "{name}");
        // A load takes just what it needs, and gives it all back.
        let reserved = replayed.peak_reserved_bytes;
        assert_eq!(
            replay::smallest_space(log, Policy::BestFit),
            Some(reserved.next_multiple_of(256)),
            "{name}"
        );
        assert!(log.events.iter().any(|(_, event)| matches!(event, Event::Release { .. })), "{name}");
    }
}
