//! From text of a stranger to values: queries and the parts that bodies share.
//!
//! Strict on purpose: a key that is unknown, missing or given twice refuses the whole request, so that no two
//! readers of one request understand it differently. What is refused says which part is wrong.

use std::collections::{BTreeMap, BTreeSet};

use access::vocabulary::MarketDay;
use market::{Day, Symbol};
use wire::problem::Problem;

/// Symbols in one request at most.
const SYMBOLS_MAX: usize = 1_000;
/// Length of an identifier, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Length of a portfolio's name, in bytes: it is also the name of a data set.
const PORTFOLIO_BYTES_MAX: usize = 64;

/// The keys of a query, each at most once.
pub(crate) struct Query<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Query<'a> {
    /// Takes a query that has exactly these keys. No value of ours needs an escape, so `%` and `+` are
    /// refused further down, where values are read.
    pub(crate) fn parse(query: &'a str, keys: &[&str]) -> Result<Self, Problem> {
        let mut found = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| Problem::bad_request("bad_query", "every part of the query is KEY=VALUE"))?;
            if !keys.contains(&key) {
                let detail = format!("this route takes {}, not {key:?}", keys.join(", "));
                return Err(Problem::bad_request("bad_query", &detail));
            }
            if found.insert(key, value).is_some() {
                return Err(Problem::bad_request("bad_query", &format!("{key} is given twice")));
            }
        }
        Ok(Self(found))
    }

    fn value(&self, key: &str) -> Result<&'a str, Problem> {
        match self.0.get(key) {
            Some(value) => Ok(value),
            None => Err(Problem::bad_request("bad_query", &format!("{key} is missing"))),
        }
    }

    /// The portfolio.
    pub(crate) fn portfolio(&self) -> Result<String, Problem> {
        portfolio(self.value("portfolio")?)
    }

    /// A day.
    pub(crate) fn day(&self, key: &str) -> Result<Day, Problem> {
        let text = self.value(key)?;
        text.parse()
            .map_err(|_| Problem::bad_request("bad_day", &format!("{key} is no day of the form YYYY-MM-DD")))
    }

    /// An identifier.
    pub(crate) fn id(&self) -> Result<String, Problem> {
        let id = self.value("id")?;
        name("id", id)?;
        Ok(id.to_owned())
    }

    /// Symbols with commas between them.
    pub(crate) fn symbols(&self) -> Result<BTreeSet<Symbol>, Problem> {
        let mut symbols = BTreeSet::new();
        for text in self.value("symbols")?.split(',') {
            let symbol = text
                .parse()
                .map_err(|_| Problem::bad_request("bad_symbol", "symbols is a list such as AAPL,MSFT"))?;
            symbols.insert(symbol);
            if symbols.len() > SYMBOLS_MAX {
                let detail = format!("a request names at most {SYMBOLS_MAX} symbols");
                return Err(Problem::bad_request("too_many_symbols", &detail));
            }
        }
        Ok(symbols)
    }
}

/// Portfolio, symbols and days that a read is about.
#[derive(Debug)]
pub(crate) struct Range {
    /// Portfolio.
    pub(crate) portfolio: String,
    /// Symbols, at least one.
    pub(crate) symbols: BTreeSet<Symbol>,
    /// First day.
    pub(crate) from: Day,
    /// Last day, included.
    pub(crate) through: Day,
}

impl Range {
    /// Reads `portfolio`, `symbols`, `from` and `through`.
    pub(crate) fn parse(query: &str) -> Result<Self, Problem> {
        let query = Query::parse(query, &["portfolio", "symbols", "from", "through"])?;
        let range = Self {
            portfolio: query.portfolio()?,
            symbols: query.symbols()?,
            from: query.day("from")?,
            through: query.day("through")?,
        };
        if range.from > range.through {
            return Err(Problem::bad_request("bad_range", "from is later than through"));
        }
        Ok(range)
    }

