//! Descriptions of tensors, and what is asked of them: types and cuts.

use std::ffi::OsStr;

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use tensorhold::allocator::Quoted;
use tensorhold::{Cut, DType, Loader, TensorInfo};

use crate::arguments::{self, Whole, wrong_type};
use crate::errors::{self, Kind};
use crate::pickle::{self, Reduced};

/// A tensor as it is on its device; in a rule, as its file has it.
#[pyclass(name = "TensorInfo", module = "tensorhold", frozen)]
pub(crate) struct PyInfo(pub(crate) TensorInfo);

#[pymethods]
impl PyInfo {
    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    /// As the format spells it: `F32`, `BF16`, `F8_E4M3`, ...
    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.dtype.name()
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &*self.0.shape)
    }

    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.nbytes
    }

    /// The file that it is from.
    #[getter]
    fn file(&self) -> &OsStr {
        self.0.file.as_os_str()
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        pickle::reduce(py, "TensorInfo", pickle::info_state(py, &self.0)?)
    }

    fn __repr__(&self) -> String {
        let TensorInfo { name, dtype, shape, nbytes, .. } = &self.0;
        format!("TensorInfo({name:?}, {dtype}, {shape:?}, {nbytes} bytes)")
    }
}

/// A part of a tensor along one dimension.
#[pyclass(name = "Cut", module = "tensorhold", frozen, from_py_object)]
#[derive(Clone)]
pub(crate) struct PyCut {
    cut: Cut,
    /// The function that makes it, and its arguments.
    made_by: (&'static str, [usize; 3]),
}

impl PyCut {
    /// The cut that a pickle has.
    pub(crate) fn restored(
        py: Python<'_>,
        (function, dim, first, second): (String, usize, usize, usize),
    ) -> PyResult<Self> {
        let numbers = [dim, first, second];
        match &*function {
            "narrow" => Ok(Self { cut: Cut::narrow(dim, first, second), made_by: ("narrow", numbers) }),
            "shard" => Ok(Self { cut: Cut::shard(dim, first, second), made_by: ("shard", numbers) }),
            "chunk" => Ok(Self { cut: Cut::chunk(dim, first, second), made_by: ("chunk", numbers) }),
            _ => Err(pickle::damaged(py, "Cut")),
        }
    }
}

#[pymethods]
impl PyCut {
    /// `length` elements of dimension `dim`, from `start` on.
    #[staticmethod]
    fn narrow(dim: &Bound<'_, PyAny>, start: &Bound<'_, PyAny>, length: &Bound<'_, PyAny>) -> PyResult<Self> {
        let [dim, start, length] =
            numbers("Cut.narrow", [("dim", dim), ("start", start), ("length", length)])?;
        Ok(Self { cut: Cut::narrow(dim, start, length), made_by: ("narrow", [dim, start, length]) })
    }

    /// Part `rank` of `world` parts of the same length.
    #[staticmethod]
    fn shard(dim: &Bound<'_, PyAny>, rank: &Bound<'_, PyAny>, world: &Bound<'_, PyAny>) -> PyResult<Self> {
        let [dim, rank, world] = numbers("Cut.shard", [("dim", dim), ("rank", rank), ("world", world)])?;
        Ok(Self { cut: Cut::shard(dim, rank, world), made_by: ("shard", [dim, rank, world]) })
    }

    /// Part `rank` of `world` parts as torch's `chunk` makes them: the last ones may be shorter.
    #[staticmethod]
    fn chunk(dim: &Bound<'_, PyAny>, rank: &Bound<'_, PyAny>, world: &Bound<'_, PyAny>) -> PyResult<Self> {
        let [dim, rank, world] = numbers("Cut.chunk", [("dim", dim), ("rank", rank), ("world", world)])?;
        Ok(Self { cut: Cut::chunk(dim, rank, world), made_by: ("chunk", [dim, rank, world]) })
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        let (function, [dim, first, second]) = self.made_by;
        pickle::reduce(py, "Cut", (function, dim, first, second))
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.cut)
    }
}

