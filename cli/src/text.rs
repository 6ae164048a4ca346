//! Texts for people.

use std::error::Error;
use std::fmt::Write;
use std::time::Duration;

/// The same without control characters: labels and reasons are other people's, and a terminal obeys what it is sent.
pub(crate) fn plain(text: &str) -> String {
    let shown = |char: char| match char.is_control() {
        true => '\u{fffd}',
        false => char,
    };
    text.chars().map(shown).collect()
}

/// A name among others that are set apart by commas and spaces.
pub(crate) fn key(bytes: &[u8]) -> String {
    plain(&String::from_utf8_lossy(bytes))
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    plain(&text)
}

/// To a tenth of a second.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_moves_no_cursor() {
        assert_eq!(
            plain("disk\x1b[2Jfull\r\n"),
            "disk\u{fffd}[2Jfull\u{fffd}\u{fffd}"
        );
    }
}
