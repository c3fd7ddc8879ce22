//! Who keeps memory alive, and what closing says about it.

mod support;

use std::sync::Barrier;
use std::thread;

use support::{Spec, assert_all_back, bytes_tensor, devices, pool_for, single};
use tensorhold::{Device, Loader, Tensor, Weights};

fn three() -> Vec<Spec> {
    vec![bytes_tensor("a", 5000), bytes_tensor("empty", 0), bytes_tensor("b", 300_000)]
}

fn load(device: &Device, tensors: &[Spec]) -> Weights {
    let (_folder, path) = single(tensors);
    Loader::new(device.clone()).files([path]).load().unwrap()
}

#[test]
fn close_names_what_is_held_and_its_bytes_empty_tensors_too() {
    for device in devices() {
        let tensors = three();
        let weights = load(&device, &tensors);
        let pool = weights.pool().clone();
        let held = [weights.tensor("empty").unwrap(), weights.tensor("b").unwrap()];
        let closed = weights.close();
        let names: Vec<_> = closed.held.iter().map(|held| (&*held.name, held.bytes)).collect();
        assert_eq!(names, [("empty", 0), ("b", 300_000)]);
        assert_eq!(closed.released_bytes, 5000);
        assert!(closed.pinned_bytes >= 300_000);
        assert_eq!(held[1].to_host().unwrap(), tensors[2].bytes);
        drop(held);
        assert_all_back(&pool);
    }
}

#[test]
fn close_with_nothing_held_gives_everything_back_before_it_returns() {
    for device in devices() {
        let weights = load(&device, &three());
        let pool = weights.pool().clone();
        let closed = weights.close();
        assert_eq!((closed.released_bytes, closed.held.len(), closed.pinned_bytes), (305_000, 0, 0));
        assert_eq!(pool.stats().reserved_bytes, 0);
    }
}

#[test]
fn weights_in_use_are_given_back_whole_and_close_when_they_are_not() {
    for device in devices() {
        let weights = load(&device, &three());
        let pool = weights.pool().clone();
        let part = weights.tensor("b").unwrap().narrow(0, 1, 10).unwrap();
        let refused = weights.try_close().unwrap_err();
        let names: Vec<_> = refused.held.iter().map(|held| (&*held.name, held.bytes)).collect();
        assert_eq!(names, [("b", 300_000)]);
        assert!(
            refused.pinned_bytes >= 305_000 && refused.to_string().contains("\"b\" for one"),
            "{refused}"
        );
        let weights = refused.open;
        assert_eq!(weights.view("a").unwrap().to_host().unwrap(), three()[0].bytes);
        drop(part);
        let closed = weights.try_close().unwrap();
        assert_eq!((closed.released_bytes, closed.held.len(), closed.pinned_bytes), (305_000, 0, 0));
        assert_all_back(&pool);
    }
}

#[test]
fn closing_weights_leaves_a_shared_pool_open() {
    for device in devices() {
        let pool = pool_for(&device);
        let (_folder, path) = single(&three());
        let load = || Loader::new(device.clone()).files([&path]).pool(&pool).load().unwrap();
        let (first, second) = (load(), load());
        let closed = first.close();
        assert_eq!((closed.released_bytes, closed.held.len(), closed.pinned_bytes), (305_000, 0, 0));
        let third = load();
        assert_eq!(pool.stats().fragments, 6);
        drop((second, third));
        assert_all_back(&pool);
    }
}

#[test]
fn every_order_of_dropping_gives_everything_back() {
    let tensors = three();
    for device in devices() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let weights = load(&device, &tensors);
            let pool = weights.pool().clone();
            let tensor = weights.tensor("b").unwrap();
            let part = tensor.narrow(0, 100, 50).unwrap();
            let mut owners: [Option<Box<dyn Send>>; 3] =
                [Some(Box::new(weights)), Some(Box::new(tensor)), Some(Box::new(part))];
            for owner in order {
                assert!(pool.stats().live_bytes >= 300_000);
                owners[owner] = None;
                if owner == order[2] {
                    break;
                }
                pool.trim();
            }
            assert_all_back(&pool);
        }
    }
}

#[test]
fn the_last_owner_may_go_on_any_thread() {
    let tensors = three();
    for device in devices() {
        let weights = load(&device, &tensors);
        let pool = weights.pool().clone();
        let owners: Vec<Tensor> = (0..8).map(|_| weights.tensor("b").unwrap()).collect();
        drop(weights);
        let barrier = Barrier::new(owners.len());
        thread::scope(|scope| {
            for tensor in owners {
                let (barrier, bytes) = (&barrier, &tensors[2].bytes);
                scope.spawn(move || {
                    assert_eq!(tensor.to_host().unwrap(), *bytes);
                    barrier.wait();
                    drop(tensor);
                });
            }
        });
        assert_all_back(&pool);
    }
}

#[test]
fn a_tensor_outlives_weights_pool_and_device() {
    let tensors = three();
    for device in devices() {
        let tensor = load(&device, &tensors).tensor("b").unwrap();
        drop(device);
        assert_eq!(tensor.to_host().unwrap(), tensors[2].bytes);
    }
}

#[test]
fn writing_needs_the_only_owner() {
    let mut weights = load(&Device::host(), &three());
    let mut tensor = weights.tensor("a").unwrap();
    assert!(weights.get_mut("a").unwrap().is_none());
    assert!(tensor.get_mut().is_none());
    let part = tensor.narrow(0, 0, 10).unwrap();
    drop(weights);
    assert!(tensor.get_mut().is_none());
    drop(part);
    tensor.get_mut().unwrap().as_mut_slice::<u8>().unwrap().fill(9);
    assert!(tensor.as_bytes().unwrap().iter().all(|&byte| byte == 9));
}

#[test]
fn handles_can_be_sent_and_shared() {
    fn sent<T: Send + 'static>() {}
    fn shared<T: Send + Sync + 'static>() {}
    sent::<Loader>();
    shared::<Weights>();
    shared::<Tensor>();
    shared::<Device>();
    shared::<tensorhold::Pool>();
    shared::<tensorhold::Error>();
}

#[test]
fn handles_have_the_sizes_promised() {
    use tensorhold::TensorView;
    use tensorhold::allocator::{Fragment, FragmentView};
    let words = |bytes: usize| bytes / size_of::<usize>();
    assert_eq!(words(size_of::<FragmentView<'_>>()), 2);
    assert_eq!(words(size_of::<Fragment>()), 3);
    assert_eq!(words(size_of::<TensorView<'_>>()), 3);
    assert_eq!(words(size_of::<Tensor>()), 4);
    assert_eq!(words(size_of::<Option<Tensor>>()), 4);
}
