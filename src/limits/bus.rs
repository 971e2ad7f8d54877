//! Bounds of the notices between daemons.

use std::time::Duration;

/// Bytes of a notice: a word, and an id or a digest in hex.
pub const NOTICE_BYTES_MAX: usize = 128;

/// How long a subscribed connection may be silent before its server is asked for a sign of life.
pub const SILENCE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often the thread of a bus looks whether it should end.
pub const END_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How often a command tries to reach a server, each time another sentinel or node.
pub const PUBLISH_ATTEMPTS: u32 = 3;

// ---- Kafka ----

/// How long a broker may take for a reply: as long as the store's reading may take without a bus.
pub const KAFKA_REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a broker holds a fetch open while there is nothing to read: four requests per second
/// when idle. A broker that does not end it at the next message delays that one by as long.
pub const KAFKA_FETCH_WAIT: Duration = Duration::from_millis(250);

/// When librdkafka closes a connection that owes a reply: it asks for a second more than the fetch.
pub const KAFKA_SOCKET_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest pause between two of librdkafka's connects: that of Redis.
pub const KAFKA_RECONNECT_MAX: Duration = Duration::from_secs(2);

/// How long a notice waits for a broker. The stores have been read several times by then.
pub const KAFKA_NOTICE_TTL: Duration = Duration::from_secs(5);

/// How long a command waits for a broker to take its notices, the first connect included.
pub const KAFKA_COMMAND_TIMEOUT: Duration = Duration::from_secs(3);

// ---- gossip ----

/// How far the clocks of two machines may differ. A datagram is taken for as long, and its session
/// is remembered for twice as long.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(30);

/// Processes whose datagrams are remembered: 1,024 daemons, or commands within a minute. Each takes
/// 40 bytes, and only holders of the secret make them.
pub const SESSIONS_MAX: usize = 1_024;

/// Bytes of a datagram: it passes every network whole (RFC 8085, section 3.2, over IPv6's least
/// MTU of 1,280).
pub const DATAGRAM_BYTES_MAX: usize = 1_232;

/// Bytes of its payload: 60 are the signature's.
pub const GOSSIP_PAYLOAD_BYTES_MAX: usize = DATAGRAM_BYTES_MAX - 60;

/// Datagrams that are handled before timers: 10,000 per second take 1 % of a core.
pub const DATAGRAMS_PER_ROUND_ITEMS: usize = 64;

/// Notices whose ids are remembered, so that each counts once: 16 bytes each, twice.
pub const NOTICES_REMEMBERED_ENTRIES: usize = 4_096;

/// Notices that wait for the thread, or for a broker.
pub const WAITING_NOTICES_ITEMS: usize = 256;

/// Members to which a notice goes directly; the others get it from those.
pub const DIRECT_MEMBERS_MAX: usize = 64;

/// The size of a cluster for which the protocol's times are chosen.
pub const CLUSTER_MEMBERS_TYPICAL: u32 = 10;

/// How far an identity is ahead of the one before it at most, as a power of two in milliseconds:
/// 139 years, so that any two clocks are reconciled.
pub const LEAP_BITS_MAX: u32 = 42;

/// How often a member looks for others at the configured addresses.
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of the secret at least: 16 characters of a generator's text are 96 bits.
pub const SECRET_BYTES_MIN: usize = 16;

/// Bytes of the secret's file.
pub const SECRET_BYTES_MAX: u64 = 4_096;
