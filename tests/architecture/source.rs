//! Finds the paths in Rust code, without its comments, strings and tests.

#[test]
fn paths_are_found_in_code_alone() {
    let text = r##"
        //! [`crate::comment`]
        use crate::a::{self, b::{C, d}, E as F};
        use super::{g, super::h};
        use std::fs;
        #[cfg(test)]
        use crate::test;
        #[cfg(test)]
        mod tests { use crate::test; }
        pub(in crate::visibility) fn f<'a>(x: &'a str) -> crate::i::J {
            /* crate::comment /* crate::comment */ crate::comment */
            let _ = ("crate::string", r#"crate::"string""#, '"', b"crate::string", $crate::k);
            self::l::m()
        }
    "##;
    let found: Vec<String> = paths(&strip(text).0).iter().map(|path| path.join("::")).collect();
    let expected = [
        "crate::a",
        "crate::a::b::C",
        "crate::a::b::d",
        "crate::a::E",
        "super::g",
        "super::super::h",
        "crate::i::J",
        "self::l::m",
    ];
    assert_eq!(found, expected);
}

/// Replaces comments, strings and `#[cfg(test)]` items by spaces. Also returns the names of `#[cfg(test)]` modules in
/// other files.
pub(crate) fn strip(text: &str) -> (String, Vec<String>) {
    let text = strip_comments_and_strings(text);
    let (mut code, mut rest, mut modules) = (String::new(), &*text, Vec::new());
    while let Some(start) = ["#[cfg(test)]", "#[cfg(all(test"].iter().filter_map(|text| rest.find(text)).min()
    {
        code.push_str(&rest[..start]);
        let item = &rest[start..];
        let end = end_of_item(item);
        let words: Vec<&str> = item[..end].split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        if let Some(place) = words.iter().position(|word| *word == "mod")
            && item[..end].ends_with(';')
        {
            modules.extend(words.get(place + 1).map(|name| (*name).to_owned()));
        }
        code.push(' ');
        rest = &item[end..];
    }
    (code + rest, modules)
}

/// The end of an item: after its first `;` outside of brackets, or after its first block.
fn end_of_item(item: &str) -> usize {
    let (mut depth, mut blocks) = (0, 0);
    for (place, c) in item.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '{' => blocks += 1,
            '}' => {
                blocks -= 1;
                if blocks == 0 && depth == 0 {
                    // A list of imports is followed by `;`.
                    let rest = &item[place + 1..];
                    return place + 1 + usize::from(rest.starts_with(';'));
                }
            }
            ';' if depth == 0 && blocks == 0 => return place + 1,
            _ => {}
        }
    }
    item.len()
}

fn strip_comments_and_strings(text: &str) -> String {
    let (mut code, mut rest) = (String::new(), text);
    while let Some(c) = rest.chars().next() {
        let word_before = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let hashes = |from: &str| from.chars().take_while(|c| *c == '#').count();
        let raw = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r')).filter(|_| !word_before);
        let raw = raw.filter(|from| from[hashes(from)..].starts_with('"')).map(|from| (from, hashes(from)));
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            comment_length(rest)
        } else if let Some((from, hashes)) = raw {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = &from[hashes + 1..];
            rest.len() - body.len() + body.find(&end).map_or(body.len(), |at| at + end.len())
        } else if c == '"' {
            quoted_length(rest, '"')
        } else if c == '\'' && is_char(rest) {
            quoted_length(rest, '\'')
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[length..];
    }
    code
}

/// Whether a quote begins a character, not a lifetime.
fn is_char(text: &str) -> bool {
    let mut after = text.chars().skip(1);
    after.next() == Some('\\') || after.next() == Some('\'')
}

fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (place, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return place + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

/// The length of a block comment, which may contain others.
fn comment_length(text: &str) -> usize {
    let (mut depth, mut place) = (0, 0);
    while place < text.len() {
        let rest = &text[place..];
        if rest.starts_with("/*") {
            (depth, place) = (depth + 1, place + 2);
        } else if rest.starts_with("*/") {
            (depth, place) = (depth - 1, place + 2);
            if depth == 0 {
                return place;
            }
        } else {
            place += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The paths that begin with `crate`, `super` or `self`; lists of imports as one path for each name.
pub(crate) fn paths(code: &str) -> Vec<Vec<String>> {
    let (mut paths, mut place) = (Vec::new(), 0);
    while place < code.len() {
        let rest = &code[place..];
        let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if word.is_empty() {
            place += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        }
        let before = code[..place].trim_end();
        let begins = !before.ends_with("::") && !before.ends_with('$') && !before.ends_with("(in");
        let is_path = rest[word.len()..].trim_start().starts_with("::");
        if begins && is_path && matches!(&*word, "crate" | "super" | "self") {
            place += tree(rest, &[], &mut paths);
        } else {
            place += word.len();
        }
    }
    paths
}

/// Reads a path or a tree of imports below `prefix`, and returns its length.
fn tree(text: &str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let (mut path, mut place) = (prefix.to_vec(), 0);
    loop {
        place += text[place..].len() - text[place..].trim_start().len();
        let rest = &text[place..];
        if rest.starts_with('{') {
            place += 1;
            loop {
                let rest = text[place..].trim_start();
                place = text.len() - rest.len();
                match rest.chars().next() {
                    Some('}') | None => return (place + 1).min(text.len()),
                    Some(c) if c.is_alphanumeric() || matches!(c, '_' | '{') => {
                        place += tree(rest, &path, paths);
                    }
                    Some(c) => place += c.len_utf8(),
                }
            }
        }
        let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        place += word.len();
        // `{self}` in a list is the prefix.
        if !(word.is_empty() || word == "self" && !path.is_empty()) {
            path.push(word);
        }
        let rest = text[place..].trim_start();
        match rest.strip_prefix("::") {
            Some(after) => place = text.len() - after.len(),
            None => {
                // The new name of a renamed import is no path.
                if let Some(after) = rest.strip_prefix("as ") {
                    let name = after.trim_start();
                    let length = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
                    place = text.len() - name.len() + length;
                }
                paths.push(path);
                return place;
            }
        }
    }
}
