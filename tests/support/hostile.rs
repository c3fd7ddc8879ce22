//! Headers that cost much to read for their length, each right or wrong in its last few bytes.
#![allow(unreachable_pub, reason = "each program that includes it has it as a module of its own")]

use std::fmt::Write;

/// A header, and how many bytes of tensors belong to it.
#[derive(Debug)]
pub struct Hostile {
    pub what: &'static str,
    pub header: String,
    pub data: usize,
}

impl Hostile {
    /// The file with this header.
    pub fn file(&self) -> Vec<u8> {
        let mut file = (self.header.len() as u64).to_le_bytes().to_vec();
        file.extend(self.header.as_bytes());
        file.resize(file.len() + self.data, 7);
        file
    }

    fn new(what: &'static str, header: String) -> Self {
        Self { what, header, data: 0 }
    }
}

/// A short name for each number, each different.
fn name(mut number: usize) -> String {
    const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    let mut name = String::new();
    loop {
        name.push(char::from(LETTERS[number % 64]));
        number /= 64;
        if number == 0 {
            return name;
        }
    }
}

/// Repeats pieces, separated by commas, until the text is that long.
fn repeated(bytes: usize, piece: impl Fn(usize) -> String) -> String {
    let mut text = String::with_capacity(bytes + 1024);
    for number in 0.. {
        if text.len() >= bytes {
            break;
        }
        if number > 0 {
            text.push(',');
        }
        let _ = text.write_str(&piece(number));
    }
    text
}

const EMPTY: &str = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;

