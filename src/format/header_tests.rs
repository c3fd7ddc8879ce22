use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};

use super::header::{Entry, header_len};
use super::outline::{Place, outline};
use super::problem::Problem;
use crate::dtype::DType;

/// What a file holds.
#[derive(Debug)]
struct Header {
    tensors: Vec<Entry>,
    metadata: Option<BTreeMap<String, String>>,
}

fn parse(header: &[u8], file_len: u64) -> Result<Header, Problem> {
    let (tensors, metadata) = super::header::parse(header, file_len)?;
    // Whatever is right has an outline, which says the same of places.
    let places = tensors.iter().map(|entry| Place { start: entry.start, bytes: entry.nbytes });
    assert_eq!(outline(header, file_len), Some(places.collect()));
    Ok(Header { tensors, metadata: metadata.map(|strings| strings.into_map()) })
}

/// Parses a whole file.
fn parse_file(file: &[u8]) -> Result<Header, String> {
    let length =
        header_len(&file[..file.len().min(8)], file.len() as u64).map_err(|problem| problem.to_string())?;
    parse(&file[8..8 + length], file.len() as u64).map_err(|problem| problem.to_string())
}

fn message(header: &str, file_len: u64) -> String {
    parse(header.as_bytes(), file_len).unwrap_err().to_string()
}

fn dtype() -> impl Strategy<Value = Dtype> {
    let names: Vec<&str> = DType::ALL.iter().map(|dtype| dtype.name()).collect();
    prop::sample::select(names).prop_map(|name| serde_json::from_value(name.into()).unwrap())
}

proptest! {
    #[test]
    fn what_the_safetensors_crate_writes_is_read_back(
        tensors in prop::collection::hash_map(".{0,12}", (dtype(), prop::collection::vec(0..4_usize, 0..4)), 0..20),
        metadata in prop::option::of(prop::collection::hash_map("[a-z]{1,5}", ".{0,9}", 0..4))
    ) {
        // Whole bytes for every dtype: the last extent is a multiple of 8.
        let tensors: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)> = tensors
            .into_iter()
            .filter(|(name, _)| name != "__metadata__")
            .map(|(name, (dtype, mut shape))| {
                shape.push(8);
                let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                (name, (dtype, shape, vec![7; bytes]))
            })
            .collect();
        // The crate writes no valid JSON for empty metadata and no tensors.
        let metadata = metadata.filter(|metadata| !tensors.is_empty() || !metadata.is_empty());
        let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let file = safetensors::serialize(views, metadata.clone()).unwrap();
        let header = parse_file(&file).unwrap();
        prop_assert_eq!(header.tensors.len(), tensors.len());
        prop_assert_eq!(header.metadata, metadata.map(|metadata| metadata.into_iter().collect()));
        let mut end = None;
        for entry in &header.tensors {
            let (dtype, shape, bytes) = &tensors[&*entry.name];
            prop_assert_eq!(Some(entry.dtype), DType::from_name(&dtype.to_string()));
            prop_assert_eq!((&*entry.shape, entry.nbytes), (&shape[..], bytes.len() as u64));
            prop_assert!(end.is_none_or(|end| end == entry.start), "in the order of their bytes");
            end = Some(entry.start + entry.nbytes);
        }
    }

    #[test]
    fn damaged_files_are_refused_or_read_but_never_a_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in 0..400_usize
    ) {
        let views = [("a", Dtype::F32, vec![2, 3]), ("b", Dtype::F4, vec![4]), ("c", Dtype::U8, vec![0])];
        let bytes = [0; 24];
        let views = views.map(|(name, dtype, shape)| {
            let bytes = &bytes[..shape.iter().product::<usize>() * dtype.bitsize() / 8];
            (name, TensorView::new(dtype, shape, bytes).unwrap())
        });
        let mut file = safetensors::serialize(views, None).unwrap();
        for (index, byte) in damage {
            let at = index.index(file.len());
            file[at] = byte;
        }
        file.truncate(cut);
        let _ = parse_file(&file);
    }

    #[test]
    fn arbitrary_objects_are_refused_or_read_but_never_a_panic(
        dtype in "F32|U8|F4|X", shape in prop::collection::vec(any::<u64>(), 0..3), offsets in any::<[u64; 2]>(), len in any::<u64>()
    ) {
        let header = format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{offsets:?}}}}}"#);
        let _ = parse(header.as_bytes(), len);
    }
}

