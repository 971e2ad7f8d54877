//! The engine's series in `/metrics`: its numbers, copied at each scrape.

use std::sync::atomic::Ordering;

use super::Gauges;

crate::families! {
    /// The engine's present state and its work so far.
    pub struct EngineSeries {
        /// Sequences that are being decoded.
        sequences_running: Gauge = "engine_sequences_running", "autoglmd.engine.sequence.running",
            per model;
        /// Jobs that wait for a sequence.
        queue_depth: Gauge = "engine_queue_depth", "autoglmd.engine.queue.depth", per model;
        /// Cells of the KV cache that hold a token.
        kv_cells_used: Gauge = "engine_kv_cells_used", "autoglmd.engine.kv_cell.used", per model;
        /// Cells of the KV cache.
        kv_cells_size: Gauge = "engine_kv_cells_size", "autoglmd.engine.kv_cell.limit", per model;
        /// Steps of the engine: each decodes one token for every running sequence.
        decode_steps: Counter = "engine_decode_steps", "autoglmd.engine.decode_step", per model;
        /// Starts of the engine after a panic.
        restarts: Counter = "engine_restarts", "autoglmd.engine.restart", per model;
        /// Time since the engine's last sign of life while it has work; 0 at rest.
        silence: Gauge = "engine_silence_seconds", "autoglmd.engine.silence", per model;
        /// Memory of copies of prefixes on their way to the disk or from it.
        prefix_copies: Gauge = "engine_prefix_copies_bytes", "autoglmd.engine.prefix.copy.usage",
            per model;
        /// Files with computed prefixes, by what happened to them.
        prefix_files: Counter = "engine_prefix_files" [ event: PrefixEvent ],
            "autoglmd.engine.prefix.file", per model;
        /// Prompt tokens computed, prompt tokens found in the cache, and tokens generated.
        tokens: Counter = "tokens" [ kind: TokenKind ], "autoglmd.engine.token.usage", per model;
    }
}

/// The engine's work for a token: computed as part of a prompt, found in the cache, or generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    Prompt,
    PromptCached,
    Generated,
}

impl TokenKind {
    const ALL: [TokenKind; 3] = [
        TokenKind::Prompt,
        TokenKind::PromptCached,
        TokenKind::Generated,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            TokenKind::Prompt => "prompt",
            TokenKind::PromptCached => "prompt_cached",
            TokenKind::Generated => "generated",
        }
    }
}

crate::label!(TokenKind, as_str, TokenKind::ALL, 0);

/// Something that happened to a file with a computed prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixEvent {
    Written,
    Skipped,
    Damaged,
    Foreign,
    Failed,
}

impl PrefixEvent {
    const ALL: [PrefixEvent; 5] = [
        PrefixEvent::Written,
        PrefixEvent::Skipped,
        PrefixEvent::Damaged,
        PrefixEvent::Foreign,
        PrefixEvent::Failed,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            PrefixEvent::Written => "written",
            PrefixEvent::Skipped => "skipped",
            PrefixEvent::Damaged => "damaged",
            PrefixEvent::Foreign => "foreign",
            PrefixEvent::Failed => "failed",
        }
    }
}

crate::label!(PrefixEvent, as_str, PrefixEvent::ALL, 0);

impl EngineSeries {
    /// Copies the engine's numbers, before the registry is encoded.
    pub fn update(&self, gauges: &Gauges) {
        self.sequences_running.set(gauges.sequences_running.into());
        self.queue_depth.set(gauges.queue_depth.into());
        self.kv_cells_used.set(gauges.kv_used as i64);
        self.kv_cells_size.set(gauges.kv_size as i64);
        self.silence.set(gauges.silence.as_secs() as i64);
        let prefixes = &gauges.prefixes;
        self.prefix_copies.set(prefixes.copies_bytes as i64);
        for (event, total) in [
            (PrefixEvent::Written, prefixes.written),
            (PrefixEvent::Skipped, prefixes.skipped),
            (PrefixEvent::Damaged, prefixes.damaged),
            (PrefixEvent::Foreign, prefixes.foreign),
            (PrefixEvent::Failed, prefixes.failed),
        ] {
            let counter = self.prefix_files.get(event).inner();
            counter.fetch_max(total, Ordering::Relaxed);
        }
        for (counter, total) in [
            (&self.restarts, gauges.restarts),
            (&self.decode_steps, gauges.decode_steps),
            (self.tokens.get(TokenKind::Prompt), gauges.prompt_tokens),
            (
                self.tokens.get(TokenKind::PromptCached),
                gauges.prompt_cached_tokens,
            ),
            (
                self.tokens.get(TokenKind::Generated),
                gauges.generated_tokens,
            ),
        ] {
            // Of two scrapes at the same time the later value stays: a counter never goes back.
            counter.inner().fetch_max(total, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;

    /// Mutation: `store` in place of `fetch_max` fails here.
    #[test]
    fn totals_never_go_back() {
        let metrics = Metrics::new("echo");
        let series = metrics.series::<EngineSeries>();
        let mut gauges = Gauges {
            sequences_running: 3,
            decode_steps: 70,
            generated_tokens: 900,
            ..Gauges::default()
        };
        series.update(&gauges);
        gauges.decode_steps = 60;
        gauges.sequences_running = 1;
        series.update(&gauges);
        assert_eq!(series.decode_steps.get(), 70);
        assert_eq!(series.sequences_running.get(), 1);
        let mut text = String::new();
        metrics.encode(&mut text);
        assert!(text.contains("autoglmd_tokens_total{kind=\"generated\"} 900\n"));
    }
}
