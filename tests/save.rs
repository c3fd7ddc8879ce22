//! What is saved is what is loaded, and a failure leaves no file.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use support::{Spec, assert_holds, bytes_tensor, devices, single, staged_host, tensor};
use tensorhold::save::{
    Draft, Durability, Entry, Item, KEY_SHARD_SET, PlanOptions, Saver, ShardPlan, balance, plan_shards,
    shard_paths, validate_shard_set,
};
use tensorhold::{DType, Device, Error, Loader, Metadata, Weights};

fn dtype(name: &str) -> DType {
    *DType::ALL.iter().find(|dtype| dtype.name() == name).unwrap()
}

fn entry(spec: &Spec) -> Entry {
    Entry::new(&spec.name, dtype(spec.dtype), &spec.shape).unwrap()
}

fn item(spec: &Spec) -> Item<'_> {
    Item::bytes(entry(spec), &spec.bytes).unwrap()
}

/// Tensors of several types, one of them longer than a chunk.
fn tensors() -> Vec<Spec> {
    vec![
        bytes_tensor("long", 9_000_001),
        tensor("half", "F16", &[3, 5], 30),
        bytes_tensor("none", 0),
        tensor("scalar", "F64", &[], 8),
        tensor("fours", "F4", &[2, 6], 6),
        tensor("e8m0 \"quoted\" \u{1F980}", "F8_E8M0", &[7], 7),
    ]
}

fn strings(pairs: &[(&str, &str)]) -> Metadata {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn files_in(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

fn load(files: &[PathBuf]) -> Weights {
    Loader::new(Device::host()).files(files).load().unwrap()
}

#[test]
fn bytes_tensors_on_devices_and_functions_are_saved_alike() {
    let tensors = tensors();
    for durability in [Durability::Cached, Durability::Synced] {
        for threads in [1, 5] {
            let folder = tempfile::tempdir().unwrap();
            let saver = Saver::new().shards(3).threads(threads).durability(durability);
            let saved = saver.save(folder.path().join("m"), tensors.iter().map(item)).unwrap();
            assert_eq!(saved.files, shard_paths(folder.path().join("m"), 3).unwrap());
            assert_eq!((saved.tensors, saved.bytes, &saved.index), (6, 9_000_052, &None));
            assert_holds(&load(&saved.files), &tensors);
            let content: Vec<Vec<u8>> = saved.files.iter().map(|file| fs::read(file).unwrap()).collect();
            for device in devices() {
                let weights = Loader::new(device).files(&saved.files).load().unwrap();
                // In the order in which they were given before.
                let views = tensors.iter().map(|tensor| Item::tensor(weights.view(&tensor.name).unwrap()));
                let again = saver.save(folder.path().join("again"), views).unwrap();
                let same =
                    again.files.iter().zip(&content).all(|(file, bytes)| fs::read(file).unwrap() == *bytes);
                assert!(same, "what was saved from a device differs");
            }
            let fill = |spec: &'_ Spec| {
                let bytes = spec.bytes.clone();
                Item::fill(entry(spec), move |offset, buffer: &mut [u8]| {
                    buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
                    Ok(())
                })
            };
            let filled = saver.save(folder.path().join("filled"), tensors.iter().map(fill)).unwrap();
            assert!(filled.files.iter().zip(&content).all(|(file, bytes)| fs::read(file).unwrap() == *bytes));
            assert_eq!(files_in(folder.path()).len(), 9);
        }
    }
}

#[test]
fn one_file_has_the_strings_and_the_mode_of_any_file() {
    let tensors = tensors();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(folder.path().join("any"), "").unwrap();
    fs::write(&path, "what was there before").unwrap();
    let saver = Saver::new().metadata(strings(&[("format", "pt"), ("\"", "\n")]));
    let saved = saver.save_file(&path, tensors.iter().map(item)).unwrap();
    assert_eq!(saved.files, std::slice::from_ref(&path));
    let weights = load(&saved.files);
    assert_holds(&weights, &tensors);
    assert_eq!(*weights.metadata(&path).unwrap(), strings(&[("format", "pt"), ("\"", "\n")]));
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("model.safetensors"), mode("any"));
    // The crate of the format reads it, too.
    let bytes = fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.tensor("long").unwrap().data(), tensors[0].bytes);
    assert!(matches!(saver.index().save_file(&path, []), Err(Error::Option { option: "index", .. })));
}

