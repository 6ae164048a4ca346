//! The table, and the terminal that shows it.

use std::io::{self, Write};
use std::time::Duration;

use redis_locking_worker::RunState;

use crate::text::{plain, seconds};

/// The row of a key, with the lines below it.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) key: String,
    /// State of the run, once it is known.
    pub(super) state: Option<RunState>,
    pub(super) attempt: u32,
    pub(super) max_attempts: u32,
    pub(super) holder: String,
    pub(super) left: Duration,
    pub(super) whole: Duration,
    pub(super) waits: Vec<String>,
    pub(super) previous: Option<String>,
    pub(super) error: Option<String>,
}

const STATE: usize = 9;
const ATTEMPT: usize = 7;
const BAR: usize = 12;
/// Width of the bar in its brackets and the time beside it.
const LEFT: usize = BAR + 2 + 9;
/// Width between two columns.
const GAP: usize = 2;

/// Returns the lines of the table, each at most `width` characters long.
pub(super) fn draw(rows: &[Row], width: usize) -> Vec<String> {
    let fixed = STATE + ATTEMPT + LEFT + 4 * GAP;
    // The two columns of names share the rest, with at least 8 characters each. Text that does not
    // fit is cut.
    let name = (width.saturating_sub(fixed) / 2).max(8);
    let columns = |[key, state, attempt, holder, left]: [&str; 5]| {
        let (key, holder) = (cut(key, name), cut(holder, name));
        format!("{key:name$}  {state:STATE$}  {attempt:ATTEMPT$}  {holder:name$}  {left}")
    };
    let mut lines = vec![columns(["KEY", "STATE", "ATTEMPT", "HOLDER", "LEFT"])];
    for row in rows {
        let state = row.state.map_or("…".to_owned(), |state| state.to_string());
        let attempt = match row.max_attempts {
            0 => String::new(),
            max => format!("{}/{max}", row.attempt),
        };
        lines.push(columns([
            &row.key,
            &state,
            &attempt,
            &row.holder,
            &left(row),
        ]));
        if !row.waits.is_empty() {
            lines.push(format!(
                "  {} waiting: {}",
                row.waits.len(),
                row.waits.join(", ")
            ));
        }
        lines.extend(
            row.previous
                .iter()
                .map(|previous| format!("  before: {previous}")),
        );
        lines.extend(row.error.iter().map(|error| format!("  {error}")));
    }
    lines
        .iter()
        .map(|line| cut(line.trim_end(), width))
        .collect()
}

/// Returns the rest of a lease as a bar that runs down, or the rest of a retention as a time.
fn left(row: &Row) -> String {
    if row.left.is_zero() && !row.state.is_some_and(RunState::is_owned) {
        return String::new();
    }
    let time = seconds(row.left);
    if !row.state.is_some_and(RunState::is_owned) {
        return time;
    }
    let share = row.left.as_secs_f64() / row.whole.as_secs_f64().max(f64::MIN_POSITIVE);
    let full = (share * BAR as f64).ceil().min(BAR as f64) as usize;
    format!("[{:.<BAR$}] {time:>8}", "#".repeat(full))
}

/// Cuts the table to the lines that can be drawn over again.
///
/// The cursor takes one line below the table, and it cannot move above the terminal's first line.
fn fit(mut lines: Vec<String>, height: usize) -> Vec<String> {
    let room = height.saturating_sub(1).max(1);
    if lines.len() > room {
        let more = lines.len() + 1 - room;
        lines.truncate(room - 1);
        lines.push(format!("… {more} more"));
    }
    lines
}

fn cut(text: &str, width: usize) -> String {
    let text = plain(text);
    match text.chars().count() <= width {
        true => text,
        false => {
            let kept = text.chars().take(width.saturating_sub(1));
            kept.chain(['…']).collect()
        }
    }
}

/// The terminal. Each table is drawn over the one before.
pub(super) struct Screen {
    drawn: usize,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { drawn: 0 }
    }

    pub(super) fn show(&mut self, rows: &[Row]) -> io::Result<()> {
        let (width, height) = size();
        let lines = fit(draw(rows, width), height);
        let mut text = String::from("\x1b[?25l");
        if self.drawn > 0 {
            text += &format!("\x1b[{}A", self.drawn);
        }
        for line in &lines {
            text += &format!("\r{line}\x1b[K\n");
        }
        text += "\x1b[J";
        self.drawn = lines.len();
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

impl Drop for Screen {
    /// Shows the cursor again.
    fn drop(&mut self) {
        let _ = io::stdout().write_all(b"\x1b[?25h");
        let _ = io::stdout().flush();
    }
}

/// Returns the terminal's present columns and lines, or 80 and 24 if it does not tell.
fn size() -> (usize, usize) {
    match terminal_size::terminal_size() {
        Some((width, height)) if width.0 > 0 && height.0 > 0 => (width.0.into(), height.0.into()),
        _ => (80, 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Row {
        Row {
            key: "report".to_owned(),
            state: Some(RunState::Held),
            attempt: 2,
            max_attempts: 5,
            holder: "node-b".to_owned(),
            left: Duration::from_millis(5_000),
            whole: Duration::from_secs(10),
            waits: vec!["node-c".to_owned(), "node-a".to_owned()],
            previous: Some("attempt 1 by node-a: exit code 7".to_owned()),
            error: None,
        }
    }

    #[test]
    fn a_row_says_who_holds_who_waits_and_what_failed() {
        let table = draw(&[held()], 80).join("\n");
        let expected = "\
KEY               STATE      ATTEMPT  HOLDER            LEFT
report            held       2/5      node-b            [######......]    5.0 s
  2 waiting: node-c, node-a
  before: attempt 1 by node-a: exit code 7";
        assert_eq!(table, expected);
    }

    #[test]
    fn the_bar_runs_down_with_the_lease() {
        let bar = |left| {
            let left = Duration::from_millis(left);
            let row = Row { left, ..held() };
            super::left(&row)[..BAR + 2].to_owned()
        };
        assert_eq!(bar(10_000), "[############]");
        assert_eq!(bar(1), "[#...........]");
        assert_eq!(bar(0), "[............]");
        assert_eq!(bar(11_000), "[############]");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_nor_moves_its_cursor() {
        let row = Row {
            key: "k".repeat(200),
            holder: "h\x1b[2J\n".repeat(50),
            error: Some("e".repeat(500)),
            ..held()
        };
        for width in [20, 40, 80, 200] {
            for line in draw(std::slice::from_ref(&row), width) {
                assert!(line.chars().count() <= width, "{line}");
                assert!(!line.contains(char::is_control), "{line:?}");
            }
        }
    }

    #[test]
    fn the_table_is_no_higher_than_can_be_drawn_over() {
        let table = draw(&vec![held(); 8], 80);
        assert_eq!(fit(table.clone(), table.len() + 1), table);
        let cut = fit(table.clone(), table.len());
        assert_eq!(cut.len(), table.len() - 1);
        assert_eq!(cut.last().unwrap(), "… 2 more");
        assert_eq!(fit(table, 0).len(), 1);
    }

    #[test]
    fn an_outcome_has_a_time_and_no_bar() {
        let row = Row {
            state: Some(RunState::Completed),
            ..held()
        };
        assert_eq!(super::left(&row), "5.0 s");
        let free = Row {
            state: Some(RunState::Free),
            left: Duration::ZERO,
            ..row
        };
        assert_eq!(super::left(&free), "");
    }
}
