//! `autoglmd key webhook-secret`: makes and rotates the secret that signs a key's callbacks.
//!
//! Must never print a secret twice or to stderr: stdout gets only the secret.

use clap::Args;

use super::lookup::find_valid;
use crate::cli::database::explain;
use crate::cli::times::{self, parse_lifetime};
use crate::console::exit::{self, Code};
use crate::console::{fail, note, put};
use crate::jobs::{SECRET_BYTES, WebhookSecret};
use crate::limits::keys as limits;
use crate::store::{Store, StoreError};

#[derive(Args, Debug)]
pub struct NewSecret {
    /// The key's id as in `key list`, or its name if no other key has it.
    #[arg(value_name = "NAME|ID")]
    key: String,
    /// How long the secret before it signs as well [default: 1d].
    #[arg(long, value_name = "TIME", value_parser = parse_lifetime)]
    grace: Option<u64>,
    /// Make no secret, but stop signing with the one before the present one.
    #[arg(long, conflicts_with = "grace")]
    retire: bool,
}

impl NewSecret {
    /// Returns whether the command prints a secret.
    pub fn is_shown(&self) -> bool {
        !self.retire
    }

    pub fn run(self, store: &mut dyn Store, now: u64) -> Result<(), Code> {
        let id = find_valid(store, &self.key)?.record.id;
        if self.retire {
            let retired = store.retire_webhook_secret(&id);
            refuse_revoked(&id, retired)?;
            note(format_args!(
                "callbacks of {id} are signed with the newest secret alone"
            ));
            return Ok(());
        }
        let had_one = !store
            .webhook_secrets(&id, now)
            .map_err(|error| explain(&error))?
            .is_empty();
        let secret = random_secret()?;
        let grace = self.grace.unwrap_or(limits::WEBHOOK_GRACE.as_secs());
        let old_until = now.saturating_add(grace);
        let rotated = store.rotate_webhook_secret(&id, secret.reveal(), old_until);
        refuse_revoked(&id, rotated)?;
        put(&format!("{}\n", secret.reveal())).inspect_err(|_| withdraw(store, &id, &secret))?;
        note(format_args!(
            "callbacks of {id} are signed with the secret above; it is not shown again"
        ));
        if had_one {
            note(format_args!(
                "the secret before it signs as well until {}; end that earlier with `autoglmd key \
                 webhook-secret {id} --retire`",
                times::show(old_until)
            ));
        }
        Ok(())
    }
}

fn random_secret() -> Result<WebhookSecret, Code> {
    let mut bytes = [0; SECRET_BYTES];
    let filled = getrandom::fill(&mut bytes);
    filled.map_err(|error| explain(&StoreError::Random(error)))?;
    Ok(WebhookSecret::new(bytes))
}

fn refuse_revoked(id: &str, changed: Result<bool, StoreError>) -> Result<(), Code> {
    match changed.map_err(|error| explain(&error))? {
        true => Ok(()),
        false => Err(fail(
            exit::NO_INPUT,
            format_args!("{id} is revoked and sends no callbacks; see `autoglmd key list`"),
        )),
    }
}

fn withdraw(store: &mut dyn Store, id: &str, secret: &WebhookSecret) {
    match store.withdraw_webhook_secret(id, secret.reveal()) {
        Ok(_) => note("the new secret could not be shown and was removed"),
        Err(error) => note(format_args!(
            "error: {error}; {id} has a secret that was not shown; make another one"
        )),
    }
}
