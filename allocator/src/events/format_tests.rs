use super::{Log, LogError};

const HEADER: &str = r#"{"tensorhold_events":1,"pool":"p","memory":"host","granule":256,"region_bytes":4096,"max_region_bytes":null,"limit_bytes":20000,"retain_bytes":0}"#;

/// Something of everything.
const EVENTS: [&str; 12] = [
    r#"[1,{"grow":{"r":0,"b":4096}}]"#,
    r#"[1,{"alloc":{"n":0,"l":"a","b":1000,"a":256,"r":0,"o":0}}]"#,
    r#"[2,{"alloc":{"n":1,"l":"empty","b":0,"a":1,"r":0,"o":0}}]"#,
    r#"[2,{"take":{"n":2,"l":"b","b":3000,"a":256,"r":0,"o":1024}}]"#,
    r#"[3,{"cut":{"k":[2],"n":3,"p":[[0,0,700,"x"],[0,0,0,"y"],[0,768,2232,"z"]]}}]"#,
    r#"[4,{"retire":[0,3,4]}]"#,
    r#"[5,{"reap":[0,4]}]"#,
    r#"[5,{"lose":[3]}]"#,
    r#"[6,{"trim":{"k":0}}]"#,
    r#"[6,{"grow":{"r":1,"b":512}}]"#,
    r#"[6,{"release":{"r":1,"b":512}}]"#,
    r#"[7,"close"]"#,
];

fn file(events: &[&str]) -> String {
    format!("{HEADER}\n{}\n{{\"end\":{}}}\n", events.join("\n"), events.len())
}

fn read(file: &str) -> Result<Log, LogError> {
    Log::read(file.as_bytes())
}

