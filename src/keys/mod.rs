//! API keys as the service sees them: what a key may do, and how to find the presented one.
//!
//! Must never touch a file, a clock or a thread, and never keeps a key's text: the database, a core
//! dump or a log contains only hashes. In reading order:
//!
//! * [`record`]: what a key may do;
//! * [`secret`]: its text, and the hash of it;
//! * [`account`]: its use by this process, in numbers that all reactors share;
//! * [`ring`]: all keys at one moment, as every reactor reads them.
//!
//! Why BLAKE3 and not a slow password hash: a key is 32 bytes from the kernel's generator, so
//! guessing is hopeless. Argon2 or bcrypt make each guess of a *human's* password expensive;
//! against 256 random bits a guess fails at any price, and every request would pay that price.
//!
//! Why the map lookup leaks nothing useful: its time depends on the BLAKE3 hash of the presented
//! text, not on the text itself. An attacker who measures how far a comparison came learns leading
//! bits of a stored *hash*. To use them, a text must be found whose hash begins with them, and each
//! further bit doubles that search, up to a preimage of the whole hash. Comparing texts would
//! reveal the key character by character; this does not. The map's own seed (SipHash, random in
//! each process) blurs even that. Finally, all 32 bytes are compared in constant time, so that the
//! decision itself never depends on where two hashes differ.

pub mod account;
pub mod record;
pub mod ring;
pub mod secret;

pub use account::{Account, tenant_of};
pub use record::{KeyRecord, Scopes, Standing, UnknownScope};
pub use ring::{ChangedKey, Holder, KeyRing};
pub use secret::{KEY_ID_PREFIX, KEY_PREFIX, Secret, random_id};
