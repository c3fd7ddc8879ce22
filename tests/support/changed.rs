//! Tensors that are converted and cut on their way, and what must come of that.

use std::fs;
use std::ops::Range;
use std::path::Path;

use tensorhold::kernels::{Conversion, Overflow, Type};
use tensorhold::{Cut, DType, Loader, Weights};

use super::{Spec, file_bytes, header, tensor};

/// A tensor of a file, and what is asked of it.
#[derive(Debug, Clone)]
pub struct Changed {
    pub spec: Spec,
    pub cuts: Vec<Cut>,
    /// The parts of its dimensions that the cuts leave.
    pub ranges: Vec<Range<usize>>,
    pub dtype: Option<DType>,
}

/// A type by the name that the format has for it.
pub fn dtype(name: &str) -> DType {
    DType::ALL.iter().copied().find(|dtype| dtype.name() == name).unwrap()
}

fn kernel_type(name: &str) -> Type {
    Type::ALL.iter().copied().find(|kernel| kernel.name() == name).unwrap()
}

impl Changed {
    /// A tensor of any bytes.
    pub fn new(
        name: &str,
        dtype_name: &'static str,
        shape: &[usize],
        ranges: &[Range<usize>],
        to: Option<DType>,
    ) -> Self {
        let nbytes = shape.iter().product::<usize>() * dtype(dtype_name).bits() as usize / 8;
        let spec = tensor(name, dtype_name, shape, nbytes);
        let cut = |(dim, (range, &there)): (usize, (&Range<usize>, &usize))| {
            (*range != (0..there)).then(|| Cut::narrow(dim, range.start, range.len()))
        };
        let cuts = ranges.iter().zip(shape).enumerate().filter_map(cut).collect();
        Self { spec, cuts, ranges: ranges.to_vec(), dtype: to }
    }

    /// A tensor that stays as it is.
    pub fn whole(name: &str, dtype_name: &'static str, shape: &[usize]) -> Self {
        let ranges: Vec<_> = shape.iter().map(|&there| 0..there).collect();
        Self::new(name, dtype_name, shape, &ranges, None)
    }

    /// What must come of it, by index and by element; the elements are whole bytes.
    pub fn expected(&self, overflow: Overflow) -> Spec {
        let Self { spec, ranges, .. } = self;
        let bytes = dtype(spec.dtype).bits() as usize / 8;
        let shape: Vec<usize> = ranges.iter().map(Range::len).collect();
        let mut sliced = Vec::new();
        for n in 0..shape.iter().product() {
            let (mut rest, mut element, mut stride) = (n, 0, 1);
            for (&there, range) in spec.shape.iter().zip(ranges).rev() {
                element += (range.start + rest % range.len()) * stride;
                rest /= range.len();
                stride *= there;
            }
            sliced.extend_from_slice(&spec.bytes[element * bytes..][..bytes]);
        }
        let to = self.dtype.map_or(spec.dtype, DType::name);
        let bytes = if to == spec.dtype { sliced } else { convert(spec.dtype, to, overflow, &sliced) };
        Spec { name: spec.name.clone(), dtype: to, shape, bytes }
    }
}

/// The conversion of bytes that lie in memory.
pub fn convert(from: &str, to: &str, overflow: Overflow, bytes: &[u8]) -> Vec<u8> {
    let conversion = Conversion::new(kernel_type(from), kernel_type(to)).unwrap().overflow(overflow);
    let mut converted = vec![0; bytes.len() / conversion.from().bytes() * conversion.to().bytes()];
    conversion.convert(bytes, &mut converted).unwrap();
    converted
}

/// Writes a file with these tensors, whose data begins `shift` bytes behind a multiple of 16.
pub fn write_shifted(path: &Path, tensors: &[Spec], shift: usize) {
    let data: Vec<u8> = tensors.iter().flat_map(|tensor| tensor.bytes.iter().copied()).collect();
    let mut header = header(tensors);
    while (8 + header.len()) % 16 != shift % 16 {
        header.push(' ');
    }
    fs::write(path, file_bytes(&header, &data)).unwrap();
    fs::File::open(path).unwrap().sync_all().unwrap();
}

/// Asks for the changes.
pub fn asking(loader: Loader, tensors: &[Changed]) -> Loader {
    let (cuts, types) = (tensors.to_vec(), tensors.to_vec());
    let find = |tensors: &[Changed], name: &str| {
        tensors.iter().find(|tensor| tensor.spec.name == name).cloned().unwrap()
    };
    loader
        .cut_by(move |info| find(&cuts, &info.name).cuts)
        .dtype_by(move |info| find(&types, &info.name).dtype)
}

/// The weights are what is expected, and their descriptions say so.
pub fn assert_changed(weights: &Weights, expected: &[Spec]) {
    super::assert_holds(weights, expected);
    for spec in expected {
        let info = weights.info(&spec.name).unwrap();
        assert_eq!((&*info.shape, info.nbytes), (&*spec.shape, spec.bytes.len() as u64));
    }
    assert_eq!(weights.report().bytes, expected.iter().map(|spec| spec.bytes.len() as u64).sum::<u64>());
}
