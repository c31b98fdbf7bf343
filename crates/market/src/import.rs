//! The import: a vendor's text becomes series, and what is wrong with it becomes findings.
//!
//! Owns: the two table shapes, and the judgement of every row by itself: taken, flagged (taken, and said why)
//! or refused (left out, and said why). One bad row never costs its neighbours: of a price far from the last
//! one, the rows after it say whether it is the price that is wrong or the level that is new. It knows no file
//! and no vendor.
//!
//! INVARIANT: no text makes it panic, and no text makes it fail as a whole except an unreadable header or one
//! over [`TEXT_BYTES_MAX`]. Bars come out in the order of their days, each day once, every price above zero.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Bar, Day, MarketError, Price, Series, Split, Symbol};

/// The longest text that is imported at once, in bytes.
pub const TEXT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// The most columns of a table.
pub const COLUMNS_MAX: usize = 4_096;
/// The most findings that are kept; the counts go on.
pub const FINDINGS_MAX: usize = 10_000;
/// How much of a field a finding quotes, in characters.
const QUOTE_CHARS_MAX: usize = 32;
/// From this factor on, up or down, a change against the last close is an error of the source where no close
/// after it says otherwise.
const JUMP_REFUSED: i128 = 100;
/// Above this change against the last close, in percent, up or down, a bar is worth a look. Half of a stock's
/// value can go in a day (Apple lost 52 % on 2000-09-29), so this one never refuses.
const JUMP_FLAGGED_PERCENT: i128 = 60;
/// How many closes after a jump are asked whether it lasted: a week of them. Most of them must be good for the
/// answer to be right, so up to three bad rows in succession are found out.
const WITNESSES: usize = 5;

/// Why a whole text can't be imported.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ImportError {
    /// The text is longer than [`TEXT_BYTES_MAX`].
    #[error("the text is longer than {TEXT_BYTES_MAX} bytes")]
    TooLong,
    /// There is no line at all.
    #[error("there is no header")]
    NoHeader,
    /// The header has more than [`COLUMNS_MAX`] columns.
    #[error("the header has more than {COLUMNS_MAX} columns")]
    TooManyColumns,
    /// A column that the shape needs is missing, or there twice.
    #[error("the header must have the column {column} once")]
    Column {
        /// The column's name.
        column: &'static str,
    },
    /// None of the columns of a wide table is a symbol.
    #[error("no column is named with a symbol")]
    NoSymbol,
}

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A field is empty or not there.
    MissingField,
    /// There are more fields than the header has.
    ExtraField,
    /// A price is no decimal number, or too large for one.
    NotANumber,
    /// The date is no day.
    NotADay,
    /// A price is below zero.
    NegativePrice,
    /// A price is zero.
    ZeroPrice,
    /// The day was there before.
    DuplicateDay,
    /// The day is not after the days around it.
    OutOfOrder,
    /// The close is far from the last one. Refused when the closes after it are not, or nothing after it says so
    /// and it is a hundredfold; else flagged.
    Jump,
    /// The day's high is below its low.
    HighBelowLow,
    /// The open or the close is not between the low and the high.
    OutsideRange,
    /// The volume is no whole number.
    BadVolume,
    /// The symbol is no symbol, or a column repeats one.
    BadSymbol,
    /// The split is no split.
    BadSplit,
}

impl Fault {
    /// The fault's one spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::MissingField => "missing_field",
            Fault::ExtraField => "extra_field",
            Fault::NotANumber => "not_a_number",
            Fault::NotADay => "not_a_day",
            Fault::NegativePrice => "negative_price",
            Fault::ZeroPrice => "zero_price",
            Fault::DuplicateDay => "duplicate_day",
            Fault::OutOfOrder => "out_of_order",
            Fault::Jump => "jump",
            Fault::HighBelowLow => "high_below_low",
            Fault::OutsideRange => "outside_range",
            Fault::BadVolume => "bad_volume",
            Fault::BadSymbol => "bad_symbol",
            Fault::BadSplit => "bad_split",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What was done with a row that has a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It was left out.
    Refused,
    /// It was taken.
    Flagged,
}

impl Action {
    /// The action's one spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Refused => "refused",
            Action::Flagged => "flagged",
        }
    }
}

