//! `autoglmd key`: manages keys in the database that a running daemon watches.
//!
//! Must never print a key twice or to stderr: stdout gets only the key, so that
//! `KEY=$(autoglmd key create)` works. Only a new key may create a database: all other commands
//! are about keys that exist, and a folder that was mistyped has none.

mod erase;
mod lookup;
mod usage;
mod webhook_secret;

use clap::{Args, Subcommand};
use serde_json::json;

use self::webhook_secret::NewSecret;
use super::announce::announce;
use super::database::{Database, explain, explain_missing};
use super::times::{self, End, parse_end, parse_lifetime};
use crate::bus::Notice;
use crate::console::exit::{self, Code};
use crate::console::{fail, note, printable, put, stdout_is_discarded, table};
use crate::core::UnixSeconds;
use crate::keys::{KeyRecord, Scopes, Secret};
use crate::limits::keys as keys_limits;
use crate::store::{Keys, ListedKey, NewKey, Renewal, Revoked};

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Key {
    #[command(flatten)]
    database: Database,
    #[command(subcommand)]
    command: KeyCommand,
}

const EXAMPLES: &str = "\
Examples:
  KEY=$(autoglmd key create --name ci)
  autoglmd key create --name team --rate 120 --concurrency 4 --expires 30d
  autoglmd key create --name prometheus --scopes metrics
  autoglmd key set key_5f0c92ab61d7 --weight 3
  autoglmd key rotate key_5f0c92ab61d7 --grace 1h
  autoglmd key usage ci --since 2027-01-01
  autoglmd key erase ci --yes
  SECRET=$(autoglmd key webhook-secret ci)
  autoglmd key list --json | jq -r '.[] | select(.status == \"valid\") | .id'

A daemon that runs under a service manager has its own state folder: name it with --state-dir.";

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Create a key and print it. It is shown only once, because only its hash is stored.
    Create(Create),
    /// List all keys, revoked and expired ones too.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Revoke keys for good.
    Revoke {
        /// Ids as in `key list`.
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
    /// Replace the secret of a key and print the new one. Name, scopes, limits and weight stay.
    Rotate(Rotate),
    /// Change the weight of a key. Its secret stays.
    Set(Set),
    /// Show requests and tokens by key and day.
    Usage(usage::Usage),
    /// Remove a key with everything that was kept for it: generations, usage, jobs, cached results.
    Erase(erase::Erase),
    /// Make or rotate the secret that signs a key's callbacks, and print it. The database holds it
    /// as it is, because the daemon signs with it; it is shown only once.
    WebhookSecret(NewSecret),
}

#[derive(Args, Debug)]
struct Create {
    /// A name for the key, for your own use.
    #[arg(long, value_parser = parse_name)]
    name: Option<String>,
    /// Scopes, separated by commas: generate, admin, metrics.
    #[arg(long, default_value = "generate", value_parser = Scopes::parse)]
    scopes: Scopes,
    /// Requests per minute; 0: no limit [default: rate_limit.requests_per_minute].
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// Tokens per minute, prompt and completion; 0: no limit [default:
    /// rate_limit.tokens_per_minute].
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<u32>,
    /// Concurrent requests; 0: no limit [default: rate_limit.concurrency].
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
    /// The key's share of the engine beside other keys, from 1 to 100 [default: 1].
    #[arg(long, value_name = "N", value_parser = parse_weight)]
    weight: Option<u16>,
    /// When the key expires: 30d, 12h, 2027-01-31 (UTC) [default: never].
    #[arg(long, value_name = "WHEN", value_parser = parse_end)]
    expires: Option<End>,
}

#[derive(Args, Debug)]
struct Rotate {
    /// The id as in `key list`.
    #[arg(value_name = "ID")]
    id: String,
    /// How long the old secret still works [default: not at all].
    #[arg(long, value_name = "TIME", value_parser = parse_lifetime)]
    grace: Option<u64>,
    /// When the key expires [default: its original lifetime, counted from now].
    #[arg(long, value_name = "WHEN", value_parser = parse_end)]
    expires: Option<End>,
}

#[derive(Args, Debug)]
struct Set {
    /// The id as in `key list`.
    #[arg(value_name = "ID")]
    id: String,
    /// The key's share of the engine beside other keys, from 1 to 100.
    #[arg(long, value_name = "N", value_parser = parse_weight)]
    weight: u16,
}

