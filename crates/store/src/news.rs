//! The news domain: articles, the moment each became public, and the symbols it is about.
//!
//! An article is text from outside: it is stored and served, and never obeyed. What it says is nobody's
//! decision here.
//!
//! INVARIANT: an article's length is bounded, and none is served to who may not see its day.

use std::collections::BTreeSet;
use std::path::Path;

use market::{Day, Symbol};
use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::database::{Database, day_number, day_of, symbol_of};
use crate::error::damaged;
use crate::{PutOutcome, StoreError};

/// Articles that are taken or given at once.
const ARTICLES_MAX: usize = 1_000;
/// Length of an article's body, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Length of a title, in bytes.
const TITLE_BYTES_MAX: usize = 1 << 10;
/// Length of an id or a source's name, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Symbols of one article.
const SYMBOLS_MAX: usize = 64;
/// Seconds of a day.
const DAY_SECONDS: u32 = 86_400;

const MIGRATIONS: &[&str] = &["
    CREATE TABLE articles (
        id      TEXT NOT NULL PRIMARY KEY,
        day     INTEGER NOT NULL,                                      -- yyyymmdd
        second  INTEGER NOT NULL CHECK (second BETWEEN 0 AND 86399),
        source  TEXT NOT NULL,
        title   TEXT NOT NULL,
        body    TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE article_symbols (
        symbol  TEXT NOT NULL,
        day     INTEGER NOT NULL,
        article TEXT NOT NULL REFERENCES articles (id),
        PRIMARY KEY (symbol, day, article)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX symbols_of_article ON article_symbols (article);
"];

/// A piece of news.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Article {
    /// The source's identifier, 1 to 128 bytes.
    pub id: String,
    /// Symbols that it is about, up to 64.
    pub symbols: BTreeSet<Symbol>,
    /// The market day on which it became public.
    pub day: Day,
    /// The second of that day, from 0 to 86,399.
    pub second: u32,
    /// Who published it, up to 128 bytes.
    pub source: String,
    /// Title, up to 1 KiB.
    pub title: String,
    /// Text, up to 64 KiB.
    pub body: String,
}

impl Article {
    fn check(&self) -> Result<(), StoreError> {
        for (what, length, limit) in [
            ("an article's id", self.id.len(), NAME_BYTES_MAX),
            ("an article's source", self.source.len(), NAME_BYTES_MAX),
            ("an article's title", self.title.len(), TITLE_BYTES_MAX),
            ("an article's body", self.body.len(), BODY_BYTES_MAX),
            ("the number of an article's symbols", self.symbols.len(), SYMBOLS_MAX),
        ] {
            if length > limit {
                return Err(StoreError::TooLarge { what, limit });
            }
        }
        if self.id.is_empty() || self.second >= DAY_SECONDS {
            return Err(StoreError::TooLarge {
                what: "an article's second (and its id may not be empty)",
                limit: 86_399,
            });
        }
        Ok(())
    }
}

/// The database of the news domain.
#[derive(Debug)]
pub struct News(Database);

impl News {
    /// Opens the file, and makes it where there is none.
    ///
    /// # Errors
    /// As [`crate::Market::open`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Database::open(path, MIGRATIONS).map(Self)
    }

    /// Writes articles. One that stands already is counted; other content under a known id is refused and
    /// named.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] above 1,000 articles or for one that breaks a limit: then none is written.
    pub fn put_articles(&self, articles: &[Article]) -> Result<PutOutcome, StoreError> {
        if articles.len() > ARTICLES_MAX {
            return Err(StoreError::TooLarge { what: "articles at once", limit: ARTICLES_MAX });
        }
        articles.iter().try_for_each(Article::check)?;
        self.0.write(|t| {
            let mut outcome = PutOutcome::default();
            let mut put =
                t.prepare("INSERT INTO articles VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING")?;
            let mut about = t.prepare("INSERT INTO article_symbols VALUES (?1, ?2, ?3)")?;
            for article in articles {
                let row = params![
                    article.id,
                    day_number(article.day),
                    article.second,
                    article.source,
                    article.title,
                    article.body
                ];
                let new = put.execute(row)? == 1;
                if new {
                    for symbol in &article.symbols {
                        about.execute(params![symbol.as_str(), day_number(article.day), article.id])?;
                    }
                }
                let same = !new && one(t, &article.id)?.as_ref() == Some(article);
                outcome.count(new, same, "article", || article.id.clone());
            }
            Ok(outcome)
        })
    }

    /// The articles about any of some symbols, from one day through another, both included, in the order in
    /// which they became public; at most the first 1,000.
    ///
    /// # Errors
    /// The file's.
    pub fn articles(&self, symbols: &[Symbol], from: Day, through: Day) -> Result<Vec<Article>, StoreError> {
        self.0.read(|t| {
            let mut question =
                t.prepare("SELECT article FROM article_symbols WHERE symbol = ?1 AND day BETWEEN ?2 AND ?3")?;
            let mut ids: BTreeSet<String> = BTreeSet::new();
            for symbol in symbols {
                let range = params![symbol.as_str(), day_number(from), day_number(through)];
                for id in question.query_map(range, |row| row.get(0))? {
                    ids.insert(id?);
                }
            }
            let mut order = t.prepare("SELECT day, second FROM articles WHERE id = ?1")?;
            let mut moments: Vec<(i64, i64, String)> = Vec::with_capacity(ids.len());
            for id in ids {
                let (day, second) = order.query_row([&id], |row| Ok((row.get(0)?, row.get(1)?)))?;
                moments.push((day, second, id));
            }
            moments.sort_unstable();
            let mut found = Vec::new();
            for (_, _, id) in moments.into_iter().take(ARTICLES_MAX) {
                found.extend(one(t, &id)?);
            }
            Ok(found)
        })
    }
}

fn one(t: &rusqlite::Transaction<'_>, id: &str) -> Result<Option<Article>, StoreError> {
    let mut question = t.prepare("SELECT day, second, source, title, body FROM articles WHERE id = ?1")?;
    let mut rows = question.query([id])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let mut about = t.prepare("SELECT symbol FROM article_symbols WHERE article = ?1")?;
    let mut symbols = BTreeSet::new();
    for symbol in about.query_map([id], |row| row.get::<_, String>(0))? {
        symbols.insert(symbol_of(&symbol?)?);
    }
    Ok(Some(Article {
        id: id.to_owned(),
        symbols,
        day: day_of(row.get(0)?)?,
        second: u32::try_from(row.get::<_, i64>(1)?).map_err(damaged)?,
        source: row.get(2)?,
        title: row.get(3)?,
        body: row.get(4)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn article(id: &str, date: &str, symbols: &[&str]) -> Article {
        Article {
            id: id.into(),
            symbols: symbols.iter().map(|symbol| symbol.parse().unwrap()).collect(),
            day: date.parse().unwrap(),
            second: 34_200,
            source: "wire".into(),
            title: "Title".into(),
            body: "Body".into(),
        }
    }

    #[test]
    fn news_of_tomorrow_is_not_served_today() {
        let directory = tempfile::tempdir().unwrap();
        let news = News::open(&directory.path().join("news.db")).unwrap();
        let all = [article("2", "2005-02-25", &["AAPL"]), article("1", "2005-02-24", &["AAPL", "MSFT"])];
        assert_eq!(news.put_articles(&all).unwrap().new_rows, 2);
        let symbols = ["AAPL".parse().unwrap(), "MSFT".parse().unwrap()];
        let served = |through: &str| {
            news.articles(&symbols, "1990-01-01".parse().unwrap(), through.parse().unwrap()).unwrap()
        };
        assert_eq!(served("2005-02-24"), [all[1].clone()]);
        assert_eq!(served("2005-02-25"), [all[1].clone(), all[0].clone()]);
    }

    #[test]
    fn an_article_that_changes_its_words_later_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let news = News::open(&directory.path().join("news.db")).unwrap();
        let first = article("1", "2005-02-24", &["AAPL"]);
        news.put_articles(std::slice::from_ref(&first)).unwrap();
        assert_eq!(news.put_articles(std::slice::from_ref(&first)).unwrap().same_rows, 1);
        for changed in [
            Article { body: "We knew it all along".into(), ..first.clone() },
            Article { symbols: BTreeSet::new(), ..first.clone() },
        ] {
            let outcome = news.put_articles(&[changed]).unwrap();
            assert_eq!((outcome.new_rows, outcome.conflicts[0].to_string().as_str()), (0, "article 1"));
        }
        let kept = news.articles(&["AAPL".parse().unwrap()], first.day, first.day).unwrap();
        assert_eq!(kept, [first]);
    }

    #[test]
    fn an_article_beyond_its_limits_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let news = News::open(&directory.path().join("news.db")).unwrap();
        let good = article("1", "2005-02-24", &["AAPL"]);
        for bad in [
            Article { body: "x".repeat(BODY_BYTES_MAX + 1), ..good.clone() },
            Article { id: String::new(), ..good.clone() },
            Article { second: 86_400, ..good.clone() },
        ] {
            assert!(matches!(news.put_articles(&[good.clone(), bad]), Err(StoreError::TooLarge { .. })));
        }
        assert_eq!(
            news.put_articles(&[good]).unwrap().new_rows,
            1,
            "nothing of the refused ones was written"
        );
    }
}
