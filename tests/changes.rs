//! Tensors that are converted and cut on their way: what arrives is what converting and slicing after the load would have made.

mod support;

use std::ops::Range;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use support::changed::{Changed, asking, assert_changed, convert, dtype, write_shifted};
use support::{
    Spec, assert_all_back, assert_holds, bytes_tensor, drop_cached, pool_for, single, staged_host, tensor,
};
use tensorhold::{Backend, BackendKind, Cut, CutReads, DType, Device, Error, Loader, Overflow, TransformOn};

/// Devices that are read in place, that are staged, and that are staged and transform.
fn devices() -> [Device; 3] {
    [Device::host(), staged_host::device(), staged_host::device_with_transforms()]
}

/// The types that the kernels convert.
const TYPES: [&str; 18] = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "F8_E8M0",
    "U8",
    "I8",
    "U16",
    "I16",
    "U32",
    "I32",
    "U64",
    "I64",
    "BOOL",
];
const TARGETS: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::F8_E4M3, DType::F8_E5M2];

fn changed() -> impl Strategy<Value = Changed> {
    let dim = prop_oneof![1 => Just(1_usize), 3 => 2..8_usize, 3 => 8..300_usize];
    let dims = prop_oneof![
        prop::collection::vec(dim.clone(), 1..3),
        prop::collection::vec(2..9_usize, 3..6),
        dim.prop_map(|rows| vec![rows, 2000]),
    ];
    let part = |there: usize| {
        let part = (0..=there).prop_flat_map(move |start| (start..=there).prop_map(move |end| start..end));
        let shard = (1..=there.min(8)).prop_flat_map(move |world| {
            (0..world).prop_map(move |rank| there / world * rank..there / world * (rank + 1))
        });
        prop_oneof![2 => Just(0..there), 1 => part, 3 => shard]
    };
    let parts = dims.prop_flat_map(move |dims| {
        let parts: Vec<_> = dims.iter().map(|&there| part(there)).collect();
        (Just(dims), parts)
    });
    let to = prop::option::weighted(0.6, prop::sample::select(&TARGETS[..]));
    (prop::sample::select(&TYPES[..]), parts, to)
        .prop_map(|(from, (shape, ranges), to)| Changed::new("", from, &shape, &ranges, to))
}

