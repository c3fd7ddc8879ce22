//! Headers that are mostly right: JSON with faults here and there.

use proptest::prelude::*;

/// JSON, or nearly.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("1e999".to_owned()),
        Just("-0".to_owned()),
        Just(r#""\ud800""#.to_owned()),
        "-?[0-9]{1,25}",
        "-?[0-9]{1,4}\\.[0-9]{1,4}([eE][-+]?[0-9]{1,3})?",
        r#""[a-c\\/u0d8]{0,6}""#,
    ];
    leaf.prop_recursive(4, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(|list| format!("[{}]", list.join(","))),
            prop::collection::vec(("[ab]", inner), 0..3).prop_map(|pairs| {
                let pairs: Vec<_> = pairs.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
                format!("{{{}}}", pairs.join(","))
            }),
        ]
    })
}

/// A field of a tensor: mostly a right one.
fn field(name: &'static str, right: String) -> impl Strategy<Value = String> {
    prop_oneof![
        30 => Just(format!("\"{name}\":{right}")),
        1 => json().prop_map(move |value| format!("\"{name}\":{value}")),
        1 => json().prop_map(|value| format!("\"a\":{value}")),
    ]
}

/// Tensors one after the other, mostly right, and how many bytes they have.
pub(crate) fn header() -> impl Strategy<Value = (String, usize)> {
    let tensor = |number: usize, start: usize, length: usize| {
        let fields = (
            field("dtype", "\"U8\"".into()),
            field("shape", format!("[{length}]")),
            field("data_offsets", format!("[{start},{}]", start + length)),
            prop::collection::vec(json().prop_map(|value| format!("\"x{}\":{value}", value.len() % 4)), 0..2),
        );
        let names = prop_oneof![20 => Just(format!("t{number}")), 1 => Just("t0".to_owned()), 1 => Just("__metadata__".to_owned())];
        (names, fields).prop_map(|(name, (dtype, shape, offsets, others))| {
            let fields: Vec<_> = [dtype, shape, offsets].into_iter().chain(others).collect();
            format!("\"{name}\":{{{}}}", fields.join(","))
        })
    };
    prop::collection::vec(0..4_usize, 1..5).prop_flat_map(move |lengths| {
        let mut start = 0;
        let mut tensors = Vec::new();
        for (number, &length) in lengths.iter().enumerate() {
            tensors.push(tensor(number, start, length));
            start += length;
        }
        (tensors, Just(start)).prop_map(|(tensors, bytes)| (format!("{{{}}}", tensors.join(",")), bytes))
    })
}
