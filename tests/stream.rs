//! Streams give each tensor once, when its bytes are there.

mod support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc;

use support::{Spec, assert_all_back, assert_holds, bytes_tensor, devices, pool_for, single, staged_host};
use tensorhold::{Batches, Batching, Error, Loader, Tensor, TensorStream};

fn tensors() -> Vec<Spec> {
    let sizes = [0, 5, 700_000, 0, 3_000_001, 256, 9_000_000, 1, 70, 4_000_000];
    sizes.iter().enumerate().map(|(n, &size)| bytes_tensor(&format!("t{n}"), size)).collect()
}

#[test]
fn each_tensor_is_given_once_with_its_bytes() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let expected: BTreeMap<&str, &[u8]> =
            tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.bytes.as_slice())).collect();
        let mut given = BTreeMap::new();
        for tensor in Loader::new(device).files([&path]).stream().unwrap() {
            let tensor = tensor.unwrap();
            assert_eq!(tensor.to_host().unwrap(), expected[tensor.name()], "I3");
            assert!(given.insert(tensor.name().to_owned(), tensor).is_none(), "given twice");
        }
        assert_eq!(given.len(), tensors.len());
    }
}

#[test]
fn in_file_order_they_come_in_the_order_of_their_bytes() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let loader = Loader::new(device).files([&path]).threads(4);
        let names = loader.inspect().unwrap().tensors.iter().map(|tensor| tensor.name.to_string()).collect();
        let stream = Loader::new(support::devices()[0].clone()).files([&path]).threads(4).stream().unwrap();
        let given: Vec<String> =
            stream.in_file_order().map(|tensor| tensor.unwrap().name().to_owned()).collect();
        let names: Vec<String> = names;
        assert_eq!(given, names);
    }
}

#[test]
fn the_order_of_the_file_may_be_asked_for_at_any_time_and_nothing_is_lost_or_given_twice() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let loader = || Loader::new(device.clone()).files([&path]).threads(4);
        let names: Vec<String> =
            loader().inspect().unwrap().tensors.iter().map(|tensor| tensor.name.to_string()).collect();
        for before in 0..=tensors.len() {
            for again in [0, 2] {
                let mut stream = loader().stream().unwrap();
                let name = |tensor: Result<Tensor, Error>| tensor.unwrap().name().to_owned();
                let first: Vec<String> = stream.by_ref().take(before).map(name).collect();
                let mut stream = stream.in_file_order();
                let mut then: Vec<String> = stream.by_ref().take(again).map(name).collect();
                then.extend(stream.in_file_order().map(name));
                let rest: Vec<String> = names.iter().filter(|name| !first.contains(name)).cloned().collect();
                assert_eq!(then, rest, "after {before} and {again}");
            }
        }
    }
}

#[test]
fn finishing_gives_the_weights_whatever_was_taken() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        for take in [0, 3, 100] {
            let pool = pool_for(&device);
            let mut stream = Loader::new(device.clone()).files([&path]).pool(&pool).stream().unwrap();
            let taken: Vec<Tensor> = stream.by_ref().take(take).map(Result::unwrap).collect();
            let weights = stream.finish().unwrap();
            assert_holds(&weights, &tensors);
            assert_eq!(weights.report().tensors, tensors.len());
            assert_eq!(weights.close().held.len(), taken.len());
            drop(taken);
            assert_all_back(&pool);
        }
    }
}

#[test]
fn dropping_a_stream_stops_the_load_and_leaves_what_was_given() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let pool = pool_for(&device);
        drop(Loader::new(device.clone()).files([&path]).pool(&pool).stream().unwrap());
        assert_all_back(&pool);
        let mut stream = Loader::new(device.clone()).files([&path]).pool(&pool).stream().unwrap();
        let kept = stream.find(|tensor| tensor.as_ref().unwrap().nbytes() > 0).unwrap().unwrap();
        drop(stream);
        pool.trim();
        assert_eq!(pool.stats().fragments, 1);
        let expected = tensors.iter().find(|tensor| tensor.name == kept.name()).unwrap();
        assert_eq!(kept.to_host().unwrap(), expected.bytes);
        drop(kept);
        assert_all_back(&pool);
    }
}

#[test]
fn an_error_is_the_last_item() {
    let (_folder, path) = single(&tensors());
    let device = staged_host::device_failing_after(1);
    let pool = pool_for(&device);
    let mut stream = Loader::new(device).files([&path]).pool(&pool).stream().unwrap();
    let last = stream.by_ref().last().unwrap();
    assert!(matches!(last, Err(Error::Device { .. })), "{last:?}");
    assert!(stream.next().is_none());
    assert!(matches!(stream.finish(), Err(Error::Cancelled { .. })));
    assert_all_back(&pool);
    assert!(Loader::new(tensorhold::Device::host()).files(["/nowhere"]).stream().is_err());
}

#[test]
fn one_may_wait_for_as_long_as_there_are_numbers() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let mut stream = Loader::new(device).files([&path]).stream().unwrap();
        let mut given = 0;
        while let Some(tensor) = stream.next_within(std::time::Duration::MAX).unwrap() {
            tensor.unwrap();
            given += 1;
        }
        assert_eq!(given, tensors.len());
    }
}

#[test]
fn a_callback_that_takes_the_stream_stops_the_load_and_does_not_wait_for_itself() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        for finishes in [false, true] {
            let pool = pool_for(&device);
            let (sender, receiver) = mpsc::channel::<TensorStream>();
            let (told, end) = mpsc::channel();
            let loader = Loader::new(device.clone()).files([&path]).pool(&pool).progress(move |_| {
                let Ok(mut stream) = receiver.recv() else { return ControlFlow::Continue(()) };
                let next = stream.next().is_none();
                let finished = finishes.then(|| stream.finish().map(|_| ()));
                told.send((next, finished)).unwrap();
                ControlFlow::Continue(())
            });
            sender.send(loader.stream().unwrap()).unwrap();
            drop(sender);
            let (is_at_end, finished) = end.recv().unwrap();
            assert!(is_at_end && finished.is_none_or(|end| matches!(end, Err(Error::Cancelled { .. }))));
            // The callback goes with the load.
            assert!(end.recv().is_err());
        }
    }
}

#[test]
fn a_callback_that_takes_the_batches_stops_the_load_and_does_not_wait_for_itself() {
    let (_folder, path) = single(&tensors());
    for device in devices() {
        let (sender, receiver) = mpsc::channel::<Batches>();
        let (told, end) = mpsc::channel();
        let loader = Loader::new(device).files([&path]).progress(move |_| {
            if let Ok(mut batches) = receiver.recv() {
                told.send(batches.next().is_none()).unwrap();
            }
            ControlFlow::Continue(())
        });
        sender.send(loader.batches(Batching::new().max_batch_bytes(1_000_000)).unwrap()).unwrap();
        drop(sender);
        assert!(end.recv().unwrap());
        // The callback goes with the load.
        assert!(end.recv().is_err());
    }
}
