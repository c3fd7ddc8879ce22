//! The kernels on a device give what the CPU's functions give, and touch nothing else.

use libtest_mimic::Failed;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tensorhold::Device;
use tensorhold_kernels::{Block, Conversion, Counts, Kernel, Launch, Overflow, Type, pairs, repack};

use self::blocks::{cases, noise};
use self::inputs::inputs;
use crate::driver::{Launcher, Memory};

#[path = "../../kernels/tests/support/blocks.rs"]
mod blocks;
#[path = "../../kernels/tests/support/inputs.rs"]
mod inputs;

/// Bytes before and behind each target.
const GUARD: usize = 256;

/// A target between guard bytes, on the device and as it should become.
struct Target {
    memory: Memory,
    expected: Vec<u8>,
    offset: usize,
    bytes: usize,
}

impl Target {
    fn new(bytes: usize, offset: usize) -> Self {
        let expected = noise(bytes + offset + 2 * GUARD, 7);
        Self { memory: Memory::holding(&expected), expected, offset: GUARD + offset, bytes }
    }

    fn span(&self) -> tensorhold_kernels::Span {
        self.memory.part(self.offset, self.bytes)
    }

    fn expected(&mut self) -> &mut [u8] {
        &mut self.expected[self.offset..][..self.bytes]
    }

    fn check(&self, what: &str) -> Result<(), Failed> {
        let got = self.memory.read(0, self.expected.len());
        match got.iter().zip(&self.expected).position(|(got, expected)| got != expected) {
            None => Ok(()),
            Some(at) => {
                let (got, expected, begin) = (got[at], self.expected[at], self.offset);
                Err(format!(
                    "{what}: byte {at} (the target begins at {begin}) is {got:#x}, expected {expected:#x}"
                )
                .into())
            }
        }
    }
}

/// Two counters on the device.
struct Counters(Memory);

impl Counters {
    fn new() -> Self {
        Self(Memory::holding(&[0; 16]))
    }

    fn address(&self) -> u64 {
        self.0.from(0).address
    }

    fn counts(&self) -> Counts {
        let bytes = self.0.read(0, 16);
        let counter = |n: usize| u64::from_le_bytes(bytes.as_chunks().0[n]);
        Counts { out_of_range: counter(0), nan: counter(1) }
    }
}

pub(crate) fn every_image_loads() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let _current = device.make_current()?;
    let launcher = Launcher::default();
    for kernel in Kernel::all() {
        launcher.load(kernel);
    }
    Ok(())
}

pub(crate) fn conversions_on_the_device_are_those_of_the_cpu() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let _current = device.make_current()?;
    let launcher = Launcher::default();
    for (from, to) in pairs() {
        let all = inputs(from);
        let on_device = Memory::holding(&all);
        for overflow in [Overflow::Torch, Overflow::Saturating, Overflow::NonSaturating] {
            if to.bytes() > 1 && overflow != Overflow::Torch {
                continue;
            }
            let conversion = Conversion::new(from, to)?.overflow(overflow);
            let elements = all.len() / from.bytes();
            let counters = Counters::new();
            let mut target = Target::new(elements * to.bytes(), 0);
            let block = Block::whole(elements as u64);
            let launch = Launch::convert(
                &conversion,
                &block,
                on_device.from(0),
                target.span(),
                Some(counters.address()),
            )?;
            launcher.run(&launch);
            let counts = conversion.convert_counted(&all, target.expected())?;
            target.check(&format!("{from} to {to}, {overflow:?}"))?;
            assert_eq!(counters.counts(), counts, "{from} to {to}, {overflow:?}");
            // Again, with another grid, onto the same counters.
            launcher.run(&Launch { grid: 3, ..launch });
            target.check(&format!("{from} to {to} with three blocks"))?;
            assert_eq!(counters.counts(), counts + counts, "{from} to {to}, {overflow:?}");
        }
    }
    Ok(())
}

pub(crate) fn conversions_of_any_length_from_any_alignment_stay_in_their_target() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let _current = device.make_current()?;
    let launcher = Launcher::default();
    for (from, to) in pairs() {
        let conversion = Conversion::new(from, to)?;
        for (n, elements) in
            [0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 64, 65, 255, 1023, 4099].into_iter().enumerate()
        {
            for source_offset in [0, from.bytes(), 1, 7, 8 + n % 8] {
                let bytes = elements * from.bytes();
                let source = noise(source_offset + bytes, (n + 1) as u64);
                let on_device = Memory::holding(&source);
                let mut target = Target::new(elements * to.bytes(), n % 7 * to.bytes());
                let block = Block::whole(elements as u64);
                let launch =
                    Launch::convert(&conversion, &block, on_device.from(source_offset), target.span(), None)?;
                launcher.run(&launch);
                conversion.convert(&source[source_offset..], target.expected())?;
                target.check(&format!("{elements} of {from} from {source_offset} to {to}"))?;
            }
        }
    }
    Ok(())
}

