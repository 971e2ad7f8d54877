//! One connection, and its statements. Each call waits for the server at most for its timeout.
//!
//! Owns the socket, the runtime that drives it, and prepared statements. Knows no table.
//!
//! A call is a round trip to the server, which is most of its time. So the statements that begin
//! and end a transaction or a savepoint are not sent alone: they are owed, and go out with the next
//! one.
//!
//! The server cancels a statement after `statement_timeout`, and a transaction in which it hears
//! nothing after [`IDLE_TRANSACTION_FACTOR`] times that, so that a daemon that was stopped does not
//! hold its locks for ever. A server that is itself stopped does neither: then this side gives up,
//! [`REPLY_MARGIN`] later, and the connection is lost, because a late reply would be taken for that
//! to another statement.
//!
//! [`IDLE_TRANSACTION_FACTOR`]: crate::limits::store::IDLE_TRANSACTION_FACTOR
//! [`REPLY_MARGIN`]: crate::limits::store::REPLY_MARGIN

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error as _;
use std::fmt::Write as _;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, Error, NoTls, Row, Statement};

use super::target::Target;
use crate::limits::store as limits;
use crate::store::error::{Fault, StoreError};

pub type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Why a row cannot be read.
pub enum Unread {
    Client(Error),
    /// It holds what this program does not know.
    Content(String),
}

impl From<Error> for Unread {
    fn from(error: Error) -> Unread {
        Unread::Client(error)
    }
}

pub struct Session {
    client: Client,
    /// `None` only while it is being dropped.
    runtime: Option<Runtime>,
    name: String,
    patience: Cell<Duration>,
    is_lost: Cell<bool>,
    /// Whether a statement has failed and nothing was taken back since.
    has_failed: Cell<bool>,
    /// Statements without a result, separated by semicolons: they go out with the next one.
    owed: RefCell<String>,
    /// By their text. Each was parsed and planned by the server once.
    statements: RefCell<HashMap<String, Statement>>,
}

impl Session {
    pub fn open(target: &Target) -> Result<Session, StoreError> {
        let refuse = |fault, reason| StoreError::Database {
            place: target.name.clone(),
            fault,
            reason,
        };
        let denied = |reason| refuse(Fault::Denied, reason);
        let settings = target.present_settings().map_err(denied)?;
        let connector = target.connector().map_err(denied)?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StoreError::Thread)?;
        let client = runtime.block_on(async {
            let connection = async {
                match connector {
                    Some(connector) => connect(&settings, connector).await,
                    None => connect(&settings, NoTls).await,
                }
            };
            timeout(target.connect_timeout, connection).await
        });
        let client = match client {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(refuse(fault_of(&error), reason_of(&error))),
            Err(_) => {
                let reason = format!("no connection within {:?}", target.connect_timeout);
                return Err(refuse(Fault::Unreachable, reason));
            }
        };
        let session = Session {
            client,
            runtime: Some(runtime),
            name: target.name.clone(),
            patience: Cell::new(target.statement_timeout + limits::REPLY_MARGIN),
            is_lost: Cell::new(false),
            has_failed: Cell::new(false),
            owed: RefCell::default(),
            statements: RefCell::default(),
        };
        let statement_ms = target.statement_timeout.as_millis();
        let idle_ms = statement_ms * u128::from(limits::IDLE_TRANSACTION_FACTOR);
        session.batch(&format!(
            "SET statement_timeout = {statement_ms}; \
             SET idle_in_transaction_session_timeout = {idle_ms}; \
             SET client_min_messages = warning"
        ))?;
        Ok(session)
    }

    /// Returns the database's name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the connection has ended, so that a new one is needed.
    pub fn is_lost(&self) -> bool {
        self.is_lost.get() || self.client.is_closed()
    }

    /// Returns whether a statement has failed and nothing was taken back since.
    pub fn has_failed(&self) -> bool {
        self.has_failed.get()
    }

    /// Notes that everything which a failed statement belongs to was taken back.
    pub fn forget_failure(&self) {
        self.has_failed.set(false);
    }

    /// Runs statements that return nothing.
    pub fn batch(&self, sql: &str) -> Result<(), StoreError> {
        self.owe(sql);
        let sql = self.owed.take();
        self.wait(self.client.batch_execute(&sql))
    }

    /// Runs a statement that returns nothing, and which the server does not refuse: it goes out in
    /// front of the next one, and costs no time of its own. If it failed, the next one would.
    pub fn owe(&self, sql: &str) {
        let mut owed = self.owed.borrow_mut();
        if !owed.is_empty() {
            owed.push_str("; ");
        }
        owed.push_str(sql);
    }

    /// Returns the number of changed rows.
    pub fn execute(&self, sql: &str, parameters: Parameters<'_>) -> Result<u64, StoreError> {
        self.run(async {
            let statement = self.prepared(sql).await?;
            self.client.execute(&statement, parameters).await
        })
    }

    /// Runs a statement that is not prepared: its plan is made for these values.
    pub fn execute_once(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<(), StoreError> {
        self.run(self.client.execute_typed(sql, parameters))
            .map(drop)
    }

    pub fn query<T>(
        &self,
        sql: &str,
        parameters: Parameters<'_>,
        read: impl Fn(&Row) -> Result<T, Unread>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.run(async {
            let statement = self.prepared(sql).await?;
            self.client.query(&statement, parameters).await
        })?;
        let read = rows.iter().map(read);
        let read: Result<Vec<T>, Unread> = read.collect();
        read.map_err(|unread| match unread {
            Unread::Client(error) => self.error(Fault::Other, reason_of(&error)),
            Unread::Content(reason) => self.error(Fault::Damaged, reason),
        })
    }

    /// Returns the only column of each row of a statement that is not prepared: `FETCH` of a cursor
    /// that is declared again would find another one.
    pub fn query_once(&self, sql: &str) -> Result<Vec<String>, StoreError> {
        let rows = self.run(self.client.query(sql, &[]))?;
        let texts: Result<Vec<String>, Error> = rows.iter().map(|row| row.try_get(0)).collect();
        texts.map_err(|error| self.error(Fault::Other, reason_of(&error)))
    }

    /// Returns the first row, if there is one.
    pub fn first<T>(
        &self,
        sql: &str,
        parameters: Parameters<'_>,
        read: impl Fn(&Row) -> Result<T, Unread>,
    ) -> Result<Option<T>, StoreError> {
        let rows = self.query(sql, parameters, read)?;
        Ok(rows.into_iter().next())
    }

    /// Returns the only column of the only row.
    pub fn value<T>(&self, sql: &str, parameters: Parameters<'_>) -> Result<T, StoreError>
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        let found = self.first(sql, parameters, |row| Ok(row.try_get(0)?))?;
        found.ok_or_else(|| self.error(Fault::Other, "a query returned no row".to_owned()))
    }

    /// Waits so long for each reply while `work` runs.
    pub fn patiently<T>(&self, patience: Duration, work: impl FnOnce() -> T) -> T {
        let usual = self.patience.replace(patience);
        let done = work();
        self.patience.set(usual);
        done
    }

    pub fn error(&self, fault: Fault, reason: String) -> StoreError {
        StoreError::Database {
            place: self.name.clone(),
            fault,
            reason,
        }
    }

    async fn prepared(&self, sql: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.borrow().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        let mut statements = self.statements.borrow_mut();
        statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Sends what is owed and a statement, and waits for both.
    fn run<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
        let owed = self.owed.take();
        match owed.is_empty() {
            true => self.wait(work),
            false => self.wait(both(self.client.batch_execute(&owed), work)),
        }
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
        let runtime = self.runtime.as_ref().expect("it ends with the session");
        if self.is_lost() {
            let reason = "the connection is lost".to_owned();
            return Err(self.error(Fault::Unreachable, reason));
        }
        let patience = self.patience.get();
        match runtime.block_on(async { timeout(patience, work).await }) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                self.has_failed.set(true);
                let fault = fault_of(&error);
                if fault == Fault::Unreachable {
                    // The server may have said so itself, and its socket is closed a moment later.
                    self.is_lost.set(true);
                }
                Err(self.error(fault, reason_of(&error)))
            }
            Err(_) => {
                self.is_lost.set(true);
                let reason = format!("no reply within {patience:?}");
                Err(self.error(Fault::Unreachable, reason))
            }
        }
    }
}

