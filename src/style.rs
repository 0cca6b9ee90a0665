//! How things look: tables, times, durations, sizes, states.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table};
use jiff::{Timestamp, Zoned, tz::TimeZone};
use schemas::{
    id::WorkId,
    outcome::{IndexState, WorkState},
    time::Stamp,
};

/// A table without lines, as wide as the terminal at most. Its colours are taken out again where
/// they are not wanted.
pub(crate) fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    // A terminal that does not know its width (0 columns) is no reason to stand every letter alone.
    if crate::terminal::width().is_some() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.enforce_styling();
    table.style_text_only();
    table.set_header(heads.iter().map(|head| Cell::new(head).add_attribute(Attribute::Dim)));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The table as lines without spaces at their ends.
pub(crate) fn lines(table: &Table) -> String {
    let mut out = String::new();
    for line in table.lines() {
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A cell with a number.
pub(crate) fn number(value: impl ToString) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

/// The state of a work, in its colour.
pub(crate) fn work_state(state: WorkState) -> Cell {
    let color = match state {
        WorkState::Waiting => Color::Yellow,
        WorkState::Running => Color::Cyan,
        WorkState::Finished => Color::Green,
        WorkState::Failed | WorkState::Refused => Color::Red,
        WorkState::Cancelled => Color::DarkGrey,
    };
    Cell::new(state.as_str()).fg(color)
}

/// The state of an index, in its colour.
pub(crate) fn index_state(state: IndexState) -> Cell {
    let color = match state {
        IndexState::Waiting | IndexState::Ready => Color::Yellow,
        IndexState::Running => Color::Cyan,
        IndexState::Finished => Color::Green,
        IndexState::Failed => Color::Red,
        IndexState::Cancelled | IndexState::Skipped => Color::DarkGrey,
    };
    Cell::new(state.as_str()).fg(color)
}

/// The beginning of an id that is enough to name it among a house's works. Ids made in the same
/// second share their first letters, so it is the end that tells them apart; a prefix is what can
/// be typed.
pub(crate) fn short(work: WorkId) -> String {
    work.to_string()[..18].to_owned()
}

/// What a work is called in a sentence: its name, else the beginning of its id.
pub(crate) fn called(name: &str, work: WorkId) -> String {
    if name.is_empty() { short(work) } else { format!("`{name}`") }
}

/// A moment as one reads it here: the time today, else the day too.
pub(crate) fn moment(at: Stamp, now: Stamp) -> String {
    moment_in(at, now, TimeZone::system())
}

fn moment_in(at: Stamp, now: Stamp, zone: TimeZone) -> String {
    let local = |stamp: Stamp| -> Option<Zoned> {
        let time = Timestamp::from_millisecond(i64::try_from(stamp.0).ok()?).ok()?;
        Some(time.to_zoned(zone.clone()))
    };
    let (Some(at_local), Some(now_local)) = (local(at), local(now)) else {
        return at.to_string();
    };
    let format = if at_local.date() == now_local.date() {
        "%H:%M:%S"
    } else if at_local.year() == now_local.year() {
        "%b %-d %H:%M"
    } else {
        "%Y-%m-%d"
    };
    at_local.strftime(format).to_string()
}

/// A duration in at most two units: `25 ms`, `1.3 s`, `12 s`, `3 m 5 s`, `2 h 10 m`, `3 d 4 h`.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..10 => format!("{:.1} s", ms as f64 / 1000.0),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} m {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// A number of bytes: `512 B`, `1.5 KiB`, `3.0 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    let mut amount = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if amount < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{amount:.1} {unit}") };
        }
        amount /= 1024.0;
    }
    format!("{amount:.1} TiB")
}

/// A number with marks between the thousands: `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// One or many: `1 job`, `2 jobs`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        assert_eq!(span(250), "250 ms");
        assert_eq!(span(1250), "1.2 s");
        assert_eq!(span(12_000), "12 s");
        assert_eq!(span(185_000), "3 m 5 s");
        assert_eq!(span(7_800_000), "2 h 10 m");
        assert_eq!(span(273_600_000), "3 d 4 h");
    }

    #[test]
    fn sizes_and_numbers_are_readable() {
        assert_eq!(size(512), "512 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(3 << 30), "3.0 GiB");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(count(1, "job"), "1 job");
    }

    #[test]
    fn a_moment_today_is_a_time_and_one_last_year_a_date() {
        let now = Stamp(1_795_405_323_120);
        let zone = TimeZone::fixed(jiff::tz::offset(0));
        assert_eq!(moment_in(now, now, zone.clone()), "03:42:03");
        assert_eq!(moment_in(now.minus_ms(86_400_000), now, zone.clone()), "Nov 22 03:42");
        assert_eq!(moment_in(now.minus_ms(400 * 86_400_000), now, zone), "2025-10-19");
    }

    #[test]
    fn a_table_has_no_spaces_at_the_ends_of_its_lines() {
        let mut table = table(&["WORK", "STATE"]);
        table.add_row(vec![Cell::new("a"), work_state(WorkState::Finished)]);
        let plain = anstream::adapter::strip_str(&lines(&table)).to_string();
        assert_eq!(plain, "WORK  STATE\na     finished\n");
    }
}
