use super::{Policy, Room, UnknownPolicy, nanoseconds_per_operation, recorded, replay, smallest_space};
use crate::events::Log;

/// A log of these events; each is checked as it is read.
fn log(limit: &str, events: &[&str]) -> Log {
    let mut text = format!(
        r#"{{"tensorhold_events":1,"pool":"p","memory":"host","granule":256,"region_bytes":4096,"max_region_bytes":null,"limit_bytes":{limit},"retain_bytes":0}}"#
    );
    for event in events {
        text += &format!("\n[0,{event}]");
    }
    text += &format!("\n{{\"end\":{}}}\n", events.len());
    Log::read(text.as_bytes()).unwrap()
}

/// Four blocks of 1 KiB in a region of 4 KiB; the first and third go, then 2 KiB come in a region of their own.
fn holes() -> Log {
    log(
        "null",
        &[
            r#"{"grow":{"r":0,"b":4096}}"#,
            r#"{"alloc":{"n":0,"l":"","b":1024,"a":256,"r":0,"o":0}}"#,
            r#"{"alloc":{"n":1,"l":"","b":1024,"a":256,"r":0,"o":1024}}"#,
            r#"{"alloc":{"n":2,"l":"","b":1024,"a":256,"r":0,"o":2048}}"#,
            r#"{"alloc":{"n":3,"l":"","b":1000,"a":256,"r":0,"o":3072}}"#,
            r#"{"retire":[0,2]}"#,
            r#"{"reap":[0,2]}"#,
            r#"{"trim":{"k":0}}"#,
            r#"{"grow":{"r":1,"b":4096}}"#,
            r#"{"alloc":{"n":4,"l":"","b":3000,"a":256,"r":1,"o":0}}"#,
            r#"{"retire":[1,3]}"#,
            r#"{"reap":[1,3]}"#,
            r#"{"trim":{"k":0}}"#,
            r#"{"release":{"r":0,"b":4096}}"#,
        ],
    )
}

#[test]
fn best_fit_grows_and_trims_as_the_pool_did() {
    let log = holes();
    let replayed = replay(&log, Policy::BestFit, Room::Growing);
    let pool = recorded(&log);
    assert_eq!(replayed.digest, pool.digest);
    assert_eq!((replayed.regions, replayed.peak_reserved_bytes), (pool.regions, pool.peak_reserved_bytes));
    assert_eq!((replayed.regions, replayed.peak_reserved_bytes), (2, 8192));
    assert_eq!((replayed.operations, replayed.failures), (9, 0));
    assert_eq!(replayed.peak_live_bytes, 1024 + 1000 + 3000);
    // At the peak two holes of 1 KiB, and what is behind 3000 bytes rounded up.
    assert_eq!((replayed.free_at_peak_bytes, replayed.largest_free_at_peak_bytes), (2048 + 1024, 1024));
    assert!((replayed.fragmentation_at_peak() - 2.0 / 3.0).abs() < 1e-9);
}