#[test]
fn messages_name_the_tensor_what_was_got_and_what_was_expected() {
    let two = |offsets: &str| {
        format!(
            r#"{{"b":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}},"a":{{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}}}"#
        )
    };
    let expected = [
        (
            "[4,12]",
            r#"tensor "b": its offset 4 overlaps the tensor before it, expected 8; fetch or write the file again"#,
        ),
        ("[9,17]", r#"tensor "b": its offset 9 leaves a hole, expected 8; fetch or write the file again"#),
        ("[12,8]", r#"tensor "b": its offsets 12..8 run backwards; fetch or write the file again"#),
        (
            "[8,15]",
            r#"tensor "b": its offsets span 7 bytes, expected 8 by shape [2] of F32; fetch or write the file again"#,
        ),
        (
            "[8]",
            r#"tensor "b": its "data_offsets" has one, expected two numbers; fetch or write the file again"#,
        ),
        (
            "[8,16,24]",
            r#"tensor "b": its "data_offsets" has more, expected two numbers; fetch or write the file again"#,
        ),
        (
            "[8,1.5]",
            r#"tensor "b": its "data_offsets" is a list with 1.5, expected a list of whole numbers from 0 to 2^64-1; fetch or write the file again"#,
        ),
    ];
    for (offsets, text) in expected {
        assert_eq!(message(&two(offsets), 1000), text);
    }
    assert_eq!(
        message(r#"{"t":{"dtype":"F5","shape":[],"data_offsets":[0,1]}}"#, 1000),
        format!(
            "tensor \"t\": unknown dtype \"F5\", expected one of BOOL, F4, F6_E2M3, F6_E3M2, U8, I8, F8_E5M2, F8_E4M3, F8_E8M0, \
             F8_E4M3FNUZ, F8_E5M2FNUZ, I16, U16, F16, BF16, I32, U32, F32, C64, F64, I64, U64; the file may be newer than this \
             library (tensorhold {}): use a newer version, or a file whose tensors have one of these dtypes",
            env!("CARGO_PKG_VERSION")
        )
    );
    assert_eq!(
        message(r#"{"t":{"dtype":null,"shape":[],"data_offsets":[0,1]}}"#, 1000),
        r#"tensor "t": its "dtype" is null, expected a string; fetch or write the file again"#
    );
    assert_eq!(
        message(r#"{"__metadata__":{"n":3}}"#, 1000),
        r#"its __metadata__ is 3 under "n", expected an object of strings; write the file again with strings"#
    );
    let header = two("[8,16]");
    let expected = 8 + header.len() as u64 + 16;
    assert!(parse(header.as_bytes(), expected).is_ok());
    assert!(
        message(&header, expected - 1)
            .contains(&format!("expected {expected} by its header: it is cut short"))
    );
    assert!(message(&header, expected + 3).contains("3 more than belong to it"));
}

#[test]
fn tensors_are_checked_wherever_they_are_among_many() {
    let header = |count: usize, odd: usize, offsets: [usize; 2]| {
        let tensor = |n| {
            let [start, end] = if n == odd { offsets } else { [n, n + 1] };
            format!(r#""t{n}":{{"dtype":"U8","shape":[1],"data_offsets":[{start},{end}]}}"#)
        };
        format!("{{{}}}", (0..count).map(tensor).collect::<Vec<_>>().join(","))
    };
    for count in [255, 256, 257, 512, 1000] {
        for odd in [0, 1, 255, 256, 257, count - 1].into_iter().filter(|odd| *odd < count) {
            let right = header(count, odd, [odd, odd + 1]);
            let parsed = parse(right.as_bytes(), (8 + right.len() + count) as u64).unwrap();
            assert_eq!(parsed.tensors.len(), count);
            assert!((0..).zip(&parsed.tensors).all(|(n, entry)| entry.start == 8 + right.len() as u64 + n));
            for offsets in [[odd, odd + 2], [odd + 1, odd + 2], [odd, odd], [odd.saturating_sub(1), odd]] {
                let wrong = header(count, odd, offsets);
                if wrong != right {
                    assert!(message(&wrong, 1 << 20).contains("tensor \"t"), "{count} {odd} {offsets:?}");
                }
            }
        }
    }
}

#[test]
fn a_header_of_blanks_or_with_something_behind_it_is_refused() {
    for header in ["  ", "{} {}", "{}x", "null", "\"x\""] {
        assert!(message(header, 100).contains("JSON"), "{header:?}");
    }
    assert!(parse(b"{}      ", 16).unwrap().tensors.is_empty());
}

#[test]
fn headers_whose_places_are_wrong_have_no_outline() {
    let outline = |header: &str, data: u64| outline(header.as_bytes(), 8 + header.len() as u64 + data);
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"a":{{"data_offsets":{first},"dtype":7}},"b":{{"data_offsets":{second}}},"__metadata__":3}}"#
        )
    };
    // It looks at nothing but places.
    let bytes = |header: &str, data| {
        outline(header, data).map(|places| places.iter().map(|place| place.bytes).collect::<Vec<_>>())
    };
    assert_eq!(bytes(&two("[4,4]", "[0,4]"), 4), Some(vec![4, 0]));
    assert_eq!(bytes("{}", 0), Some(vec![]));
    let wrong = [
        ("[0,4]", "[5,8]"),
        ("[0,4]", "[3,8]"),
        ("[1,4]", "[4,8]"),
        ("[4,0]", "[0,8]"),
        ("[0,4]", "[4,9]"),
        ("[0,4]", "[4,7]"),
        ("[0,4]", "[4]"),
        ("[0,4]", "[4,8,9]"),
        ("[0,4]", "[4,-8]"),
        ("[0,4]", "null"),
        ("[0,4]", "[4,8"),
    ];
    for (first, second) in wrong {
        assert_eq!(outline(&two(first, second), 8), None, "{first} {second}");
    }
    assert_eq!(
        outline(&two("[0,18446744073709551615]", "[18446744073709551615,18446744073709551615]"), 8),
        None
    );
    for header in
        ["", "[]", "{", "{}x", r#"{"a":{}}"#, r#"{"a":{"data_offsets":[0,8],"data_offsets":[0,8]}}"#]
    {
        assert_eq!(outline(header, 8), None, "{header:?}");
    }
}

#[test]
fn a_number_with_a_point_is_shown_with_it() {
    let header = r#"{"a":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}}"#;
    let problem = parse(header.as_bytes(), 8 + header.len() as u64 + 16).err().unwrap().to_string();
    assert!(problem.contains("is a list with 4.0, expected a list of whole numbers"), "{problem}");
}
