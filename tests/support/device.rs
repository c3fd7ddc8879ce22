//! The suite that every device has to pass.

use std::sync::Barrier;
use std::thread;

use tensorhold::allocator::{Fragment, Pool, Request, conformance};
use tensorhold::kernels::{Block, Conversion, Type};
use tensorhold::{Device, DeviceKind, Transform};

/// Runs all checks against one device. Needs room for about 200 MiB of its memory.
pub fn conforms(device: &Device) {
    conformance::memory(device.memory());
    conformance::memory(device.staging_memory());
    memories_stay_what_they_are(device);
    what_is_no_region_is_refused(device);
    an_event_of_any_number_is_recorded_or_refused(device);
    bytes_make_the_round_trip(device);
    an_event_never_recorded_has_passed(device);
    slots_are_reused_behind_events(device);
    streams_work_at_once_from_several_threads(device);
    match device.driver().has_transforms() {
        true => {
            transforms_are_those_of_the_cpu(device);
            slots_are_reused_behind_transforms(device);
        }
        false => a_transform_is_an_error(device),
    }
    the_context_can_be_made_current_and_nests(device);
    assert!(device.enable_peer_access(device).is_err(), "a device is not its own peer");
}

/// Q1, Q2 and Q4, as far as they can be seen.
fn memories_stay_what_they_are(device: &Device) {
    let driver = device.driver();
    assert_eq!(driver.memory().id(), device.memory().id());
    assert_eq!(driver.staging_memory().id(), device.staging_memory().id());
    assert!(device.staging_memory().is_host_accessible());
    assert_eq!(driver.memory().is_host_accessible(), device.is_host_accessible());
    let on_host = matches!(device.kind(), DeviceKind::Host | DeviceKind::Pinned);
    assert!(device.is_host_accessible() || !on_host);
}

/// `reserve` is safe: anyone can ask for anything.
fn what_is_no_region_is_refused(device: &Device) {
    let asks =
        [(0, 256), (0, 1 << 21), (4096, 0), (4096, 3), (4096, 3 << 20), (u64::MAX, 256), (u64::MAX, 1 << 63)];
    for memory in [device.memory(), device.staging_memory()] {
        for (bytes, align) in asks {
            assert!(memory.reserve(bytes, align).is_err(), "{bytes} bytes aligned to {align}");
            let range = memory.parted().map(|parted| parted.reserve_range(bytes, align).is_err());
            assert!(range.unwrap_or(true), "a range of {bytes} bytes aligned to {align}");
        }
    }
}

fn an_event_of_any_number_is_recorded_or_refused(device: &Device) {
    let stream = device.driver().stream().unwrap();
    for event in [1 << 20, 1 << 40, usize::MAX] {
        if stream.record(event).is_ok() {
            stream.wait(event).unwrap();
        }
        assert!(stream.has_passed(event).unwrap(), "event {event}");
    }
    stream.synchronize().unwrap();
}

/// A fragment of the device's memory and one of its staging memory.
fn fragments(device: &Device, bytes: u64) -> (Fragment, Fragment) {
    let place =
        |memory| Pool::builder(memory).build().unwrap().place("t", Request::new(bytes, 4096)).unwrap();
    (place(device.memory()), place(device.staging_memory()))
}

fn fill(fragment: &mut Fragment, seed: u8) {
    for (n, byte) in fragment.as_bytes_mut().unwrap().iter_mut().enumerate() {
        *byte = seed ^ (n as u8) ^ ((n >> 8) as u8).wrapping_mul(31);
    }
}

