//! The management database: what management must know after a restart and no log says cheaply.
//!
//! One SQLite file that only management opens. Each table keeps documents by id; what they mean is decided by whoever
//! wrote them. Every write is on disk when it returns.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Kinds of documents; the only names that reach an SQL statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Members: whoever has an identity.
    Members,
    /// Tickets, hashed.
    Tickets,
    /// Tasks of the step under way, and the step itself.
    Tasks,
    /// The revocation log.
    Revocations,
    /// Incidents.
    Incidents,
    /// Proposals that wait for a second person.
    Proposals,
    /// Secrets of members, sealed under their domain's key.
    Secrets,
}

impl Table {
    const ALL: [Table; 7] = [
        Table::Members,
        Table::Tickets,
        Table::Tasks,
        Table::Revocations,
        Table::Incidents,
        Table::Proposals,
        Table::Secrets,
    ];

    fn name(self) -> &'static str {
        match self {
            Table::Members => "members",
            Table::Tickets => "tickets",
            Table::Tasks => "tasks",
            Table::Revocations => "revocations",
            Table::Incidents => "incidents",
            Table::Proposals => "proposals",
            Table::Secrets => "secrets",
        }
    }
}

/// Why the database could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// SQLite refused.
    #[error("the management database {path} cannot be used: {source}; free disk space or mend permissions")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A document cannot be written down.
    #[error("a document for {table} cannot be written down: {problem}")]
    Unwritable {
        /// The table.
        table: &'static str,
        /// Why.
        problem: String,
    },
    /// A stored document is not what this version writes.
    #[error(
        "the management database {path} holds a document in {table} that this version cannot read: {problem}"
    )]
    Document {
        /// The file.
        path: PathBuf,
        /// The table.
        table: &'static str,
        /// Why.
        problem: String,
    },
    /// The file was written by a newer version.
    #[error(
        "the management database {path} has version {found}, this program knows {known}: use the newer program"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
}

/// Documents that become true together: what one decision stores.
#[derive(Debug, Default)]
pub struct Writes {
    /// What stands under an id from now on; nothing where it is removed.
    documents: Vec<(Table, String, Option<String>)>,
}

impl Writes {
    /// Adds one document; the last one under an id counts.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn put<T: Serialize>(&mut self, table: Table, id: &str, document: &T) -> Result<(), DatabaseError> {
        let body = serde_json::to_string(document)
            .map_err(|error| DatabaseError::Unwritable { table: table.name(), problem: error.to_string() })?;
        self.documents.push((table, id.to_owned(), Some(body)));
        Ok(())
    }

    /// Removes one document; one that is not there is fine.
    pub fn remove(&mut self, table: Table, id: &str) {
        self.documents.push((table, id.to_owned(), None));
    }

    /// Adds all of another decision's, which came later.
    pub(crate) fn append(&mut self, mut later: Self) {
        self.documents.append(&mut later.documents);
    }

    /// Whether it changes a table.
    #[must_use]
    pub fn touches(&self, table: Table) -> bool {
        self.documents.iter().any(|(touched, ..)| *touched == table)
    }
}

/// The database.
pub struct Database {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// Version 2 added the table of secrets.
const VERSION: i64 = 2;

impl Database {
    /// Opens the database, making it when it is not there.
    ///
    /// # Errors
    /// When the file cannot be used or belongs to a newer version.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        let sqlite = |source| DatabaseError::Sqlite { path: path.to_owned(), source };
        let connection = Connection::open(path).map_err(sqlite)?;
        connection
            .execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA trusted_schema=OFF;")
            .map_err(sqlite)?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sqlite)?;
        if found > VERSION {
            return Err(DatabaseError::Newer { path: path.to_owned(), found, known: VERSION });
        }
        if found < VERSION {
            for table in Table::ALL {
                let name = table.name();
                connection
                    .execute_batch(&format!(
                        "CREATE TABLE IF NOT EXISTS {name} (id TEXT PRIMARY KEY NOT NULL COLLATE BINARY, body TEXT NOT NULL) STRICT;"
                    ))
                    .map_err(sqlite)?;
            }
            connection.pragma_update(None, "user_version", VERSION).map_err(sqlite)?;
        }
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection) })
    }

    /// Writes everything in `writes`, all or none.
    ///
    /// # Errors
    /// When it could not be written to disk; then nothing of it was.
    pub fn commit(&self, writes: &Writes) -> Result<(), DatabaseError> {
        if writes.documents.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut write = || -> Result<(), rusqlite::Error> {
            let transaction = connection.transaction()?;
            for (table, id, body) in &writes.documents {
                let name = table.name();
                let Some(body) = body else {
                    transaction.prepare(&format!("DELETE FROM {name} WHERE id = ?1"))?.execute([id])?;
                    continue;
                };
                transaction
                    .prepare(&format!(
                        "INSERT INTO {name} (id, body) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET body = excluded.body"
                    ))?
                    .execute(params![id, body])?;
            }
            transaction.commit()
        };
        write().map_err(|source| DatabaseError::Sqlite { path: self.path.clone(), source })
    }

    /// Reads one document.
    ///
    /// # Errors
    /// When SQLite refuses or the document is not readable.
    pub fn get<T: DeserializeOwned>(&self, table: Table, id: &str) -> Result<Option<T>, DatabaseError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let body: Option<String> = connection
            .query_row(&format!("SELECT body FROM {} WHERE id = ?1", table.name()), [id], |row| row.get(0))
            .optional()
            .map_err(|source| DatabaseError::Sqlite { path: self.path.clone(), source })?;
        body.map(|body| self.parse(table, &body)).transpose()
    }

    /// Reads every document of a table, in the order of their ids.
    ///
    /// # Errors
    /// When SQLite refuses or a document is not readable.
    pub fn all<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<T>, DatabaseError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let sqlite = |source| DatabaseError::Sqlite { path: self.path.clone(), source };
        let mut statement =
            connection.prepare(&format!("SELECT body FROM {} ORDER BY id", table.name())).map_err(sqlite)?;
        let bodies: Vec<String> = statement
            .query_map([], |row| row.get(0))
            .map_err(sqlite)?
            .collect::<Result<_, _>>()
            .map_err(sqlite)?;
        bodies.iter().map(|body| self.parse(table, body)).collect()
    }

    fn parse<T: DeserializeOwned>(&self, table: Table, body: &str) -> Result<T, DatabaseError> {
        serde_json::from_str(body).map_err(|error| DatabaseError::Document {
            path: self.path.clone(),
            table: table.name(),
            problem: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_outlive_the_process_and_a_newer_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("management.db");
        let database = Database::open(&path).unwrap();
        let mut writes = Writes::default();
        writes.put(Table::Members, "b", &2).unwrap();
        writes.put(Table::Members, "a", &1).unwrap();
        writes.put(Table::Members, "b", &3).unwrap();
        writes.put(Table::Members, "d", &4).unwrap();
        writes.remove(Table::Members, "d");
        writes.remove(Table::Members, "never there");
        database.commit(&writes).unwrap();
        drop(database);
        let database = Database::open(&path).unwrap();
        assert_eq!(database.all::<i32>(Table::Members).unwrap(), vec![1, 3]);
        assert_eq!(database.get::<i32>(Table::Members, "c").unwrap(), None);
        database.connection.lock().unwrap().pragma_update(None, "user_version", 99).unwrap();
        drop(database);
        assert!(matches!(Database::open(&path), Err(DatabaseError::Newer { found: 99, .. })));
    }
}
