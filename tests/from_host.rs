//! Tensors that are made of bytes in memory are as those that are loaded.

mod support;

use std::path::Path;

use support::{assert_all_back, devices, pool_for};
use tensorhold::{DType, Error, Tensor, TensorInfo};

fn info(dtype: DType, shape: &[usize]) -> TensorInfo {
    TensorInfo::new("t", dtype, shape, Path::new("of.safetensors")).unwrap()
}

#[test]
fn bytes_become_a_tensor_on_any_device() {
    let bytes: Vec<u8> = (0..=250).cycle().take(9_000_000).collect();
    for device in devices() {
        let pool = pool_for(&device);
        for (dtype, shape) in [
            (DType::U8, &[9_000_000][..]),
            (DType::F32, &[3, 5]),
            (DType::F4, &[2, 4]),
            (DType::F64, &[]),
            (DType::BF16, &[0, 7]),
        ] {
            let info = info(dtype, shape);
            let bytes = &bytes[..info.nbytes as usize];
            let tensor = Tensor::from_host(info.clone(), &device, &pool, bytes).unwrap();
            assert_eq!((tensor.info(), tensor.device().name()), (&info, device.name()));
            assert!(tensor.to_host().unwrap() == bytes);
        }
    }
}

#[test]
fn bytes_that_are_too_few_or_too_many_are_refused() {
    let [host, other] = devices();
    let pool = pool_for(&host);
    for length in [0, 59, 61] {
        let refused = Tensor::from_host(info(DType::F32, &[3, 5]), &host, &pool, &vec![0; length]);
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("60") && message.contains(&length.to_string()), "{message}");
    }
    let mut wrong = info(DType::F32, &[3, 5]);
    wrong.nbytes = 8;
    assert!(matches!(Tensor::from_host(wrong, &host, &pool, &[0; 8]), Err(Error::Tensor { .. })));
    let elsewhere = Tensor::from_host(info(DType::U8, &[1]), &other, &pool, &[7]).unwrap_err().to_string();
    assert!(elsewhere.contains("memory"), "{elsewhere}");
    assert_all_back(&pool);
}

#[test]
fn a_description_has_the_bytes_of_its_type_and_shape() {
    assert_eq!(info(DType::F32, &[3, 5]).nbytes, 60);
    assert_eq!(info(DType::F6_E3M2, &[4]).nbytes, 3);
    assert_eq!(info(DType::U8, &[usize::MAX, 2, 0]).nbytes, 0);
    for (dtype, shape) in
        [(DType::F4, vec![3]), (DType::U8, vec![usize::MAX, 2]), (DType::F64, vec![1 << 60, 16])]
    {
        let refused = TensorInfo::new("t", dtype, shape, Path::new("f"));
        assert!(matches!(refused, Err(Error::Tensor { .. })), "{refused:?}");
    }
}
