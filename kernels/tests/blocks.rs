//! The CPU's gather and repack against an oracle that goes index by index, and the descriptions of blocks.

#[path = "support/blocks.rs"]
mod blocks;

use blocks::{cases, noise};
use proptest::prelude::*;
use tensorhold_kernels::{Block, Conversion, Error, Launch, Span, Type, gather, repack};

proptest! {
    #[test]
    fn gather_copies_what_the_indices_say_and_nothing_else(case in cases(100), size in 1..9_usize) {
        let source = noise(case.source_elements() * size, 1);
        let mut target = noise(case.target_elements() * size, 2);
        let expected = case.expected((&source, size), (&target, size), |from, to| to.copy_from_slice(from));
        gather(size, &case.block(), &source, &mut target).unwrap();
        prop_assert!(target == expected);
    }

    #[test]
    fn a_converted_block_is_the_block_of_what_was_converted(case in cases(40), seed in any::<u64>()) {
        for (from, to) in [(Type::F32, Type::BF16), (Type::F8_E4M3, Type::F32), (Type::I64, Type::F8_E5M2)] {
            let conversion = Conversion::new(from, to).unwrap();
            let source = noise(case.source_elements() * from.bytes(), seed);
            let mut target = noise(case.target_elements() * to.bytes(), 2);
            let (source_size, target_size) = (from.bytes(), to.bytes());
            let expected = case.expected((&source, source_size), (&target, target_size), |from, to| {
                conversion.convert(from, to).unwrap();
            });
            let counts = conversion.gather_counted(&case.block(), &source, &mut target).unwrap();
            prop_assert!(target == expected);
            let mut each = tensorhold_kernels::Counts::default();
            for (from, _) in case.elements() {
                let element = &source[from * source_size..][..source_size];
                each += conversion.convert_counted(element, &mut vec![0; target_size]).unwrap();
            }
            prop_assert_eq!(counts, each);
        }
    }

    #[test]
    fn repack_copies_from_any_offset(offset in 0..64_usize, bytes in 0..300_usize) {
        let source = noise(offset + bytes, 3);
        let mut target = vec![0xaa; bytes + 2];
        repack(&source[offset..], &mut target[1..=bytes]).unwrap();
        prop_assert!(target[1..=bytes] == source[offset..]);
        prop_assert_eq!((target[0], target[bytes + 1]), (0xaa, 0xaa));
    }
}

#[test]
fn columns_of_several_tensors_come_to_lie_side_by_side() {
    let (a, b) = (*b"abcdefgh", *b"ABCDEFGHIJKL");
    let mut both = [b'.'; 10];
    gather(1, &Block::copy(&[2, 2], &[2, 4], &[0, 1], &[2, 5], &[0, 0]).unwrap(), &a, &mut both).unwrap();
    gather(1, &Block::copy(&[2, 3], &[2, 6], &[0, 3], &[2, 5], &[0, 2]).unwrap(), &b, &mut both).unwrap();
    assert_eq!(&both, b"bcDEFfgJKL");
}

#[test]
fn a_step_above_one_is_a_stride() {
    let every_third = Block {
        counts: [1, 1, 4],
        source_strides: [0, 0, 3],
        target_strides: [0, 0, 1],
        run: 1,
        ..Block::whole(0)
    };
    let mut target = [0; 4];
    gather(1, &every_third, b"abcdefghijkl", &mut target).unwrap();
    assert_eq!(&target, b"adgj");
}

#[test]
fn dimensions_that_lie_side_by_side_are_one_level() {
    let whole = Block::cut(&[3, 4, 5, 6], &[0; 4], &[3, 4, 5, 6]).unwrap();
    assert_eq!(whole, Block::whole(360));
    let rows = Block::cut(&[3, 4, 5, 6], &[1, 0, 0, 0], &[2, 4, 5, 6]).unwrap();
    assert_eq!((rows.counts, rows.run, rows.source_offset), ([1; 3], 240, 120));
    let columns = Block::cut(&[3, 4, 5, 6], &[0, 0, 0, 2], &[3, 4, 5, 2]).unwrap();
    assert_eq!((columns.counts, columns.source_strides[2], columns.run), ([1, 1, 60], 6, 2));
    let middle = Block::cut(&[3, 4, 5, 6], &[0, 1, 0, 0], &[3, 2, 5, 6]).unwrap();
    assert_eq!((middle.counts, middle.source_strides[2], middle.run), ([1, 1, 3], 120, 60));
    let empty = Block::cut(&[3, 0, 5], &[0, 0, 1], &[3, 0, 2]).unwrap();
    assert_eq!(empty.elements().unwrap(), 0);
}

