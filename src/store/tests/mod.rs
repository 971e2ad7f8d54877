//! The same tests for every database: a test is a function over a [`Bed`], and runs on each.
//!
//! PostgreSQL's tests share one server, and each has a database of its own. On SQLite each test
//! runs twice, the second time with the opposite order of rows wherever a statement names none.

mod callbacks;
mod entries;
pub mod generations;
mod jobs;
mod keys;
mod transfer;

#[path = "../../../tests/common/postgres.rs"]
pub mod server;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tempfile::TempDir;

use self::server::{Postgres, Way};
use super::{
    DATABASE_FILE, JobChange, JobEnd, Jobs, Place, SqliteStore, Store, StoreError, StoreTask,
    Target, accepting,
};
use crate::jobs::{Acceptance, Bounds, Candidate, JobEvent, JobId, Life, NewJob};

/// A store of a test's own, and the folder of its daemon.
pub trait Bed: Sized + Sync {
    fn new() -> Self;

    fn place(&self) -> &Place;

    /// The state folder.
    fn folder(&self) -> &Path;

    /// Runs a statement as another program would.
    fn try_raw(&self, sql: &str) -> Result<(), String>;

    /// Returns the number that a statement selects.
    fn number(&self, sql: &str) -> u64;

    /// Returns the number of a table's rows.
    fn count(&self, table: &str) -> u32 {
        self.number(&format!("SELECT count(*) FROM {table}")) as u32
    }

    fn raw(&self, sql: &str) {
        let done = self.try_raw(sql);
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn open(&self) -> Box<dyn Store> {
        self.place().open().unwrap()
    }
}

pub struct SqliteBed {
    folder: TempDir,
    place: Place,
}

impl Bed for SqliteBed {
    fn new() -> SqliteBed {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Sqlite(folder.path().join(DATABASE_FILE));
        SqliteBed { folder, place }
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn try_raw(&self, sql: &str) -> Result<(), String> {
        let connection = rusqlite::Connection::open(self.folder().join(DATABASE_FILE));
        let done = connection.and_then(|connection| {
            connection.busy_timeout(crate::limits::store::BUSY_TIMEOUT)?;
            connection.execute_batch(sql)
        });
        done.map_err(|error| error.to_string())
    }

    fn number(&self, sql: &str) -> u64 {
        let connection = rusqlite::Connection::open(self.folder().join(DATABASE_FILE)).unwrap();
        let number: i64 = connection.query_row(sql, (), |row| row.get(0)).unwrap();
        number as u64
    }
}

/// SQLite, where no order comes by chance.
pub struct ReversedBed(SqliteBed);

impl Bed for ReversedBed {
    fn new() -> ReversedBed {
        ReversedBed(SqliteBed::new())
    }

    fn place(&self) -> &Place {
        self.0.place()
    }

    fn folder(&self) -> &Path {
        self.0.folder()
    }

    fn try_raw(&self, sql: &str) -> Result<(), String> {
        self.0.try_raw(sql)
    }

    fn number(&self, sql: &str) -> u64 {
        self.0.number(sql)
    }

    fn open(&self) -> Box<dyn Store> {
        let store = SqliteStore::open(&self.folder().join(DATABASE_FILE)).unwrap();
        store.reverse_unordered();
        Box::new(store)
    }
}

pub struct PostgresBed {
    folder: TempDir,
    pub server: Arc<Postgres>,
    pub database: String,
    place: Place,
}

impl PostgresBed {
    /// A database on this server, reached in this way.
    pub fn on(server: Arc<Postgres>, way: Way) -> PostgresBed {
        let folder = tempfile::tempdir().unwrap();
        let database = server.database();
        let target = target(&server, &database, way, folder.path());
        PostgresBed {
            folder,
            place: Place::Postgres(Box::new(target)),
            server,
            database,
        }
    }

    /// A database with tables, on a server of its own that counts statements.
    pub fn counting() -> PostgresBed {
        let server = Postgres::start_with(&["shared_preload_libraries=pg_stat_statements"]);
        let bed = PostgresBed::on(Arc::new(server), Way::Socket);
        drop(bed.open());
        bed.raw("CREATE EXTENSION pg_stat_statements");
        bed
    }