/// One fault of one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The line of the text; the header is line 1.
    pub row: u64,
    /// The symbol; `None` when it is unknown or the whole row is concerned.
    pub symbol: Option<Symbol>,
    /// The day; `None` when it is unknown.
    pub day: Option<Day>,
    /// What is wrong.
    pub fault: Fault,
    /// What was done.
    pub action: Action,
    /// What was seen, in words.
    pub detail: String,
}

/// What an import gave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The series, by symbol. Only symbols that have a bar or a split.
    pub series: BTreeMap<Symbol, Series>,
    /// The findings in the order of the rows; the first [`FINDINGS_MAX`] of them.
    pub findings: Vec<Finding>,
    /// How many bars were taken.
    pub bars: u64,
    /// How many findings refused something.
    pub refused: u64,
    /// How many findings flagged something.
    pub flagged: u64,
}

/// Reads a whole table.
///
/// Two shapes are known by their header, in any case and order of columns. *Wide*: `Date` and one column of
/// closes per symbol; an empty cell before a symbol's first price means that it wasn't listed. *Long*:
/// `Symbol` (or `Ticker`), `Date`, `Open`, `High`, `Low`, `Close`, and if wanted `Volume` and `Split` (`2:1`:
/// two new shares for an old one, effective before that day's open); other columns are ignored.
///
/// ```
/// let imported = market::import::read("Date,AAPL\n2001-01-02,14.88\n2001-01-03,-16.36\n")?;
/// assert_eq!((imported.bars, imported.refused), (1, 1));
/// assert_eq!(imported.findings[0].fault.as_str(), "negative_price");
/// # Ok::<(), market::import::ImportError>(())
/// ```
///
/// # Errors
/// [`ImportError`] when the header can't be read; never for a row.
pub fn read(text: &str) -> Result<Imported, ImportError> {
    read_after(text, &BTreeMap::new())
}

/// Reads a slice of a table whose beginning is known: for each symbol, the last day that was taken and its
/// close. Rows up to that day are refused, and the first row after it is compared with that close. Where that
/// close was itself a bad price, which nobody could know while nothing followed it, the rows of this slice
/// outvote it: they are taken, and the first is flagged.
///
/// # Errors
/// As [`read`].
pub fn read_after(text: &str, known: &BTreeMap<Symbol, (Day, Price)>) -> Result<Imported, ImportError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(ImportError::TooLong);
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = (1_u64..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let (header_row, header) = lines.next().ok_or(ImportError::NoHeader)?;
    // An unbalanced quote in the header is no reason to lose the file: the fields are still there.
    let names: Vec<String> = split_fields(header).0.into_iter().map(str::to_owned).collect();
    if names.len() > COLUMNS_MAX {
        return Err(ImportError::TooManyColumns);
    }
    let mut import = Import { header_row, known, out: Imported::default(), rows: BTreeMap::new() };
    let is = |name: &str, wanted: &str| name.eq_ignore_ascii_case(wanted);
    if names.iter().any(|name| is(name, "symbol") || is(name, "ticker") || is(name, "close")) {
        import.read_long(&LongColumns::find(&names)?, names.len(), lines);
    } else {
        import.read_wide(&names, lines)?;
    }
    import.judge();
    Ok(import.out)
}

/// Where the columns of a long table are.
struct LongColumns {
    symbol: usize,
    date: usize,
    open: usize,
    high: usize,
    low: usize,
    close: usize,
    volume: Option<usize>,
    split: Option<usize>,
}

impl LongColumns {
    fn find(names: &[String]) -> Result<Self, ImportError> {
        let maybe = |column: &'static str, also: &str| {
            let named = |name: &String| name.eq_ignore_ascii_case(column) || name.eq_ignore_ascii_case(also);
            match names.iter().filter(|name| named(name)).count() {
                0 | 1 => Ok(names.iter().position(named)),
                _ => Err(ImportError::Column { column }),
            }
        };
        let needed =
            |column: &'static str, also: &str| maybe(column, also)?.ok_or(ImportError::Column { column });
        Ok(Self {
            symbol: needed("symbol", "ticker")?,
            date: needed("date", "date")?,
            open: needed("open", "open")?,
            high: needed("high", "high")?,
            low: needed("low", "low")?,
            close: needed("close", "close")?,
            volume: maybe("volume", "volume")?,
            split: maybe("split", "split")?,
        })
    }
}

