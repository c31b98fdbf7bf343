//! One SQLite file: how it is made, opened, brought to the newest schema, and shared between threads.
//!
//! Two connections: one that writes, one that only reads and never waits for the writer. Durability is
//! SQLite's write-ahead log with a full sync at every commit.
//!
//! INVARIANT: the file is its owner's alone, and a schema only ever moves forward.

use std::fs::{self, DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use market::{Day, Price, Symbol};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::StoreError;
use crate::error::damaged;

/// How long a connection waits for another process.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// A domain's file.
#[derive(Debug)]
pub(crate) struct Database {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
}

impl Database {
    /// Opens a file, making it and its directories where they are missing, and brings it to the newest
    /// schema: one step per text in `migrations`, never changed once released.
    pub(crate) fn open(path: &Path, migrations: &[&str]) -> Result<Self, StoreError> {
        prepare(path).map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        let mut writer = connect(path)?;
        migrate(&mut writer, migrations)?;
        let reader = connect(path)?;
        reader.pragma_update(None, "query_only", "ON")?;
        Ok(Self { writer: Mutex::new(writer), reader: Mutex::new(reader) })
    }

    /// Runs a change: all of it is kept, or nothing.
    pub(crate) fn write<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut writer = lock(&self.writer);
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = change(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }

    /// Runs a question: all of it sees one state of the file.
    pub(crate) fn read<T>(
        &self,
        question: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut reader = lock(&self.reader);
        let transaction = reader.transaction_with_behavior(TransactionBehavior::Deferred)?;
        question(&transaction)
    }

    /// Lets the file grow no further, as a full disk would.
    #[cfg(test)]
    pub(crate) fn fill_up(&self) {
        let writer = lock(&self.writer);
        let pages: i64 = writer.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        let _: i64 =
            writer.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get(0)).unwrap();
    }

    /// Runs a statement as somebody with the file in his hands would.
    #[cfg(test)]
    pub(crate) fn tamper(&self, sql: &str) {
        lock(&self.writer).execute_batch(sql).unwrap();
    }
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    // An unfinished transaction rolls back when it is dropped, so a panic elsewhere leaves nothing half-done.
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn prepare(path: &Path) -> std::io::Result<()> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    // SQLite gives its side files the mode of this one.
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_MAX)?;
    // SQLite doesn't wait for another process that is just making the same change.
    let begun = Instant::now();
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL").map_err(StoreError::from) {
            Ok(()) => break,
            Err(StoreError::Busy) if begun.elapsed() < BUSY_MAX => {
                std::thread::sleep(Duration::from_millis(10))
            }
            Err(error) => return Err(error),
        }
    }
    for (name, value) in [
        ("synchronous", "FULL"),
        ("foreign_keys", "ON"),
        ("trusted_schema", "OFF"),
        ("cell_size_check", "ON"),
    ] {
        connection.pragma_update(None, name, value)?;
    }
    Ok(connection)
}

fn migrate(writer: &mut Connection, migrations: &[&str]) -> Result<(), StoreError> {
    let known = i64::try_from(migrations.len()).map_err(damaged)?;
    // Looked up inside the transaction: another unit may be opening the same file.
    let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let done = usize::try_from(found).map_err(damaged)?;
    if found > known {
        return Err(StoreError::NewerSchema { found, known });
    }
    for migration in migrations.iter().skip(done) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    Ok(())
}

/// A day as it stands in a column: `yyyymmdd`.
pub(crate) fn day_number(day: Day) -> i64 {
    let date = day.date();
    i64::from(date.year()) * 10_000 + i64::from(u8::from(date.month())) * 100 + i64::from(date.day())
}

/// The day that a column holds.
pub(crate) fn day_of(number: i64) -> Result<Day, StoreError> {
    let (year, month, day) = (number / 10_000, number / 100 % 100, number % 100);
    let small = |value: i64| u8::try_from(value).map_err(damaged);
    Day::new(i32::try_from(year).map_err(damaged)?, small(month)?, small(day)?).map_err(damaged)
}

/// The price that a column holds.
pub(crate) fn price_of(micros: i64) -> Result<Price, StoreError> {
    Price::from_micros(micros).map_err(damaged)
}

/// The symbol that a column holds.
pub(crate) fn symbol_of(text: &str) -> Result<Symbol, StoreError> {
    text.parse().map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/market.db");
        let database = Database::open(&path, &["CREATE TABLE t (x INTEGER) STRICT"]).unwrap();
        database.write(|t| Ok(t.execute("INSERT INTO t VALUES (1)", [])?)).unwrap();
        for name in ["market.db", "market.db-wal", "market.db-shm"] {
            let mode = fs::metadata(path.with_file_name(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_schema_moves_forward_and_never_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        let first = "CREATE TABLE t (x INTEGER) STRICT";
        let second = "ALTER TABLE t ADD COLUMN y INTEGER NOT NULL DEFAULT 7";
        drop(Database::open(&path, &[first]).unwrap());
        let database = Database::open(&path, &[first, second]).unwrap();
        database.write(|t| Ok(t.execute("INSERT INTO t (x) VALUES (1)", [])?)).unwrap();
        let y: i64 = database.read(|t| Ok(t.query_row("SELECT y FROM t", [], |row| row.get(0))?)).unwrap();
        assert_eq!(y, 7);
        let older = Database::open(&path, &[first]);
        assert!(matches!(older, Err(StoreError::NewerSchema { found: 2, known: 1 })), "{older:?}");
    }

    #[test]
    fn the_reader_cannot_write() {
        let directory = tempfile::tempdir().unwrap();
        let database =
            Database::open(&directory.path().join("x.db"), &["CREATE TABLE t (x INTEGER) STRICT"]).unwrap();
        assert!(database.read(|t| Ok(t.execute("INSERT INTO t VALUES (1)", [])?)).is_err());
    }

    #[test]
    fn a_full_disk_is_said_clearly_and_nothing_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let database =
            Database::open(&directory.path().join("x.db"), &["CREATE TABLE t (x TEXT) STRICT"]).unwrap();
        database.fill_up();
        let full = database.write(|t| {
            for _ in 0..100 {
                t.execute("INSERT INTO t VALUES (?1)", ["x".repeat(1000)])?;
            }
            Ok(())
        });
        assert!(matches!(full, Err(StoreError::DiskFull)), "{full:?}");
        let rows: i64 =
            database.read(|t| Ok(t.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?)).unwrap();
        assert_eq!(rows, 0);
    }

    #[test]
    fn a_file_that_is_no_database_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        fs::write(&path, "this is a text, and by no means a database, however long it may be").unwrap();
        let opened = Database::open(&path, &[]);
        assert!(matches!(opened, Err(StoreError::Damaged(_))), "{opened:?}");
    }

    #[test]
    fn many_can_open_a_new_file_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        let first = "CREATE TABLE t (x INTEGER) STRICT";
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| Database::open(&path, &[first]))).collect();
            for one in all {
                one.join().unwrap().unwrap();
            }
        });
    }

    #[test]
    fn a_day_survives_its_column() {
        let day: Day = "2004-02-29".parse().unwrap();
        assert_eq!(day_number(day), 20_040_229);
        assert_eq!(day_of(20_040_229).unwrap(), day);
        assert!(day_of(20_040_230).is_err());
        assert!(day_of(-1).is_err());
    }
}