impl Key {
    pub fn run(self) -> Result<(), Code> {
        let sources = self.database.sources();
        let place = self.database.place()?;
        let mut store = match self.command {
            KeyCommand::Create(_) => place.open().map_err(|error| explain(&error))?,
            _ => place
                .open_existing()
                .map_err(|error| explain_missing(&error))?,
        };
        let store = &mut *store;
        let now = UnixSeconds::now().as_u64();
        match self.command {
            KeyCommand::Create(create) => create.run(store, now),
            KeyCommand::List { json } => list(store, json, now),
            KeyCommand::Revoke { ids } => {
                let revoked = ids.iter().try_for_each(|id| revoke(store, id, now));
                // Also those before one that failed.
                let notices: Vec<Notice> = ids.into_iter().map(Notice::Key).collect();
                announce(&notices, &sources);
                revoked
            }
            KeyCommand::Rotate(rotate) => rotate.run(store, now),
            KeyCommand::Set(set) => set.run(store),
            KeyCommand::Usage(usage) => usage.run(store),
            KeyCommand::Erase(erase) => {
                erase.run(store, &self.database.state_dir()?, &sources, now)
            }
            KeyCommand::WebhookSecret(secret) => {
                if secret.is_shown() {
                    refuse_discarded_stdout("SECRET=$(autoglmd key webhook-secret ID)")?;
                }
                secret.run(store, now)
            }
        }
    }
}

impl Create {
    fn run(self, store: &mut dyn Keys, now: u64) -> Result<(), Code> {
        refuse_discarded_stdout("KEY=$(autoglmd key create)")?;
        let new = NewKey {
            name: self.name.unwrap_or_default(),
            scopes: self.scopes,
            expires_at: self.expires.map(|end| future(end, now)).transpose()?,
            requests_per_minute: self.rate,
            tokens_per_minute: self.tokens_per_minute,
            concurrency: self.concurrency,
            weight: self.weight.unwrap_or(keys_limits::WEIGHT_DEFAULT),
        };
        let (record, secret) = store.create(&new, now).map_err(|error| explain(&error))?;
        hand_over(store, &record, &secret)
    }
}

impl Rotate {
    fn run(self, store: &mut dyn Keys, now: u64) -> Result<(), Code> {
        refuse_discarded_stdout("KEY=$(autoglmd key rotate ID)")?;
        let renewal = match self.expires {
            Some(end) => Renewal::At(future(end, now)?),
            None => Renewal::SameLifetime,
        };
        let rotated = store.rotate(&self.id, self.grace.unwrap_or(0), renewal, now);
        let (record, secret) = rotated.map_err(|error| explain(&error))?;
        hand_over(store, &record, &secret)?;
        note(match self.grace {
            Some(grace) => format!(
                "the old secret works until {}",
                times::show(now.saturating_add(grace))
            ),
            None => "the old secret no longer works".to_owned(),
        });
        Ok(())
    }
}

impl Set {
    fn run(self, store: &mut dyn Keys) -> Result<(), Code> {
        let set = store.set_weight(&self.id, self.weight);
        set.map_err(|error| explain(&error))?;
        note(format_args!("{} has the weight {}", self.id, self.weight));
        Ok(())
    }
}

/// A secret that is written nowhere would be lost.
fn refuse_discarded_stdout(example: &str) -> Result<(), Code> {
    match stdout_is_discarded() {
        true => Err(fail(
            exit::IO,
            format_args!(
                "stdout is closed or /dev/null, but the secret is printed there, once; redirect it \
                 to a file or a variable: {example}"
            ),
        )),
        false => Ok(()),
    }
}

/// Prints a key's text, the only time that it is shown. A secret that could not be shown is taken
/// back.
fn hand_over(store: &mut dyn Keys, record: &KeyRecord, secret: &Secret) -> Result<(), Code> {
    put(&format!("{}\n", secret.reveal())).inspect_err(|_| withdraw(store, &record.id))?;
    let end = record.expires_at.map_or("never".to_owned(), times::show);
    note(format_args!(
        "{}: scopes {}, expires: {end}",
        record.id, record.scopes
    ));
    note("keep the key above; it is not shown again");
    Ok(())
}