/// A row of one symbol whose day is readable. A row without a bar is there for its split: a split is the
/// company's doing and holds even where the source has its prices wrong.
struct Row {
    row: u64,
    day: Day,
    bar: Option<Bar>,
    split: Option<Split>,
}

/// Why a field gives no value.
struct Refusal {
    fault: Fault,
    detail: String,
}

/// The work in progress.
struct Import<'a> {
    header_row: u64,
    known: &'a BTreeMap<Symbol, (Day, Price)>,
    out: Imported,
    rows: BTreeMap<Symbol, Vec<Row>>,
}

impl Import<'_> {
    fn find(
        &mut self,
        at: (u64, Option<&Symbol>, Option<Day>),
        fault: Fault,
        action: Action,
        detail: String,
    ) {
        match action {
            Action::Refused => self.out.refused += 1,
            Action::Flagged => self.out.flagged += 1,
        }
        if self.out.findings.len() < FINDINGS_MAX {
            let (row, symbol, day) = at;
            self.out.findings.push(Finding { row, symbol: symbol.cloned(), day, fault, action, detail });
        }
    }

    fn refuse(&mut self, at: (u64, Option<&Symbol>, Option<Day>), refusal: Refusal) {
        self.find(at, refusal.fault, Action::Refused, refusal.detail);
    }

    /// Splits a line into fields and refuses it when there are more than columns.
    fn fields<'t>(&mut self, row: u64, line: &'t str, columns: usize) -> Option<Vec<&'t str>> {
        let (fields, balanced) = split_fields(line);
        if fields.len() > columns || !balanced {
            let detail = format!("{} fields for {columns} columns, quotes paired: {balanced}", fields.len());
            self.find((row, None, None), Fault::ExtraField, Action::Refused, detail);
            return None;
        }
        Some(fields)
    }

    fn read_long<'t>(&mut self, at: &LongColumns, width: usize, lines: impl Iterator<Item = (u64, &'t str)>) {
        for (row, line) in lines {
            let Some(fields) = self.fields(row, line, width) else { continue };
            let field = |column: usize| fields.get(column).copied().unwrap_or("");
            let day = parse_day(field(at.date));
            let symbol = match (field(at.symbol), field(at.symbol).parse::<Symbol>()) {
                (_, Ok(symbol)) => symbol,
                ("", Err(_)) => {
                    self.refuse((row, None, day.ok()), missing("symbol"));
                    continue;
                }
                (text, Err(_)) => {
                    self.find((row, None, day.ok()), Fault::BadSymbol, Action::Refused, quote(text));
                    continue;
                }
            };
            let day = match day {
                Ok(day) => day,
                Err(refusal) => {
                    self.refuse((row, Some(&symbol), None), refusal);
                    continue;
                }
            };
            let place = (row, Some(&symbol), Some(day));
            let split = match at.split.map(field) {
                None | Some("") => None,
                Some(text) => match Split::parse(day, text) {
                    Ok(split) => Some(split),
                    Err(_) => {
                        // Taken without its split, the row would turn a split into a loss.
                        self.find(place, Fault::BadSplit, Action::Refused, quote(text));
                        continue;
                    }
                },
            };
            let prices = parse_price("open", field(at.open)).and_then(|open| {
                let high = parse_price("high", field(at.high))?;
                let low = parse_price("low", field(at.low))?;
                let close = parse_price("close", field(at.close))?;
                let volume = at.volume.map_or(Ok(Some(0)), |column| parse_volume(field(column)))?;
                Ok((Bar { day, open, high, low, close, volume: volume.unwrap_or(0) }, volume.is_none()))
            });
            let bar = match prices {
                Err(refusal) => {
                    self.refuse(place, refusal);
                    None
                }
                Ok((bar, _)) if bar.high < bar.low => {
                    let detail = format!("high {} below low {}", bar.high, bar.low);
                    self.find(place, Fault::HighBelowLow, Action::Refused, detail);
                    None
                }
                Ok((bar, volume_missing)) => {
                    if volume_missing {
                        self.find(
                            place,
                            Fault::MissingField,
                            Action::Flagged,
                            "volume is empty, taken as 0".into(),
                        );
                    }
                    let within = |price: Price| bar.low <= price && price <= bar.high;
                    if !within(bar.open) || !within(bar.close) {
                        let Bar { open, high, low, close, .. } = bar;
                        let detail = format!("open {open} or close {close} not within {low} to {high}");
                        self.find(place, Fault::OutsideRange, Action::Flagged, detail);
                    }
                    Some(bar)
                }
            };
            if bar.is_some() || split.is_some() {
                self.rows.entry(symbol).or_default().push(Row { row, day, bar, split });
            }
        }
    }

    fn read_wide<'t>(
        &mut self,
        names: &[String],
        lines: impl Iterator<Item = (u64, &'t str)>,
    ) -> Result<(), ImportError> {
        let is_date = |name: &String| name.eq_ignore_ascii_case("date");
        let date = match names.iter().filter(|name| is_date(name)).count() {
            1 => names.iter().position(is_date).unwrap_or(0),
            _ => return Err(ImportError::Column { column: "date" }),
        };
        let mut columns: BTreeMap<Symbol, usize> = BTreeMap::new();
        for (column, name) in names.iter().enumerate().filter(|(column, _)| *column != date) {
            match name.parse::<Symbol>() {
                Ok(symbol) if !columns.contains_key(&symbol) => {
                    columns.insert(symbol, column);
                }
                _ => {
                    let detail = format!("the column {} is no symbol, or there twice", quote(name));
                    self.find((self.header_row, None, None), Fault::BadSymbol, Action::Refused, detail);
                }
            }
        }
        if columns.is_empty() {
            return Err(ImportError::NoSymbol);
        }
        let mut table: Vec<(u64, Day, Vec<&str>)> = Vec::new();
        for (row, line) in lines {
            let Some(fields) = self.fields(row, line, names.len()) else { continue };
            match parse_day(fields.get(date).copied().unwrap_or("")) {
                Ok(day) => table.push((row, day, fields)),
                Err(refusal) => self.refuse((row, None, None), refusal),
            }
        }
        // In this shape a day concerns the whole row, so its order is judged once and not once per symbol.
        let days: Vec<Day> = table.iter().map(|(_, day, _)| *day).collect();
        let order = Order::of(&days);
        let mut listed: BTreeMap<&Symbol, bool> =
            columns.keys().map(|symbol| (symbol, self.known.contains_key(symbol))).collect();
        for ((row, day, fields), kept) in table.into_iter().zip(&order.kept) {
            if !kept {
                self.refuse((row, None, Some(day)), order.refusal(day));
                continue;
            }
            for (symbol, column) in &columns {
                let place = (row, Some(symbol), Some(day));
                let text = fields.get(*column).copied().unwrap_or("");
                match (text, listed.get(symbol).copied().unwrap_or(false)) {
                    ("", false) => {}
                    ("", true) => {
                        let detail = "close is empty".to_owned();
                        self.find(place, Fault::MissingField, Action::Flagged, detail);
                    }
                    (text, _) => match parse_price("close", text) {
                        Ok(close) => {
                            listed.insert(symbol, true);
                            let bar = Some(Bar::from_close(day, close));
                            self.rows.entry(symbol.clone()).or_default().push(Row {
                                row,
                                day,
                                bar,
                                split: None,
                            });
                        }
                        Err(refusal) => self.refuse(place, refusal),
                    },
                }
            }
        }
        Ok(())
    }

    /// Judges the rows of each symbol against each other and against what is known.
    fn judge(&mut self) {
        for (symbol, rows) in std::mem::take(&mut self.rows) {
            let series = self.judge_symbol(&symbol, rows);
            self.out.bars += series.bars.len() as u64;
            if !series.bars.is_empty() || !series.splits.is_empty() {
                self.out.series.insert(symbol, series);
            }
        }
        self.out.findings.sort_by(|a, b| (a.row, &a.symbol, a.fault).cmp(&(b.row, &b.symbol, b.fault)));
    }

    fn judge_symbol(&mut self, symbol: &Symbol, rows: Vec<Row>) -> Series {
        let known = self.known.get(symbol).copied();
        let mut fresh = Vec::with_capacity(rows.len());
        for row in rows {
            match known {
                Some((day, _)) if row.day <= day => {
                    let fault = if row.day == day { Fault::DuplicateDay } else { Fault::OutOfOrder };
                    let detail = format!("{day} is known already");
                    self.find((row.row, Some(symbol), Some(row.day)), fault, Action::Refused, detail);
                }
                _ => fresh.push(row),
            }
        }
        let days: Vec<Day> = fresh.iter().map(|row| row.day).collect();
        let order = Order::of(&days);
        let mut in_order = Vec::with_capacity(fresh.len());
        for (row, kept) in fresh.into_iter().zip(&order.kept) {
            if *kept {
                in_order.push(row);
            } else {
                self.refuse((row.row, Some(symbol), Some(row.day)), order.refusal(row.day));
            }
        }
        // With nothing to compare the first close with, it is compared with the two that follow: if the next
        // is far from it and near the one after, it is the first that is wrong.
        let mut last = known.map(|(_, close)| close);
        let mut ahead = in_order.iter().filter_map(|row| row.bar.map(|bar| (bar.close, row.split.is_none())));
        if let (None, Some((first, _)), Some((second, true)), Some((third, true))) =
            (last, ahead.next(), ahead.next(), ahead.next())
            && jump(first, second) == Some(Action::Refused)
            && jump(second, third).is_none()
        {
            last = Some(second);
        }
        let mut series = Series::default();
        for (index, row) in in_order.iter().enumerate() {
            let place = (row.row, Some(symbol), Some(row.day));
            if let Some(split) = row.split {
                last = last.and_then(|close| split.adjust(close));
                series.splits.push(split);
            }
            let Some(bar) = row.bar else { continue };
            let after = in_order.get(index + 1..).unwrap_or(&[]);
            if let Some(before) = last
                && let Some(by_size) = jump(before, bar.close)
            {
                let (action, since) = match sequel(before, bar.close, after) {
                    Some(Sequel::Back) => (Action::Refused, ", and the next ones are back where it was"),
                    Some(Sequel::Stayed) => (Action::Flagged, ", and the next ones stay there"),
                    None => (by_size, ""),
                };
                let detail = format!("close {} after {before}{since}", bar.close);
                self.find(place, Fault::Jump, action, detail);
                if action == Action::Refused {
                    continue;
                }
            }
            last = Some(bar.close);
            series.bars.push(bar);
        }
        series
    }
}