#[test]
fn an_index_says_where_tensors_are() {
    let tensors = tensors();
    let folder = tempfile::tempdir().unwrap();
    let saver = Saver::new().max_shard_bytes(1000).index();
    let saved = saver.save(folder.path().join("model"), tensors.iter().map(item)).unwrap();
    assert_eq!(saved.index, Some(folder.path().join("model.safetensors.index.json")));
    assert_eq!(saved.files.len(), 2);
    let loaded = Loader::new(Device::host()).checkpoint(folder.path()).unwrap().load().unwrap();
    assert_holds(&loaded, &tensors);
    let index: serde_json::Value = serde_json::from_slice(&fs::read(saved.index.unwrap()).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 9_000_052);
    assert_eq!(index["weight_map"]["long"], "model-00001-of-00002.safetensors");
}

#[test]
fn headers_end_where_they_are_asked_to() {
    for align in [8, 64, 4096] {
        let plan = ShardPlan::new("p", vec![entry(&bytes_tensor("a", 5))], None, align).unwrap();
        let length = u64::from_le_bytes(plan.header()[..8].try_into().unwrap());
        assert!(length.is_multiple_of(align) && length + 8 == plan.header().len() as u64);
        assert_eq!(plan.range(0), Some(length + 8..length + 13));
        assert_eq!((plan.range(1), plan.total_bytes()), (None, length + 13));
    }
    for align in [0, 3, 12] {
        let refused = ShardPlan::new("p", vec![], None, align).unwrap_err().to_string();
        assert!(refused.contains("header_align") && refused.contains("multiple of 8"), "{refused}");
    }
}

#[test]
fn sets_are_marked_and_files_of_others_are_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = tensors();
    let write = |name: &str, shards| {
        let of_shard = |number: usize, entries: &[&Entry]| {
            strings(&[("number", &number.to_string()), ("count", &entries.len().to_string())])
        };
        let saver = Saver::new().shards(shards).mark_set().first_metadata(strings(&[("first", "yes")]));
        let saver = saver.shard_metadata(of_shard);
        let saved = saver.save(folder.path().join(name), tensors.iter().map(item)).unwrap();
        let weights = load(&saved.files);
        saved.files.into_iter().map(|file| (file.clone(), weights.metadata(&file).unwrap().clone())).collect()
    };
    let (one, other, three): (Vec<(PathBuf, Metadata)>, Vec<_>, Vec<_>) =
        (write("a", 2), write("b", 2), write("c", 3));
    assert_eq!((&*one[0].1["first"], &*one[0].1["number"], &*one[0].1["count"]), ("yes", "0", "1"));
    assert_eq!((one[1].1.get("first"), &*one[1].1["count"]), (None, "5"));
    let check = |shards: &[&(PathBuf, Metadata)]| {
        let shards = shards.iter().map(|(path, metadata)| (path.as_path(), metadata));
        validate_shard_set(shards).map_err(|error| error.to_string())
    };
    assert_eq!(check(&[&one[0], &one[1]]), Ok(()));
    assert_ne!(one[0].1[KEY_SHARD_SET], other[0].1[KEY_SHARD_SET]);
    let plain = (PathBuf::from("plain"), Metadata::new());
    for (shards, expected) in [
        (vec![&one[0], &other[1]], "written separately"),
        (vec![&one[1], &one[0]], "shard 1 of 2, expected 0 of 2"),
        (vec![&three[0], &three[2]], "shard 0 of 3, expected 0 of 2"),
        (vec![&one[0], &one[0]], "shard 0 of 2, expected 1 of 2"),
        (vec![&one[0], &plain], "\"plain\": it is not a shard of a written set"),
        (vec![], "no shards"),
    ] {
        let message = check(&shards).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
    let reserved = PlanOptions::new().metadata(strings(&[(KEY_SHARD_SET, "mine")])).shard_set("theirs");
    let refused = plan_shards(&[], &["p".into()], &reserved).unwrap_err().to_string();
    assert!(refused.contains("reserved"), "{refused}");
}

