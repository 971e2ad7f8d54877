//! All rows of the database, for its export and its import.

use tokio_postgres::types::ToSql;

use super::connection::PostgresStore;
use crate::limits::store as limits;
use crate::store::error::StoreError;
use crate::store::interface::transfer::{Kind, OnRow, TABLES, Table, Transfer, Value};

impl Transfer for PostgresStore {
    fn export(&self, on_row: OnRow<'_>) -> Result<(), StoreError> {
        self.reading(|session| {
            for table in TABLES {
                session.batch(&format!("DECLARE exported CURSOR FOR {}", select(table)))?;
                let fetch = format!("FETCH {} FROM exported", limits::EXPORTED_RECORDS_MAX);
                loop {
                    let rows = session.query_once(&fetch)?;
                    if rows.is_empty() {
                        break;
                    }
                    rows.iter().try_for_each(|row| on_row(table, row))?;
                }
                session.batch("CLOSE exported")?;
            }
            Ok(())
        })
    }

    fn import(&mut self, table: &'static Table, row: &[Value]) -> Result<bool, StoreError> {
        let columns = row.iter().zip(table.columns);
        let values: Vec<Box<dyn ToSql + Sync>> = columns
            .map(|(value, (_, kind))| -> Box<dyn ToSql + Sync> {
                match (value, kind) {
                    (Value::Number(number), _) => Box::new(*number),
                    (Value::Text(text), _) => Box::new(text.clone()),
                    (Value::Bytes(bytes), _) => Box::new(bytes.clone()),
                    (Value::Null, Kind::Number) => Box::new(None::<i64>),
                    (Value::Null, Kind::Text) => Box::new(None::<String>),
                    (Value::Null, Kind::Bytes | Kind::LongText) => Box::new(None::<Vec<u8>>),
                }
            })
            .collect();
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| &**value).collect();
        Ok(self.session.execute(&insert(table), &values)? > 0)
    }

    fn has_rows(&self, table: &'static Table) -> Result<bool, StoreError> {
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {})", table.name);
        self.session.value(&sql, &[])
    }
}

fn select(table: &Table) -> String {
    let values: Vec<String> = table
        .columns
        .iter()
        .map(|(name, kind)| match kind {
            Kind::Number | Kind::Text => format!("\"{name}\""),
            Kind::Bytes | Kind::LongText => format!("encode(\"{name}\", 'hex')"),
        })
        .collect();
    let (name, order) = (table.name, table.order);
    format!(
        "SELECT json_build_array({})::text FROM {name} ORDER BY {order}",
        values.join(", ")
    )
}

fn insert(table: &Table) -> String {
    let values: Vec<String> = (1..=table.columns.len())
        .map(|number| format!("${number}"))
        .collect();
    format!(
        "INSERT INTO {} ({}) VALUES ({}) ON CONFLICT DO NOTHING",
        table.name,
        table.names(),
        values.join(", ")
    )
}