/// The line and the problem of a file that is refused.
fn problem(file: &str) -> (u64, String) {
    match read(file).unwrap_err() {
        LogError::Line { line, problem } => (line, problem),
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_written_is_what_was_read() {
    let text = file(&EVENTS);
    let log = read(&text).unwrap();
    assert_eq!(log.events.len(), EVENTS.len());
    let mut writer = super::LogWriter::new(Vec::new(), &log.header).unwrap();
    let (first, rest) = log.events.split_at(5);
    writer.write(first).unwrap();
    writer.write(rest).unwrap();
    assert_eq!(String::from_utf8(writer.finish().unwrap()).unwrap(), text);
}

#[test]
fn a_log_that_was_cut_short_anywhere_is_refused() {
    let text = file(&EVENTS);
    // The newline of the last line is not missed.
    for end in 0..text.len() - 1 {
        assert!(read(&text[..end]).is_err(), "{}", &text[..end]);
    }
    let whole_lines = format!("{HEADER}\n{}\n", EVENTS[0]);
    let error = read(&whole_lines).unwrap_err();
    assert!(matches!(error, LogError::Truncated { line: 3, events: 1 }), "{error}");
    let remedy = error.to_string();
    let line = &remedy[remedy.find('{').unwrap()..];
    assert_eq!(read(&format!("{whole_lines}{line}\n")).unwrap().events.len(), 1);
}

#[test]
fn a_line_that_cannot_have_happened_is_named() {
    let cases = [
        (1, r#"[1,{"grow":{"r":1,"b":1}}]"#, "a region with number 0, got 1"),
        (1, r#"[1,{"grow":{"r":0,"b":0}}]"#, "1 to 20000 bytes, got 0"),
        (1, r#"[1,{"grow":{"r":0,"b":20001}}]"#, "1 to 20000 bytes, got 20001"),
        (2, r#"[0,"close"]"#, "a time of 1 ns or later, got 0"),
        (2, r#"[1,{"alloc":{"n":7,"l":"","b":1,"a":1,"r":0,"o":0}}]"#, "a fragment with number 0, got 7"),
        (2, r#"[1,{"alloc":{"n":0,"l":"","b":1,"a":3,"r":0,"o":0}}]"#, "a power of two"),
        (2, r#"[1,{"alloc":{"n":0,"l":"","b":0,"a":0,"r":0,"o":0}}]"#, "a power of two"),
        (2, r#"[1,{"alloc":{"n":0,"l":"","b":1,"a":2,"r":0,"o":1}}]"#, "a multiple of 2, got 1"),
        (2, r#"[1,{"alloc":{"n":0,"l":"","b":1,"a":1,"r":1,"o":0}}]"#, "a region that is there, got 1"),
        (2, r#"[1,{"alloc":{"n":0,"l":"","b":1,"a":1,"r":0,"o":4096}}]"#, "do not lie in region 0 of 4096"),
        (
            2,
            r#"[1,{"alloc":{"n":0,"l":"","b":18446744073709551615,"a":1,"r":0,"o":4}}]"#,
            "do not lie in region 0",
        ),
        (3, r#"[1,{"alloc":{"n":1,"l":"","b":1,"a":1,"r":0,"o":999}}]"#, "overlap those from 0 to 1000"),
        (4, r#"[2,{"take":{"n":2,"l":"","b":0,"a":1,"r":0,"o":0}}]"#, "got an empty one"),
        (5, r#"[3,{"cut":{"k":[0],"n":3,"p":[[0,0,1,""]]}}]"#, "a block that is not cut yet, got 0"),
        (5, r#"[3,{"cut":{"k":[2,2],"n":3,"p":[[0,0,1,""]]}}]"#, "a block that is not cut yet, got 2"),
        (5, r#"[3,{"cut":{"k":[2],"n":3,"p":[[0,1,1,""]]}}]"#, "does not follow"),
        (5, r#"[3,{"cut":{"k":[2],"n":3,"p":[[0,0,9,""],[0,8,1,""]]}}]"#, "does not follow"),
        (5, r#"[3,{"cut":{"k":[2],"n":3,"p":[[0,0,3001,""]]}}]"#, "does not follow"),
        (5, r#"[3,{"cut":{"k":[2],"n":3,"p":[[1,0,1,""]]}}]"#, "block 1 of 1"),
        (5, r#"[3,{"cut":{"k":[2],"n":3,"p":[]}}]"#, "a part in each block, got none in block 0"),
        (6, r#"[4,{"retire":[0,0]}]"#, "a live fragment, got 0"),
        (6, r#"[4,{"retire":[2]}]"#, "a live fragment, got 2"),
        (7, r#"[5,{"reap":[1]}]"#, "a fragment that was retired, got 1"),
        (8, r#"[5,{"lose":[0]}]"#, "a fragment that was retired, got 0"),
        (9, r#"[6,{"release":{"r":0,"b":4096}}]"#, "there and empty, got 0"),
        (11, r#"[6,{"release":{"r":1,"b":511}}]"#, "a region of bytes 512, got 511"),
        (1, r#"[1,{"explode":{"r":0}}]"#, "unknown variant"),
        (1, r#"[1,{"grow":{"r":0,"b":1,"x":1}}]"#, "unknown field"),
        (1, r#"[1,{"grow":{"r":-1,"b":1}}]"#, "invalid value"),
        (1, "[1]", "expected an event"),
        (1, "", "expected an event"),
        (1, "\u{fffd}", "expected an event"),
        (1, r#"{"end":3}"#, "3 events before the last line, got 0"),
        (2, r#"{"end":1}"#, "nothing after the last line"),
    ];
    for (before, line, expected) in cases {
        let mut events = EVENTS.to_vec();
        events[before - 1] = line;
        let (at, problem) = problem(&file(&events));
        // The header is line 1; what stands behind the last line is found in the next.
        let ended = u64::from(expected.starts_with("nothing"));
        assert_eq!(at, before as u64 + 1 + ended, "{line}: {problem}");
        assert!(problem.contains(expected), "{line}: {problem}");
    }
}

#[test]
fn a_header_that_is_none_is_refused() {
    for (header, expected) in [
        (HEADER.replace(":1,", ":2,"), "expected version 1, got 2"),
        (HEADER.replace("256", "255"), "a power of two as the granule, got 255"),
        (HEADER.replace("256", "0"), "a power of two as the granule, got 0"),
        (HEADER.replace("\"pool\"", "\"pond\""), "unknown field"),
        (HEADER.replace(":1,", ":\"1\","), "the header: invalid type"),
    ] {
        let (line, problem) = problem(&format!("{header}\n{{\"end\":0}}\n"));
        assert_eq!(line, 1);
        assert!(problem.contains(expected), "{problem}");
    }
    assert_eq!(problem("").0, 1);
}

#[test]
fn a_file_that_is_no_log_is_called_that() {
    for (file, start) in [
        ("{}\n", "\"{}\""),
        ("PK\u{3}\u{4}", "\"PK\\u{3}\\u{4}\""),
        ("hello\nworld\n", "\"hello\""),
        ("[1]\n", "\"[1]\""),
        ("\n", "\"\""),
    ] {
        let error = read(file).unwrap_err().to_string();
        assert!(error.starts_with(&format!("it is no event log: it begins with {start}, ")), "{error}");
        assert!(error.contains("name a file") && !error.contains("record the log again"), "{error}");
    }
    assert!(Log::read(&b"\xff\xfe"[..]).unwrap_err().to_string().contains("bytes that are no text"));
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let mut bytes = file(&EVENTS).into_bytes();
    let label = bytes.windows(3).position(|window| window == b"\"a\"").unwrap();
    bytes[label + 1] = 0xff;
    assert!(matches!(Log::read(&bytes[..]), Err(LogError::Line { line: 3, .. })));
}

#[test]
fn a_reader_that_fails_is_told_by_its_line() {
    struct Failing;
    impl std::io::Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("gone"))
        }
    }
    let input = std::io::Read::chain(HEADER.as_bytes(), std::io::Read::chain(&b"\n"[..], Failing));
    let error = Log::read(std::io::BufReader::new(input)).unwrap_err();
    assert!(matches!(error, LogError::Read { line: 2, .. }), "{error}");
}
