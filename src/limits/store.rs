//! Bounds of the database.

use std::time::Duration;

/// Entries of the history of changed keys: 10,000 creations or revocations between two looks of a
/// daemon. After more of them it reads all keys, which takes seconds for a million. An entry is
/// 40 bytes.
pub const HISTORY_ENTRIES: u32 = 10_000;

/// Problems of each kind that a check of the database names: the first ones show what is wrong.
pub const EXAMINED_PROBLEMS_MAX: u32 = 20;

/// How long a statement waits for another process's lock: a commit takes milliseconds, so after
/// this long the other process hangs.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a command waits that long before it gives up.
pub const BUSY_ATTEMPTS_MAX: u32 = 6;

/// How often a daemon does, for the same tasks: longer together than any client waits for the
/// store, and within the default lease of a job.
pub const BUSY_GROUP_ATTEMPTS_MAX: u32 = 4;

/// The pause before the second time. It doubles each time, and has a random part.
pub const BUSY_PAUSE_MIN: Duration = Duration::from_millis(50);

/// Rows of a key that are removed in one step, between two tasks of a daemon.
pub const ERASED_RECORDS_MAX: u32 = 200;

/// Rows that an export holds at a time: prompts with `store.content` are kilobytes each.
pub const EXPORTED_RECORDS_MAX: u32 = 200;

/// The longest line of an export: the request of a job, with every character escaped.
pub const EXPORTED_LINE_BYTES_MAX: u64 = 256 << 20;

/// How long an erasure waits until every daemon knows that the key is gone: twice the time of a
/// look, and half a second for the reading of a large ring.
pub const ERASURE_PAUSE: Duration = Duration::from_millis(1_500);

/// How long an erasure waits for transactions that have begun before the key was gone. The server
/// ends those of a daemon sooner with the usual `store.statement_timeout` of 5 s, and a transaction
/// that waits for its daemon after twice that.
pub const ERASURE_PATIENCE: Duration = Duration::from_secs(30);

/// How often it looks.
pub const ERASURE_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How often, and with which pause, the switch to write-ahead logging is tried; together as long
/// as the wait for a lock.
pub const WAL_ATTEMPTS_MAX: u32 = 250;

/// The pause between two of them.
pub const WAL_PAUSE: Duration = Duration::from_millis(20);

/// How often the store is asked whether another process changed it. A revoked key is refused
/// within this time and one reading of the key ring, together within a second; asking costs one
/// look at shared memory, or one statement of a database server.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// The longest pause before a store that cannot be read is opened again: a server that comes back
/// is found within this time, and each daemon tries once in it.
pub const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(5);

/// How much longer than `store.statement_timeout` a reply of the database server is waited for: its
/// own message that it has cancelled the statement takes this long at most.
pub const REPLY_MARGIN: Duration = Duration::from_secs(1);

/// How many times `store.statement_timeout` the database server keeps a transaction in which it
/// hears nothing: a daemon that works needs milliseconds between two statements.
pub const IDLE_TRANSACTION_FACTOR: u32 = 2;

/// How long one step of the schema may take, or the wait for another daemon that does it: an index
/// of a million rows takes seconds.
pub const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a connection to a database server is silent before TCP checks whether the server is
/// still there. The daemon looks at its keys more often.
pub const SILENCE_BEFORE_PROBES: Duration = Duration::from_secs(30);

/// Tasks that may wait for the store: a disk that stands still for a second fills it at 4,000 per
/// second.
pub const WAITING_ROW_TASKS_MAX: usize = 4_096;

/// What they may hold together, beside their own structures.
pub const WAITING_ROW_TASKS_BYTES_MAX: u64 = 32 << 20;

/// What one tenant's tasks may hold before another one's turn comes.
pub const ROW_TASK_VISIT_BYTES: u64 = 64 << 10;

/// What a task counts at least: its structure, and its part of a transaction.
pub const ROW_TASK_BYTES_MIN: u32 = 1 << 10;

/// Statements that a connection to SQLite keeps prepared: all that a daemon runs again and again.
/// With fewer it would prepare each one again, because the least recently used one makes room.
pub const PREPARED_ITEMS_MAX: usize = 64;

/// Steps of SQLite's virtual machine, over all rows and runs of a statement, after which its thread
/// offers its core: 10 to 50 us. A record takes about a hundred.
pub const STEPS_PER_OFFER: i32 = 200;

/// Tasks in one transaction: all that came during the commit before, at 10,000 per second and a
/// commit of 25 ms.
pub const GROUP_TASKS_MAX: usize = 256;

/// Prompts of new jobs that one statement writes: they are in memory twice meanwhile.
pub const ACCEPTED_BYTES_MAX: usize = 1 << 20;

/// How long a transaction goes on taking tasks. The first task waits for the commit of all, and
/// other processes wait for the lock.
pub const GROUP_TIME_MAX: Duration = Duration::from_millis(50);

/// How often a group is run if other transactions are in its way. A server finds after a second
/// (PostgreSQL's `deadlock_timeout`) that two wait for each other, so the last try begins after
/// some seconds, when clients are told to come back.
pub const GROUP_ATTEMPTS_MAX: u32 = 4;

/// How long the store's thread sleeps while no task comes.
pub const IDLE_INTERVAL: Duration = Duration::from_millis(250);