#[test]
fn what_cannot_be_saved_is_an_error_that_says_why_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("m");
    let five = bytes_tensor("five", 5);
    let save = |saver: Saver, specs: &[&Spec]| {
        saver.save(&base, specs.iter().map(|spec| item(spec))).unwrap_err().to_string()
    };
    let message = |result: Result<Entry, Error>| result.unwrap_err().to_string();
    let cases = [
        (save(Saver::new().shards(0), &[&five]), vec!["num_shards", "got 0", "1 to 99999"]),
        (save(Saver::new().threads(0), &[&five]), vec!["threads", "got 0"]),
        (save(Saver::new().header_align(9), &[&five]), vec!["header_align", "got 9"]),
        (save(Saver::new(), &[&five, &five]), vec!["\"five\"", "two tensors of that name"]),
        (
            save(Saver::new().min_free_bytes(1 << 60), &[&five]),
            vec!["not enough space", "1.0 EiB to stay free"],
        ),
        (message(Entry::new("__metadata__", DType::U8, &[1])), vec!["__metadata__", "rename"]),
        (message(Entry::new("odd", DType::F4, &[3])), vec!["F4[3]", "12 bits", "whole bytes", "even"]),
        (message(Entry::new("large", DType::F32, &[usize::MAX, 2])), vec!["\"large\"", "2^64 bits"]),
        (Item::bytes(entry(&five), &[0; 4]).unwrap_err().to_string(), vec!["got 4 bytes", "5 by its type"]),
        (plan_shards(&[], &[], &PlanOptions::new()).unwrap_err().to_string(), vec!["paths", "0 paths"]),
        (
            plan_shards(&[], &["p".into(), "p".into()], &PlanOptions::new()).unwrap_err().to_string(),
            vec!["2 paths, 1 of them distinct"],
        ),
    ];
    for (message, expected) in cases {
        assert!(expected.iter().all(|part| message.contains(part)), "{message}");
    }
    assert!(files_in(folder.path()).is_empty());
    let nowhere = Saver::new().save(folder.path().join("no/such/m"), [item(&five)]).unwrap_err();
    assert!(matches!(&nowhere, Error::Target { problem, source: Some(source), .. }
        if problem.contains("no/such\" does not exist") && source.kind() == io::ErrorKind::NotFound));
}

#[test]
fn a_source_that_fails_leaves_no_file_and_those_that_were_there() {
    let folder = tempfile::tempdir().unwrap();
    let [first, _] = shard_paths(folder.path().join("m"), 2).unwrap().try_into().unwrap();
    fs::write(&first, "what was there before").unwrap();
    for threads in [1, 4] {
        let calls = AtomicUsize::new(0);
        let fill = |n: usize| {
            let calls = &calls;
            let entry = Entry::new(format!("t{n}"), DType::U8, &[6_000_000]).unwrap();
            Item::fill(entry, move |offset, buffer| {
                calls.fetch_add(1, Ordering::Relaxed);
                buffer.fill(1);
                if (n, offset) == (3, 4 << 20) { Err("out of bytes".into()) } else { Ok(()) }
            })
        };
        let saver = Saver::new().shards(2).threads(threads);
        let error = saver.save(folder.path().join("m"), (0..60).map(fill)).unwrap_err();
        assert!(matches!(&error, Error::Fill { name, offset, source, .. }
            if (name.as_str(), *offset) == ("t3", 4 << 20) && source.to_string() == "out of bytes"));
        assert!(calls.load(Ordering::Relaxed) < 120, "it went on after the failure");
        assert_eq!(files_in(folder.path()).into_iter().collect::<Vec<_>>(), ["m-00001-of-00002.safetensors"]);
        assert_eq!(fs::read(&first).unwrap(), b"what was there before");
    }
    let broken = Item::fill(Entry::new("t", DType::U8, &[1]).unwrap(), |_, _| panic!("the function's"));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Saver::new().save(folder.path().join("n"), [broken])
    }));
    assert!(panicked.is_err() && files_in(folder.path()).len() == 1);
}

