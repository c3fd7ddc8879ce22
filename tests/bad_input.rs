//! Bad input gets an error that says what, where, got, expected and what to do, and leaves the pool empty.

mod support;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use support::{assert_all_back, bytes_tensor, devices, file_bytes, header, pool_for, single, write};
use tensorhold::{Device, Error, Loader, Pool};

/// Loads `path` onto each device, expects an error with all of `words` in it, and the pool to be empty after it.
fn refuses(path: &Path, words: &[&str]) {
    for device in devices() {
        let (pool, alone) = (pool_for(&device), device.clone());
        let loaded = Loader::new(device).checkpoint(path).and_then(|loader| loader.pool(&pool).load());
        let message = full_message(&loaded.expect_err("an error"));
        for word in words {
            assert!(message.contains(word), "{word:?} is not in: {message}");
        }
        assert_all_back(&pool);
        // In memory of its own a load may begin with a guess at the files; it ends alike.
        let loaded = Loader::new(alone).checkpoint(path).and_then(Loader::load);
        let unshared = full_message(&loaded.expect_err("an error"));
        for word in words {
            assert!(unshared.contains(word), "{word:?} is not in: {unshared}");
        }
    }
}

fn full_message(error: &Error) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        message += &format!(": {error}");
        source = error.source();
    }
    message
}

/// Writes a file and expects it to be refused.
fn refuses_file(bytes: &[u8], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    fs::write(&path, bytes).unwrap();
    refuses(&path, words);
    refuses(&path, &["bad.safetensors"]);
}

fn refuses_header(header: &str, data: usize, words: &[&str]) {
    refuses_file(&file_bytes(header, &vec![0; data]), words);
}

#[test]
fn a_missing_file() {
    refuses(
        Path::new("/nowhere/model.safetensors"),
        &["/nowhere/model.safetensors", "no such file", "check the path"],
    );
}

#[test]
fn a_missing_file_among_files() {
    let pool = pool_for(&Device::host());
    let (_folder, path) = single(&[bytes_tensor("t", 9)]);
    let files = [path.as_path(), Path::new("/nowhere/x.safetensors")];
    let error = Loader::new(Device::host()).files(files).pool(&pool).load().unwrap_err();
    assert!(error.to_string().contains("/nowhere/x.safetensors"), "{error}");
    assert_all_back(&pool);
}

#[test]
fn an_empty_file() {
    refuses_file(&[], &["HeaderTooSmall", "0 bytes"]);
}

#[test]
fn a_file_too_short_for_a_header() {
    refuses_file(&[1, 2, 3, 4, 5], &["HeaderTooSmall", "5 bytes"]);
}

#[test]
fn a_file_that_is_something_else() {
    refuses_file(b"PK\x03\x04 this is a zip archive, not a checkpoint", &["header"]);
}

#[test]
fn a_header_longer_than_the_file() {
    let mut bytes = 1_000_000_u64.to_le_bytes().to_vec();
    bytes.extend(b"{}");
    refuses_file(&bytes, &["1000000", "10"]);
}

#[test]
fn a_header_longer_than_100_mb() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.safetensors");
    fs::write(&path, 100_000_001_u64.to_le_bytes()).unwrap();
    // A sparse file: long enough for the header that it announces.
    File::options().write(true).open(&path).unwrap().set_len(200_000_000).unwrap();
    refuses(&path, &["100000001", "100000000"]);
    fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    refuses(&path, &["18446744073709551615"]);
}

#[test]
fn invalid_utf8_and_invalid_json() {
    refuses_file(&[&[4, 0, 0, 0, 0, 0, 0, 0][..], b"{\xff\xfe}"].concat(), &["UTF-8"]);
    refuses_header(r#"{"t":{"#, 0, &["JSON"]);
    refuses_header(r#"[1,2]"#, 0, &["header"]);
}

#[test]
fn offsets_that_overlap_leave_holes_or_run_past_the_end() {
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[8],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[8],"data_offsets":{b}}}}}"#
        )
    };
    refuses_header(&two("[0,8]", "[4,12]"), 12, &["\"b\""]);
    refuses_header(&two("[0,8]", "[10,18]"), 18, &["\"b\""]);
    refuses_header(&two("[8,0]", "[8,16]"), 16, &["\"a\""]);
    refuses_header(&two("[0,8]", "[8,16]"), 15, &["cut short"]);
    refuses_header(&two("[0,8]", "[8,16]"), 17, &["1"]);
    refuses_header(&two("[0,8]", "[18446744073709551608,18446744073709551616]"), 16, &["header"]);
    refuses_header(&two("[0,8]", "[18446744073709551600,18446744073709551608]"), 16, &["\"b\""]);
}

