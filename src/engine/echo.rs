//! An engine that returns a fixed program at once, for measuring the daemon itself.
//!
//! Owns no thread: `submit` completes a job on the caller's stack, through the same mailbox that a
//! model's events take. Every response names the model `echo`, so that its output is not mistaken
//! for a model's. Must never read the contents of the prompt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{
    Defaults, Deliver, Done, Engine, Event, FailReason, Failed, FinishReason, Gauges, Job,
    ModelInfo, Prompt, Refused, Served, State, Timings, Usage,
};
use crate::core::UnixSeconds;
use crate::error::ErrorCode;
use crate::limits::engine as limits;

pub struct Echo {
    deliver: Arc<dyn Deliver>,
    created: u64,
    is_draining: AtomicBool,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
}

impl Echo {
    pub fn new(deliver: Arc<dyn Deliver>) -> Arc<Echo> {
        Arc::new(Echo {
            deliver,
            created: UnixSeconds::now().as_u64(),
            is_draining: AtomicBool::new(false),
            prompt_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
        })
    }
}

impl Engine for Echo {
    fn submit(&self, job: Job) -> Result<(), Refused> {
        // Relaxed, here and below: a flag and totals, which publish no other data.
        if self.is_draining.load(Ordering::Relaxed) {
            return Err(Refused::Draining);
        }
        let answer = Answer::new(&job);
        self.prompt_tokens
            .fetch_add(u64::from(answer.usage.prompt_tokens), Ordering::Relaxed);
        self.generated_tokens
            .fetch_add(u64::from(answer.usage.completion_tokens), Ordering::Relaxed);
        answer.deliver(&job, &*self.deliver);
        Ok(())
    }

    fn state(&self) -> State {
        State::Ready
    }

    fn model(&self) -> Option<ModelInfo> {
        Some(ModelInfo {
            id: "echo".into(),
            engine: "echo",
            description: "a fixed program for measuring the daemon, no model".to_owned(),
            context_length: limits::ECHO_CONTEXT_TOKENS,
            fingerprint: [0; 32],
            created: self.created,
            defaults: Defaults::default(),
        })
    }

    fn gauges(&self) -> Gauges {
        Gauges {
            prompt_tokens: self.prompt_tokens.load(Ordering::Relaxed),
            generated_tokens: self.generated_tokens.load(Ordering::Relaxed),
            ..Gauges::default()
        }
    }

    fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }
}

/// The output of a job. Here a token is a word with the white space after it.
struct Answer {
    program: &'static str,
    usage: Usage,
    finish_reason: FinishReason,
}

impl Answer {
    fn new(job: &Job) -> Answer {
        let language = match &job.prompt {
            Prompt::Code { language, .. } => *language,
            Prompt::Chat(_) | Prompt::Raw(_) => None,
        };
        let whole = program(language.unwrap_or_default());
        let (program, words) = whole.beginning(job.max_tokens);
        let finish_reason = match words == whole.words {
            true => FinishReason::Stop,
            false => FinishReason::Length,
        };
        let usage = Usage {
            prompt_tokens: job.prompt.bytes().div_ceil(limits::BYTES_PER_TOKEN) as u32,
            cached_tokens: 0,
            completion_tokens: words,
        };
        Answer {
            program,
            usage,
            finish_reason,
        }
    }

    /// Delivers as many words as there is credit for, one by one; the rest with the terminal event.
    fn deliver(self, job: &Job, deliver: &dyn Deliver) {
        if let Some(reason) = job.ticket.cancelled() {
            let reason = FailReason::Cancelled(reason);
            return deliver.deliver_one(job.key, failed(reason, "the request was cancelled"));
        }
        if job.deadline <= job.submitted {
            let reason = FailReason::Error(ErrorCode::GenerationTimeout);
            let message = "the request timed out before it began";
            return deliver.deliver_one(job.key, failed(reason, message));
        }
        let mut words = Vec::new();
        let mut rest = self.program;
        while !rest.is_empty() && job.ticket.take_credit() {
            let end = rest.find([' ', '\n']).map_or(rest.len(), |white| white + 1);
            let (word, after) = rest.split_at(end);
            let text = word.to_owned();
            words.push((job.key, Event::Token { text }));
            rest = after;
        }
        // Allocates per request, twice: an event owns its text, and the rare large one is boxed.
        let done = Event::Done(Box::new(Done {
            text: rest.to_owned(),
            finish_reason: self.finish_reason,
            usage: self.usage,
            timings: Timings::default(),
            served: Served::default(),
        }));
        if words.is_empty() {
            return deliver.deliver_one(job.key, done);
        }
        words.push((job.key, done));
        deliver.deliver(&mut words);
    }
}

fn failed(reason: FailReason, message: &str) -> Event {
    Event::Failed(Box::new(Failed {
        reason,
        message: message.to_owned(),
        text: String::new(),
        usage: Usage::default(),
        timings: Timings::default(),
    }))
}

/// A program that greets, in the fence that a model would put around it.
struct Program {
    text: &'static str,
    words: u32,
}

impl Program {
    /// The compiler counts the words, because every job needs their number.
    const fn new(text: &'static str) -> Program {
        let (bytes, mut at, mut words) = (text.as_bytes(), 0, 0);
        while at < bytes.len() {
            let is_last = at + 1 == bytes.len();
            words += (is_last || is_end_of_word(bytes[at])) as u32;
            at += 1;
        }
        Program { text, words }
    }