/// Which rows to keep so that as many as possible are in strict order; of two that can't both stay, the
/// earlier stays. So one date that is far off costs one row, and not all rows after it.
struct Order {
    kept: Vec<bool>,
    kept_days: Vec<Day>,
}

impl Order {
    fn of(days: &[Day]) -> Self {
        // From the end: how many rows, this one included, can be kept from here on. `starts` holds for each
        // length the latest day that such a run can start with; it falls as the length grows, so it can be
        // searched.
        let mut starts: Vec<Day> = Vec::new();
        let mut lengths: Vec<usize> = Vec::with_capacity(days.len());
        for day in days.iter().rev() {
            let shorter = starts.partition_point(|start| start > day);
            match starts.get_mut(shorter) {
                Some(start) => *start = *day,
                None => starts.push(*day),
            }
            lengths.push(shorter + 1);
        }
        let mut wanted = starts.len();
        let mut order = Self { kept: Vec::with_capacity(days.len()), kept_days: Vec::with_capacity(wanted) };
        for (day, length) in days.iter().zip(lengths.iter().rev()) {
            let after = order.kept_days.last().is_none_or(|last| last < day);
            let keep = after && *length == wanted;
            order.kept.push(keep);
            if keep {
                order.kept_days.push(*day);
                wanted = wanted.saturating_sub(1);
            }
        }
        order
    }