pub(crate) fn converted_blocks_on_the_device_are_those_of_the_cpu() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let _current = device.make_current()?;
    let (launcher, mut runner) = (Launcher::default(), TestRunner::deterministic());
    let all: Vec<(Type, Type)> = pairs().collect();
    for n in 0..2000 {
        let case = cases(if n % 5 == 0 { 3000 } else { 70 }).new_tree(&mut runner)?.current();
        let (from, to) = all[n % all.len()];
        let (conversion, block) = (Conversion::new(from, to)?, case.block());
        let offset = n % 17;
        let source = noise(offset + case.source_elements() * from.bytes(), n as u64 + 1);
        let (on_device, counters) = (Memory::holding(&source), Counters::new());
        let mut target = Target::new(case.target_elements() * to.bytes(), n / 2 % 9 * to.bytes());
        let launch = Launch::convert(
            &conversion,
            &block,
            on_device.from(offset),
            target.span(),
            Some(counters.address()),
        )?;
        launcher.run(&launch);
        let counts = conversion.gather_counted(&block, &source[offset..], target.expected())?;
        target.check(&format!("{from} to {to}, {case:?}"))?;
        assert_eq!(counters.counts(), counts, "{from} to {to}, {case:?}");
    }
    Ok(())
}

pub(crate) fn repack_copies_from_any_offset_to_any_other() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let _current = device.make_current()?;
    let launcher = Launcher::default();
    let lengths = (0..67).chain([100, 127, 129, 255, 1000, 4096, 4099, 65_537, 3_000_001]);
    for (n, bytes) in lengths.enumerate() {
        for source_offset in 0..16 {
            for target_offset in [0, 1 + (n + source_offset) % 15] {
                let source = noise(source_offset + bytes, (n + 1) as u64);
                let on_device = Memory::holding(&source);
                let mut target = Target::new(bytes, target_offset);
                launcher.run(&Launch::repack(on_device.from(source_offset), target.span())?);
                repack(&source[source_offset..], target.expected())?;
                target.check(&format!("{bytes} bytes from {source_offset} to {target_offset}"))?;
            }
        }
    }
    Ok(())
}

pub(crate) fn gather_on_the_device_copies_what_the_indices_say() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let _current = device.make_current()?;
    let (launcher, mut runner) = (Launcher::default(), TestRunner::deterministic());
    let mut kernels = std::collections::BTreeSet::new();
    for n in 0..3000 {
        let case = cases(if n % 5 == 0 { 5000 } else { 70 }).new_tree(&mut runner)?.current();
        let size = [1, 2, 4, 8, 16, 3][n % 6];
        let offset = if n % 3 == 0 { 0 } else { n / 3 % 16 };
        let source = noise(offset + case.source_elements() * size, n as u64 + 1);
        let on_device = Memory::holding(&source);
        let mut target = Target::new(case.target_elements() * size, if n % 2 == 0 { 0 } else { n / 2 % 16 });
        let launch = Launch::gather(size, &case.block(), on_device.from(offset), target.span())?;
        kernels.insert(launch.kernel.name());
        launcher.run(&launch);
        let before = target.expected().to_vec();
        let copied =
            case.expected((&source[offset..], size), (&before, size), |from, to| to.copy_from_slice(from));
        target.expected().copy_from_slice(&copied);
        target.check(&format!("{size} bytes each, {case:?}"))?;
    }
    assert_eq!(kernels.len(), 6, "{kernels:?}");
    Ok(())
}

/// About 9 GiB of device memory.
pub(crate) fn more_than_4_gib_move_and_convert() -> Result<(), Failed> {
    const BYTES: usize = (4 << 30) + 123_457;
    const WINDOW: usize = 100_000;
    let device = Device::cuda(0)?;
    let _current = device.make_current()?;
    let launcher = Launcher::default();
    let (source, target) = (Memory::new(BYTES + 3), Memory::new(BYTES + GUARD));
    source.fill(0x35);
    let windows = [0, (2 << 30) - WINDOW / 2, (4 << 30) - WINDOW / 2, BYTES - WINDOW];
    for (n, at) in windows.into_iter().enumerate() {
        source.write(3 + at, &noise(WINDOW, n as u64 + 1));
    }
    let check = |what: &str, expected: &dyn Fn(&[u8]) -> Vec<u8>| {
        for at in windows.into_iter().chain([1 << 30, 3 << 30]) {
            let wanted = expected(&source.read(3 + at, WINDOW));
            assert!(target.read(at, WINDOW) == wanted, "{what}: the bytes at {at} differ");
        }
        assert!(target.read(BYTES, GUARD).iter().all(|&byte| byte == 0xee), "{what}: the guard was written");
    };
    target.fill(0xee);
    launcher.run(&Launch::repack(source.from(3), target.part(0, BYTES))?);
    check("repack", &<[u8]>::to_vec);
    target.fill(0xee);
    let conversion = Conversion::new(Type::I8, Type::F8_E4M3)?;
    let block = Block::whole(BYTES as u64);
    let counters = Counters::new();
    let launch = Launch::convert(
        &conversion,
        &block,
        source.from(3),
        target.part(0, BYTES),
        Some(counters.address()),
    )?;
    launcher.run(&launch);
    check("convert", &|source| {
        let mut converted = vec![0; source.len()];
        conversion.convert(source, &mut converted).unwrap();
        converted
    });
    assert_eq!(counters.counts(), Counts::default());
    // Rows that are further apart than 32 bits reach.
    let far = Block {
        counts: [1, 1, 2],
        source_strides: [0, 0, (4 << 30) - 7],
        target_strides: [0, 0, (4 << 30) + 1],
        run: 999,
        ..Block::whole(0)
    };
    launcher.run(&Launch::gather(1, &far, source.from(3), target.part(0, BYTES))?);
    for row in [0, 1] {
        let (from, to) = (row * ((4 << 30) - 7), row * ((4 << 30) + 1));
        assert!(target.read(to, 999) == source.read(3 + from, 999), "row {row} differs");
    }
    Ok(())
}