fn bytes_make_the_round_trip(device: &Device) {
    for bytes in [1, 2, 255, 4096, 4097, 1_000_003, 33 << 20] {
        let (there, mut staging) = fragments(device, bytes);
        let (elsewhere, _) = fragments(device, bytes + 256);
        fill(&mut staging, bytes as u8);
        let sent = staging.as_bytes().unwrap().to_vec();
        let stream = device.driver().stream().unwrap();
        let start = staging.get_mut().unwrap().as_mut_ptr();
        // SAFETY: both fragments outlive the synchronization, and nothing else touches them until then.
        unsafe { stream.copy_to_device(there.as_ptr().cast_mut(), start, bytes) }.unwrap();
        stream.synchronize().unwrap();
        staging.as_bytes_mut().unwrap().fill(0);
        // To another place on the device, in the order of the stream, and from there.
        let moved = elsewhere.as_ptr().wrapping_add(256);
        // SAFETY: as above.
        unsafe { stream.copy_on_device(moved.cast_mut(), there.as_ptr(), bytes) }.unwrap();
        // SAFETY: as above.
        unsafe { stream.copy_to_host(start, moved, bytes) }.unwrap();
        stream.synchronize().unwrap();
        assert!(staging.as_bytes().unwrap() == sent, "{bytes} bytes differ after a round trip");
    }
}

fn an_event_never_recorded_has_passed(device: &Device) {
    let stream = device.driver().stream().unwrap();
    stream.wait(0).unwrap();
    assert!(stream.has_passed(0).unwrap());
    stream.record(3).unwrap();
    stream.wait(3).unwrap();
    assert!(stream.has_passed(3).unwrap());
    stream.wait(1).unwrap();
    stream.wait(100).unwrap();
}

fn slots_are_reused_behind_events(device: &Device) {
    const SLOT: u64 = 1 << 20;
    const ROUNDS: u64 = 40;
    let (there, mut slots) = fragments(device, 2 * SLOT);
    let (target, mut back) = fragments(device, ROUNDS * SLOT);
    drop(there);
    let stream = device.driver().stream().unwrap();
    let start = slots.get_mut().unwrap().as_mut_ptr();
    for round in 0..ROUNDS {
        let slot = (round % 2) as usize;
        stream.wait(slot).unwrap();
        let at = start.wrapping_add(slot * SLOT as usize);
        // SAFETY: the slot's last copy has passed its event, and the fragments outlive the synchronization below.
        unsafe {
            at.write_bytes(round as u8 + 1, SLOT as usize);
            let to = target.as_ptr().cast_mut().wrapping_add((round * SLOT) as usize);
            stream.copy_to_device(to, at, SLOT).unwrap();
        }
        stream.record(slot).unwrap();
    }
    let to = back.get_mut().unwrap().as_mut_ptr();
    // SAFETY: as above.
    unsafe { stream.copy_to_host(to, target.as_ptr(), ROUNDS * SLOT) }.unwrap();
    stream.synchronize().unwrap();
    for (round, chunk) in back.as_bytes().unwrap().chunks(SLOT as usize).enumerate() {
        assert!(
            chunk.iter().all(|&byte| byte == round as u8 + 1),
            "slot {round} was overwritten before it was copied"
        );
    }
}

/// Rows of 40 elements, of which some are converted; and columns of bytes.
fn transforms(source: *const u8, target: *mut u8, counters: Option<*mut u64>) -> [Transform; 3] {
    let columns = Block::cut(&[50, 40], &[3, 7], &[45, 11]).unwrap();
    let conversion = |from, to| Some(Conversion::new(from, to).unwrap());
    let transform = |conversion, block, source_bytes, target_bytes| Transform {
        conversion,
        block,
        source,
        source_bytes,
        target,
        target_bytes,
        counters,
    };
    [
        transform(conversion(Type::F32, Type::F8_E4M3), Block::whole(2000), 8000, 2000),
        transform(conversion(Type::BF16, Type::F32), columns, 4000, 45 * 11 * 4),
        transform(None, columns, 2000, 45 * 11),
    ]
}