#[test]
fn the_digest_sees_one_offset() {
    let text = |offset: u64| {
        let alloc = format!(r#"{{"alloc":{{"n":0,"l":"","b":1,"a":1,"r":0,"o":{offset}}}}}"#);
        recorded(&log("null", &[r#"{"grow":{"r":0,"b":4096}}"#, &alloc])).digest
    };
    assert_ne!(text(0), text(1));
    assert_eq!(text(1), text(1));
    let shown = serde_json::to_string(&text(1)).unwrap();
    assert_eq!(serde_json::from_str::<super::Digest>(&shown).unwrap(), text(1));
}

#[test]
fn planned_uses_nothing_twice_until_its_region_has_gone() {
    let log = holes();
    let replayed = replay(&log, Policy::Planned, Room::Growing);
    assert_eq!((replayed.regions, replayed.failures), (2, 0));
    // The holes are free, and in no block that could be used; the last fragment of each region is not rounded.
    assert_eq!(replayed.largest_free_at_peak_bytes, 4096 - 3000);
    assert_eq!(replayed.free_at_peak_bytes, 2048 + 24 + 4096 - 3000);
    assert_eq!(smallest_space(&log, Policy::Planned), Some(4 * 1024 + 3072));
}

#[test]
fn the_smallest_space_is_just_large_enough() {
    let log = holes();
    for &policy in Policy::ALL {
        let smallest = smallest_space(&log, policy).unwrap();
        let failures = |capacity| replay(&log, policy, Room::Capacity(capacity)).failures;
        assert_eq!(failures(smallest), 0, "{policy}");
        assert!(failures(smallest - 256) > 0, "{policy}");
    }
    // 3000 bytes fit in none of the holes, so they lie behind the four blocks of 1 KiB.
    assert_eq!(smallest_space(&log, Policy::BestFit), Some(4 * 1024 + 3072));
}

#[test]
fn what_is_refused_is_counted_and_not_freed() {
    let replayed = replay(&holes(), Policy::BestFit, Room::Capacity(2048));
    assert_eq!((replayed.failures, replayed.peak_live_bytes, replayed.peak_reserved_bytes), (3, 2048, 2048));
    assert_eq!(replayed.operations, 5 + 2);
    let none = replay(&holes(), Policy::BestFit, Room::Capacity(0));
    assert_eq!((none.failures, none.operations, none.peak_live_bytes), (5, 5, 0));
}

#[test]
fn the_pools_limit_holds() {
    let events = [
        r#"{"grow":{"r":0,"b":5000}}"#,
        r#"{"alloc":{"n":0,"l":"","b":2600,"a":1,"r":0,"o":0}}"#,
        r#"{"alloc":{"n":1,"l":"","b":2400,"a":1,"r":0,"o":2600}}"#,
    ];
    // 2600 bytes are rounded to 2816 in a region of 4096 here, and 904 bytes are left to the limit.
    let replayed = replay(&log("5000", &events), Policy::BestFit, Room::Growing);
    assert_eq!((replayed.failures, replayed.regions, replayed.peak_reserved_bytes), (1, 1, 4096));
    assert_eq!(replay(&log("null", &events), Policy::BestFit, Room::Growing).failures, 0);
}

#[test]
fn a_batch_is_one_block_and_its_parts_go_one_by_one() {
    let log = log(
        "null",
        &[
            r#"{"grow":{"r":0,"b":10000}}"#,
            r#"{"take":{"n":0,"l":"","b":10000,"a":256,"r":0,"o":0}}"#,
            r#"{"cut":{"k":[0],"n":1,"p":[[0,0,1000,""],[0,0,0,""],[0,1024,8976,""]]}}"#,
            r#"{"retire":[1]}"#,
            r#"{"reap":[1]}"#,
            r#"{"alloc":{"n":4,"l":"","b":900,"a":256,"r":0,"o":0}}"#,
        ],
    );
    let replayed = replay(&log, Policy::BestFit, Room::Growing);
    assert_eq!((replayed.digest, replayed.regions), (recorded(&log).digest, 1));
    // A block, two parts, a range freed, a fragment.
    assert_eq!((replayed.operations, replayed.peak_live_bytes), (5, 10_000));
    let planned = replay(&log, Policy::Planned, Room::Growing);
    assert_eq!((planned.regions, planned.peak_reserved_bytes), (2, 10_000 + 4096));
    // A block that is refused is one failure, and so are not its parts.
    let refused = replay(&log, Policy::BestFit, Room::Capacity(9999));
    assert_eq!((refused.failures, refused.operations), (1, 2));
}

#[test]
fn what_is_lost_stays_taken() {
    let log = log(
        "null",
        &[
            r#"{"grow":{"r":0,"b":4096}}"#,
            r#"{"alloc":{"n":0,"l":"","b":4096,"a":256,"r":0,"o":0}}"#,
            r#"{"retire":[0]}"#,
            r#"{"lose":[0]}"#,
            r#"{"trim":{"k":0}}"#,
            r#"{"grow":{"r":1,"b":4096}}"#,
            r#"{"alloc":{"n":1,"l":"","b":1,"a":256,"r":1,"o":0}}"#,
        ],
    );
    let replayed = replay(&log, Policy::BestFit, Room::Growing);
    assert_eq!((replayed.regions, replayed.peak_live_bytes), (2, 4096));
    assert_eq!(replayed.digest, recorded(&log).digest);
}

#[test]
fn a_hostile_log_is_replayed_without_harm() {
    let log = log(
        "null",
        &[
            r#"{"grow":{"r":0,"b":4611686018427387904}}"#,
            r#"{"take":{"n":0,"l":"","b":4611686018427387904,"a":9223372036854775808,"r":0,"o":0}}"#,
            r#"{"retire":[0]}"#,
            r#"{"reap":[0]}"#,
            r#"{"take":{"n":1,"l":"","b":4611686018427387904,"a":1,"r":0,"o":0}}"#,
        ],
    );
    for &policy in Policy::ALL {
        replay(&log, policy, Room::Growing);
        replay(&log, policy, Room::Capacity(u64::MAX));
        assert!(nanoseconds_per_operation(&log, policy, Room::Growing) >= 0.0);
    }
    assert_eq!(smallest_space(&log, Policy::BestFit), Some(1 << 62));
    assert_eq!(smallest_space(&log, Policy::Planned), None);
}

#[test]
fn an_empty_log_needs_no_space() {
    let log = log("null", &[]);
    assert_eq!(smallest_space(&log, Policy::BestFit), Some(0));
    assert_eq!(replay(&log, Policy::BestFit, Room::Growing).operations, 0);
}

#[test]
fn policies_have_names() {
    for &policy in Policy::ALL {
        assert_eq!(policy.name().parse(), Ok(policy));
        assert_eq!(serde_json::to_string(&policy).unwrap(), format!("{:?}", policy.name()));
    }
    assert_eq!("worst-fit".parse::<Policy>(), Err(UnknownPolicy));
    assert!(UnknownPolicy.to_string().contains("best-fit, segregated, planned"));
}
