//! The bus over Kafka: one partition of one topic, which each daemon reads from its end.
//!
//! Owns librdkafka's consumer and producer; the thread that reads notices is a [`Receiver`]. The
//! consumer is assigned its partition and joins no group, so every daemon gets every notice, and
//! none of them leaves an offset behind. librdkafka adds threads of its own, one for each broker.
//! They call into this crate for lines of its log alone.
//!
//! Must never wait for a broker in `publish`: a notice goes into librdkafka's queue, which holds
//! [`limits::WAITING_NOTICES_ITEMS`] for at most [`limits::KAFKA_NOTICE_TTL`].
//!
//! Invariants:
//!  1. Notices before the offset of an assignment are skipped. The offset is asked for before
//!     [`Notice::All`] is reported, so a notice is either read or covered by that.
//!  2. A broker that does not respond is given up after [`limits::KAFKA_REPLY_TIMEOUT`] beyond
//!     [`limits::SILENCE_CHECK_INTERVAL`].
//!
//! Mutations that `tests/kafka.rs` catches: no question to a silent broker
//! (`a_stopped_broker_...`), an assignment from the topic's beginning (`a_restarted_daemon_...`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::metrics::BusSeries;
use super::receiver::{Inbox, Receiver, Source};
use super::{Invalidation, Notice, OnNotice};
use crate::config::{Bus, BusKind};
use crate::limits::bus as limits;

/// Notices are few and need no order: one partition carries them, however many the topic has.
const PARTITION: i32 = 0;

/// librdkafka wants a name, although nothing joins this group and nothing is committed to it.
const GROUP: &str = "autoglmd";

/// The settings of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaSettings {
    /// Brokers with commas between them.
    brokers: String,
    topic: String,
}

impl KafkaSettings {
    /// Returns the settings of the configuration; `None` if Kafka is not its bus.
    pub fn of(config: &Bus) -> Option<KafkaSettings> {
        (config.kind == BusKind::Kafka).then(|| KafkaSettings {
            brokers: config.brokers.join(","),
            topic: config.topic.clone(),
        })
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", GROUP)
            .set("allow.auto.create.topics", "true")
            .set("socket.timeout.ms", ms(limits::KAFKA_SOCKET_TIMEOUT))
            .set("reconnect.backoff.max.ms", ms(limits::KAFKA_RECONNECT_MAX));
        client
    }

    fn consumer(&self) -> KafkaResult<BaseConsumer<Quiet>> {
        self.client()
            .set("group.id", GROUP)
            .set("enable.auto.commit", "false")
            // An offset that is gone means that notices are gone: it must not be skipped silently.
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", ms(limits::KAFKA_FETCH_WAIT))
            .set("fetch.error.backoff.ms", ms(limits::END_CHECK_INTERVAL))
            .set("queued.max.messages.kbytes", KILOBYTES_QUEUED)
            .create_with_context(Quiet)
    }

    fn producer(&self) -> KafkaResult<BaseProducer<Quiet>> {
        let items = limits::WAITING_NOTICES_ITEMS.to_string();
        self.client()
            .set("queue.buffering.max.messages", items)
            .set("linger.ms", "0")
            .set("acks", "1")
            .set("message.timeout.ms", ms(limits::KAFKA_NOTICE_TTL))
            .create_with_context(Quiet)
    }
}

/// The least that librdkafka accepts.
const KILOBYTES_QUEUED: &str = "1";

fn ms(time: Duration) -> String {
    time.as_millis().to_string()
}

/// Keeps librdkafka's own lines, several at each attempt, out of the log: the loss of the bus is
/// reported once.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        log::debug!("librdkafka: {facility}: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log::debug!("librdkafka: {error}: {reason}");
    }
}

impl ConsumerContext for Quiet {}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// Publishes notices.
pub struct KafkaBus {
    producer: Arc<BaseProducer<Quiet>>,
    topic: String,
    is_assigned: Arc<AtomicBool>,
}