fn transforms_are_those_of_the_cpu(device: &Device) {
    let (there, mut staging) = fragments(device, 16_384);
    let stream = device.driver().stream().unwrap();
    let start = staging.get_mut().unwrap().as_mut_ptr();
    // The counters are at the target's end.
    let (to, at) = (there.as_ptr().cast_mut(), 12_288);
    for offset in [0, 1, 8, 13] {
        for (transform, n) in
            transforms(start.wrapping_add(offset), to, Some(to.wrapping_add(at).cast())).into_iter().zip(0..)
        {
            fill(&mut staging, n);
            let source = staging.as_bytes().unwrap()[offset..][..transform.source_bytes as usize].to_vec();
            let (mut counters, mut expected) = ([0_u64; 2], vec![n; transform.target_bytes as usize]);
            let on_cpu = Transform {
                source: source.as_ptr(),
                target: expected.as_mut_ptr(),
                counters: Some(counters.as_mut_ptr()),
                ..transform
            };
            let mut got = vec![0_u8; 16_384];
            // SAFETY: all memory is as long as is said, and outlives the synchronizations; nothing else touches it.
            unsafe {
                on_cpu.on_cpu().unwrap();
                stream.copy_to_device(to, got.as_ptr(), 16_384).unwrap();
                stream.transform(&transform).unwrap();
                stream.copy_to_host(got.as_mut_ptr(), to, 16_384).unwrap();
            }
            stream.synchronize().unwrap();
            assert!(got[..expected.len()] == expected, "transform {n} from offset {offset} differs");
            assert!(
                got[expected.len()..at].iter().all(|&byte| byte == 0),
                "transform {n} wrote beyond its target"
            );
            let counted = [0, 8].map(|n| u64::from_le_bytes(got[at + n..][..8].try_into().unwrap()));
            assert_eq!(counted, counters, "transform {n} from offset {offset}");
        }
    }
}

/// What a device reads of a slot is what was last written there, also where streams take turns.
fn slots_are_reused_behind_transforms(device: &Device) {
    const SLOT: u64 = 1 << 20;
    const ROUNDS: u64 = 60;
    let (there, mut slots) = fragments(device, 2 * SLOT);
    drop(there);
    let (target, mut back) = fragments(device, ROUNDS * SLOT / 2);
    let streams = [(); 2].map(|()| device.driver().stream().unwrap());
    let start = slots.get_mut().unwrap().as_mut_ptr();
    for round in 0..ROUNDS {
        let slot = (round % 2) as usize;
        streams[slot].wait(slot).unwrap();
        let source = start.wrapping_add(slot * SLOT as usize);
        let transform = Transform {
            conversion: Some(Conversion::new(Type::F32, Type::BF16).unwrap()),
            block: Block::whole(SLOT / 4),
            source,
            source_bytes: SLOT,
            target: target.as_ptr().cast_mut().wrapping_add((round * SLOT / 2) as usize),
            target_bytes: SLOT / 2,
            counters: None,
        };
        // SAFETY: the slot's last transform has passed its event, and the fragments outlive the synchronizations below.
        unsafe {
            let elements = std::slice::from_raw_parts_mut(source.cast::<f32>(), SLOT as usize / 4);
            elements.fill(round as f32);
            streams[slot].transform(&transform).unwrap();
        }
        streams[slot].record(slot).unwrap();
    }
    streams.iter().for_each(|stream| stream.synchronize().unwrap());
    let to = back.get_mut().unwrap().as_mut_ptr();
    // SAFETY: as above.
    unsafe { streams[0].copy_to_host(to, target.as_ptr(), ROUNDS * SLOT / 2) }.unwrap();
    streams[0].synchronize().unwrap();
    for (round, chunk) in back.as_bytes().unwrap().chunks(SLOT as usize / 2).enumerate() {
        let expected = ((round as f32).to_bits() >> 16) as u16;
        let (elements, _) = chunk.as_chunks();
        assert!(elements.iter().all(|&bytes| u16::from_le_bytes(bytes) == expected), "round {round} differs");
    }
}

fn a_transform_is_an_error(device: &Device) {
    let (there, staging) = fragments(device, 16_384);
    let stream = device.driver().stream().unwrap();
    for transform in transforms(staging.as_ptr(), there.as_ptr().cast_mut(), None) {
        // SAFETY: both fragments are longer than is said.
        let message = unsafe { stream.transform(&transform) }.unwrap_err().to_string();
        assert!(message.contains("do not transform"), "{message}");
    }
}

fn streams_work_at_once_from_several_threads(device: &Device) {
    let barrier = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                bytes_make_the_round_trip(device);
            });
        }
    });
}

fn the_context_can_be_made_current_and_nests(device: &Device) {
    let outer = device.make_current().unwrap();
    drop(device.make_current().unwrap());
    bytes_make_the_round_trip(device);
    drop(outer);
}
