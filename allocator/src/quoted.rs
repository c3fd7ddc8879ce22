//! Texts of other origin, as messages show them: bounded, and without control characters.

use std::fmt::{self, Write};

/// How many characters of a text are shown.
const SHOWN: usize = 200;

/// Displays what `T` shows for debugging, such as a string in quotes: its first 200 characters and, if it is longer, how many there are.
///
/// For names, paths and the like in messages: they come from files and may be megabytes long.
#[derive(Debug, Clone, Copy)]
pub struct Quoted<T>(pub T);

/// The same of what `T` displays, in which control characters are escaped.
#[derive(Debug, Clone, Copy)]
pub struct Brief<T>(pub T);

impl<T: fmt::Debug> fmt::Display for Quoted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Bounded::show(f, format_args!("{:?}", self.0))
    }
}

impl<T: fmt::Display> fmt::Display for Brief<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Bounded::show(f, format_args!("{}", self.0))
    }
}

/// Hands on the first characters, and counts all.
struct Bounded<'a, 'f> {
    out: &'a mut fmt::Formatter<'f>,
    characters: usize,
}

impl Bounded<'_, '_> {
    fn show(out: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>) -> fmt::Result {
        let mut bounded = Bounded { out, characters: 0 };
        bounded.write_fmt(text)?;
        match bounded.characters {
            all if all > SHOWN => write!(out, "... ({all} characters)"),
            _ => Ok(()),
        }
    }
}

impl Write for Bounded<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text.chars();
        while self.characters < SHOWN
            && let Some(character) = rest.next()
        {
            match character.is_control() {
                true => write!(self.out, "{}", character.escape_debug())?,
                false => self.out.write_char(character)?,
            }
            self.characters += 1;
        }
        self.characters += rest.as_str().chars().count();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Brief, Quoted};

    #[test]
    fn short_texts_are_shown_whole() {
        assert_eq!(Quoted("a\u{1b}[2Jß\n").to_string(), r#""a\u{1b}[2Jß\n""#);
        assert_eq!(Brief("a\u{1b}[2Jß\n").to_string(), "a\\u{1b}[2Jß\\n");
        assert_eq!(Quoted([1, 2]).to_string(), "[1, 2]");
        assert_eq!(Brief("x".repeat(200)).to_string(), "x".repeat(200));
    }

    #[test]
    fn long_texts_are_cut_and_their_length_is_said() {
        let long = "ß".repeat(1_000_000);
        assert_eq!(Quoted(&long).to_string(), format!("\"{}... (1000002 characters)", "ß".repeat(199)));
        assert_eq!(Brief(&long).to_string(), format!("{}... (1000000 characters)", "ß".repeat(200)));
        assert_eq!(Quoted(vec![1; 100]).to_string().len(), 200 + "... (300 characters)".len());
    }
}