fn empty_tensor(name: &str) -> String {
    format!(r#""{name}":{EMPTY}"#)
}

/// An object of a tensor without bytes that has these fields as well.
fn with_fields(fields: &str) -> String {
    format!(r#"{{"t":{{"dtype":"U8","shape":[0],"data_offsets":[0,0],{fields}}}}}"#)
}

/// Valid headers of about the given number of bytes.
pub fn right(bytes: usize) -> Vec<Hostile> {
    let object = |inner: String| format!("{{{inner}}}");
    let nest =
        |depth: usize, open: &str, close: &str| format!("{}{}", open.repeat(depth), close.repeat(depth));
    let mut offset = 0;
    let mut ordinary = String::new();
    for number in 0.. {
        if ordinary.len() >= bytes {
            break;
        }
        let comma = if number > 0 { "," } else { "" };
        let _ = write!(
            ordinary,
            r#"{comma}"model.layers.{number}.mlp.down_proj.weight":{{"dtype":"BF16","shape":[1,2],"data_offsets":[{offset},{}]}}"#,
            offset + 4
        );
        offset += 4;
    }
    vec![
        Hostile { what: "ordinary tensors", header: object(ordinary), data: offset },
        Hostile::new("tensors without bytes", object(repeated(bytes, |number| empty_tensor(&name(number))))),
        Hostile::new(
            "escaped names",
            object(repeated(bytes, |number| empty_tensor(&format!("\\u0061{}", name(number))))),
        ),
        Hostile::new(
            "long names",
            object(repeated(bytes, |number| empty_tensor(&format!("{number}{}", "n".repeat(100_000))))),
        ),
        Hostile::new("one name", object(empty_tensor(&"n".repeat(bytes)))),
        Hostile::new("one escaped name", object(empty_tensor(&format!("\\n{}", "n".repeat(bytes))))),
        Hostile::new(
            "many strings",
            format!(
                r#"{{"__metadata__":{{{}}},{}}}"#,
                repeated(bytes, |number| format!(r#""{}":"""#, name(number))),
                empty_tensor("t")
            ),
        ),
        Hostile::new(
            "one string",
            format!(r#"{{"__metadata__":{{"k":"{}"}},{}}}"#, "v".repeat(bytes), empty_tensor("t")),
        ),
        Hostile::new(
            "one escaped string",
            format!(r#"{{"__metadata__":{{"k":"{}"}},{}}}"#, "\\n".repeat(bytes / 2), empty_tensor("t")),
        ),
        Hostile::new(
            "unknown fields",
            with_fields(&repeated(bytes, |number| format!(r#""{}":0"#, name(number)))),
        ),
        Hostile::new(
            "unknown fields of each tensor",
            object(repeated(bytes, |number| {
                format!(
                    r#""{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0],"a":1,"b":[],"c":{{}}}}"#,
                    name(number)
                )
            })),
        ),
        Hostile::new(
            "unknown objects",
            with_fields(&format!(
                r#""x":{{{}}}"#,
                repeated(bytes, |number| format!(r#""{}":{{"a":1}}"#, name(number)))
            )),
        ),
        Hostile::new(
            "unknown numbers",
            with_fields(&format!(r#""x":[{}]"#, repeated(bytes, |_| "1".into()))),
        ),
        Hostile::new(
            "unknown floats",
            with_fields(&format!(r#""x":[{}]"#, repeated(bytes, |_| "0.123456789012345678901e-300".into()))),
        ),
        Hostile::new("unknown digits", with_fields(&format!(r#""x":0.{}"#, "123456789".repeat(bytes / 9)))),
        Hostile::new("unknown text", with_fields(&format!(r#""x":"{}""#, "\\u00e9".repeat(bytes / 6)))),
        Hostile::new(
            "unknown nests",
            with_fields(&format!(r#""x":[{}]"#, repeated(bytes, |_| nest(120, "[", "]")))),
        ),
        Hostile::new("blanks", format!("{{{}{}}}", " ".repeat(bytes), empty_tensor("t"))),
        Hostile::new(
            "a dimension after the other",
            format!(
                r#"{{"t":{{"dtype":"U8","shape":[0{}],"data_offsets":[0,0]}}}}"#,
                ",1".repeat((bytes / 2).min(4000))
            ),
        ),
        Hostile::new(
            "shapes of many dimensions",
            object(repeated(bytes, |number| {
                format!(
                    r#""{}":{{"dtype":"U8","shape":[0{}],"data_offsets":[0,0]}}"#,
                    name(number),
                    ",1".repeat(1000)
                )
            })),
        ),
    ]
}

/// Wrong headers of about so many bytes.
pub fn wrong(bytes: usize) -> Vec<Hostile> {
    let mut headers = Vec::new();
    for right in right(bytes) {
        let (what, header, data) = (right.what, right.header, right.data);
        let before = &header[..header.len() - 1];
        let last = |last: &str| Hostile { what, header: format!("{before},{last}}}"), data };
        headers.push(last(r#""last":{"dtype":"U8","shape":[1],"data_offsets":[9999999999,10000000000]}"#));
        headers.push(last(r#""last":{"dtype":"U8","shape":[1]}"#));
        headers.push(last(r#""last":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1e999}"#));
        headers.push(last(r#""last":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1,"x":1}"#));
        headers.push(last(&format!("{},{}", empty_tensor("twice"), empty_tensor("twice"))));
        headers.push(last(r#""__metadata__":{"last":3}"#));
        headers.push(Hostile { what, header: before.to_owned(), data });
    }
    let text = |what, wrap: &dyn Fn(&str) -> String, piece: &str| {
        Hostile::new(what, wrap(&piece.repeat(bytes / piece.len())))
    };
    let tensor = |field: &str, value: &str| {
        let field_of = |name: &str, right: &str| {
            if name == field { format!(r#""{name}":{value}"#) } else { format!(r#""{name}":{right}"#) }
        };
        let fields =
            [field_of("dtype", r#""U8""#), field_of("shape", "[0]"), field_of("data_offsets", "[0,0]")];
        format!(r#"{{"t":{{{}}}}}"#, fields.join(","))
    };
    headers.extend([
        text("a dtype of that length", &|text| tensor("dtype", &format!("\"{text}\"")), "x"),
        text("a dtype of control characters", &|text| tensor("dtype", &format!("\"{text}\"")), "\u{7f}"),
        text("a shape that is a string", &|text| tensor("shape", &format!("\"{text}\"")), "\u{7f}"),
        text("a shape of strings", &|text| tensor("shape", &format!("[\"{text}\"]")), "x"),
        text("a shape of ones", &|text| tensor("shape", &format!("[1{text}]")), ",1"),
        text("a shape of large numbers", &|text| tensor("shape", &format!("[1{text}]")), ",99999999999"),
        text("offsets that are a string", &|text| tensor("data_offsets", &format!("\"{text}\"")), "\u{7f}"),
        text("offsets that are many", &|text| tensor("data_offsets", &format!("[0{text}]")), ",0"),
        text("a tensor that is a string", &|text| format!(r#"{{"t":"{text}"}}"#), "\u{7f}"),
        text("a tensor that is a list", &|text| format!(r#"{{"t":[0{text}]}}"#), ",0"),
        text("metadata that are a string", &|text| format!(r#"{{"__metadata__":"{text}"}}"#), "\u{7f}"),
        text("a header that is a string", &|text| format!("\"{text}\""), "\u{7f}"),
        text("a name of a wrong tensor", &|text| format!(r#"{{"{text}":{{"dtype":"U8"}}}}"#), "\u{7f}"),
        text("nests", &|text| text.to_owned(), "["),
        text("unknown nests that are too deep", &|text| with_fields(&format!("\"x\":{text}")), "["),
    ]);
    headers
}
