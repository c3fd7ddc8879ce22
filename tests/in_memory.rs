//! Files in memory: what is serialized is what is written to a disk, and what is read back.

mod support;

use std::fs;

use support::{Spec, bytes_tensor, devices, tensor};
use tensorhold::save::{Entry, Item, Saver};
use tensorhold::{DType, Deserialized, Device, Error, Loader, Metadata};

fn entry(spec: &Spec) -> Entry {
    let dtype = DType::ALL.iter().find(|dtype| dtype.name() == spec.dtype).unwrap();
    Entry::new(&spec.name, *dtype, &spec.shape).unwrap()
}

fn item(spec: &Spec) -> Item<'_> {
    Item::bytes(entry(spec), &spec.bytes).unwrap()
}

/// Tensors of several types, one of them longer than a chunk.
fn tensors() -> Vec<Spec> {
    vec![
        bytes_tensor("long", 9_000_001),
        tensor("flags", "BOOL", &[3], 3),
        tensor("half", "F16", &[3, 5], 30),
        bytes_tensor("none", 0),
        tensor("fours", "F4", &[2, 6], 6),
        tensor("scalar", "F64", &[], 8),
    ]
}

#[test]
fn a_file_in_memory_has_the_bytes_of_one_on_a_disk() {
    let tensors = tensors();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let format = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    for metadata in [None, Some(Metadata::new()), Some(format)] {
        let saver = metadata.iter().fold(Saver::new(), |saver, strings| saver.metadata(strings.clone()));
        saver.save_file(&path, tensors.iter().map(item)).unwrap();
        let expected = fs::read(&path).unwrap();
        let planned = saver.serialize(tensors.iter().map(item)).unwrap();
        assert_eq!(planned.total_bytes(), expected.len() as u64);
        let names: Vec<&str> = planned.entries().iter().map(Entry::name).collect();
        assert_eq!(names, ["scalar", "half", "long", "none", "fours", "flags"]);
        assert!(planned.to_vec().unwrap() == expected);
        for device in devices() {
            let weights = Loader::new(device).files([&path]).load().unwrap();
            assert_eq!(weights.metadata(&path), metadata.as_ref());
            assert_eq!(weights.files().collect::<Vec<_>>(), [&path]);
            let from_device = saver.serialize(weights.iter().map(Item::tensor)).unwrap();
            assert!(from_device.to_vec().unwrap() == expected, "of a device");
        }
        let filled = tensors.iter().map(|spec| {
            Item::fill(entry(spec), |offset, buffer: &mut [u8]| {
                buffer.copy_from_slice(&spec.bytes[offset as usize..][..buffer.len()]);
                Ok(())
            })
        });
        assert!(saver.serialize(filled).unwrap().to_vec().unwrap() == expected, "of functions");

        let read = Deserialized::new(&expected).unwrap();
        assert_eq!(read.metadata(), metadata.as_ref());
        let found: Vec<&str> = read.tensors().map(|tensor| tensor.name).collect();
        assert_eq!(found, names);
        for tensor in read.tensors() {
            let spec = tensors.iter().find(|spec| spec.name == tensor.name).unwrap();
            assert_eq!((tensor.dtype.name(), tensor.shape), (spec.dtype, &spec.shape[..]));
            assert!(tensor.bytes == spec.bytes);
        }
    }
}

#[test]
fn headers_say_whether_there_is_a_place_for_strings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (saver, expected) in [
        (Saver::new(), "{}      "),
        (Saver::new().metadata(Metadata::new()), r#"{"__metadata__":{}}     "#),
        (Saver::new().first_metadata(Metadata::new()), "{}      "),
        (Saver::new().shard_metadata(|_, _| Metadata::new()), "{}      "),
    ] {
        let bytes = saver.serialize([]).unwrap().to_vec().unwrap();
        assert_eq!(std::str::from_utf8(&bytes[8..]).unwrap(), expected);
        fs::write(&path, &bytes).unwrap();
        let has_place = expected.contains("__metadata__");
        let found = has_place.then(Metadata::new);
        let loader = || Loader::new(Device::host()).files([&path]);
        assert_eq!(loader().inspect().unwrap().files[0].metadata, found);
        assert_eq!(loader().open().unwrap().metadata(&path), found.as_ref());
        assert_eq!(loader().load().unwrap().metadata(&path), found.as_ref());
    }
}

#[test]
fn a_buffer_of_another_length_and_an_index_are_refused() {
    let planned = Saver::new().serialize([]).unwrap();
    for length in [0, 15, 17] {
        let refused = planned.write_to(&mut vec![0; length]).unwrap_err().to_string();
        assert!(refused.contains("16") && refused.contains("total_bytes()"), "{refused}");
    }
    assert!(matches!(Saver::new().index().serialize([]), Err(Error::Option { option: "index", .. })));
    let twice = [bytes_tensor("a", 1), bytes_tensor("a", 1)];
    let refused = Saver::new().serialize(twice.iter().map(item)).unwrap_err().to_string();
    assert!(refused.contains("two tensors of that name"), "{refused}");
    let failing = Item::fill(entry(&bytes_tensor("a", 1)), |_, _| Err("a reason of its own".into()));
    let failed = Saver::new().serialize([failing]).unwrap().to_vec();
    assert!(matches!(failed, Err(Error::Fill { offset: 0, bytes: 1, .. })), "{failed:?}");
}

#[test]
fn damaged_bytes_are_refused_in_their_own_words() {
    let file =
        |header: &str, data: &[u8]| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    let one = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    for (bytes, word) in [
        (vec![], "HeaderTooSmall"),
        (vec![0; 7], "HeaderTooSmall"),
        (file("{}", b"x"), "1 more than belong to it"),
        (file(&format!(r#"{{"a":{one}}}"#), b""), "cut short"),
        (file(&format!(r#"{{"a":{one},"a":{one}}}"#), b"x"), "\"a\" is there twice"),
        (
            file(&r#"{"a":0,"a":0}"#.replace('0', r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#), b""),
            "\"a\" is there twice",
        ),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0\0\0".to_vec(), "gzip"),
    ] {
        let refused = Deserialized::new(&bytes).unwrap_err();
        assert!(matches!(refused, Error::Bytes { .. }));
        let refused = refused.to_string();
        assert!(refused.starts_with("read the given bytes as a safetensors file: "), "{refused}");
        assert!(refused.contains(word), "{refused}");
    }
}
