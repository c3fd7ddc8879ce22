//! Files of the field that are no safetensors files are named for what they are.

use super::{identify, identify_index};
use crate::format::{Problem, header_len, parse};

/// What is said of a file instead of what is wrong with its header.
fn said(file: &[u8]) -> String {
    let problem = header_len(&file[..file.len().min(8)], file.len() as u64)
        .and_then(|length| parse(&file[8..8 + length], file.len() as u64).map(drop))
        .expect_err("a file that is no safetensors file");
    problem.of_start(file, file.len() as u64).to_string()
}

fn zip(entry: &str) -> Vec<u8> {
    let mut file = b"PK\x03\x04\x00\x00\x08\x08".to_vec();
    file.extend([0; 18]);
    file.extend((entry.len() as u16).to_le_bytes());
    file.extend([0; 2]);
    file.extend(entry.bytes());
    file.extend([7; 100]);
    file
}

fn framed(header: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header].concat()
}

#[test]
fn formats_of_the_field_are_named_with_their_remedy() {
    let tar = [&[b'a'; 257][..], b"ustar\x0000", &[0; 300]].concat();
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n";
    let cases: &[(&[u8], &[&str])] = &[
        (lfs.as_bytes(), &["a Git LFS pointer", "git lfs pull"]),
        (b"# xet version 0\nfilesize = 12\n", &["Git Xet", "git xet pull"]),
        (b"/annex/objects/SHA256E-s3--ab.safetensors\n", &["git-annex", "git annex get"]),
        (&zip("archive/data.pkl"), &["torch.save", "safetensors.torch.save_file"]),
        (&zip("model/.format_version"), &["torch.save"]),
        (&zip("weight.npy"), &["(.npz)", "safetensors.numpy.save_file"]),
        (&zip("readme.txt"), &["a zip archive", "torch"]),
        (&[b"PK\x03\x04", &[0; 60][..]].concat(), &["a zip archive", "torch"]),
        (
            b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M",
            &["before torch 1.6", "safetensors.torch.save_file"],
        ),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}", &["a pickle", "torch"]),
        (b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01", &["a pickle"]),
        (b"\x80\x05\x95\x10\x00\x00\x00\x00\x00\x00\x00}", &["a pickle"]),
        (b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00", &["a GGUF file", "llama.cpp"]),
        (b"lmgg\x01\x00\x00\x00\x00\x00\x00\x00", &["a GGML file"]),
        (b"tjgg\x03\x00\x00\x00\x00\x00\x00\x00", &["ggjt"]),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", &["a NumPy array", "numpy.load"]),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", &["gzip", "gunzip"]),
        (b"\x28\xb5\x2f\xfd\x04\x00\x00\x00\x00\x00", &["zstd", "unzstd"]),
        (b"\xfd7zXZ\x00\x00\x04\xe6\xd6", &["xz", "unxz"]),
        (b"BZh91AY&SY\x00\x00", &["bzip2", "bunzip2"]),
        (&tar, &["a tar archive", "tar -xf"]),
        (b"\x89HDF\r\n\x1a\n\x00\x00", &["HDF5"]),
        (b"PAR1\x15\x04\x15\x10\x15\x14", &["Parquet"]),
        (b"\x1c\x00\x00\x00TFL3\x14\x00", &["TensorFlow Lite"]),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.0.0:", &["an ONNX model"]),
    ];
    for (file, words) in cases {
        let said = said(file);
        for word in words.iter().chain(&["expected a safetensors file"]) {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}

#[test]
fn texts_that_were_saved_instead_of_a_file_are_named_and_quoted() {
    let cases: &[(&str, &[&str])] = &[
        (
            "<!DOCTYPE html><html><head><title>Sign in</title></head></html>",
            &["an HTML page that says \"Sign in\""],
        ),
        (
            "\u{feff}\r\n  <HTML lang=\"en\"><TITLE>\n502 Bad Gateway</TITLE>",
            &["an HTML page", "502 Bad Gateway"],
        ),
        (
            "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>",
            &["an XML document that says \"AccessDenied\""],
        ),
        ("{\"error\":\"Repository not found\"}", &["a JSON text", "Repository not found"]),
        ("{\"metadata\":{},\"weight_map\":{\"a\":\"b\"}}", &["the index of a checkpoint"]),
        ("{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\"}", &["a configuration"]),
        (
            "{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
            &["without the 8 bytes of its length"],
        ),
        ("Entry not found", &["a text file that begins with \"Entry not found\"", "access rights"]),
        ("404: Not Found\n", &["404: Not Found"]),
        ("../../blobs/5f3c9a\n", &["\"../../blobs/5f3c9a\"", "symbolic link"]),
    ];
    for (file, words) in cases {
        let said = said(file.as_bytes());
        for word in words.iter().chain(&["expected a safetensors file"]) {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    assert!(said(b"\xff\xfeE\x00n\x00t\x00r\x00y\x00").contains("UTF-16"));
    assert!(said(b"404\n").contains("HeaderTooSmall, 4 bytes: it is a text file that begins with \"404\""));
}

#[test]
fn broken_and_mangled_safetensors_files_are_named() {
    let json = br#"{"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    let swapped = [&(json.len() as u64).to_be_bytes()[..], json].concat();
    let marked = [b"\xef\xbb\xbf", &framed(json)[..]].concat();
    for (file, words) in [
        (vec![0; 8], "8 bytes of zeros"),
        (vec![0; 100_000], "100000 bytes of zeros"),
        (swapped, "big-endian"),
        (marked, "behind a byte-order mark"),
        (framed(&[b"\xef\xbb\xbf", &json[..]].concat()), "byte-order mark before its header's JSON"),
        (framed(&[0; 40]), "zeros where its header should be"),
    ] {
        assert!(said(&file).contains(words), "{words}: {}", said(&file));
    }
    let long = identify(&[0; 4096], 1 << 30).unwrap().instead_of("a safetensors file");
    assert!(long.contains("at least in its first 4096 bytes"), "{long}");
}

#[test]
fn a_length_that_reads_as_another_formats_mark_changes_nothing() {
    // 0x088b1f bytes of header: the mark of gzip.
    let mut header = b"{\"t\": wrong".to_vec();
    header.resize(0x08_8b1f, b' ');
    assert!(said(&framed(&header)).contains("not the JSON object"), "{}", said(&framed(&header)));
    for damaged in [
        &b"\x0a\0\0\0\0\0\0\0{\"t\":{\xff\xfe}}"[..],
        b"\x06\0\0\0\0\0\0\0{\"t\":{",
        b"\x05\0\0\0\0\0\0\0[1,2]",
    ] {
        assert_eq!(identify(damaged, damaged.len() as u64), None);
    }
    for unknown in [&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"\x01\x02\x03\x04\x05"] {
        assert_eq!(identify(unknown, unknown.len() as u64), None);
    }
}

#[test]
fn long_texts_are_quoted_in_part() {
    for file in [
        format!("<html><title>{}", "t".repeat(50_000)),
        "x".repeat(50_000),
        format!("{{\"a\":\"{}", "y".repeat(50_000)),
        format!("a/{}", "b".repeat(4000)),
    ] {
        assert!(said(file.as_bytes()).len() < 1000, "{}", said(file.as_bytes()));
    }
}

#[test]
fn an_index_that_is_something_else_is_named_unless_it_is_json() {
    let named = |text: &[u8]| identify_index(text).map(|found| found.instead_of("an index"));
    assert!(named(b"version https://git-lfs.github.com/spec/v1\noid").unwrap().contains("git lfs pull"));
    assert!(named(b"  <html>").unwrap().contains("an HTML page"));
    assert!(named(&framed(b"{}")).unwrap().contains("a safetensors file"));
    assert!(named(b"").unwrap().contains("an empty file"));
    assert!(named(b" {\"weight_map\": 3}").is_none() && named(b"\xef\xbb\xbf{}").is_none());
}

#[test]
fn problems_of_tensors_do_not_depend_on_how_the_file_begins() {
    let problem = Problem::tensor("t", String::from("wrong"));
    assert_eq!(
        problem.of_start(b"GGUF....", 8).to_string(),
        "tensor \"t\": wrong; fetch or write the file again"
    );
}

#[test]
fn files_without_a_mark_for_text_are_named_too() {
    let page = "<html><title>nicht gefunden</title>".encode_utf16().flat_map(u16::to_le_bytes);
    let utf_16: Vec<u8> = [0xff, 0xfe].into_iter().chain(page).collect();
    let cases: &[(&[u8], &[&str])] = &[
        (b"\0\x05\x16\x07\0\x02\0\0Mac OS X        \0\x02", &["an AppleDouble file", "without ._"]),
        (b"\x81\xa6params\x81\xa5dense\0\0\0", &["a MessagePack file, as Flax", "msgpack_restore"]),
        (b"\xde\0\x10\xd9\x21transformer_encoder_layers_0_bias\x81\xa1a\0", &["a MessagePack file"]),
        (
            b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02\x0a\x0c\x0a\x03<s>",
            &["a tokenizer of SentencePiece", "beside it"],
        ),
        (b"\x0a\x2f\x0a\x05input\x12\x0bPlaceholder*\x0b\x0a\x05dtype", &["a protocol buffer"]),
        (b"\x08\x01\x12\xd2\xa3\x04\x0a\xb6\x1f\x12", &["a protocol buffer, such as a TensorFlow model"]),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01", &["a JPEG image"]),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", &["a PNG image"]),
        (b"\x78\x9c\xed\xbd\x07\x60\x1c\x49\x96\x25\x26\x2f", &["compressed by zlib", "zlib.decompress"]),
        (b"\x78\x01\xed\xbd\x07\x60\x1c\x49\x96\x25\x26\x2f", &["compressed by zlib"]),
        (b"\x78\xda\xed\xbd\x07\x60\x1c\x49\x96\x25\x26\x2f", &["compressed by zlib"]),
        (
            b"<html><title>verweigert f\xfcr</title>",
            &["an HTML page in an encoding other than UTF-8 that says", "verweigert f\u{fc}r"],
        ),
        (&utf_16, &["an HTML page in UTF-16 that says \"nicht gefunden\"", "a download saved it"]),
        (&utf_16[2..], &["an HTML page in UTF-16"]),
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            &["an HTTP reply that begins with \"HTTP/1.1 404 Not Found\"", "a download saved it"],
        ),
        (b"HTTP/2 200\r\nserver: x\r\n\r\n\x10\0\0\0\0\0\0\0{", &["an HTTP reply", "curl without -i"]),
        (b"(dp0\nVa\np1\nI1\ns.", &["a pickle"]),
        (b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n", &["a pickle", "torch"]),
        (b"ctorch._utils\n_rebuild_tensor_v2\np0\n((", &["a pickle"]),
        (b"}q\0(X\x01\0\0\0aq\x01K\x01", &["a pickle"]),
    ];
    for (file, words) in cases {
        for word in words.iter().chain(&["expected a safetensors file"]) {
            assert!(said(file).contains(word), "{word}: {}", said(file));
        }
    }
}

#[test]
fn texts_are_called_json_links_or_replies_only_where_they_are() {
    let mut base64 = "QUJDRA/abcd+EFGH".repeat(20);
    base64.push_str("==");
    for text in [
        "[a]\nb = 1\n",
        "[1]\nb = 1\n",
        "{{ x }}",
        "{% if a %}",
        "{'a': 1}",
        "# card\nhello error",
        "key: value\nother: [1, 2]\n",
        "import os\nraise ValueError('not found')\n",
        &base64,
        "/9j/4AAQSkZJRgABAQ",
        "https://host/model.safetensors",
        "cat\nfoo\npig\n",
        "x^2 + y^2",
    ] {
        let said = said(text.as_bytes());
        assert!(said.contains("a text file that begins with \""), "{said}");
        assert!(said.contains("name the safetensors file"), "{said}");
    }
    for text in
        ["{\"a\": NaN}", "{\"a\": [1, 2", "[{\"idx\": 0}]", "[1, 2", "{\"a\": 1}\n{\"a\": 2}\n", "{\n  \"tr"]
    {
        assert!(said(text.as_bytes()).contains("a JSON text"), "{}", said(text.as_bytes()));
    }
    for text in ["../../blobs/5f3c9a", "./model", "snapshots/a b/m.safetensors".replace(' ', "_").as_str()] {
        assert!(said(text.as_bytes()).contains("symbolic link"), "{}", said(text.as_bytes()));
    }
    for text in
        ["Access to model a/b is restricted.", "Invalid username or password.", "403 Forbidden", "Not Found"]
    {
        assert!(said(text.as_bytes()).contains("a download saved it"), "{}", said(text.as_bytes()));
    }
    for space in ["\n", " \r\n", "\n\n\n\n\n\n\n\n\n\n"] {
        assert!(said(space.as_bytes()).contains("white space alone"), "{}", said(space.as_bytes()));
    }
}