#[test]
fn sizes_that_disagree_or_overflow() {
    let one = |dtype: &str, shape: &str, end: u64| {
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    refuses_header(&one("F32", "[3]", 8), 8, &["\"t\"", "12", "8"]);
    refuses_header(&one("F32", "[4294967296,4294967296,4294967296]", 8), 8, &["\"t\"", "overflow"]);
    refuses_header(&one("F64", "[2305843009213693952]", 8), 8, &["\"t\"", "overflow"]);
    refuses_header(&one("F4", "[3]", 2), 2, &["\"t\""]);
    refuses_header(&one("F99", "[1]", 1), 1, &["F99"]);
    refuses_header(&one("U8", "[-1]", 1), 1, &["header"]);
}

#[test]
fn duplicate_names_in_a_file_and_across_files() {
    let twice = r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    refuses_header(twice, 1, &["\"t\"", "twice"]);
    let one = |fields: &str| format!(r#"{{"t":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]{fields}}}}}"#);
    refuses_header(&one(r#","shape":[1]"#), 1, &["\"shape\"", "twice"]);
    refuses_header(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0, &["\"k\"", "twice"]);
    refuses_header(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, &["__metadata__", "twice"]);
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("a.safetensors"), &[bytes_tensor("same", 4)]);
    write(&folder.path().join("b.safetensors"), &[bytes_tensor("same", 4)]);
    refuses(folder.path(), &["\"same\"", "a.safetensors", "b.safetensors"]);
}

#[test]
fn a_directory_without_a_checkpoint_and_one_given_as_a_file() {
    let folder = tempfile::tempdir().unwrap();
    refuses(folder.path(), &["safetensors"]);
    let error = Loader::new(Device::host()).files([folder.path()]).load().unwrap_err();
    assert!(error.to_string().contains("a directory"), "{error}");
}

#[test]
fn a_file_that_may_not_be_read() {
    let (_folder, path) = single(&[bytes_tensor("t", 4)]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads it all the same.
    if File::open(&path).is_err() {
        refuses(&path, &["permission denied", "give this user permission"]);
    } else {
        assert_eq!(Loader::new(Device::host()).files([path]).load().unwrap().len(), 1);
    }
}

#[test]
fn a_fifo_is_refused_without_waiting_for_a_writer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe.safetensors");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    refuses(&path, &["not a regular file"]);
}

#[test]
fn an_index_that_names_a_missing_shard_or_the_wrong_one() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    write(&folder.path().join("a.safetensors"), &[bytes_tensor("x", 4)]);
    write(&folder.path().join("b.safetensors"), &[bytes_tensor("y", 4)]);
    let with = |map: &str| fs::write(&index, format!(r#"{{"weight_map":{map}}}"#)).unwrap();
    with(r#"{"x":"a.safetensors","z":"c.safetensors"}"#);
    refuses(folder.path(), &["c.safetensors", "\"z\""]);
    with(r#"{"x":"b.safetensors","y":"b.safetensors"}"#);
    refuses(folder.path(), &["\"x\"", "b.safetensors"]);
    with(r#"{"x":"a.safetensors","y":"b.safetensors","lost":"b.safetensors"}"#);
    refuses(folder.path(), &["\"lost\"", "b.safetensors"]);
    with(r#"{"x":"../a.safetensors"}"#);
    refuses(folder.path(), &["../a.safetensors"]);
    with(r#"{"x":"a.safetensors","y":"b.safetensors","\u0078":"a.safetensors"}"#);
    refuses(folder.path(), &["\"x\"", "twice", "model.safetensors.index.json"]);
    with(r#"{},"weight_map":{}"#);
    refuses(folder.path(), &["weight_map", "duplicate"]);
    fs::write(&index, "{").unwrap();
    refuses(folder.path(), &["model.safetensors.index.json"]);
}

#[test]
fn a_dangling_link() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    symlink("../blobs/gone", &path).unwrap();
    refuses(&path, &["model.safetensors", "link"]);
}

/// Loads a file that `meddle` changes after its header was read and before its bytes are.
fn refuses_changed(meddle: fn(&Path), words: &[&str]) {
    for device in devices() {
        let (_folder, path) = single(&[bytes_tensor("a", 10_000_000), bytes_tensor("b", 5)]);
        let pool = pool_for(&device);
        let changing = path.clone();
        let loader = Loader::new(device).files([&path]).pool(&pool).progress(move |progress| {
            if progress.done_bytes == 0 {
                meddle(&changing);
            }
            ControlFlow::Continue(())
        });
        let message = loader.load().unwrap_err().to_string();
        assert!(message.contains("the file changed since it was opened"), "{message}");
        for word in words {
            assert!(message.contains(word), "{word:?} is not in: {message}");
        }
        assert_all_back(&pool);
    }
}

#[test]
fn a_file_cut_short_while_it_is_loaded() {
    refuses_changed(
        |path| File::options().write(true).open(path).unwrap().set_len(6_000_000).unwrap(),
        &["cut short"],
    );
}

#[test]
fn a_file_grown_rewritten_replaced_or_removed_while_it_is_loaded() {
    refuses_changed(
        |path| File::options().write(true).open(path).unwrap().set_len(20_000_000).unwrap(),
        &["size"],
    );
    refuses_changed(
        |path| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        },
        &["written to"],
    );
    refuses_changed(
        |path| {
            let other = path.with_extension("other");
            fs::copy(path, &other).unwrap();
            fs::rename(other, path).unwrap();
        },
        &["another file"],
    );
    refuses_changed(|path| fs::remove_file(path).unwrap(), &["removed"]);
}

#[test]
fn a_region_that_cannot_be_reserved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vast.safetensors");
    // A sparse file of 1 EiB minus some: its header is right, and no machine has the memory.
    let nbytes: u64 = 1 << 42;
    let header = format!(r#"{{"t":{{"dtype":"U8","shape":[{nbytes}],"data_offsets":[0,{nbytes}]}}}}"#);
    fs::write(&path, file_bytes(&header, &[])).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(8 + header.len() as u64 + nbytes).unwrap();
    refuses(&path, &["4.0 TiB", "vast.safetensors", "drop what the pool holds, load less at once"]);
}

#[test]
fn a_pool_whose_limit_is_too_small() {
    for device in devices() {
        let (_folder, path) = single(&[bytes_tensor("first", 5000), bytes_tensor("t", 5000)]);
        let pool = Pool::builder(device.memory()).name("tight").limit_bytes(8192).build().unwrap();
        let message = Loader::new(device).files([&path]).pool(&pool).load().unwrap_err().to_string();
        let expected = "on pool \"tight\": requested 9.9 KiB, largest free block 0 B, reserved 0 B of a limit of 8.0 KiB; \
                        raise the limit, or drop what the pool holds";
        assert_eq!(message, format!("place {path:?} {expected}"));
        assert_all_back(&pool);
    }
}

#[test]
fn an_unknown_tensor_with_the_nearest_name() {
    let (_folder, path) = single(&[bytes_tensor("model.norm.weight", 5), bytes_tensor("lm_head.weight", 5)]);
    let weights = Loader::new(Device::host()).files([path]).load().unwrap();
    let message = weights.view("model.norm.wieght").unwrap_err().to_string();
    assert_eq!(
        message,
        "find tensor \"model.norm.wieght\": no such tensor among 2; did you mean \"model.norm.weight\"?"
    );
    let message = weights.tensor("zzz").unwrap_err().to_string();
    assert_eq!(message, "find tensor \"zzz\": no such tensor among 2; names() lists them");
}

#[test]
fn a_device_that_is_not_there() {
    let message = Device::cuda(977).unwrap_err().to_string();
    assert!(message.contains("cuda:977"), "{message}");
}

#[test]
fn a_name_with_control_characters_is_quoted_in_messages() {
    let tensors = [bytes_tensor("t", 4)];
    let header = header(&tensors).replace("\"t\"", r#""t\u001b[31m""#);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    fs::write(&path, file_bytes(&header, &[0; 3])).unwrap();
    let error = Loader::new(Device::host()).files([path]).load().unwrap_err();
    assert!(!full_message(&error).contains('\u{1b}'), "{error:?}");
}

#[test]
fn what_is_wrong_with_one_of_many_tensors_is_told_though_their_bytes_are_read_beside() {
    let tensors: Vec<_> = (0..6000).map(|n| bytes_tensor(&format!("model.part.{n}"), 100)).collect();
    let right = header(&tensors);
    let named = r#""model.part.4321":{"dtype":"U8","shape":[100]"#;
    assert!(right.contains(named));
    for (wrong, words) in [
        (named.replace("U8", "F5"), ["model.part.4321", "unknown dtype"]),
        (named.replace("U8", "F16"), ["model.part.4321", "expected 200"]),
        (named.replace("4321", "4320"), ["model.part.4320", "twice"]),
        (named.replace("[100]", "[99999999999,99999999999]"), ["model.part.4321", "shape"]),
    ] {
        refuses_header(&right.replace(named, &wrong), 600_000, &words);
    }
    refuses_header(
        &right.replace("[432100,432200]", "[432101,432200]"),
        600_000,
        &["model.part.4321", "hole"],
    );
    refuses_header(&right, 600_001, &["1 more than belong"]);
}

#[test]
fn a_long_index_that_does_not_belong_to_the_files_near_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let tensors: Vec<_> = (0..6000).map(|n| bytes_tensor(&format!("model.part.{n}"), 9)).collect();
    write(&folder.path().join("model.safetensors"), &tensors);
    let index = |edit: &dyn Fn(String) -> String| {
        let entries: Vec<_> =
            tensors.iter().map(|tensor| format!(r#""{}":"model.safetensors""#, tensor.name)).collect();
        let text = edit(format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(",")));
        fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
    };
    index(&|text| text.replace("part.4321\"", "part.none\""));
    refuses(folder.path(), &["model.part.none", "in no file"]);
    index(&|text| text.replace("part.4321\"", "part.4320\""));
    refuses(folder.path(), &["model.part.4320", "twice"]);
    index(&|text| text.replace("part.4321\":\"model.", "part.4321\":\"absent."));
    refuses(folder.path(), &["model.part.4321", "absent.safetensors", "not in the folder"]);
    index(&|text| text[..text.len() - 1].to_owned());
    refuses(folder.path(), &["index.json", "fetch it again"]);
}

#[test]
fn what_a_file_says_is_quoted_in_part_where_it_is_long() {
    let long = "\u{7f}n".repeat(500_000);
    let is_short = |error: Error| {
        let message = full_message(&error);
        assert!(message.len() < 2000, "{} bytes: {:.300}", message.len(), message);
        assert!(
            !message.contains('\u{7f}') && (message.contains("characters)") || message.contains("bytes)")),
            "{message}"
        );
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let load = |header: &str| {
        fs::write(&path, file_bytes(header, &[0; 3])).unwrap();
        Loader::new(Device::host()).files([&path]).load()
    };
    let entry = |name: &str, fields: &str| format!(r#""{name}":{{{fields}}}"#);
    let right = r#""dtype":"U8","shape":[3],"data_offsets":[0,3]"#;
    let empty = r#""dtype":"U8","shape":[0],"data_offsets":[0,0]"#;
    for header in [
        format!("{{{}}}", entry(&long, "")),
        format!("{{{}}}", entry("t", &right.replace("U8", &long))),
        format!("{{{}}}", entry("t", &right.replace("[3]", &format!("\"{long}\"")))),
        format!("{{{}}}", entry("t", &right.replace("[0,3]", &format!("[0,\"{long}\"]")))),
        format!("{{{}}}", entry("t", &format!("{right},\"{long}\":1,\"{long}\":2"))),
        format!("{{{},{}}}", entry(&long, empty), entry(&long, right)),
        format!(r#"{{"__metadata__":"{long}"}}"#),
        format!(r#"{{"__metadata__":{{"{long}":1}}}}"#),
        format!(r#"{{"__metadata__":{{"{long}":"","{long}":""}}}}"#),
        format!(r#"{{"t":"{long}"}}"#),
        format!("\"{long}\""),
    ] {
        is_short(load(&header).unwrap_err());
    }
    let weights = load(&format!("{{{}}}", entry(&long, right))).unwrap();
    is_short(weights.view(&format!("{long}?")).unwrap_err());
    is_short(weights.tensor(&long).unwrap().narrow(7, 0, 1).unwrap_err());
    let cut =
        Loader::new(Device::host()).files([&path]).cut(format!("{long}!"), tensorhold::Cut::narrow(0, 0, 1));
    is_short(cut.load().unwrap_err());
    let budget = Loader::new(Device::host()).files([&path]).memory_budget(1).load();
    is_short(budget.unwrap_err());
    let other = folder.path().join("other.safetensors");
    fs::copy(&path, &other).unwrap();
    is_short(Loader::new(Device::host()).files([&path, &other]).load().unwrap_err());
    fs::remove_file(&other).unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    for map in [
        format!(r#"{{"{long}":"absent"}}"#),
        format!(r#"{{"t":"{long}"}}"#),
        format!(r#"{{"t":"../{long}"}}"#),
        format!(r#"{{"{long}?":"model.safetensors"}}"#),
        format!(r#"{{"{long}":"model.safetensors","{long}":"model.safetensors"}}"#),
        format!("\"{long}\""),
    ] {
        fs::write(&index, format!(r#"{{"weight_map":{map}}}"#)).unwrap();
        is_short(Loader::new(Device::host()).checkpoint(folder.path()).and_then(Loader::load).unwrap_err());
    }
}
