//! What was loaded, beside what the files hold.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tensorhold::Weights;

/// Every tensor is, byte for byte, what the file holds at the offset that the `safetensors` crate says.
pub(crate) fn holds_its_files(weights: &Weights) {
    for path in weights.iter().map(|view| Arc::clone(&view.info().file)).collect::<BTreeSet<_>>() {
        let file = File::open(&path).unwrap();
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).unwrap();
        let mut header = vec![0; u64::from_le_bytes(length) as usize];
        file.read_exact_at(&mut header, 8).unwrap();
        let metadata: safetensors::tensor::Metadata = serde_json::from_slice(&header).unwrap();
        for (name, info) in metadata.tensors() {
            let mut expected = vec![0; info.data_offsets.1 - info.data_offsets.0];
            file.read_exact_at(&mut expected, (8 + header.len() + info.data_offsets.0) as u64).unwrap();
            assert!(weights.view(&name).unwrap().to_host().unwrap() == expected, "{name} differs");
        }
    }
}
