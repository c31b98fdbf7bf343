//! Words for people on standard error, data on standard output, and what a failure means for the exit status.

use std::io::Write as _;

use serde::Serialize;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Refused, or wrong input: exit status 1.
    Refused(String),
    /// Our fault, or the machine's: exit status 2.
    Broken(String),
    /// This process's identity is no longer good: exit status 3, for the supervisor.
    Revoked(String),
}

impl Failure {
    /// Refused, or wrong input.
    pub(crate) fn refused(why: impl ToString) -> Self {
        Self::Refused(why.to_string())
    }

    /// Our fault, or the machine's.
    pub(crate) fn broken(why: impl ToString) -> Self {
        Self::Broken(why.to_string())
    }

    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Failure::Refused(_) => 1,
            Failure::Broken(_) => 2,
            Failure::Revoked(_) => 3,
        }
    }

    /// The words.
    pub(crate) fn words(&self) -> &str {
        match self {
            Failure::Refused(words) | Failure::Broken(words) | Failure::Revoked(words) => words,
        }
    }
}

/// A command's result.
pub(crate) type Outcome = Result<(), Failure>;

/// Prints one line of data. A reader that has gone away is no failure.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Says something to the person.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints a value as JSON on one line.
pub(crate) fn json<T: Serialize>(value: &T) -> Outcome {
    let text = serde_json::to_string(value).map_err(Failure::broken)?;
    line(&text);
    Ok(())
}

/// Prints a table with a header; columns are as wide as they must be.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain(header.get(column).map(|cell| cell.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let print = |cells: &[&str]| {
        let text: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line(text.join("  ").trim_end());
    };
    print(header);
    for row in rows {
        print(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// Millionths of a dollar as dollars and cents, with thousands set apart.
pub(crate) fn dollars(micros: i64) -> String {
    let cents = micros.unsigned_abs() / 10_000;
    let whole = (cents / 100).to_string();
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{}{grouped}.{:02}", if micros < 0 { "-" } else { "" }, cents % 100)
}

#[cfg(test)]
mod tests {
    use super::dollars;

    #[test]
    fn money_reads_like_money() {
        assert_eq!(dollars(1_234_567_890_000), "1,234,567.89");
        assert_eq!(dollars(-5_000), "-0.00");
        assert_eq!(dollars(999_990_000), "999.99");
        assert_eq!(dollars(100_000_000_000), "100,000.00");
    }
}
