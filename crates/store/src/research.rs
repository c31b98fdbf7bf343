//! The research domain: forecasts and reports, each under one name for ever.
//!
//! Their content is JSON that other parts give meaning to; here it is text with a digest. A forecast is found
//! by its id, or as the latest of a portfolio that was made by some day.
//!
//! INVARIANT: a name never changes its content.

use std::path::Path;

use market::Day;
use rusqlite::{OptionalExtension as _, params};

use crate::StoreError;
use crate::database::{Database, day_number, day_of};

/// Length of a forecast's or a report's content, in bytes.
const JSON_BYTES_MAX: usize = 1 << 20;
/// Length of an id, a portfolio's name or a digest, in bytes.
const NAME_BYTES_MAX: usize = 128;

const MIGRATIONS: &[&str] = &["
    CREATE TABLE forecasts (
        id        TEXT NOT NULL PRIMARY KEY,
        portfolio TEXT NOT NULL,
        day       INTEGER NOT NULL,           -- yyyymmdd
        json      TEXT NOT NULL,
        digest    TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX forecasts_by_day ON forecasts (portfolio, day, id);
    CREATE TABLE reports (
        id        TEXT NOT NULL PRIMARY KEY,
        portfolio TEXT NOT NULL,
        day       INTEGER NOT NULL,
        json      TEXT NOT NULL,
        digest    TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX reports_by_day ON reports (portfolio, day, id);
"];

/// A forecast as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// Identifier.
    pub id: String,
    /// Portfolio that it is for.
    pub portfolio: String,
    /// Market day on which it was made.
    pub day: Day,
    /// Content, up to 1 MiB.
    pub json: String,
    /// Digest of the content, as the writer says it.
    pub digest: String,
}

/// A report as it was stored. The fields mean what they mean for a [`Forecast`].
pub type Report = Forecast;

/// The database of the research domain.
#[derive(Debug)]
pub struct Research(Database);

impl Research {
    /// Opens the file, and makes it where there is none.
    ///
    /// # Errors
    /// As [`crate::Market::open`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Database::open(path, MIGRATIONS).map(Self)
    }

    /// Writes a forecast. True when it is new, false when the same one stands already.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when another digest, portfolio or day stands under this id;
    /// [`StoreError::TooLarge`].
    pub fn put_forecast(&self, forecast: &Forecast) -> Result<bool, StoreError> {
        self.put("forecasts", "forecast", forecast)
    }

    /// The forecast of this id.
    ///
    /// # Errors
    /// The file's.
    pub fn forecast(&self, id: &str) -> Result<Option<Forecast>, StoreError> {
        self.by_id("forecasts", id)
    }

    /// The latest forecast of a portfolio that was made on or before a day.
    ///
    /// # Errors
    /// The file's.
    pub fn latest_forecast(&self, portfolio: &str, through: Day) -> Result<Option<Forecast>, StoreError> {
        self.latest("forecasts", portfolio, through)
    }

    /// Writes a report. True when it is new, false when the same one stands already.
    ///
    /// # Errors
    /// As [`Research::put_forecast`].
    pub fn put_report(&self, report: &Report) -> Result<bool, StoreError> {
        self.put("reports", "report", report)
    }

    /// The report of this id.
    ///
    /// # Errors
    /// The file's.
    pub fn report(&self, id: &str) -> Result<Option<Report>, StoreError> {
        self.by_id("reports", id)
    }

    /// The latest report of a portfolio that was made on or before a day.
    ///
    /// # Errors
    /// The file's.
    pub fn latest_report(&self, portfolio: &str, through: Day) -> Result<Option<Report>, StoreError> {
        self.latest("reports", portfolio, through)
    }

    fn put(&self, table: &'static str, what: &'static str, row: &Forecast) -> Result<bool, StoreError> {
        if row.json.len() > JSON_BYTES_MAX {
            return Err(StoreError::TooLarge {
                what: "the content of a forecast or report",
                limit: JSON_BYTES_MAX,
            });
        }
        if [&row.id, &row.portfolio, &row.digest]
            .iter()
            .any(|name| name.is_empty() || name.len() > NAME_BYTES_MAX)
        {
            return Err(StoreError::TooLarge {
                what: "an id, a portfolio or a digest",
                limit: NAME_BYTES_MAX,
            });
        }
        self.0.write(|t| {
            let new = t.execute(
                &format!("INSERT INTO {table} VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING"),
                params![row.id, row.portfolio, day_number(row.day), row.json, row.digest],
            )? == 1;
            let same = new
                || t.prepare(&format!(
                    "SELECT 1 FROM {table} WHERE id = ?1 AND portfolio = ?2 AND day = ?3 AND digest = ?4"
                ))?
                .exists(params![row.id, row.portfolio, day_number(row.day), row.digest])?;
            if same { Ok(new) } else { Err(StoreError::Conflict(format!("{what} {}", row.id))) }
        })
    }

    fn by_id(&self, table: &'static str, id: &str) -> Result<Option<Forecast>, StoreError> {
        self.0.read(|t| {
            t.query_row(
                &format!("SELECT id, portfolio, day, json, digest FROM {table} WHERE id = ?1"),
                params![id],
                columns,
            )
            .optional()?
            .map(stored)
            .transpose()
        })
    }

    fn latest(
        &self,
        table: &'static str,
        portfolio: &str,
        through: Day,
    ) -> Result<Option<Forecast>, StoreError> {
        self.0.read(|t| {
            t.query_row(
                &format!(
                    "SELECT id, portfolio, day, json, digest FROM {table}
                     WHERE portfolio = ?1 AND day <= ?2 ORDER BY day DESC, id DESC LIMIT 1"
                ),
                params![portfolio, day_number(through)],
                columns,
            )
            .optional()?
            .map(stored)
            .transpose()
        })
    }
}

type Columns = (String, String, i64, String, String);

fn columns(row: &rusqlite::Row<'_>) -> rusqlite::Result<Columns> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
}

fn stored((id, portfolio, day, json, digest): Columns) -> Result<Forecast, StoreError> {
    Ok(Forecast { id, portfolio, day: day_of(day)?, json, digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(id: &str, date: &str) -> Forecast {
        Forecast {
            id: id.into(),
            portfolio: "core".into(),
            day: date.parse().unwrap(),
            json: "{}".into(),
            digest: "aa".into(),
        }
    }

    #[test]
    fn a_name_never_changes_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let research = Research::open(&directory.path().join("research.db")).unwrap();
        let first = forecast("core/2005-02-24", "2005-02-24");
        assert!(research.put_forecast(&first).unwrap());
        assert!(!research.put_forecast(&first).unwrap());
        for other in [
            Forecast { digest: "bb".into(), ..first.clone() },
            Forecast { day: "2005-02-25".parse().unwrap(), ..first.clone() },
            Forecast { portfolio: "tech".into(), ..first.clone() },
        ] {
            assert!(matches!(research.put_forecast(&other), Err(StoreError::Conflict(_))));
        }
        assert_eq!(research.forecast(&first.id).unwrap(), Some(first.clone()));
        assert_eq!(research.forecast("none").unwrap(), None);
        assert_eq!(research.report(&first.id).unwrap(), None, "a report is no forecast");
        assert!(research.put_report(&first).unwrap());
        assert_eq!(research.latest_report("core", first.day).unwrap(), Some(first));
    }

    #[test]
    fn the_latest_forecast_is_never_a_later_one() {
        let directory = tempfile::tempdir().unwrap();
        let research = Research::open(&directory.path().join("research.db")).unwrap();
        for date in ["2005-02-24", "2005-03-24", "2005-04-24"] {
            research.put_forecast(&forecast(date, date)).unwrap();
        }
        let latest = |portfolio: &str, date: &str| {
            research.latest_forecast(portfolio, date.parse().unwrap()).unwrap().map(|found| found.id)
        };
        assert_eq!(latest("core", "2005-04-23").as_deref(), Some("2005-03-24"));
        assert_eq!(latest("core", "2005-04-24").as_deref(), Some("2005-04-24"));
        assert_eq!(latest("core", "2005-02-23"), None);
        assert_eq!(latest("tech", "2005-04-24"), None);
    }

    #[test]
    fn content_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let research = Research::open(&directory.path().join("research.db")).unwrap();
        let large = Forecast { json: "x".repeat(JSON_BYTES_MAX + 1), ..forecast("x", "2005-02-24") };
        assert!(matches!(research.put_forecast(&large), Err(StoreError::TooLarge { .. })));
        let nameless = forecast("", "2005-02-24");
        assert!(matches!(research.put_forecast(&nameless), Err(StoreError::TooLarge { .. })));
    }
}