    fn refusal(&self, day: Day) -> Refusal {
        match self.kept_days.binary_search(&day) {
            Ok(_) => Refusal { fault: Fault::DuplicateDay, detail: format!("{day} is there before") },
            Err(_) => {
                Refusal { fault: Fault::OutOfOrder, detail: format!("{day} is not between its neighbours") }
            }
        }
    }
}

/// What a change from one close to the next deserves, if anything.
fn jump(last: Price, close: Price) -> Option<Action> {
    let (last, close) = (i128::from(last.micros()), i128::from(close.micros()));
    if close >= last * JUMP_REFUSED || close * JUMP_REFUSED <= last {
        Some(Action::Refused)
    } else if (close - last).abs() * 100 > last * JUMP_FLAGGED_PERCENT {
        Some(Action::Flagged)
    } else {
        None
    }
}

/// What became of a jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sequel {
    /// The closes after it are near the one before it: it was one bad price.
    Back,
    /// The closes after it are near it: the level is another one from there on.
    Stayed,
}

/// Asks the rows after a jump what became of it: most of those that say anything decide, and of as many on
/// both sides the last one. `None` when none says anything, because nothing follows or it is far from both.
///
/// Distances are ratios. A close has stayed that is beyond the geometric mean of both levels, and it is back
/// within a quarter of the way from the old one: somewhere between, a share that trebled may have lost half
/// again, and neither price is wrong.
fn sequel(before: Price, jumped: Price, after: &[Row]) -> Option<Sequel> {
    let (mut before, mut jumped) = (before, jumped);
    let (mut back, mut stayed, mut latest) = (0, 0, None);
    let mut asked = 0;
    for row in after {
        if asked == WITNESSES {
            break;
        }
        if let Some(split) = row.split {
            (before, jumped) = match (split.adjust(before), split.adjust(jumped)) {
                (Some(before), Some(jumped)) => (before, jumped),
                _ => break,
            };
        }
        let Some(bar) = row.bar else { continue };
        asked += 1;
        let answer = witness(before, jumped, bar.close);
        match answer {
            Some(Sequel::Back) => back += 1,
            Some(Sequel::Stayed) => stayed += 1,
            None => continue,
        }
        latest = answer;
    }
    match back.cmp(&stayed) {
        Ordering::Greater => Some(Sequel::Back),
        Ordering::Less => Some(Sequel::Stayed),
        Ordering::Equal => latest,
    }
}