#[test]
fn a_device_that_fails_to_copy_leaves_no_file_and_nothing_held() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = [bytes_tensor("a", 9_000_000), bytes_tensor("b", 5_000_000)];
    let (_source, path) = single(&tensors);
    // Two of the five chunks.
    let device = staged_host::device_read_back_at_most(2);
    let weights = Loader::new(device).files([&path]).load().unwrap();
    for threads in [1, 4] {
        let saver = Saver::new().shards(2).threads(threads);
        let error = saver.save(folder.path().join("m"), weights.iter().map(Item::tensor)).unwrap_err();
        assert!(matches!(error, Error::Device { operation: "copy to the host", .. }), "{error}");
        assert!(files_in(folder.path()).is_empty());
    }
    let closed = weights.close();
    assert_eq!((closed.released_bytes, closed.held.len()), (14_000_000, 0));
}

#[test]
fn a_name_that_cannot_be_had_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = tensors();
    let paths = shard_paths(folder.path().join("m"), 3).unwrap();
    // The last of the files cannot have its name.
    fs::create_dir_all(paths[2].join("in the way")).unwrap();
    let error = Saver::new().shards(3).save(folder.path().join("m"), tensors.iter().map(item)).unwrap_err();
    assert!(matches!(&error, Error::Target { path, .. } if *path == paths[2]), "{error}");
    assert_eq!(files_in(folder.path()).len(), 1);
}

#[test]
fn a_draft_is_filled_by_whoever_wants_to_and_goes_unless_it_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = [bytes_tensor("a", 1000), tensor("b", "F32", &[5], 20)];
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    let paths = shard_paths(folder.path().join("m"), 2).unwrap();
    let plan = || plan_shards(&entries, &paths, &PlanOptions::new()).unwrap();
    for committed in [false, true] {
        let draft = Draft::create(plan(), 0).unwrap();
        for (shard, (plan, path)) in draft.plans().iter().zip(draft.temporary_paths()).enumerate() {
            assert!(path.to_str().unwrap().ends_with(".tmp"));
            assert_eq!(fs::metadata(path).unwrap().len(), plan.total_bytes());
            assert!(fs::read(path).unwrap().starts_with(plan.header()));
            for (entry, range) in plan.entries().iter().zip(plan.ranges()) {
                let spec = tensors.iter().find(|spec| spec.name == entry.name()).unwrap();
                draft.write_at(shard, range.start, &spec.bytes).unwrap();
                assert!(draft.write_at(shard, range.end, &[0]).is_err());
                assert!(draft.write_at(shard, 7, &spec.bytes).is_err());
                assert!(draft.write_at(shard, u64::MAX, &spec.bytes).is_err());
            }
        }
        assert!(draft.write_at(2, 0, &[]).is_err());
        assert_eq!(files_in(folder.path()).len(), 2);
        if committed {
            let files = draft.commit(Durability::Synced).unwrap();
            assert_eq!(files, paths);
            assert_holds(&load(&files), &tensors);
        } else {
            drop(draft);
            assert!(files_in(folder.path()).is_empty());
        }
    }
}

