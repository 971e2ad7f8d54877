//! All rows of the database, for its export and its import.

use rusqlite::ToSql;
use rusqlite::types::{Null, ToSqlOutput, ValueRef};

use super::connection::{SqliteStore, database_error};
use crate::store::error::StoreError;
use crate::store::interface::transfer::{Kind, OnRow, TABLES, Table, Transfer, Value};

impl Transfer for SqliteStore {
    fn export(&self, on_row: OnRow<'_>) -> Result<(), StoreError> {
        let of_database = |error| database_error(&self.path, error);
        // A transaction that reads sees one moment, and keeps no other connection from writing.
        let transaction = self
            .connection
            .unchecked_transaction()
            .map_err(of_database)?;
        for table in TABLES {
            let mut statement = transaction.prepare(&select(table)).map_err(of_database)?;
            let mut rows = statement.query(()).map_err(of_database)?;
            while let Some(row) = rows.next().map_err(of_database)? {
                let text: String = row.get(0).map_err(of_database)?;
                on_row(table, &text)?;
            }
        }
        Ok(())
    }

    fn import(&mut self, table: &'static Table, row: &[Value]) -> Result<bool, StoreError> {
        let insert = || -> rusqlite::Result<usize> {
            let mut statement = self.connection.prepare_cached(&insert(table))?;
            statement.execute(rusqlite::params_from_iter(row))
        };
        let added = insert().map_err(|error| database_error(&self.path, error))?;
        Ok(added > 0)
    }

    fn has_rows(&self, table: &'static Table) -> Result<bool, StoreError> {
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {})", table.name);
        let found = self.connection.query_row(&sql, (), |row| row.get(0));
        found.map_err(|error| database_error(&self.path, error))
    }
}

fn select(table: &Table) -> String {
    let values: Vec<String> = table
        .columns
        .iter()
        .map(|(name, kind)| match kind {
            Kind::Number | Kind::Text => format!("\"{name}\""),
            // hex() of NULL is an empty text.
            Kind::Bytes | Kind::LongText => format!(
                "CASE WHEN \"{name}\" IS NULL THEN NULL ELSE hex(CAST(\"{name}\" AS BLOB)) END"
            ),
        })
        .collect();
    let (name, order) = (table.name, table.order);
    format!(
        "SELECT json_array({}) FROM {name} ORDER BY {order}",
        values.join(", ")
    )
}

fn insert(table: &Table) -> String {
    let values: Vec<String> = (1..)
        .zip(table.columns)
        .map(|(number, (_, kind))| match kind {
            Kind::LongText => format!("CAST(?{number} AS TEXT)"),
            _ => format!("?{number}"),
        })
        .collect();
    format!(
        "INSERT INTO {} ({}) VALUES ({}) ON CONFLICT DO NOTHING",
        table.name,
        table.names(),
        values.join(", ")
    )
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Value::Null => Null.to_sql(),
            Value::Number(number) => number.to_sql(),
            Value::Text(text) => text.to_sql(),
            Value::Bytes(bytes) => Ok(ToSqlOutput::Borrowed(ValueRef::Blob(bytes))),
        }
    }
}