    /// Returns the first words, at most `most`, and how many they are.
    fn beginning(&self, most: u32) -> (&'static str, u32) {
        if most >= self.words {
            return (self.text, self.words);
        }
        let ends = self.text.bytes().enumerate();
        let mut ends = ends.filter_map(|(at, byte)| is_end_of_word(byte).then_some(at + 1));
        let kept = most
            .checked_sub(1)
            .and_then(|before| ends.nth(before as usize));
        (&self.text[..kept.unwrap_or(0)], most)
    }
}

const fn is_end_of_word(byte: u8) -> bool {
    byte == b' ' || byte == b'\n'
}

macro_rules! programs {
    ($($language:literal $text:literal)+ _ $other:literal) => {
        /// Returns the program for a language, by name.
        fn program(language: &str) -> &'static Program {
            match language {
                $($language => const { &Program::new($text) },)+
                _ => const { &Program::new($other) },
            }
        }
    };
}

programs! {
    "python" r#"```python
def main():
    print("Hello from the echo engine")


if __name__ == "__main__":
    main()
```"#
    "javascript" "```javascript\nconsole.log(\"Hello from the echo engine\");\n```"
    "typescript" r#"```typescript
const greeting: string = "Hello from the echo engine";
console.log(greeting);
```"#
    "java" r#"```java
public class Main {
    public static void main(String[] args) {
        System.out.println("Hello from the echo engine");
    }
}
```"#
    "c" r#"```c
#include <stdio.h>

int main(void) {
    puts("Hello from the echo engine");
    return 0;
}
```"#
    "cpp" r#"```cpp
#include <iostream>

int main() {
    std::cout << "Hello from the echo engine\n";
}
```"#
    "csharp" "```csharp\nSystem.Console.WriteLine(\"Hello from the echo engine\");\n```"
    "go" r#"```go
package main

import "fmt"

func main() {
	fmt.Println("Hello from the echo engine")
}
```"#
    "rust" r#"```rust
fn main() {
    println!("Hello from the echo engine");
}
```"#
    "ruby" "```ruby\nputs \"Hello from the echo engine\"\n```"
    "php" r#"```php
<?php
echo "Hello from the echo engine\n";
```"#
    "bash" "```bash\necho \"Hello from the echo engine\"\n```"
    "sql" "```sql\nSELECT 'Hello from the echo engine';\n```"
    "html" r#"```html
<!doctype html>
<title>Hello from the echo engine</title>
```"#
    _ "```\nHello from the echo engine\n```"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Key, Moment};
    use crate::engine::{CacheMode, Class, GenerationId, Sampling, code};
    use crate::offload::{CancelReason, JobKey, Ticket};
    use std::sync::Mutex;

    #[derive(Default)]
    struct Mailbox(Mutex<Vec<(JobKey, Event)>>);

    impl Deliver for Mailbox {
        fn deliver(&self, events: &mut Vec<(JobKey, Event)>) {
            self.0.lock().unwrap().append(events);
        }
    }

    fn job(credit: u32, max_tokens: u32) -> Job {
        Job {
            key: JobKey {
                reactor: 0,
                connection: Key::new(1, 2),
                request: 3,
            },
            id: GenerationId::FIRST,
            tenant: 1,
            class: Class::Live,
            weight: 1,
            prompt: Prompt::Code {
                language: Some("python"),
                prompt: "anything".to_owned(),
                context: Vec::new(),
            },
            sampling: Sampling::default(),
            max_tokens,
            stop: Vec::new(),
            deadline: Moment::from_micros(10),
            submitted: Moment::ZERO,
            cache: CacheMode::Use,
            ticket: Arc::new(Ticket::new(credit)),
        }
    }

    fn answer(job: Job) -> Vec<Event> {
        let mailbox = Arc::new(Mailbox::default());
        Echo::new(mailbox.clone()).submit(job).unwrap();
        let events = mailbox.0.lock().unwrap();
        events.iter().map(|(_, event)| event.clone()).collect()
    }

    #[test]
    fn whole_answer_comes_in_one_event_without_credit() {
        let events = answer(job(0, 100));
        let [Event::Done(done)] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(done.finish_reason, FinishReason::Stop);
        let code = code::extract(&done.text, Some("python"));
        assert!(code.starts_with("def main():") && code.ends_with("main()"));
    }

    #[test]
    fn words_come_one_by_one_as_far_as_credit_reaches() {
        let events = answer(job(2, 100));
        let [
            Event::Token { text: first },
            Event::Token { text: second },
            Event::Done(done),
        ] = &events[..]
        else {
            panic!("{events:?}")
        };
        assert_eq!(
            format!("{first}{second}{}", done.text),
            program("python").text
        );
    }

    #[test]
    fn max_tokens_cuts_the_answer() {
        let events = answer(job(0, 2));
        let [Event::Done(done)] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(done.text, "```python\ndef ");
        assert_eq!(done.finish_reason, FinishReason::Length);
        assert_eq!(done.usage.completion_tokens, 2);
    }

    #[test]
    fn cancelled_job_fails_and_costs_nothing() {
        let job = job(5, 100);
        job.ticket.cancel(CancelReason::Disconnect);
        let events = answer(job);
        let [Event::Failed(failed)] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(
            failed.reason,
            FailReason::Cancelled(CancelReason::Disconnect)
        );
    }
}