    /// The symbols as a list.
    pub(crate) fn symbol_list(&self) -> Vec<Symbol> {
        self.symbols.iter().cloned().collect()
    }
}

/// A portfolio's name: 1 to 64 letters, digits, dots, dashes and underscores.
pub(crate) fn portfolio(text: &str) -> Result<String, Problem> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    match text.len() {
        1..=PORTFOLIO_BYTES_MAX if plain => Ok(text.to_owned()),
        _ => Err(Problem::bad_request("bad_portfolio", "that is no name of a portfolio")),
    }
}

/// An identifier: 1 to 128 letters, digits and `._-/:`.
pub(crate) fn name(what: &str, text: &str) -> Result<(), Problem> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/:".contains(&byte));
    match text.len() {
        1..=NAME_BYTES_MAX if plain => Ok(()),
        _ => Err(Problem::bad_request("bad_name", &format!("{what} is no identifier"))),
    }
}

/// A market day as grants speak of it. `None` never happens, for both kinds of day have the same range; if it
/// did, a write would be refused for naming no day, and a read would be cut at the grant's day.
pub(crate) fn market_day(day: Day) -> Option<MarketDay> {
    MarketDay::parse(&day.to_string())
}

/// Texts of symbols, for the guard.
pub(crate) fn texts<'a>(symbols: impl IntoIterator<Item = &'a Symbol>) -> Vec<String> {
    let texts: BTreeSet<&Symbol> = symbols.into_iter().collect();
    texts.into_iter().map(ToString::to_string).collect()
}

/// Refuses a write of nothing.
pub(crate) fn some_rows(rows: usize) -> Result<u64, Problem> {
    match u64::try_from(rows) {
        Ok(rows) if rows > 0 => Ok(rows),
        _ => Err(Problem::bad_request("no_rows", "the body has nothing to write")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(query: &str) -> String {
        Range::parse(query).unwrap_err().code
    }

    #[test]
    fn a_range_is_read_as_it_is_written() {
        let range =
            Range::parse("portfolio=core&symbols=MSFT,AAPL&through=2005-03-16&from=2005-01-03").unwrap();
        assert_eq!(range.portfolio, "core");
        assert_eq!(texts(&range.symbols), ["AAPL", "MSFT"]);
        assert_eq!(
            (range.from.to_string(), range.through.to_string()),
            ("2005-01-03".into(), "2005-03-16".into())
        );
    }

    #[test]
    fn a_query_that_can_be_read_in_two_ways_is_refused() {
        let good = "portfolio=core&symbols=AAPL&from=2005-01-03&through=2005-03-16";
        assert!(Range::parse(good).is_ok());
        for (query, code) in [
            (format!("{good}&through=2001-01-01"), "bad_query"),
            (format!("{good}&Through=2001-01-01"), "bad_query"),
            (format!("{good}&limit=1"), "bad_query"),
            (format!("{good}&x"), "bad_query"),
            (good.replace("&from=2005-01-03", ""), "bad_query"),
            (good.replace("core", "co%72e"), "bad_portfolio"),
            (good.replace("core", "../core"), "bad_portfolio"),
            (good.replace("core", ""), "bad_portfolio"),
            (good.replace("core", &"x".repeat(65)), "bad_portfolio"),
            (good.replace("AAPL", "AAPL,"), "bad_symbol"),
            (good.replace("AAPL", "aapl"), "bad_symbol"),
            (good.replace("AAPL", "AAPL%2CMSFT"), "bad_symbol"),
            (good.replace("2005-03-16", "2005-3-16"), "bad_day"),
            (good.replace("2005-03-16", "2005-02-30"), "bad_day"),
            (good.replace("2005-01-03", "2005-03-17"), "bad_range"),
        ] {
            assert_eq!(refusal(&query), code, "{query}");
        }
        let many: Vec<String> = (0..=SYMBOLS_MAX).map(|number| format!("S{number}")).collect();
        assert_eq!(refusal(&good.replace("AAPL", &many.join(","))), "too_many_symbols");
    }
}