proptest! {
    #[test]
    fn each_tensor_is_in_one_shard_and_shards_are_about_as_long(
        sizes in prop::collection::vec(0..1_000_000_u64, 0..80), shards in 1..12_usize
    ) {
        let parts = balance(&sizes, shards);
        prop_assert_eq!(parts.len(), shards);
        let all: BTreeSet<usize> = parts.iter().flatten().copied().collect();
        prop_assert_eq!((all.len(), parts.iter().map(Vec::len).sum::<usize>()), (sizes.len(), sizes.len()));
        let bytes = |part: &Vec<usize>| part.iter().map(|&number| sizes[number]).sum::<u64>();
        let (longest, total) = (parts.iter().map(bytes).max().unwrap(), sizes.iter().sum::<u64>());
        // What no division can go below, and 4/3 of that and a tensor for what is not whole.
        let mut sorted = sizes.clone();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let pair = sorted.get(shards - 1).zip(sorted.get(shards)).map_or(0, |(a, b)| a + b);
        let least = total.div_ceil(shards as u64).max(sorted.first().copied().unwrap_or(0)).max(pair);
        let bound = total / shards as u64 + sorted.first().copied().unwrap_or(0);
        prop_assert!(longest >= total.div_ceil(shards as u64) && longest <= bound.max(least), "{} > {}", longest, bound);
        prop_assert_eq!(balance(&sizes, shards), parts);
    }

    #[test]
    fn plans_are_headers_that_loaders_read_with_each_element_where_it_belongs(
        shapes in prop::collection::vec((0..DType::ALL.len(), prop::collection::vec(0..9_usize, 0..4)), 0..30),
        shards in 1..5_usize, align in 1..9_u64
    ) {
        let entry = |(n, (dtype, shape)): (usize, &(usize, Vec<usize>))| {
            Entry::new(format!("t{n}"), DType::ALL[*dtype], shape).ok()
        };
        let entries: Vec<Entry> = shapes.iter().enumerate().filter_map(entry).collect();
        let folder = tempfile::tempdir().unwrap();
        let paths = shard_paths(folder.path().join("m"), shards).unwrap();
        let options = PlanOptions::new().header_align(8 * align).metadata(strings(&[("k", "v")]));
        let plans = plan_shards(&entries, &paths, &options).unwrap();
        for plan in &plans {
            for (entry, range) in plan.entries().iter().zip(plan.ranges()) {
                let bytes = u64::from(entry.dtype().bits()).div_ceil(8);
                prop_assert!(range.start.is_multiple_of(bytes), "{:?} at {}", entry, range.start);
            }
        }
        let files = Draft::create(plans.clone(), 0).unwrap().commit(Durability::Cached).unwrap();
        let inspected = Loader::new(Device::host()).files(&files).inspect().unwrap();
        let planned: Vec<(String, DType, Vec<usize>)> = plans.iter().flat_map(ShardPlan::entries)
            .map(|entry| (entry.name().to_owned(), entry.dtype(), entry.shape().to_vec())).collect();
        let mut read: Vec<_> = inspected.tensors.iter()
            .map(|info| (info.name.to_string(), info.dtype, info.shape.to_vec())).collect();
        let mut expected = planned.clone();
        // Empty tensors may share a place.
        read.sort_by(|a, b| a.0.cmp(&b.0));
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        prop_assert_eq!(read, expected);
        prop_assert_eq!(planned.len(), entries.len());
    }
}

#[test]
fn paths_that_name_one_file_twice_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    fs::create_dir(folder.path().join("here")).unwrap();
    std::os::unix::fs::symlink("here", &link).unwrap();
    let specs = [bytes_tensor("a", 5), bytes_tensor("b", 6)];
    let entries: Vec<Entry> = specs.iter().map(entry).collect();
    for other in ["here/../here/model", "link/model"] {
        let paths = ["here/model", other].map(|path| folder.path().join(path));
        let plans = plan_shards(&entries, &paths, &PlanOptions::new()).unwrap();
        let error = Draft::create(plans, 0).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(other), "{error}");
        assert!(files_in(&folder.path().join("here")).is_empty());
    }
}

#[test]
fn a_file_may_have_as_long_a_name_as_the_file_system_allows() {
    let folder = tempfile::tempdir().unwrap();
    let specs = [bytes_tensor("a", 5)];
    for name in ["n".repeat(255), "\u{e9}".repeat(127)] {
        let saved = Saver::new().save_file(folder.path().join(&name), [item(&specs[0])]).unwrap();
        assert_holds(&load(&saved.files), &specs);
        assert!(files_in(folder.path()).contains(&name));
    }
}
