//! The suite that every device has to pass.

use std::sync::Barrier;
use std::thread;

use tensorhold::Device;
use tensorhold::allocator::{Fragment, Pool, Request, conformance};

/// Runs all checks against one device. Needs room for about 200 MiB of its memory.
pub fn conforms(device: &Device) {
    conformance::memory(device.memory());
    conformance::memory(device.staging_memory());
    bytes_make_the_round_trip(device);
    an_event_never_recorded_has_passed(device);
    slots_are_reused_behind_events(device);
    streams_work_at_once_from_several_threads(device);
    the_context_can_be_made_current_and_nests(device);
    assert!(device.enable_peer_access(device).is_err(), "a device is not its own peer");
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