/// Generation records that wait for the store: more than a second of the fastest responses. An
/// empty place takes 16 bytes, a record half a kilobyte.
pub const RECORDS_MAX: usize = 16_384;

/// The text that they may hold together, with `store.content`.
pub const RECORDS_BYTES_MAX: usize = 16 << 20;

/// Records in one transaction, and those that a thread keeps while the store does not work.
pub const GROUP_RECORDS_MAX: usize = 1_024;

/// The text of these records, with one record more.
pub const GROUP_RECORDS_BYTES_MAX: usize = 4 << 20;

/// How often a thread of the store takes the hits of the cache: a process that is killed loses
/// those of this long and of one [`IDLE_INTERVAL`].
pub const HITS_INTERVAL: Duration = Duration::from_secs(1);

/// Keys and days of hits in one transaction, and those that a thread keeps while the store does not
/// work. Others stay numbers in the accounts of their keys.
pub const GROUP_HIT_KEYS_MAX: usize = 1_024;

/// How often a store that does not work is tried again while only records wait.
pub const STORE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How often dropped records are logged.
pub const DROPPED_RECORDS_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How often the state folder's files are measured: some thousand of them take milliseconds.
pub const MEASURE_INTERVAL: Duration = Duration::from_secs(10);

/// Files of the state folder that are measured. There are five, unless an operator keeps others
/// there.
pub const MEASURED_FILES_MAX: usize = 10_000;

/// How often old records are looked for while there are none.
pub const TRIM_INTERVAL: Duration = Duration::from_secs(10);

/// Old records that are removed in one step, between two groups: as many as the group before has
/// added. A step takes some milliseconds.
pub const TRIMMED_RECORDS_MAX: usize = GROUP_RECORDS_MAX;

/// Bytes that a record writes into the log beside its text: a page of the table and of each of its
/// three indexes, if no two records of a transaction share one.
pub const RECORD_PAGES_BYTES: u64 = 16 << 10;

/// Bytes that a task writes there beside twice its own: pages of a job, its key's totals and their
/// indexes.
pub const TASK_PAGES_BYTES: u64 = 32 << 10;

/// Bytes of the log after which a commit moves it into the file, and the length to which it is cut
/// when it begins again: SQLite's own 1,000 pages.
pub const CHECKPOINT_BYTES: u64 = 4_096_000;

/// How long a transaction waits for the readers of a log that is too long: most read for
/// milliseconds, and an export for minutes.
pub const READERS_PATIENCE: Duration = Duration::from_millis(500);

/// Bytes of an entry of the cache in the database beside its value: its row and its places in
/// four indexes.
pub const ENTRY_ROW_BYTES: u64 = 256;

/// Entries of the cache that wait for the store: as many generations as the fastest engine makes
/// while a disk stands still for seconds.
pub const PENDING_ENTRIES_MAX: usize = 4_096;

/// The memory that they hold together.
pub const PENDING_ENTRIES_BYTES_MAX: usize = 16 << 20;

/// Entries of the cache that join a group which other tasks wait for.
pub const GROUP_ENTRIES_MAX: usize = 64;

/// The part of `store.max_size` that the log of SQLite may have. It is the time for which another
/// process may read at one moment: an export of a gigabyte takes a minute, in which a busy daemon
/// writes some 50 MB.
pub const LOG_SIZE_DIVISOR: u64 = 8;

/// The part of the log's share that its index takes: 8 bytes for a page of 4 KiB, doubled for the
/// steps in which it grows.
pub const LOG_INDEX_DIVISOR: u64 = 256;

/// The smallest index of the log.
pub const LOG_INDEX_BYTES_MIN: u64 = 32 << 10;

/// The part of `store.max_size` that prefixes may have beside a database.
pub const PREFIXES_SIZE_DIVISOR: u64 = 2;

/// The part of `store.max_size` that the computed states of the daemon's own words may have. In the
/// smallest folder that are four languages of the default model; the words of others are computed.
pub const OWN_WORDS_SIZE_DIVISOR: u64 = 16;

/// The most that they may have: as much as the engine keeps in memory.
pub const OWN_WORDS_BYTES_MAX: u64 = super::engine::PREFIX_STATES_BYTES_MAX as u64;

/// Room in the state folder for the key of the first start, and for the small files beside the
/// prefixes.
pub const OTHER_FILES_BYTES: u64 = 1 << 20;

/// The part of the database that jobs may have, as `jobs.max_size` counts them. Pages that are
/// partly empty, and results of jobs that were accepted before, come on top.
pub const JOBS_SIZE_DIVISOR: u64 = 2;

/// The part of the database that entries of the cache may have.
pub const ENTRIES_SIZE_DIVISOR: u64 = 4;

/// Entries that are removed in one step, between two groups.
pub const TRIMMED_ENTRIES_MAX: u32 = 500;

/// Generations on one page of the list.
pub const PAGE_RECORDS_MAX: u32 = 100;

/// Generations on a page whose request names no number.
pub const PAGE_RECORDS_DEFAULT: u32 = 20;

/// Texts of the generations on a page, with one record more. The page is in memory twice while it
/// is written, and its response a third time.
pub const PAGE_TEXT_BYTES_MAX: usize = 256 << 10;
