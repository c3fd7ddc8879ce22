//! The kernels on a CUDA device, if there is one.

use tensorhold::Device;
use tensorhold_kernels::{Block, Conversion, Launch, Type, gather};

use crate::driver::{Launcher, Memory, Timer, copy};
use crate::{noise, number, print, rounds};

/// Launches that are timed together.
const TOGETHER: usize = 10;

/// What the CPU makes of the source's bytes.
type Expected = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// A kernel's work, and how the CPU does the same.
struct Case {
    name: String,
    /// Read and written.
    bytes: u64,
    launch: Launch,
    written: usize,
    expected: Expected,
}

pub(crate) fn run(bytes: usize) {
    if Device::cuda_count() == 0 {
        println!("device: skipped, there is none");
        return;
    }
    let device = Device::cuda(0).unwrap();
    let _current = device.make_current().unwrap();
    // Some more, for sources that begin at an offset.
    let host = noise(bytes + 256);
    let (source, target) = (Memory::holding(&host), Memory::new(bytes));
    let (launcher, timer) = (Launcher::default(), Timer::new());
    let mut cases = conversions(bytes, &source, &target);
    cases.extend(copies(bytes, &source, &target));
    for case in &mut cases {
        if let Some(blocks) = number("BENCH_BLOCKS") {
            case.launch.grid = blocks as u32;
        }
        let (_, loading) = launcher.load(case.launch.kernel);
        if !loading.is_zero() {
            println!(
                "loaded {} in {:.1} ms",
                case.launch.kernel.name().to_string_lossy(),
                loading.as_secs_f64() * 1e3
            );
        }
        target.fill(0xee);
        launcher.run(&case.launch);
        assert!(target.read(0, case.written) == (case.expected)(&host), "{}: the bytes differ", case.name);
    }
    let mut measured = vec![("copy of the device".to_owned(), 2 * bytes as u64, Vec::new())];
    measured.extend(cases.iter().map(|case| (case.name.clone(), case.bytes, Vec::new())));
    for round in 0..=rounds() {
        let copying =
            timer.seconds(|| (0..TOGETHER).for_each(|_| copy(target.from(0), source.part(0, bytes))));
        let running = cases
            .iter()
            .map(|case| timer.seconds(|| (0..TOGETHER).for_each(|_| launcher.launch(&case.launch))));
        let all: Vec<f64> = [copying].into_iter().chain(running).collect();
        // The first round is to warm up.
        if round > 0 {
            measured.iter_mut().zip(all).for_each(|(case, seconds)| case.2.push(seconds / TOGETHER as f64));
        }
    }
    let title = format!("{device}, medians of {} rounds of {TOGETHER} launches each", rounds());
    print(&title, "the copy", measured);
}

fn conversions(bytes: usize, source: &Memory, target: &Memory) -> Vec<Case> {
    // Pairs, where the source begins, and whether values are counted.
    let cases = [
        (Type::F32, Type::BF16, 0, false),
        (Type::F32, Type::BF16, 0, true),
        (Type::F32, Type::BF16, 8, false),
        (Type::F32, Type::BF16, 1, false),
        (Type::F32, Type::F16, 0, false),
        (Type::F32, Type::F8_E4M3, 0, false),
        (Type::F64, Type::F32, 0, false),
        (Type::BF16, Type::F32, 0, false),
        (Type::BF16, Type::F16, 0, false),
        (Type::F16, Type::BF16, 0, false),
        (Type::BF16, Type::F8_E4M3, 0, false),
        (Type::F8_E4M3, Type::BF16, 0, false),
        (Type::F8_E4M3, Type::F32, 0, false),
        (Type::F8_E5M2, Type::F16, 0, false),
        (Type::F8_E5M2, Type::F8_E4M3, 0, false),
        (Type::I8, Type::BF16, 0, false),
        (Type::I64, Type::F32, 0, false),
    ];
    let case = |(from, to, offset, counted): (Type, Type, usize, bool)| {
        let conversion = Conversion::new(from, to).unwrap();
        let elements = bytes / from.bytes().max(to.bytes());
        // The last bytes of the source's memory serve as counters, and are not read by anyone.
        let counters = counted.then(|| source.part(bytes + 240, 16).address);
        let (read, written) = (elements * from.bytes(), elements * to.bytes());
        let (from_span, to_span) = (source.part(offset, read), target.part(0, written));
        let block = Block::whole(elements as u64);
        let counting = if counted { ", counted" } else { "" };
        Case {
            name: format!("convert {from} to {to}, from offset {offset}{counting}"),
            bytes: (read + written) as u64,
            launch: Launch::convert(&conversion, &block, from_span, to_span, counters).unwrap(),
            written,
            expected: Box::new(move |host| {
                let mut converted = vec![0; written];
                conversion.convert(&host[offset..offset + read], &mut converted).unwrap();
                converted
            }),
        }
    };
    cases.map(case).into()
}

fn copies(bytes: usize, source: &Memory, target: &Memory) -> Vec<Case> {
    let repacks = [0, 1, 8].map(|offset| Case {
        name: format!("repack from offset {offset}"),
        bytes: 2 * bytes as u64,
        launch: Launch::repack(source.part(offset, bytes), target.part(0, bytes)).unwrap(),
        written: bytes,
        expected: Box::new(move |host| host[offset..offset + bytes].to_vec()),
    });
    // An eighth of the columns of Llama 3 8B's down and output projections, in BF16; and of a narrow matrix, in short runs.
    let blocks = [(14_336, 1792, 0), (14_336, 1792, 2), (4096, 512, 0), (4096, 512, 2), (96, 12, 0)];
    let gathers = blocks.map(|(columns, taken, offset)| {
        let rows = bytes as u64 / 2 / columns;
        let block = Block::cut(&[rows, columns], &[0, columns / 4], &[rows, taken]).unwrap();
        let (read, written) = ((rows * columns * 2) as usize, (rows * taken * 2) as usize);
        let (from, to) = (source.part(offset, read), target.part(0, written));
        Case {
            name: format!("gather {taken} of {columns} columns, from offset {offset}"),
            bytes: 2 * written as u64,
            launch: Launch::gather(2, &block, from, to).unwrap(),
            written,
            expected: Box::new(move |host| {
                let mut gathered = vec![0; written];
                gather(2, &block, &host[offset..offset + read], &mut gathered).unwrap();
                gathered
            }),
        }
    });
    repacks.into_iter().chain(gathers).collect()
}