    /// Returns the statements of some work that end transactions or are about jobs, each in a line
    /// behind the number of its calls. Those of triggers are among them if a commit runs them.
    pub fn statements(&self, work: impl FnOnce()) -> Vec<String> {
        self.raw("SELECT pg_stat_statements_reset()");
        work();
        let sql = "SELECT calls, regexp_replace(query, '\\s+', ' ', 'g')
             FROM pg_stat_statements JOIN pg_database d ON d.oid = dbid
             WHERE d.datname = current_database()
             AND query ~ 'job|idempotency|SAVEPOINT|COMMIT' ORDER BY query";
        let statements = self.server.sql(&self.database, sql);
        statements.lines().map(str::to_owned).collect()
    }
}

/// Returns the target of a database, whose password is in the folder.
pub fn target(server: &Postgres, database: &str, way: Way, folder: &Path) -> Target {
    let password_file = folder.join("password");
    std::fs::write(&password_file, format!("{}\n", server::PASSWORD)).unwrap();
    let url = server.url(database, way);
    let mut settings: tokio_postgres::Config = url.parse().unwrap();
    settings.ssl_mode(tokio_postgres::config::SslMode::Disable);
    Target {
        name: url,
        settings,
        password_file: Some(password_file),
        ca: None,
        connect_timeout: Duration::from_secs(30),
        statement_timeout: Duration::from_secs(30),
    }
}

impl Bed for PostgresBed {
    fn new() -> PostgresBed {
        PostgresBed::on(Postgres::shared(), Way::Socket)
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn try_raw(&self, sql: &str) -> Result<(), String> {
        self.server.try_sql(&self.database, sql).map(drop)
    }

    fn number(&self, sql: &str) -> u64 {
        self.server.sql(&self.database, sql).parse().unwrap()
    }
}

/// Changes of one job.
pub trait OneJob: Jobs {
    fn job_life(&mut self, id: JobId) -> Result<Option<Life>, StoreError> {
        let found = self.job_lives(&[id])?.pop();
        Ok(found.map(|(_, life)| life))
    }

    fn save_job_life(&mut self, id: JobId, life: &Life, now: u64) -> Result<(), StoreError> {
        self.save_jobs(&[JobChange::new(id, *life)], now)
    }

    fn finish_job(&mut self, id: JobId, life: &Life, end: JobEnd) -> Result<(), StoreError> {
        let mut change = JobChange::new(id, *life);
        change.end = Some(end);
        self.save_jobs(&[change], 0)
    }

    /// Adds an event, and changes nothing else.
    fn push_job_event(&mut self, id: JobId, event: &JobEvent) -> Result<(), StoreError> {
        let life = self.job_life(id)?.expect("the job is there");
        let mut change = JobChange::new(id, life);
        change.events.push(event.clone());
        self.save_jobs(&[change], 0)
    }
}

impl<T: Jobs + ?Sized> OneJob for T {}

/// A task that has a job accepted, and reports its outcome.
pub struct AcceptTask {
    pub candidate: Candidate,
    pub bytes: u32,
    pub outcome: Option<Acceptance>,
    pub results: Sender<(JobId, Result<Acceptance, String>)>,
}

impl StoreTask for AcceptTask {
    fn bytes(&self) -> u32 {
        self.bytes
    }

    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.outcome = accepting::accept(store, &[&self.candidate])?.pop();
        Ok(())
    }

    fn accepts_job(&self) -> bool {
        true
    }

    fn candidate(&mut self) -> Option<&Candidate> {
        Some(&self.candidate)
    }

    fn take_outcome(&mut self, outcome: Acceptance) {
        self.outcome = Some(outcome);
    }

    fn finish(self: Box<Self>, result: Result<(), &StoreError>) {
        let AcceptTask {
            candidate,
            outcome,
            results,
            ..
        } = *self;
        let outcome = result.map(|()| outcome.expect("it was run"));
        let outcome = outcome.map_err(ToString::to_string);
        // A test that has seen enough is gone.
        let _ = results.send((candidate.job.id, outcome));
    }
}

/// Returns a task for a job of a key, with room for all.
pub fn accept_task(
    number: u64,
    key_id: &str,
    results: &Sender<(JobId, Result<Acceptance, String>)>,
) -> AcceptTask {
    let job = NewJob {
        id: JobId::new(number, [7; 10]),
        key_id: key_id.to_owned(),
        created_at: 1,
        expires_at: 5_000,
        request: "{}".to_owned(),
        callback_url: None,
        idempotency: None,
    };
    let bounds = Bounds {
        jobs: 1 << 32,
        jobs_of_key: 1 << 32,
        bytes: 1 << 48,
    };
    AcceptTask {
        candidate: Candidate { job, bounds },
        bytes: 0,
        outcome: None,
        results: results.clone(),
    }
}

/// Makes a test for each database out of functions over a [`Bed`].
macro_rules! on_each_database {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[test]
            fn $name() {
                super::$name::<crate::store::tests::SqliteBed>();
            })+
        }

        mod sqlite_reversed {
            $(#[test]
            fn $name() {
                super::$name::<crate::store::tests::ReversedBed>();
            })+
        }

        mod postgres {
            $(#[test]
            fn $name() {
                super::$name::<crate::store::tests::PostgresBed>();
            })+
        }
    };
}

pub(crate) use on_each_database;
