//! What every route of a unit does after its door: reading is paid for before it is answered, writing is
//! announced before it is done, and a permit is looked at once more at the last moment.
//!
//! Owns the database of the domain, and the translation of its errors: a caller learns a code and whether to
//! try again, never what is inside.
//!
//! INVARIANT: what is refused after the door is journalled like what the door refuses.

use std::sync::Arc;

use access::guard::{Denial, Permit};
use audit::record::Record;
use axum::http::{Method, header};
use axum::response::{IntoResponse as _, Response};
use keys::Digest;
use market::Day;
use store::{PutOutcome, StoreError};
use wire::api::Written;
use wire::guard::{GrantDoor, Operation, Pass, json};
use wire::journal::{Journal, JournalError};
use wire::problem::Problem;
use wire::tls::Peer;

/// What the routes of one domain share.
pub(crate) struct Shared<D> {
    store: D,
    door: Arc<GrantDoor>,
    journal: Arc<Journal>,
}

/// A write that can say what it is before it is done.
pub(crate) trait Write<D>: Send + 'static {
    /// What is stored: a word of [`Record::Stored`].
    const WHAT: &'static str;

    /// Its identifier.
    fn id(&self) -> String;

    /// The content that its digest is of.
    fn content(&self) -> Vec<u8>;

    /// How many rows would be new to the database. With none nothing is announced, for nothing will change.
    fn new_rows(&self, store: &D) -> Result<u64, StoreError>;

    /// Does it; atomic, and without effect when done before.
    fn commit(&self, store: &D) -> Result<Written, StoreError>;
}

/// Whom and what an admitted request is about, for the record.
struct Admitted {
    permit: Permit,
    peer: Peer,
    route: String,
}

impl<D: Send + Sync + 'static> Shared<D> {
    pub(crate) fn new(store: D, door: Arc<GrantDoor>, journal: Arc<Journal>) -> Arc<Self> {
        Arc::new(Self { store, door, journal })
    }

    /// The journal.
    pub(crate) fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// The door.
    pub(crate) fn door(&self) -> &Arc<GrantDoor> {
        &self.door
    }

    /// Answers with what `question` finds, and takes its rows off the grant before. The question is told the
    /// last day that may be served, from the permit and not from the request.
    pub(crate) async fn read<O, T>(
        self: Arc<Self>,
        pass: Pass,
        question: impl FnOnce(&D, Day) -> Result<(T, usize), Problem> + Send + 'static,
    ) -> Result<Response, Problem>
    where
        O: Operation<State = Self>,
        T: Reply + Send + 'static,
    {
        let admitted = Admitted::of::<O>(pass)?;
        blocking(move || {
            let last = admitted.last_day()?;
            let (found, rows) = question(&self.store, last)?;
            let rows = u64::try_from(rows).unwrap_or(u64::MAX);
            self.ask(&admitted, |guard| {
                guard.recheck(self.door.now(), &admitted.permit)?;
                guard.charge_rows(&admitted.permit, rows)
            })?;
            found.reply()
        })
        .await
    }

    /// Does a write: announces it in the journal, durably, looks at the permit once more, and commits.
    pub(crate) async fn write<O>(
        self: Arc<Self>,
        pass: Pass,
        write: impl Write<D>,
    ) -> Result<Response, Problem>
    where
        O: Operation<State = Self>,
    {
        let admitted = Admitted::of::<O>(pass)?;
        blocking(move || {
            let written = self.announce_and_commit(&admitted, &write)?;
            json(&written)
        })
        .await
    }

    fn announce_and_commit<W: Write<D>>(&self, admitted: &Admitted, write: &W) -> Result<Written, Problem> {
        let rows = write.new_rows(&self.store).map_err(|error| problem(&error))?;
        if rows > 0 {
            let announced = Record::Stored {
                what: W::WHAT.into(),
                id: write.id(),
                rows,
                digest: Digest::of(&write.content()).to_string(),
                task: admitted.permit.task().to_owned(),
            };
            self.journal.record_durably(&announced).map_err(|error| journal_failed(&error))?;
        }
        self.ask(admitted, |guard| guard.recheck(self.door.now(), &admitted.permit))?;
        match write.commit(&self.store) {
            Ok(written) => Ok(written),
            Err(error) => {
                let problem = problem(&error);
                // The announcement stands in the log: so must its failure.
                self.refused(admitted, &problem.code)?;
                Err(problem)
            }
        }
    }

    /// Asks the guard once more about an admitted request; what it refuses is journalled.
    fn ask(
        &self,
        admitted: &Admitted,
        question: impl FnOnce(&mut access::guard::Guard) -> Result<(), Denial>,
    ) -> Result<(), Problem> {
        let (code, detail, retryable) = match self.door.with(question) {
            Some(Ok(())) => return Ok(()),
            Some(Err(denial)) => (denial.reason.as_str(), denial.detail, denial.reason.retryable()),
            None => {
                ("guard_failed", "the guard failed earlier; the process must start again".to_owned(), false)
            }
        };
        self.refused(admitted, code)?;
        Err(Problem::forbidden(code, &detail).retryable_if(retryable))
    }

    fn refused(&self, admitted: &Admitted, reason: &str) -> Result<(), Problem> {
        let record = Record::Decision {
            action: admitted.permit.action().as_str().into(),
            route: admitted.route.clone(),
            peer: admitted.peer.id.to_string(),
            key: admitted.peer.key_digits(),
            grant: Some(admitted.permit.grant().to_owned()),
            task: Some(admitted.permit.task().to_owned()),
            allowed: false,
            reason: reason.into(),
        };
        self.journal.record(&record).map(drop).map_err(|error| journal_failed(&error))
    }
}