fn withdraw(store: &mut dyn Keys, id: &str) {
    match store.withdraw() {
        Ok(true) => note("the new key could not be shown and was removed; nothing has changed"),
        Ok(false) => note(format_args!(
            "the new key of {id} could not be shown; make another with `autoglmd key rotate {id}`"
        )),
        Err(error) => note(format_args!(
            "error: {error}; {id} has a key that was not shown; revoke it with `autoglmd key \
             revoke {id}`"
        )),
    }
}

fn revoke(store: &mut dyn Keys, id: &str, now: u64) -> Result<(), Code> {
    note(
        match store.revoke(id, now).map_err(|error| explain(&error))? {
            Revoked::Now => format!("{id} is revoked"),
            Revoked::Before(then) => format!("{id} was already revoked, at {}", times::show(then)),
        },
    );
    Ok(())
}

fn list(store: &dyn Keys, as_json: bool, now: u64) -> Result<(), Code> {
    let keys = store.list().map_err(|error| explain(&error))?;
    if as_json {
        let keys: Vec<_> = keys.iter().map(|key| to_json(key, now)).collect();
        return put(&format!("{:#}\n", serde_json::Value::from(keys)));
    }
    if keys.is_empty() {
        note("there is no key yet; start the daemon once, or run `autoglmd key create`");
        return Ok(());
    }
    let titles = [
        "ID", "NAME", "SCOPES", "STATUS", "CREATED", "EXPIRES", "RATE", "TOKENS", "AT ONCE",
        "WEIGHT",
    ];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    rows.extend(keys.iter().map(|key| to_row(key, now)));
    put(&table(&rows))
}

fn to_row(key: &ListedKey, now: u64) -> Vec<String> {
    let record = &key.record;
    let bound = |bound: Option<u32>| match bound {
        None => "-".to_owned(),
        Some(0) => "no limit".to_owned(),
        Some(bound) => bound.to_string(),
    };
    vec![
        record.id.clone(),
        printable(&record.name).replace(['\n', '\t'], " "),
        record.scopes.to_string(),
        record.standing(now).as_str().to_owned(),
        times::show(record.created_at),
        record.expires_at.map_or("never".to_owned(), times::show),
        bound(record.requests_per_minute),
        bound(record.tokens_per_minute),
        bound(record.concurrency),
        record.weight.to_string(),
    ]
}

fn to_json(key: &ListedKey, now: u64) -> serde_json::Value {
    let record = &key.record;
    json!({
        "id": record.id,
        "name": record.name,
        "scopes": record.scopes.words().collect::<Vec<_>>(),
        "status": record.standing(now).as_str(),
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "revoked_at": key.revoked_at,
        "requests_per_minute": record.requests_per_minute,
        "tokens_per_minute": record.tokens_per_minute,
        "concurrency": record.concurrency,
        "weight": record.weight,
    })
}

/// A name is a column of `key list`, and `server.tls.client_keys` uses it. So it must not be empty,
/// and must look like what it is.
fn parse_name(text: &str) -> Result<String, String> {
    let length = text.chars().count();
    let is_seen = text.trim() == text && !text.chars().any(is_unseen);
    match is_seen && (1..=keys_limits::NAME_CHARACTERS_MAX).contains(&length) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "expected 1 to {most} visible characters on one line, without leading or trailing \
             spaces; omit --name for a key without a name",
            most = keys_limits::NAME_CHARACTERS_MAX
        )),
    }
}

fn parse_weight(text: &str) -> Result<u16, String> {
    let (least, most) = (keys_limits::WEIGHT_DEFAULT, keys_limits::WEIGHT_MAX);
    let weight = text.parse().ok();
    weight
        .filter(|weight| (least..=most).contains(weight))
        .ok_or_else(|| {
            format!("expected a whole number from {least} to {most}; a key is created with {least}")
        })
}

/// Returns whether a character is a control character or what Unicode calls a format character:
/// they have no shape, or turn the direction of the text around them.
fn is_unseen(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        )
}

fn future(end: End, now: u64) -> Result<u64, Code> {
    end.at(now)
        .map_err(|reason| fail(exit::USAGE, format_args!("--expires: {reason}")))
}
