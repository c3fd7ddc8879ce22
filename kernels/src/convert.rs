//! [`Conversion`]: elements of one type become elements of another.

use std::iter::Sum;
use std::ops::{Add, AddAssign};

use crate::block::Block;
use crate::error::{Error, Result};
use crate::numbers::{
    BF16, BOOL, F8_E4M3, F8_E4M3FNUZ, F8_E5M2, F8_E5M2FNUZ, F8_E8M0, F16, F32, F64, Format, I8, I16, I32,
    I64, Target, U8, U16, U32, U64, is_nan,
};
use crate::types::Type;
use crate::wide;

/// What becomes of a value that is too large for an 8-bit float. Other targets have infinities, and use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Overflow {
    /// What torch does (2.15): E4M3 as with [`Saturating`](Self::Saturating), E5M2 as with [`NonSaturating`](Self::NonSaturating).
    #[default]
    Torch,
    /// The largest finite value, also of infinities; a NaN stays one. The saturating mode of the OCP specification.
    Saturating,
    /// Infinity in E5M2, and NaN in E4M3, which has no infinity. The non-saturating mode of the OCP specification, and of torch 2.11.
    NonSaturating,
}

impl Overflow {
    /// Whether values beyond the range of this target become its largest.
    pub(crate) fn saturates(self, to: Type) -> bool {
        match self {
            Overflow::Torch => to == Type::F8_E4M3,
            Overflow::Saturating => true,
            Overflow::NonSaturating => false,
        }
    }
}

/// What a conversion met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Counts {
    /// Values that are not NaN, and would round to more than the largest finite value of the target. An infinity that stays one is not counted.
    pub out_of_range: u64,
    /// NaN in the source.
    pub nan: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            out_of_range: self.out_of_range.saturating_add(other.out_of_range),
            nan: self.nan.saturating_add(other.nan),
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Add::add)
    }
}

/// A conversion from one type to another. Free to make and to copy.
///
/// Every conversion goes by way of F32, as in torch: an F64 or a 64-bit integer is rounded to F32, and that to the target. Each step is to nearest
/// even, with subnormals. `docs/kernels.md` has the rules for NaN.
#[derive(Debug, Clone, Copy)]
pub struct Conversion {
    from: Type,
    to: Type,
    overflow: Overflow,
    functions: Functions,
}

/// The functions of a pair of types: over whole elements, as many in the source as in the target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Functions {
    pub(crate) convert: fn(&[u8], &mut [u8], bool),
    pub(crate) count: fn(&[u8], bool) -> Counts,
}

impl Conversion {
    /// The conversion from `from` to `to`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none. None is from a type to itself.
    pub fn new(from: Type, to: Type) -> Result<Self> {
        let functions = functions(from, to).ok_or(Error::Unsupported { from, to })?;
        Ok(Self { from, to, overflow: Overflow::default(), functions })
    }

    /// Says what becomes of values that are too large for an 8-bit float.
    #[must_use]
    pub fn overflow(self, overflow: Overflow) -> Self {
        Self { overflow, ..self }
    }

    /// The source's type.
    pub fn from(&self) -> Type {
        self.from
    }

    /// The target's type.
    pub fn to(&self) -> Type {
        self.to
    }

    /// Whether values beyond the range become the largest finite value.
    pub(crate) fn saturates(&self) -> bool {
        self.overflow.saturates(self.to)
    }

    /// Converts all of `source` into all of `target`. Neither needs any alignment. One thread works; parts of the two that belong together can be
    /// given to several.
    ///
    /// # Errors
    /// [`Error::Length`] when `source` is no whole number of elements, or `target` is not as many.
    pub fn convert(&self, source: &[u8], target: &mut [u8]) -> Result<()> {
        self.check(source, target)?;
        (self.functions.convert)(source, target, self.saturates());
        Ok(())
    }

    /// As [`convert`](Self::convert), and says what it met.
    ///
    /// # Errors
    /// As [`convert`](Self::convert).
    pub fn convert_counted(&self, source: &[u8], target: &mut [u8]) -> Result<Counts> {
        self.check(source, target)?;
        Ok(self.counted(source, target))
    }

    /// Converts a block of `source` into `target`, where the block says, and leaves the rest of `target` as it is.
    ///
    /// # Errors
    /// [`Error::Length`] when either slice is no whole number of elements, [`Error::Block`] when the block reaches beyond one of them.
    pub fn gather(&self, block: &Block, source: &[u8], target: &mut [u8]) -> Result<()> {
        self.each_run(block, source, target, |source, target| {
            (self.functions.convert)(source, target, self.saturates());
        })
    }

