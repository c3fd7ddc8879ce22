//! [`Quoted`] and [`Brief`]: untrusted text in messages, bounded and without control characters.

use std::fmt::{self, Write};

/// The number of characters that are shown.
const SHOWN: usize = 200;

/// Displays a text in quotes, with control characters escaped: its first 200 characters and, if it is longer, its length in bytes.
///
/// For names from files, which may be megabytes long.
#[derive(Debug, Clone, Copy)]
pub struct Quoted<T>(pub T);

/// Displays what `T` does, with control characters escaped: its first 200 characters and, if there are more, how many.
#[derive(Debug, Clone, Copy)]
pub struct Brief<T>(pub T);

impl<T: AsRef<str>> fmt::Display for Quoted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.as_ref();
        match text.char_indices().nth(SHOWN).and_then(|(end, _)| text.get(..end)) {
            Some(start) => write!(f, "{start:?}... ({} bytes)", text.len()),
            None => write!(f, "{text:?}"),
        }
    }
}

impl<T: fmt::Display> fmt::Display for Brief<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bounded = Bounded { out: f, characters: 0 };
        write!(bounded, "{}", self.0)?;
        match bounded.characters {
            all if all > SHOWN => write!(f, "... ({all} characters)"),
            _ => Ok(()),
        }
    }
}

/// Writes the first characters, and counts all.
struct Bounded<'a, 'f> {
    out: &'a mut fmt::Formatter<'f>,
    characters: usize,
}

impl Write for Bounded<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text.chars();
        while self.characters < SHOWN
            && let Some(character) = rest.next()
        {
            match acts(character) {
                true => write!(self.out, "{}", character.escape_debug())?,
                false => self.out.write_char(character)?,
            }
            self.characters += 1;
        }
        self.characters += rest.as_str().chars().count();
        Ok(())
    }
}

/// Whether a character controls the terminal, or changes the order or the lines of the text after it.
fn acts(character: char) -> bool {
    let on_text = '\u{2028}'..='\u{202e}';
    let isolates = '\u{2066}'..='\u{2069}';
    character.is_control() || on_text.contains(&character) || isolates.contains(&character)
}

#[cfg(test)]
mod tests {
    use super::{Brief, Quoted};

    #[test]
    fn short_texts_are_shown_whole() {
        assert_eq!(Quoted("a\u{1b}[2Jß\n").to_string(), r#""a\u{1b}[2Jß\n""#);
        assert_eq!(Brief("a\u{1b}[2Jß\n").to_string(), "a\\u{1b}[2Jß\\n");
        assert_eq!(Quoted("x".repeat(200)).to_string(), format!("\"{}\"", "x".repeat(200)));
        assert_eq!(Brief("x".repeat(200)).to_string(), "x".repeat(200));
    }

    #[test]
    fn characters_that_reorder_or_break_lines_are_escaped() {
        let text = "a\u{202e}b\u{2028}c\u{2069}\u{5d0}";
        assert_eq!(Brief(text).to_string(), "a\\u{202e}b\\u{2028}c\\u{2069}\u{5d0}");
        assert_eq!(Quoted(text).to_string(), "\"a\\u{202e}b\\u{2028}c\\u{2069}\u{5d0}\"");
    }

    #[test]
    fn long_texts_are_cut_and_their_length_is_said() {
        let long = "ß".repeat(1_000_000);
        assert_eq!(Quoted(&long).to_string(), format!("\"{}\"... (2000000 bytes)", "ß".repeat(200)));
        assert_eq!(Brief(&long).to_string(), format!("{}... (1000000 characters)", "ß".repeat(200)));
    }
}
