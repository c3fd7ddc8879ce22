//! One verdict on a header, by whatever call reads it, and never a laxer one than that of the `safetensors` crate.

#[path = "verdicts/generators.rs"]
mod generators;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use generators::header;
use proptest::prelude::*;
use safetensors::SafeTensors;
use tensorhold::{Batching, Device, Error, Loader, TensorInfo};

/// Headers of this length are read in two steps: where tensors lie, and then the rest.
const LONG: usize = 300_000;

/// What a header says of a tensor: its type, shape and bytes.
type Said = (String, Vec<usize>, u64);

/// A way to read a file, and what comes of it.
type Way = (&'static str, Result<BTreeMap<String, Said>, Error>);

fn file(header: &[u8], data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.resize(file.len() + data, 3);
    file
}

fn theirs(file: &[u8]) -> Option<BTreeMap<String, Said>> {
    let tensors = SafeTensors::deserialize(file).ok()?;
    let said = |(name, tensor): (&str, safetensors::tensor::TensorView<'_>)| {
        let said = (tensor.dtype().to_string(), tensor.shape().to_vec(), tensor.data().len() as u64);
        (name.to_owned(), said)
    };
    Some(tensors.iter().map(said).collect())
}

fn said<'a>(tensors: impl IntoIterator<Item = &'a TensorInfo>) -> BTreeMap<String, Said> {
    let said = |info: &TensorInfo| {
        let said = (info.dtype.to_string(), info.shape.to_vec(), info.nbytes);
        (info.name.to_string(), said)
    };
    tensors.into_iter().map(said).collect()
}

/// What each way to read the file makes of it.
fn ours(path: &Path) -> Vec<Way> {
    let loader = || Loader::new(Device::host()).files([path]);
    let load = |loader: Loader| loader.load().map(|weights| said(weights.iter().map(|view| view.info())));
    let stream = || {
        let tensors = loader().stream()?.collect::<Result<Vec<_>, _>>()?;
        Ok(said(tensors.iter().map(|tensor| tensor.info())))
    };
    let batches = || {
        let batches = loader().batches(Batching::new())?.collect::<Result<Vec<_>, _>>()?;
        Ok(said(batches.iter().flat_map(|batch| batch.iter()).map(|view| view.info())))
    };
    vec![
        ("load", load(loader())),
        ("load of a selection", load(loader().select(|_| true))),
        ("inspect", loader().inspect().map(|inspection| said(&inspection.tensors))),
        ("open", loader().open().map(|checkpoint| said(checkpoint.tensors()))),
        ("stream", stream()),
        ("batches", batches()),
    ]
}

/// Reads a file in all ways, as it is and with blanks behind its header. Returns whether it is accepted.
fn verdict(header: &[u8], data: usize) -> Result<bool, TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut accepted = None;
    for length in [header.len(), header.len() + LONG] {
        let mut header = header.to_vec();
        header.resize(length, b' ');
        let file = file(&header, data);
        fs::write(&path, &file).unwrap();
        let theirs = theirs(&file);
        for (way, found) in ours(&path) {
            match (&theirs, &found) {
                (Some(theirs), Ok(ours)) => prop_assert_eq!(theirs, ours, "{}", way),
                (None, Ok(_)) => prop_assert!(false, "{} accepts what the crate refuses", way),
                (_, Err(error)) => {
                    let refused = matches!(error, Error::Header { .. });
                    prop_assert!(refused, "{}: {}", way, error);
                    prop_assert!(
                        error.to_string().len() < 2000,
                        "{}: {} characters",
                        way,
                        error.to_string().len()
                    );
                }
            }
            let same = *accepted.get_or_insert(found.is_ok()) == found.is_ok();
            prop_assert!(same, "{} of a header of {} bytes has another verdict: {:?}", way, length, found);
        }
    }
    Ok(accepted == Some(true))
}

fn tensor(fields: &str) -> String {
    format!(r#"{{"t":{{"dtype":"U8","shape":[3],"data_offsets":[0,3]{fields}}}}}"#)
}

/// A tensor with a field that the format does not have.
fn unknown(value: &str) -> String {
    tensor(&format!(",\"x\":{value}"))
}

fn of(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"t":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}"#)
}

fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

fn objects(depth: usize) -> String {
    format!("{}0{}", r#"{"a":"#.repeat(depth), "}".repeat(depth))
}

/// Asserts that all these are accepted, or all refused.
fn all(are: bool, headers: impl IntoIterator<Item = (impl AsRef<[u8]>, usize)>) {
    for (header, data) in headers {
        let header = header.as_ref();
        let shown = String::from_utf8_lossy(&header[..header.len().min(300)]);
        match verdict(header, data) {
            Ok(accepted) => assert_eq!(accepted, are, "{shown}"),
            Err(error) => panic!("{error}: {shown}"),
        }
    }
}

#[test]
fn fields_that_are_not_of_the_format_are_skipped_if_they_are_json() {
    let right = [
        "null",
        "true",
        "-0",
        "-1.5e-3",
        "1e308",
        "1e-999",
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775809",
        r#""text""#,
        r#""\ud83d\ude00\u0000\/""#,
        "[]",
        "{}",
        r#"[1,{"a":[null]},"b"]"#,
        r#"{"dtype":1,"shape":2}"#,
        r#"[{"a":1},{"a":1}]"#,
    ];
    all(true, right.map(|value| (unknown(value), 3)));
    all(true, [125, 124, 1].map(|depth| (unknown(&nested(depth)), 3)));
    all(
        true,
        [
            (unknown(&objects(125)), 3),
            (unknown(&"1".repeat(300)), 3),
            (unknown(&format!("0.{}", "1".repeat(10_000))), 3),
        ],
    );
    let wrong = [
        "1e999",
        "-1e999",
        "01",
        "1.",
        ".5",
        "+1",
        "1e",
        "0x1",
        "NaN",
        "Infinity",
        "nul",
        "'a'",
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        r#""\ud800\u0041""#,
        r#""\x""#,
        r#""\u12g4""#,
        "\"\u{1}\"",
        "\"\n\"",
        "\"\t\"",
        "[1,]",
        "[,1]",
        r#"{"a":1,}"#,
        r#"{a:1}"#,
        r#"{"a"}"#,
        r#"{1:1}"#,
        "[1 2]",
        "",
        "[",
        "]",
        "\u{a0}1",
        "/**/1",
    ];
    all(false, wrong.map(|value| (unknown(value), 3)));
    all(false, [126, 127, 128, 129, 10_000, 200_000].map(|depth| (unknown(&nested(depth)), 3)));
    all(false, [(unknown(&objects(126)), 3), (unknown(&"1".repeat(10_000)), 3)]);
    all(false, [(unknown(&"[".repeat(200_000)), 3)]);
}

#[test]
fn no_object_has_a_key_twice() {
    let wrong = [
        r#","x":1,"x":2"#,
        r#","x":1,"\u0078":2"#,
        r#","":1,"":2"#,
        r#","x":{"a":1,"a":1}"#,
        r#","x":[[{"b":{"a":1,"b":2,"\u0061":3}}]]"#,
        r#","dtype":"U8""#,
        r#","dtyp\u0065":"U8""#,
        r#","shape":[3]"#,
        r#","data_offsets":[0,3]"#,
    ];
    all(false, wrong.map(|fields| (tensor(fields), 3)));
    all(true, [(tensor(r#","x":{"x":{"x":1}},"y":{"x":1}"#), 3)]);
    let one = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    all(
        false,
        [
            (format!(r#"{{"a":{one},"a":{one}}}"#), 0),
            (format!(r#"{{"a":{one},"\u0061":{one}}}"#), 0),
            (r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0),
            (r#"{"__metadata__":null,"__metadata__":{}}"#.into(), 0),
            (r#"{"__metadata__":{},"\u005f_metadata__":{}}"#.into(), 0),
            (r#"{"__metadata__":{"a":"1","a":"1"}}"#.into(), 0),
            (r#"{"__metadata__":{"a":"1","\u0061":"1"}}"#.into(), 0),
            (format!(r#"{{"\u005f_metadata__":{{}},"__metadata__":{one}}}"#), 0),
        ],
    );
    // A name that the format keeps, and one that looks like it.
    all(true, [(format!(r#"{{"__metadata___":{one},"__metadata__":{{"a":"1","b":"1"}}}}"#), 0)]);
}

#[test]
fn types_shapes_and_offsets_are_what_the_format_says() {
    all(
        true,
        [
            (of(r#""U8""#, "[]", "[0,1]"), 1),
            (of(r#""F64""#, "[2,3]", "[0,48]"), 48),
            (of(r#""\u00558""#, "[3]", "[0,3]"), 3),
            (of(r#""F4""#, "[2]", "[0,1]"), 1),
            (of(r#""F6_E2M3""#, "[4]", "[0,3]"), 3),
            (of(r#""U8""#, "[0]", "[0,0]"), 0),
            // As the crate counts: behind a 0 nothing is too long.
            (of(r#""U8""#, "[0,9223372036854775808,9223372036854775808]", "[0,0]"), 0),
            (of(r#""U8""#, "[18446744073709551615,0]", "[0,0]"), 0),
            (of(r#""U8""#, "[3,1,1,1,1,1,1,1]", "[0,3]"), 3),
            (r#" {"t" : {"data_offsets":[ 0 , 0 ],"shape":[ 0 ],"dtype":"U8" } } "#.to_owned(), 0),
            ("\n\t\r {}".into(), 0),
            ("{}".into(), 0),
            (r#"{"__metadata__":null}"#.into(), 0),
            (r#"{"__metadata__":{}}"#.into(), 0),
            (r#"{"":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#.into(), 0),
        ],
    );
    let wrong_types = [r#""u8""#, r#""F5""#, r#""""#, "null", "1", r#"["U8"]"#, r#"{"U8":null}"#, r#""U8 ""#];
    all(false, wrong_types.map(|dtype| (of(dtype, "[3]", "[0,3]"), 3)));
    let wrong_shapes = [
        "null",
        "3",
        r#""3""#,
        "[3.0]",
        "[3e0]",
        "[-0]",
        "[-3]",
        "[null]",
        "[[3]]",
        "[true]",
        r#"["3"]"#,
        "[3,]",
        "{}",
        "[18446744073709551616]",
        "[18446744073709551615]",
        "[1e999]",
        "[9223372036854775808,9223372036854775808,0]",
        "[2305843009213693952]",
        "[4]",
        "[0]",
    ];
    all(false, wrong_shapes.map(|shape| (of(r#""U8""#, shape, "[0,3]"), 3)));
    all(
        false,
        [
            (of(r#""U8""#, "[9223372036854775808,9223372036854775808,0]", "[0,0]"), 0),
            (of(r#""F4""#, "[3]", "[0,2]"), 2),
            (of(r#""F4""#, "[3]", "[0,1]"), 1),
            (of(r#""F6_E3M2""#, "[3]", "[0,2]"), 2),
            (of(r#""F64""#, "[2305843009213693952]", "[0,0]"), 0),
        ],
    );
    let wrong_offsets = [
        "null",
        "[]",
        "[0]",
        "[0,3,3]",
        "[0,3,null]",
        "[0.0,3]",
        "[-0,3]",
        "[0,3.0]",
        "[3,0]",
        "[1,4]",
        "[0,2]",
        "[0,4]",
        r#"{"0":0,"1":3}"#,
        r#""03""#,
        "[0,18446744073709551615]",
        "[18446744073709551615,18446744073709551615]",
        "[18446744073709551613,18446744073709551616]",
        "[-3,0]",
        "[0,1e999]",
        "[0,[3]]",
    ];
    all(false, wrong_offsets.map(|offsets| (of(r#""U8""#, "[3]", offsets), 3)));
    for data in [0, 2, 4] {
        all(false, [(tensor(""), data)]);
    }
}

#[test]
fn an_entry_is_an_object_with_all_fields_and_a_header_an_object() {
    for entry in ["null", "[]", "1", r#""t""#, "{}", "true", r#"["U8",[0],[0,0]]"#] {
        all(false, [(format!(r#"{{"t":{entry}}}"#), 0)]);
    }
    for missing in ["dtype", "shape", "data_offsets"] {
        let other = tensor("").replace(missing, "other");
        all(false, [(other, 3)]);
    }
    for metadata in [
        "1",
        r#""a""#,
        "[]",
        r#"{"a":1}"#,
        r#"{"a":null}"#,
        r#"{"a":{}}"#,
        r#"{"a":["b"]}"#,
        r#"{"a":"\ud800"}"#,
        r#"{"\udc00":"a"}"#,
    ] {
        all(false, [(format!(r#"{{"__metadata__":{metadata}}}"#), 0)]);
    }
    let headers: [&[u8]; 17] = [
        b"  ",
        b"[]",
        b"null",
        b"{",
        b"}",
        b"{}{}",
        b"{},",
        b"{} x",
        b"{}\0",
        b"\0{}",
        b"\xef\xbb\xbf{}",
        b"{\"t\":}",
        b"{,}",
        b"\"{}\"",
        b"{\"\xff\":1}",
        b"{\"__metadata__\":{\"a\":\"\xed\xa0\x80\"}}",
        b"{\"__metadata__\":{\"a\":\"\xc0\x80\"}}",
    ];
    all(false, headers.map(|header| (header, 0)));
    let name = |name: &str| tensor("").replace("\"t\"", name);
    all(
        true,
        [r#""\u0000""#, r#""\ud83d\ude00""#, "\"\u{7f}\u{2028}\"", r#""\"\\""#].map(|text| (name(text), 3)),
    );
    all(false, [r#""\ud800""#, r#""\udc00""#, "\"\n\"", "\"\0\"", r#""\a""#].map(|text| (name(text), 3)));
    all(
        false,
        [(
            tensor("")
                .into_bytes()
                .into_iter()
                .map(|byte| if byte == b't' { 0xff } else { byte })
                .collect::<Vec<_>>(),
            3,
        )],
    );
}

#[test]
fn tensors_follow_each_other_from_the_first_byte_to_the_last() {
    let three = |a: &str, b: &str, c: &str| {
        let tensor = |name: &str, offsets: &str| {
            let (start, end) = offsets.split_once(',').unwrap();
            let length = end.parse::<i64>().unwrap() - start.parse::<i64>().unwrap();
            format!(r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{offsets}]}}"#, length.max(0))
        };
        format!("{{{},{},{}}}", tensor("a", a), tensor("b", b), tensor("c", c))
    };
    all(
        true,
        [
            (three("0,1", "1,2", "2,3"), 3),
            (three("2,3", "0,1", "1,2"), 3),
            (three("0,3", "0,0", "3,3"), 3),
            (three("0,0", "0,3", "0,0"), 3),
            (three("1,1", "0,1", "1,3"), 3),
        ],
    );
    all(
        false,
        [
            (three("0,1", "1,2", "3,4"), 4),
            (three("1,2", "2,3", "3,4"), 4),
            (three("0,2", "1,3", "3,4"), 4),
            (three("0,3", "1,1", "3,3"), 3),
            (three("0,3", "0,3", "0,3"), 3),
            (three("0,1", "2,1", "1,3"), 3),
        ],
    );
}

#[test]
fn a_shape_has_at_most_4096_dimensions() {
    let ones = |count: usize| format!("[{}]", vec!["1"; count].join(","));
    all(true, [(of(r#""U8""#, &ones(4096), "[0,1]"), 1)]);
    all(false, [(of(r#""U8""#, &ones(4097), "[0,1]"), 1)]);
}

fn cases() -> ProptestConfig {
    // `PROPTEST_CASES` asks for more.
    ProptestConfig { cases: ProptestConfig::default().cases.min(100_000), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn headers_that_are_made_up_have_one_verdict((header, data) in header()) {
        verdict(header.as_bytes(), data)?;
    }

    #[test]
    fn headers_with_bytes_changed_have_one_verdict(
        (header, data) in header(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"\"\\{}[],:019-.eEtu \x00\xff"[..])), 1..3)
    ) {
        let mut header = header.into_bytes();
        for (at, byte) in changes {
            let at = at.index(header.len());
            header[at] = byte;
        }
        verdict(&header, data)?;
    }
}