/// What one close says of a jump, if anything. Whole numbers only, so that every machine says the same.
fn witness(before: Price, jumped: Price, close: Price) -> Option<Sequel> {
    let [before, jumped, close] = [before, jumped, close].map(|price| i128::from(price.micros()));
    // No overflow: each price is below 2^63 and above zero.
    let half_way = (before * jumped).isqrt();
    let quarter_way = (before * half_way).isqrt().max(1);
    let as_far_beyond = before * before / quarter_way;
    if (quarter_way.min(as_far_beyond)..=quarter_way.max(as_far_beyond)).contains(&close) {
        Some(Sequel::Back)
    } else if (jumped > before && close >= half_way) || (jumped < before && close <= half_way) {
        Some(Sequel::Stayed)
    } else {
        None
    }
}

fn parse_day(text: &str) -> Result<Day, Refusal> {
    match text {
        "" => Err(missing("date")),
        text => Day::from_str(text).map_err(|_| Refusal { fault: Fault::NotADay, detail: quote(text) }),
    }
}

fn parse_price(name: &'static str, text: &str) -> Result<Price, Refusal> {
    if text.is_empty() {
        return Err(missing(name));
    }
    Price::from_str(text).map_err(|error| {
        let fault = match error {
            MarketError::Negative => Fault::NegativePrice,
            MarketError::Zero => Fault::ZeroPrice,
            _ => Fault::NotANumber,
        };
        Refusal { fault, detail: format!("{name} is {}", quote(text)) }
    })
}

/// `None` is an empty field. Sources that went through floating point write `9616100.0`.
fn parse_volume(text: &str) -> Result<Option<u64>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let whole = match text.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() && fraction.bytes().all(|byte| byte == b'0') => whole,
        _ => text,
    };
    let digits = !whole.is_empty() && whole.bytes().all(|byte| byte.is_ascii_digit());
    match (digits, whole.parse::<u64>()) {
        (true, Ok(volume)) => Ok(Some(volume)),
        _ => Err(Refusal { fault: Fault::BadVolume, detail: format!("volume is {}", quote(text)) }),
    }
}

fn missing(name: &'static str) -> Refusal {
    Refusal { fault: Fault::MissingField, detail: format!("{name} is empty") }
}

/// A stranger's text, short and without control characters, for a finding that people and logs will show.
fn quote(text: &str) -> String {
    let short: String = text.chars().take(QUOTE_CHARS_MAX).collect();
    format!("{short:?}")
}

/// Splits a line at its commas, quoted ones excepted, and says whether the quotes are paired. A quote never
/// reaches beyond its line: a stray one costs one row, where the usual rule of CSV would swallow the rest of
/// the file.
fn split_fields(line: &str) -> (Vec<&str>, bool) {
    let mut quoted = false;
    let fields = line
        .split(|character| {
            quoted ^= character == '"';
            character == ',' && !quoted
        })
        .map(|field| field.trim().trim_matches('"').trim())
        .collect();
    (fields, !quoted)
}

#[cfg(test)]
mod tests;
