//! Which files a checkpoint has: by its index, which may be long, or without.

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;

use support::{
    Spec, assert_all_back, assert_holds, bytes_tensor, devices, file_bytes, header, pool_for, write,
};
use tensorhold::{Device, Loader, Pool};

#[test]
fn shards_with_an_index_load_as_one_checkpoint_through_links() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = folder.path().join("blobs");
    let snapshot = folder.path().join("snapshot");
    fs::create_dir(&blobs).unwrap();
    fs::create_dir(&snapshot).unwrap();
    let mut tensors = Vec::new();
    let mut weight_map = Vec::new();
    for shard in 0..5 {
        let specs: Vec<Spec> =
            (0..20).map(|n| bytes_tensor(&format!("s{shard}.t{n}"), 1000 * n + shard)).collect();
        write(&blobs.join(format!("{shard:08x}")), &specs);
        let name = format!("model-0000{}-of-00005.safetensors", shard + 1);
        symlink(format!("../blobs/{shard:08x}"), snapshot.join(&name)).unwrap();
        weight_map.extend(specs.iter().map(|spec| format!(r#""{}":"{name}""#, spec.name)));
        tensors.extend(specs);
    }
    let index = format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{{{}}}}}"#, weight_map.join(","));
    fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
    for device in devices() {
        for path in [snapshot.clone(), snapshot.join("model.safetensors.index.json")] {
            let weights = Loader::new(device.clone()).checkpoint(path).unwrap().load().unwrap();
            assert_holds(&weights, &tensors);
            assert_eq!(weights.report().files, 5);
        }
    }
}

#[test]
fn an_index_says_which_files_are_loaded_however_long_it_is() {
    for count in [3, 3000] {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("part")).unwrap();
        let names = ["model-a.safetensors", "model-b.safetensors", "part/c.safetensors"];
        let (mut tensors, mut weight_map) = (Vec::new(), Vec::new());
        for name in names {
            let specs: Vec<Spec> = (0..count).map(|n| bytes_tensor(&format!("{name}.{n}"), n % 9)).collect();
            write(&folder.path().join(name), &specs);
            weight_map.extend(specs.iter().map(|spec| format!(r#""{}":"{name}""#, spec.name)));
            tensors.extend(specs);
        }
        // It names neither: the one is damaged, the other has tensors of the same names.
        fs::write(folder.path().join("model-other.safetensors"), "damaged").unwrap();
        fs::copy(folder.path().join(names[0]), folder.path().join("model-copy.safetensors")).unwrap();
        let index = format!(r#"{{"weight_map":{{{}}}}}"#, weight_map.join(","));
        fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        for device in devices() {
            let loader = Loader::new(device).checkpoint(folder.path()).unwrap();
            let weights = loader.load().unwrap();
            assert_holds(&weights, &tensors);
            assert_eq!((weights.len(), weights.report().files), (3 * count, 3));
        }
        let loader = || Loader::new(Device::host()).checkpoint(folder.path()).unwrap();
        let inspection = loader().select(|tensor| tensor.name.ends_with(".1")).inspect().unwrap();
        assert_eq!((inspection.tensors.len(), inspection.files[2].tensors), (3, count));
        let some = loader().select(|tensor| tensor.name.ends_with(".1")).load().unwrap();
        assert_eq!(some.names().collect::<Vec<_>>(), names.map(|name| format!("{name}.1")));
    }
}

/// A folder with two shards of so many tensors each and their index. Returns it, and the tensors.
fn shards(count: usize) -> (tempfile::TempDir, Vec<Spec>) {
    let folder = tempfile::tempdir().unwrap();
    let (mut tensors, mut weight_map) = (Vec::new(), Vec::new());
    for name in ["model-1.safetensors", "model-2.safetensors"] {
        let specs: Vec<Spec> = (0..count).map(|n| bytes_tensor(&format!("{name}.{n}"), n % 300)).collect();
        write(&folder.path().join(name), &specs);
        weight_map.extend(specs.iter().map(|spec| format!(r#""{}":"{name}""#, spec.name)));
        tensors.extend(specs);
    }
    let index = format!(r#"{{"weight_map":{{{}}}}}"#, weight_map.join(","));
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    (folder, tensors)
}

#[test]
fn files_that_are_near_a_long_index_and_not_named_are_not_loaded() {
    let (folder, tensors) = shards(4000);
    // Right by itself, with names of its own, and too large for the pool's limit.
    write(&folder.path().join("model-3.safetensors"), &[bytes_tensor("other", 5 << 20)]);
    for device in devices() {
        let pool = Pool::builder(device.memory()).limit_bytes(4 << 20).build().unwrap();
        // In memory of its own a load begins with a guess, and only there.
        for pool in [None, Some(pool), Some(pool_for(&device))] {
            let loader = Loader::new(device.clone()).checkpoint(folder.path()).unwrap();
            let loader = pool.iter().fold(loader, |loader, pool| loader.pool(pool));
            let weights = loader.load().unwrap();
            assert_holds(&weights, &tensors);
            assert_eq!((weights.len(), weights.report().files), (8000, 2));
            let pool = weights.pool().clone();
            drop(weights);
            assert_all_back(&pool);
        }
    }
}

#[test]
fn many_tensors_load_and_stream_with_their_strings_and_an_index_in_two_forms() {
    let (folder, tensors) = shards(4000);
    let path = folder.path().join("model-1.safetensors");
    let named =
        tensors.iter().filter(|tensor| tensor.name.starts_with("model-1")).cloned().collect::<Vec<_>>();
    let header = header(&named).replacen('{', r#"{"__metadata__":{"format":"pt"},"#, 1);
    let data: Vec<u8> = named.iter().flat_map(|tensor| tensor.bytes.iter().copied()).collect();
    fs::write(&path, file_bytes(&header, &data)).unwrap();
    for device in devices() {
        let loader = || Loader::new(device.clone()).checkpoint(folder.path()).unwrap();
        let mut stream = loader().stream().unwrap();
        assert_eq!(
            stream.by_ref().map(|tensor| tensor.unwrap().nbytes()).sum::<u64>(),
            2 * data.len() as u64
        );
        // With a callback nothing is guessed.
        let counted = loader().progress(|_| ControlFlow::Continue(()));
        for weights in [loader().load().unwrap(), stream.finish().unwrap(), counted.load().unwrap()] {
            assert_holds(&weights, &tensors);
            assert_eq!(weights.metadata(&path).unwrap()["format"], "pt");
        }
    }
}