impl Admitted {
    fn of<O: Operation>(pass: Pass) -> Result<Self, Problem> {
        let (permit, peer) = pass.permit()?;
        Ok(Self { permit, peer, route: route(&O::METHOD, O::PATH) })
    }

    fn last_day(&self) -> Result<Day, Problem> {
        // Both kinds of day have one range; a permit whose day could not be read would open nothing.
        self.permit.market_day().to_string().parse().map_err(|_| Problem::internal())
    }
}

fn route(method: &Method, path: &str) -> String {
    format!("{method} {path}")
}

/// What can be answered.
pub(crate) trait Reply {
    fn reply(self) -> Result<Response, Problem>;
}

/// A value that is answered as JSON.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: serde::Serialize> Reply for Json<T> {
    fn reply(self) -> Result<Response, Problem> {
        json(&self.0)
    }
}

/// Text that is JSON already, and is answered as it was stored.
pub(crate) struct StoredJson(pub(crate) String);

impl Reply for StoredJson {
    fn reply(self) -> Result<Response, Problem> {
        Ok(([(header::CONTENT_TYPE, "application/json")], self.0).into_response())
    }
}

/// Runs what waits for the disk on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "a request's work did not end");
            Err(Problem::internal())
        }
    }
}

fn journal_failed(error: &JournalError) -> Problem {
    tracing::error!(%error, "a record could not be journalled: refused");
    Problem::unavailable("journal_failed", "the request could not be journalled, so it was not carried out")
}

/// What the caller may know of a database's error.
pub(crate) fn problem(error: &StoreError) -> Problem {
    match error {
        StoreError::Busy => Problem::unavailable("busy", "the database is busy; try again"),
        StoreError::DiskFull | StoreError::Open { .. } | StoreError::Sqlite(_) => {
            tracing::error!(%error, source = ?std::error::Error::source(error), "the database failed");
            Problem::unavailable("store_failed", "the database cannot be used now; nothing was done")
        }
        StoreError::Damaged(_) | StoreError::NewerSchema { .. } | StoreError::Unbalanced(_) => {
            tracing::error!(%error, "the database must be looked at by a person");
            Problem::unavailable("store_damaged", "the database cannot be used").retryable_if(false)
        }
        StoreError::Conflict(_) => Problem::conflict("conflict", &error.to_string()),
        StoreError::TooLarge { .. } => Problem::too_large("too_large", &error.to_string()),
        StoreError::NoPortfolio(_) => Problem::not_found("no_portfolio", &error.to_string()),
        StoreError::NegativePosition(_) => Problem::unprocessable("negative_position", &error.to_string()),
        StoreError::Amount(_) => Problem::unprocessable("bad_amount", &error.to_string()),
    }
}

/// A store's outcome as it is answered.
pub(crate) fn written(outcome: PutOutcome) -> Written {
    Written {
        new: outcome.new_rows,
        same: outcome.same_rows,
        conflicts: outcome.conflicts.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_database_says_nothing_of_its_inside() {
        let inside = StoreError::Damaged("row 7 of table bars".into());
        assert_eq!((problem(&inside).status, problem(&inside).retryable), (503, false));
        assert!(!problem(&inside).to_string().contains("row 7"));
        let open = StoreError::Open {
            path: "/home/owner/secret.db".into(),
            source: std::io::Error::from(std::io::ErrorKind::PermissionDenied),
        };
        assert_eq!((problem(&open).status, problem(&open).retryable), (503, true));
        assert!(!problem(&open).to_string().contains("secret"));
        assert!(problem(&StoreError::Busy).retryable);
        assert!(problem(&StoreError::DiskFull).retryable);
        assert_eq!(problem(&StoreError::Conflict("entry x".into())).status, 409);
        assert_eq!(problem(&StoreError::Conflict("entry x".into())).code, "conflict");
    }
}
