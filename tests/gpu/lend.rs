//! Tensors lent to cudarc.

use cudarc::driver::CudaContext;
use libtest_mimic::Failed;
use tensorhold::{Device, Loader};

use crate::support::{bytes_tensor, single, tensor};

pub(crate) fn cudarc_reads_and_writes_what_is_lent() -> Result<(), Failed> {
    let tensors = [
        tensor("floats", "F32", &[1000, 10], 40_000),
        bytes_tensor("bytes", 123_457),
        bytes_tensor("empty", 0),
    ];
    let (_folder, path) = single(&tensors);
    let device = Device::cuda(0)?;
    let mut weights = Loader::new(device.clone()).files([path]).load()?;
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    {
        let lent = weights.view("floats")?.lend::<f32>(&stream)?;
        let read = stream.clone_dtoh(&*lent)?;
        let expected =
            tensors[0].bytes.chunks_exact(4).map(|four| u32::from_le_bytes(four.try_into().unwrap()));
        assert!(read.iter().map(|float| float.to_bits()).eq(expected));
        for spec in &tensors {
            let lent = weights.view(&spec.name)?.lend_bytes(&stream)?;
            assert_eq!(lent.len(), spec.bytes.len());
            if !spec.bytes.is_empty() {
                assert!(stream.clone_dtoh(&*lent)? == spec.bytes, "the bytes of {} differ", spec.name);
            }
        }
        let wrong = weights.view("bytes")?.lend::<f32>(&stream);
        assert!(wrong.is_err(), "bytes were lent as floats");
    }
    let written: Vec<f32> = (0..10_000_u16).map(f32::from).collect();
    {
        let mut view = weights.get_mut("floats")?.expect("no one else owns it");
        let mut lent = view.lend_mut::<f32>(&stream)?;
        stream.memcpy_htod(&written, &mut lent.as_view_mut())?;
        stream.synchronize()?;
    }
    let bytes: Vec<u8> = written.iter().flat_map(|float| float.to_le_bytes()).collect();
    assert!(weights.view("floats")?.to_host()? == bytes);
    // Lending gives nothing away: the memory goes back as ever.
    let held = weights.tensor("floats")?;
    assert!(weights.get_mut("floats")?.is_none(), "it is lent for writing though another owns it");
    drop(held);
    let pool = weights.pool().clone();
    weights.close();
    pool.trim();
    assert_eq!((pool.stats().reserved_bytes, pool.stats().lost_bytes), (0, 0));
    Ok(())
}