    /// As [`gather`](Self::gather), and says what it met.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub fn gather_counted(&self, block: &Block, source: &[u8], target: &mut [u8]) -> Result<Counts> {
        let mut counts = Counts::default();
        self.each_run(block, source, target, |source, target| counts += self.counted(source, target))?;
        Ok(counts)
    }

    /// Converts what fits into a cache, and counts in it, so that the source is read from memory once.
    fn counted(&self, source: &[u8], target: &mut [u8]) -> Counts {
        const ELEMENTS: usize = 2048;
        let targets = target.chunks_mut(ELEMENTS * self.to.bytes());
        let parts = source.chunks(ELEMENTS * self.from.bytes()).zip(targets);
        parts
            .map(|(source, target)| {
                (self.functions.convert)(source, target, self.saturates());
                (self.functions.count)(source, self.saturates())
            })
            .sum()
    }

    fn check(&self, source: &[u8], target: &[u8]) -> Result<()> {
        let wrong = |what, got: usize, expected| {
            Err(Error::Length { operation: "convert", what, got: got as u64, expected })
        };
        if !source.len().is_multiple_of(self.from.bytes()) {
            let expected = format!("a multiple of {}, the size of an {}", self.from.bytes(), self.from);
            return wrong("source", source.len(), expected);
        }
        let expected = (source.len() / self.from.bytes()).checked_mul(self.to.bytes());
        if expected != Some(target.len()) {
            let elements = source.len() / self.from.bytes();
            let expected = format!("{elements} elements of {} bytes", self.to.bytes());
            return wrong("target", target.len(), expected);
        }
        Ok(())
    }

    fn each_run(
        &self,
        block: &Block,
        source: &[u8],
        target: &mut [u8],
        run: impl FnMut(&[u8], &mut [u8]),
    ) -> Result<()> {
        block.each_run("convert a block", (source, self.from.bytes()), (target, self.to.bytes()), run)
    }
}

/// Converts all of `source` into all of `target`, as torch does it, and says what it met.
///
/// # Errors
/// [`Error::Unsupported`] when there is no such conversion, and as [`Conversion::convert`].
pub fn convert(from: Type, to: Type, source: &[u8], target: &mut [u8]) -> Result<Counts> {
    Conversion::new(from, to)?.convert_counted(source, target)
}

/// Whether there is a conversion from `from` to `to`.
pub fn is_supported(from: Type, to: Type) -> bool {
    functions(from, to).is_some()
}

/// Every pair of types that there is a conversion for, from the first to the second.
pub fn pairs() -> impl Iterator<Item = (Type, Type)> {
    let all = Type::ALL.iter().flat_map(|&from| Type::ALL.iter().map(move |&to| (from, to)));
    all.filter(|&(from, to)| is_supported(from, to))
}

fn functions(from: Type, to: Type) -> Option<Functions> {
    macro_rules! from {
        ($($name:ident)*) => {
            match from { $(Type::$name => to_any::<$name>(to),)* }
        };
    }
    if from == to {
        return None;
    }
    from!(F64 F32 F16 BF16 F8_E4M3 F8_E5M2 F8_E4M3FNUZ F8_E5M2FNUZ F8_E8M0 U8 I8 U16 I16 U32 I32 U64 I64 BOOL)
}

fn to_any<S: Format>(to: Type) -> Option<Functions> {
    Some(match to {
        Type::F32 => pair::<S, F32>(),
        Type::F16 => pair::<S, F16>(),
        Type::BF16 => pair::<S, BF16>(),
        Type::F8_E4M3 => pair::<S, F8_E4M3>(),
        Type::F8_E5M2 => pair::<S, F8_E5M2>(),
        _ => return None,
    })
}

fn pair<S: Format, T: Target>() -> Functions {
    let functions =
        wide::functions::<S, T>().unwrap_or(Functions { convert: by_element::<S, T>, count: count::<S, T> });
    // The table's elements come one by one, whatever vectors there are.
    if S::TYPE.bytes() == 1 { Functions { convert: by_table::<S, T>, ..functions } } else { functions }
}

// Inlined into what has longer vectors.
#[inline(always)]
pub(crate) fn by_element<S: Format, T: Target>(source: &[u8], target: &mut [u8], saturating: bool) {
    for (to, &from) in T::elements_mut(target).iter_mut().zip(S::elements(source)) {
        *to = T::from_f32(S::to_f32(from), saturating);
    }
}

/// For sources of one byte: each of their values is converted once.
fn by_table<S: Format, T: Target>(source: &[u8], target: &mut [u8], saturating: bool) {
    let values: [u8; 256] = std::array::from_fn(|value| value as u8);
    if source.len() < values.len() {
        return by_element::<S, T>(source, target, saturating);
    }
    let mut table = [T::from_f32(0, saturating); 256];
    for (to, &from) in table.iter_mut().zip(S::elements(&values)) {
        *to = T::from_f32(S::to_f32(from), saturating);
    }
    for (to, &from) in T::elements_mut(target).iter_mut().zip(source) {
        *to = table[usize::from(from)];
    }
}

#[inline(always)]
pub(crate) fn count<S: Format, T: Target>(source: &[u8], saturating: bool) -> Counts {
    let can_exceed = S::MOST >= T::LIMIT;
    let keeps_infinity = T::HAS_INFINITY && !(T::TYPE.bytes() == 1 && saturating);
    let (mut out_of_range, mut nan) = (0, 0);
    if !(can_exceed || S::HAS_NAN) {
        return Counts::default();
    }
    // Sums of 32 bits, as long as elements: at most as many as there are in a part that `counted` makes, or in a run.
    for part in S::elements(source).chunks(1 << 20) {
        let (mut exceeding, mut nans) = (0_u32, 0_u32);
        for &element in part {
            let bits = S::to_f32(element);
            let kept = keeps_infinity && S::is_infinite(element);
            exceeding += u32::from((bits & !(1 << 31)) >= T::LIMIT && !is_nan(bits) && !kept);
            nans += u32::from(is_nan(bits));
        }
        out_of_range += u64::from(exceeding);
        nan += u64::from(nans);
    }
    Counts { out_of_range, nan }
}