fn tensors() -> impl Strategy<Value = Vec<Changed>> {
    prop::collection::vec((changed(), 0..9_usize), 1..6).prop_map(|tensors| {
        let mut all = Vec::new();
        for (n, (mut changed, before)) in tensors.into_iter().enumerate() {
            // So that tensors begin anywhere.
            all.push(Changed::whole(&format!("before{n}"), "U8", &[before]));
            changed.spec.name = format!("t{n}");
            all.push(changed);
        }
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn what_arrives_is_what_changing_it_after_the_load_would_have_made(
        tensors in tensors(), shift in 0..16_usize, device in 0..3_usize, threads in prop::sample::select(vec![1, 3, 16]),
        staging_bytes in prop::sample::select(vec![128 << 10, 300 << 10, 64 << 20]),
        backend in prop::sample::select(vec![
            Backend::Auto, Backend::Require(BackendKind::Buffered), Backend::Require(BackendKind::Direct),
            Backend::Require(BackendKind::IoUring),
        ]),
        reads in prop::sample::select(vec![CutReads::Auto, CutReads::Parts, CutReads::Rows]),
        place in prop::sample::select(vec![TransformOn::Auto, TransformOn::Cpu]), cold: bool,
        overflow in prop::sample::select(vec![Overflow::Torch, Overflow::Saturating, Overflow::NonSaturating]),
    ) {
        let specs: Vec<Spec> = tensors.iter().map(|tensor| tensor.spec.clone()).collect();
        let (_folder, path) = support::on_disk(&[]);
        write_shifted(&path, &specs, shift);
        if cold {
            drop_cached(&path, 4096, 0);
        }
        let expected: Vec<Spec> = tensors.iter().map(|tensor| tensor.expected(overflow)).collect();
        let device = &devices()[device];
        let pool = pool_for(device);
        let loader = || {
            let loader = Loader::new(device.clone()).files([&path]).pool(&pool).threads(threads).backend(backend);
            let loader = loader.staging_bytes(staging_bytes).cut_reads(reads).transform_on(place);
            asking(loader.overflow(overflow), &tensors)
        };
        let weights = loader().load().unwrap();
        assert_changed(&weights, &expected);
        prop_assert!(weights.report().staging_bytes <= staging_bytes, "{}", weights.report().staging_bytes);
        drop(weights);

        let inspected = loader().inspect().unwrap();
        for (info, expected) in inspected.tensors.iter().zip(&expected) {
            prop_assert_eq!((&*info.name, &*info.shape), (&*expected.name, &*expected.shape));
            prop_assert_eq!((info.dtype.name(), info.nbytes), (expected.dtype, expected.bytes.len() as u64));
        }

        let mut stream = loader().stream().unwrap();
        let mut given = 0;
        for tensor in &mut stream {
            let tensor = tensor.unwrap();
            let expected = expected.iter().find(|expected| expected.name == tensor.name()).unwrap();
            prop_assert!(tensor.to_host().unwrap() == expected.bytes, "{:?} had not arrived", tensor);
            given += 1;
        }
        prop_assert_eq!(given, expected.len());
        drop(stream.finish().unwrap());
        assert_all_back(&pool);
    }
}

/// A matrix of rows, in which a shard of columns is many jobs, and a vector that is left alone.
fn matrix(rows: usize, columns: usize) -> Vec<Spec> {
    vec![tensor("w", "F32", &[rows, columns], 4 * rows * columns), bytes_tensor("v", 1000)]
}

#[test]
fn every_switch_brings_the_same_bytes_of_a_matrix_of_many_jobs() {
    let tensors = matrix(3000, 700);
    let (_folder, path) = single(&tensors);
    let part: Range<usize> = 175..350;
    for to in [None, Some(DType::BF16)] {
        let changed = Changed::new("w", "F32", &[3000, 700], &[0..3000, part.clone()], to);
        let expected = [changed.expected(Overflow::Torch), tensors[1].clone()];
        for device in devices() {
            for reads in [CutReads::Auto, CutReads::Parts, CutReads::Rows] {
                for place in [TransformOn::Auto, TransformOn::Cpu] {
                    let loader =
                        Loader::new(device.clone()).files([&path]).cut_reads(reads).transform_on(place);
                    let loader = loader.shard("w", 1, 1, 4);
                    let loader = to.into_iter().fold(loader, Loader::dtype);
                    let weights = loader.load().unwrap();
                    assert_changed(&weights, &expected);
                    let report = weights.report();
                    let read = report.cached_bytes + report.direct_bytes;
                    let parts = 3000 * 175 * 4 + 1000;
                    match reads {
                        CutReads::Rows => assert!(read > 3 * parts, "{report:?}"),
                        CutReads::Parts if report.direct_bytes == 0 => {
                            assert_eq!(read, parts, "{report:?}");
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

#[test]
fn a_type_for_all_converts_floats_and_leaves_the_others() {
    let names: Vec<String> = TYPES.iter().map(ToString::to_string).collect();
    let specs: Vec<Spec> =
        TYPES.iter().map(|&from| tensor(from, from, &[20], 20 * dtype(from).bits() as usize / 8)).collect();
    let (_folder, path) = single(&specs);
    for device in devices() {
        for to in TARGETS {
            let weights = Loader::new(device.clone()).files([&path]).dtype(to).load().unwrap();
            for (name, spec) in names.iter().zip(&specs) {
                let floats = ["F64", "F32", "F16", "BF16"].contains(&&**name) && *name != to.name();
                let view = weights.view(name).unwrap();
                let (expected, bytes) = match floats {
                    true => (to.name(), convert(spec.dtype, to.name(), Overflow::Torch, &spec.bytes)),
                    false => (spec.dtype, spec.bytes.clone()),
                };
                assert_eq!((view.dtype().name(), view.to_host().unwrap()), (expected, bytes), "{name}");
            }
        }
        // A rule comes first, and leaves to the other what it gives nothing for.
        let rule = |tensor: &tensorhold::TensorInfo| match &*tensor.name {
            "F32" => Some(DType::F32),
            "I64" => Some(DType::F16),
            _ => None,
        };
        let weights =
            Loader::new(device.clone()).files([&path]).dtype(DType::BF16).dtype_by(rule).load().unwrap();
        let types = ["F32", "I64", "F64", "I32"].map(|name| weights.view(name).unwrap().dtype());
        assert_eq!(types, [DType::F32, DType::F16, DType::BF16, DType::I32]);
    }
}

#[test]
fn selections_cuts_and_types_work_together_and_rules_see_the_files_tensors() {
    let specs = [
        tensor("a", "F32", &[6, 4], 96),
        tensor("b", "F32", &[6, 4], 96),
        tensor("c", "F16", &[2, 3, 4], 48),
    ];
    let (_folder, path) = single(&specs);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = Arc::clone(&seen);
    let loader = Loader::new(Device::host()).files([&path]).select(|tensor| &*tensor.name != "b");
    let loader = loader.cut_by(move |tensor| {
        sees.lock().unwrap().push(format!("{} {} {:?}", tensor.name, tensor.dtype, tensor.shape));
        (tensor.shape.len() == 2).then(|| Cut::shard(0, 1, 2))
    });
    // Of what the rule has left; and of a tensor that is there, if not wanted.
    let loader = loader.narrow("a", 0, 1, 2).narrow("b", 0, 0, 1).shard("c", 1, 2, 3).shard("c", 2, 0, 2);
    let weights = loader.dtype(DType::BF16).load().unwrap();
    assert_eq!(*seen.lock().unwrap(), ["a F32 [6, 4]", "c F16 [2, 3, 4]"]);
    let expected = [
        Changed::new("a", "F32", &[6, 4], &[4..6, 0..4], Some(DType::BF16)),
        Changed::new("c", "F16", &[2, 3, 4], &[0..2, 2..3, 0..2], Some(DType::BF16)),
    ];
    assert_changed(&weights, &expected.map(|changed| changed.expected(Overflow::Torch)));
}

#[test]
fn packed_types_are_cut_at_bytes() {
    let specs = [tensor("f4", "F4", &[3, 8], 12), tensor("f6", "F6_E3M2", &[4, 8], 24)];
    let (_folder, path) = single(&specs);
    for device in devices() {
        let loader = || Loader::new(device.clone()).files([&path]);
        let weights = loader().narrow("f4", 1, 2, 4).narrow("f6", 1, 4, 4).load().unwrap();
        let rows = |n: usize, stride: usize, part: Range<usize>| -> Vec<u8> {
            specs[n].bytes.chunks(stride).flat_map(|row| row[part.clone()].to_vec()).collect()
        };
        assert_eq!(weights.view("f4").unwrap().to_host().unwrap(), rows(0, 4, 1..3));
        assert_eq!(weights.view("f6").unwrap().to_host().unwrap(), rows(1, 6, 3..6));
        let message = loader().narrow("f4", 1, 1, 4).load().unwrap_err().to_string();
        assert!(message.contains("\"f4\"") && message.contains("elements have 4 bits"), "{message}");
    }
}

#[test]
fn chunks_that_are_left_with_nothing_are_empty_tensors() {
    let specs = [tensor("t", "F32", &[5, 3], 60)];
    let (_folder, path) = single(&specs);
    for device in devices() {
        for (rank, rows) in [(0, 0..2), (1, 2..4), (2, 4..5), (3, 5..5)] {
            let loader = Loader::new(device.clone()).files([&path]).cut("t", Cut::chunk(0, rank, 4));
            let weights = loader.dtype(DType::F16).load().unwrap();
            let expected = Changed::new("t", "F32", &[5, 3], &[rows, 0..3], Some(DType::F16));
            assert_changed(&weights, &[expected.expected(Overflow::Torch)]);
        }
    }
}

#[test]
fn what_conversions_lose_is_counted_where_that_is_asked() {
    let values = [1.0_f32, 1e30, f32::NAN, -500.0, f32::INFINITY, 3.0];
    let spec = |name: &str, values: &[f32], count: usize| {
        let bytes: Vec<u8> = (0..count).flat_map(|n| values[n % values.len()].to_le_bytes()).collect();
        Spec { name: name.into(), dtype: "F32", shape: vec![count], bytes }
    };
    // Many jobs; and some without a loss.
    let specs = [spec("lossy", &values, 600_000), spec("fine", &[1.0, 2.0], 50_000)];
    let (_folder, path) = single(&specs);
    for device in devices() {
        for backend in [BackendKind::Buffered, BackendKind::Direct] {
            let loader = || Loader::new(device.clone()).files([&path]).backend(Backend::Require(backend));
            let weights = loader().dtype(DType::F8_E4M3).count_conversions().load().unwrap();
            let [lossy] = weights.report().converted.as_deref().unwrap() else { panic!("one tensor") };
            assert_eq!((&*lossy.name, lossy.out_of_range, lossy.nan), ("lossy", 300_000, 100_000));
            assert!(loader().dtype(DType::BF16).load().unwrap().report().converted.is_none());
            let weights = loader().dtype(DType::BF16).count_conversions().load().unwrap();
            let [lossy] = weights.report().converted.as_deref().unwrap() else { panic!("one tensor") };
            assert_eq!((lossy.out_of_range, lossy.nan), (0, 100_000));
        }
    }
}

#[test]
fn the_report_says_what_was_chosen() {
    let tensors = matrix(2000, 2048);
    let (_folder, path) = single(&tensors);
    let chosen = |device: Device, reads| {
        let loader = Loader::new(device).files([&path]).shard("w", 1, 0, 2).cut_reads(reads);
        let loader = loader.dtype(DType::F16).backend(Backend::Require(BackendKind::Buffered));
        let weights = loader.load().unwrap();
        let choice = |about: &str| {
            let choices = &weights.report().choices;
            let choice = choices.iter().find(|choice| choice.about == about).unwrap();
            format!("{}, {}", choice.picked, choice.why)
        };
        [choice("transforms"), choice("cuts")]
    };
    let [host, cuts] = chosen(Device::host(), CutReads::Auto);
    assert!(host.contains("on the CPU, the CPU can write the target"), "{host}");
    assert!(cuts.contains("part by part") && cuts.contains("takes longer to read than a call"), "{cuts}");
    let [staged, cuts] = chosen(staged_host::device(), CutReads::Rows);
    assert!(staged.contains("on the CPU, the device's driver has no transforms"), "{staged}");
    assert!(cuts.contains("with their rows") && cuts.contains("as asked"), "{cuts}");
    let [transforming, _] = chosen(staged_host::device_with_transforms(), CutReads::Auto);
    assert!(transforming.contains("on the device, it reads staging memory"), "{transforming}");
}

#[test]
fn many_readers_make_less_of_what_a_bus_would_take() {
    let tensors = matrix(500, 300);
    let (_folder, path) = single(&tensors);
    let on_cpu = |threads, to: DType, ask: &dyn Fn(Loader) -> Loader| {
        let loader = Loader::new(staged_host::device_with_transforms()).files([&path]).threads(threads);
        let weights = ask(loader.dtype(to)).load().unwrap();
        let changed = Changed::new("w", "F32", &[500, 300], &[0..500, 0..300], Some(to));
        assert_changed(&weights, &[changed.expected(Overflow::Torch), tensors[1].clone()]);
        let choices = &weights.report().choices;
        choices.iter().any(|choice| choice.about == "transforms" && choice.picked == "on the CPU")
    };
    let as_it_is = |loader: Loader| loader;
    assert!(on_cpu(12, DType::BF16, &as_it_is));
    assert!(!on_cpu(11, DType::BF16, &as_it_is));
    assert!(!on_cpu(12, DType::F16, &as_it_is));
    assert!(!on_cpu(12, DType::BF16, &|loader| loader.transform_on(TransformOn::Device)));
    assert!(!on_cpu(12, DType::BF16, &|loader| loader.count_conversions()));
}

/// Each fails before any tensor's bytes are read, says why, and leaves nothing.
#[test]
fn what_cannot_be_had_is_an_error_before_anything_is_read() {
    let specs = [
        tensor("w", "F32", &[6, 10], 240),
        tensor("packed", "F4", &[4, 2], 4),
        tensor("complex", "C64", &[2], 16),
        tensor("scalar", "F32", &[], 4),
    ];
    let (_folder, path) = single(&specs);
    type Ask = fn(Loader) -> Loader;
    let cases: [(Ask, &[&str]); 12] = [
        (|l| l.shard("w", 0, 0, 4), &["shard of tensor \"w\"", "4 parts of 6", "Cut::chunk()"]),
        (|l| l.shard("w", 0, 6, 6), &["rank 6", "below the world's 6"]),
        (|l| l.shard("w", 2, 0, 1), &["dimension 2", "below 2, of [6, 10]"]),
        (
            |l| l.narrow("w", 1, 8, 3),
            &["narrow of tensor \"w\"", "3 elements from 8 on", "the 10 of dimension 1"],
        ),
        (|l| l.shard("w", 0, 0, 2).narrow("w", 0, 3, 1), &["narrow", "at most the 3 of dimension 0"]),
        (|l| l.narrow("scalar", 0, 0, 1), &["\"scalar\"", "no cut of a scalar"]),
        (|l| l.shard("v", 0, 0, 2), &["find tensor \"v\"", "among 4"]),
        (|l| l.shard("complez", 0, 0, 2), &["did you mean \"complex\"?"]),
        (|l| l.dtype(DType::I32), &["option dtype", "got I32", "one of F32, F16, BF16, F8_E4M3, F8_E5M2"]),
        (|l| l.dtype_by(|_| Some(DType::I8)), &["convert of tensor \"w\"", "F32 to I8", "return None"]),
        (
            |l| l.dtype_by(|info| (&*info.name == "complex").then_some(DType::F32)),
            &["convert of tensor \"complex\"", "C64 to F32", "expected C64 as it is"],
        ),
        (|l| l.dtype(DType::F16).transform_on(TransformOn::Device), &["transform_on", "TransformOn::Auto"]),
    ];
    let device = staged_host::device_failing_after(0);
    for (ask, expected) in cases {
        let pool = pool_for(&device);
        let loader = || ask(Loader::new(device.clone()).files([&path]).pool(&pool));
        let error = loader().load().unwrap_err();
        let message = error.to_string();
        assert!(!matches!(error, Error::Device { .. }), "something was copied: {message}");
        assert!(expected.iter().all(|part| message.contains(part)), "{message}");
        assert_eq!(loader().stream().unwrap_err().to_string(), message);
        assert_all_back(&pool);
    }
}

#[test]
fn a_transform_that_fails_is_an_error_and_leaves_nothing() {
    let tensors = matrix(3000, 700);
    let (_folder, path) = single(&tensors);
    for transforms in [0, 1] {
        let device = staged_host::transforming(transforms);
        for backend in [BackendKind::Buffered, BackendKind::Direct] {
            let pool = pool_for(&device);
            let loader = Loader::new(device.clone()).files([&path]).pool(&pool).dtype(DType::F16);
            let loader = loader.backend(Backend::Require(backend)).staging_bytes(1 << 20);
            let message = loader.load().unwrap_err().to_string();
            assert!(message.contains("no more copies"), "{message}");
            assert_all_back(&pool);
        }
    }
}

#[test]
fn weights_that_are_loaded_as_they_are_are_as_they_were() {
    let tensors = matrix(300, 70);
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let loader = Loader::new(device.clone()).files([&path]).cut_by(|_| None).dtype_by(|_| None);
        let weights = loader.dtype(DType::F32).load().unwrap();
        assert_holds(&weights, &tensors);
        assert!(
            weights.report().choices.iter().all(|choice| !["transforms", "cuts"].contains(&choice.about))
        );
    }
}