#[test]
fn what_is_wrong_with_a_block_is_said() {
    let message = |result: Result<Block, Error>| result.unwrap_err().to_string();
    let beyond = message(Block::cut(&[3, 4], &[0, 3], &[3, 2]));
    assert!(beyond.contains("dimension 1 of the source has 4 elements, expected at least 3 + 2"), "{beyond}");
    let ranks = message(Block::cut(&[3, 4], &[0], &[3, 2]));
    assert!(ranks.contains("2 dimensions and 1 indices, expected 2"), "{ranks}");
    let levels = message(Block::cut(&[3; 5], &[0; 5], &[2; 5]));
    assert!(levels.contains("4 levels of runs, expected at most 3"), "{levels}");
    let vast = message(Block::cut(&[u64::MAX, 2], &[0, 0], &[1, 1]));
    assert!(vast.contains("more than a tensor can have"), "{vast}");
    let overlap = Block { counts: [1, 1, 2], target_strides: [0, 0, 3], run: 4, ..Block::whole(0) };
    let overlap = gather(1, &overlap, &[0; 4], &mut [0; 8]).unwrap_err().to_string();
    assert!(overlap.contains("a level steps by 3 elements over 4"), "{overlap}");
    let strides =
        Block { counts: [u64::MAX, 1, 1], source_strides: [u64::MAX, 0, 0], run: 1, ..Block::whole(0) };
    assert!(gather(1, &strides, &[0; 4], &mut [0; 8]).is_err());
}

#[test]
fn wrong_lengths_and_addresses_are_errors() {
    let conversion = Conversion::new(Type::F32, Type::BF16).unwrap();
    assert!(conversion.convert(&[0; 7], &mut [0; 4]).unwrap_err().to_string().contains("multiple of 4"));
    assert!(
        conversion.convert(&[0; 8], &mut [0; 3]).unwrap_err().to_string().contains("2 elements of 2 bytes")
    );
    assert!(repack(&[0; 2], &mut [0; 3]).is_err());
    let same = Conversion::new(Type::BF16, Type::BF16).unwrap_err();
    assert_eq!(same, Error::Unsupported { from: Type::BF16, to: Type::BF16 });
    let span = |address, bytes| Span { address, bytes };
    let launch = |source, target, counters| {
        Launch::convert(&conversion, &Block::whole(4), source, target, counters).map(|launch| launch.grid)
    };
    let message = |result: Result<u32, Error>| result.unwrap_err().to_string();
    assert_eq!(launch(span(0x1001, 16), span(0x2000, 8), Some(0x3000)), Ok(1));
    assert!(message(launch(span(0x1001, 16), span(0x2001, 8), None)).contains("not aligned to 2"));
    assert!(
        message(launch(span(0x1000, 16), span(0x100e, 8), None)).contains("overlaps the 16 bytes at 0x1000")
    );
    assert!(message(launch(span(0x1000, 16), span(0x2000, 8), Some(0x2004))).contains("not aligned to 8"));
    assert!(
        message(launch(span(0x1000, 16), span(0x2000, 8), Some(0x1ff8))).contains("overlaps the 8 bytes")
    );
    assert!(message(launch(span(u64::MAX, 16), span(0x2000, 8), None)).contains("below 2^64"));
    assert!(message(launch(span(0x1000, 12), span(0x2000, 8), None)).contains("beyond the 3 elements"));
    assert!(Launch::repack(span(0x1000, 12), span(0x2000, 8)).is_err());
}

#[test]
fn the_widest_words_that_fit_are_chosen() {
    let span = |address, bytes| Span { address, bytes };
    let chosen = |size: usize, at: u64, columns: u64| {
        let block = Block::cut(&[100, 512], &[0, 16], &[100, columns]).unwrap();
        let source = span(0x1000 + at, 51_200 * size as u64);
        let launch =
            Launch::gather(size, &block, source, span(0x100_0000, 100 * columns * size as u64)).unwrap();
        launch.kernel.name().to_str().unwrap()
    };
    assert_eq!(chosen(2, 0, 64), "gather_16");
    assert_eq!(chosen(2, 2, 64), "gather");
    assert_eq!(chosen(2, 0, 63), "gather");
    assert_eq!(chosen(2, 0, 3), "gather_2");
    assert_eq!(chosen(4, 0, 6), "gather_8");
    assert_eq!(chosen(1, 0, 3), "gather_1");
    assert_eq!(size_of::<tensorhold_kernels::Task>(), 16 * size_of::<u64>());
    let vast = Launch::repack(span(1, 1 << 40), span(1 << 41, 1 << 40)).unwrap();
    assert_eq!((vast.grid, vast.block), (16_384, 256));
}