/// The numbers among a function's arguments.
pub(crate) fn numbers<const N: usize>(
    function: &str,
    arguments: [(&str, &Bound<'_, PyAny>); N],
) -> PyResult<[usize; N]> {
    let mut numbers = [0; N];
    for (number, (name, value)) in numbers.iter_mut().zip(arguments) {
        *number = arguments::number(&format!("argument {name} of {function}"), value, &Whole::ANY)?;
    }
    Ok(numbers)
}

/// One cut or several.
pub(crate) fn cuts(subject: &str, found: &Bound<'_, PyAny>) -> PyResult<Vec<Cut>> {
    const EXPECTED: &str = "a tensorhold.Cut, or several of them";
    if found.is_none() {
        return Ok(Vec::new());
    }
    if let Ok(cut) = found.cast::<PyCut>() {
        return Ok(vec![cut.get().cut]);
    }
    let several = found.try_iter().map_err(|_| wrong_type(subject, found, EXPECTED))?;
    several
        .map(|cut| {
            let cut = cut?;
            let found = cut.cast::<PyCut>().map_err(|_| wrong_type(subject, &cut, EXPECTED))?;
            Ok(found.get().cut)
        })
        .collect()
}

/// A type by the name that the format, torch, NumPy or JAX has for it: `BF16`, `bfloat16`, `torch.bfloat16`.
pub(crate) fn dtype(spelled: &Bound<'_, PyAny>) -> PyResult<DType> {
    dtype_of("option dtype", spelled)
}

/// The same, for an argument that messages call `subject`.
pub(crate) fn dtype_of(subject: &str, spelled: &Bound<'_, PyAny>) -> PyResult<DType> {
    one_of(DType::ALL, subject, spelled)
}

/// The same, where a load converts to it: a text that is no type is answered with those that it converts to.
pub(crate) fn target(subject: &str, spelled: &Bound<'_, PyAny>) -> PyResult<DType> {
    one_of(&Loader::DTYPES, subject, spelled)
}

fn one_of(expected: &[DType], subject: &str, spelled: &Bound<'_, PyAny>) -> PyResult<DType> {
    let text = spelled.str()?.to_string();
    // `torch.float32`, `<class 'numpy.float32'>`, `<class 'jax.numpy.bfloat16'>`
    let name = text.trim_end_matches("'>").rsplit('.').next().unwrap_or_default();
    by_name(name).ok_or_else(|| {
        let known: Vec<_> = expected.iter().map(|dtype| dtype.name()).collect();
        let message = format!(
            "{subject}: got {}, expected one of {}; name one of these",
            Quoted(&text),
            known.join(", ")
        );
        errors::new(spelled.py(), Kind::Option, message)
    })
}

fn by_name(name: &str) -> Option<DType> {
    if let Some(&dtype) = DType::ALL.iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name)) {
        return Some(dtype);
    }
    Some(match name {
        "bool" | "bool_" => DType::BOOL,
        "uint8" => DType::U8,
        "int8" => DType::I8,
        "uint16" => DType::U16,
        "int16" | "short" => DType::I16,
        "uint32" => DType::U32,
        "int32" | "int" => DType::I32,
        "uint64" => DType::U64,
        "int64" | "long" => DType::I64,
        "float16" | "half" => DType::F16,
        "bfloat16" => DType::BF16,
        "float32" | "float" => DType::F32,
        "float64" | "double" => DType::F64,
        "complex64" => DType::C64,
        "float8_e4m3fn" => DType::F8_E4M3,
        "float8_e5m2" => DType::F8_E5M2,
        "float8_e8m0fnu" => DType::F8_E8M0,
        "float8_e4m3fnuz" => DType::F8_E4M3FNUZ,
        "float8_e5m2fnuz" => DType::F8_E5M2FNUZ,
        "float4_e2m1fn_x2" | "float4_e2m1fn" => DType::F4,
        "float6_e2m3fn" => DType::F6_E2M3,
        "float6_e3m2fn" => DType::F6_E3M2,
        _ => return None,
    })
}
