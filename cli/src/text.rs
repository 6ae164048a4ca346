//! Text for people to read.

use std::error::Error;
use std::fmt::Write;
use std::time::Duration;

/// Replaces control characters. Labels and reasons come from other processes, and a terminal obeys
/// the control characters that it receives.
pub(crate) fn plain(text: &str) -> String {
    let shown = |char: char| match char.is_control() {
        true => '\u{fffd}',
        false => char,
    };
    text.chars().map(shown).collect()
}

/// Returns the bytes of a name as text. Bytes that are no UTF-8 become U+FFFD.
pub(crate) fn key(bytes: &[u8]) -> String {
    plain(&String::from_utf8_lossy(bytes))
}

/// Returns an error and its causes, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    plain(&text)
}

/// Formats a duration to a tenth of a second.
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