/// A resolver that hangs must not hold the end of the session.
impl Drop for Session {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Sends both at once: the server runs them in this order. An error of the first one is that of
/// both.
async fn both<T>(
    first: impl Future<Output = Result<(), Error>>,
    second: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut first_done, mut second_done) = (None, None);
    poll_fn(|context| {
        // A request is sent when it is polled for the first time.
        if first_done.is_none()
            && let Poll::Ready(done) = first.as_mut().poll(context)
        {
            first_done = Some(done);
        }
        if second_done.is_none()
            && let Poll::Ready(done) = second.as_mut().poll(context)
        {
            second_done = Some(done);
        }
        match first_done.is_some() && second_done.is_some() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    first_done.expect("both are done")?;
    second_done.expect("both are done")
}

async fn connect<T>(settings: &Config, tls: T) -> Result<Client, Error>
where
    T: tokio_postgres::tls::MakeTlsConnect<tokio_postgres::Socket>,
    T::Stream: Send + 'static,
{
    let (client, connection) = settings.connect(tls).await?;
    // Its error is that of the call that waits, or of the next one.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

/// Classes and codes are those of the appendix "PostgreSQL Error Codes" of its manual.
fn fault_of(error: &Error) -> Fault {
    let Some(code) = error.code() else {
        return Fault::Unreachable;
    };
    match *code {
        SqlState::QUERY_CANCELED | SqlState::LOCK_NOT_AVAILABLE => Fault::Busy,
        SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => Fault::Conflict,
        SqlState::INSUFFICIENT_PRIVILEGE | SqlState::INVALID_CATALOG_NAME => Fault::Denied,
        SqlState::TOO_MANY_CONNECTIONS
        | SqlState::ADMIN_SHUTDOWN
        | SqlState::CRASH_SHUTDOWN
        | SqlState::CANNOT_CONNECT_NOW
        | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => Fault::Unreachable,
        SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED => Fault::Damaged,
        _ => match &code.code()[..2] {
            "08" => Fault::Unreachable,
            "28" => Fault::Denied,
            _ => Fault::Other,
        },
    }
}

/// Returns the messages of the error and its causes. A message of the server names no value: those
/// are in its detail, which is left out.
fn reason_of(error: &Error) -> String {
    if let Some(error) = error.as_db_error() {
        return error.message().to_owned();
    }
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(reason, ": {error}");
        cause = error.source();
    }
    reason
}