impl Invalidation for KafkaBus {
    fn publish(&self, notice: &Notice) {
        // A full queue means a lost broker or a flood, and each daemon reads the store each second.
        let _ = send(&self.producer, &self.topic, notice);
    }

    fn is_connected(&self) -> bool {
        self.is_assigned.load(Ordering::Relaxed)
    }
}

fn send(producer: &BaseProducer<Quiet>, topic: &str, notice: &Notice) -> KafkaResult<()> {
    let text = notice.to_text();
    let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic)
        .partition(PARTITION)
        .payload(text.as_bytes());
    producer.send(record).map_err(|(error, _)| error)
}

/// Publishes notices from a command, and waits until a broker has them.
pub fn publish(settings: &KafkaSettings, notices: &[Notice]) -> KafkaResult<()> {
    let producer = settings.producer()?;
    for notice in notices {
        send(&producer, &settings.topic, notice)?;
    }
    producer.flush(limits::KAFKA_COMMAND_TIMEOUT)
}

/// Starts the thread that receives notices.
pub fn start(
    settings: KafkaSettings,
    series: Arc<BusSeries>,
    on_notice: OnNotice,
) -> io::Result<(Receiver, KafkaBus)> {
    let producer = Arc::new(settings.producer().map_err(io::Error::other)?);
    let subscription = Subscription {
        consumer: settings.consumer().map_err(io::Error::other)?,
        producer: Arc::clone(&producer),
        topic: settings.topic.clone(),
    };
    let (receiver, is_assigned) = Receiver::start(subscription, series, on_notice)?;
    let bus = KafkaBus {
        producer,
        topic: settings.topic,
        is_assigned,
    };
    Ok((receiver, bus))
}

struct Subscription {
    consumer: BaseConsumer<Quiet>,
    producer: Arc<BaseProducer<Quiet>>,
    topic: String,
}

impl Source for Subscription {
    type Error = KafkaError;

    fn receive(&mut self, inbox: &mut Inbox) -> KafkaResult<()> {
        // Reports what the producer has given up, so that its queue has room again.
        self.producer.poll(Duration::ZERO);
        // A broker creates the topic when its metadata is asked for, if it is configured so.
        let timeout = limits::KAFKA_REPLY_TIMEOUT;
        self.consumer.fetch_metadata(Some(&self.topic), timeout)?;
        let end = self.end_offset()?;
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(&self.topic, PARTITION, Offset::Offset(end))?;
        self.consumer.assign(&partitions)?;
        inbox.note_connected();
        let mut heard_at = Instant::now();
        while !inbox.has_ended() {
            self.producer.poll(Duration::ZERO);
            match self.consumer.poll(limits::END_CHECK_INTERVAL) {
                Some(Ok(message)) => inbox.take(message.payload().unwrap_or_default()),
                Some(Err(error)) if !is_of_one_connection(&error) => return Err(error),
                None if heard_at.elapsed() < limits::SILENCE_CHECK_INTERVAL => continue,
                Some(Err(_)) | None => {
                    self.end_offset()?;
                }
            }
            heard_at = Instant::now();
        }
        Ok(())
    }
}

impl Subscription {
    /// Asks the partition's leader for the offset of the next message.
    fn end_offset(&self) -> KafkaResult<i64> {
        let timeout = limits::KAFKA_REPLY_TIMEOUT;
        let marks = self
            .consumer
            .fetch_watermarks(&self.topic, PARTITION, timeout)?;
        Ok(marks.1)
    }
}

/// Returns whether the error is of a connection: the partition's leader may be a broker with
/// another one.
fn is_of_one_connection(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut, Resolve};
    let code = error.rdkafka_error_code();
    let of_connections = [
        AllBrokersDown,
        BrokerTransportFailure,
        OperationTimedOut,
        Resolve,
    ];
    code.is_some_and(|code| of_connections.contains(&code))
}
