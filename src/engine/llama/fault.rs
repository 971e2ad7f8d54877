//! Faults on demand, so that a test of the whole daemon can observe their effects.
//!
//! A switch for developers: `AUTOGLMD_FAULT` names a fault, and after a colon how many steps of the
//! engine it affects (1 by default). A release build knows no faults, and refuses to start while
//! the variable is set.
//!
//! | value          | the engine's thread                                     |
//! | -------------- | ------------------------------------------------------- |
//! | `engine-panic` | panics in its next step                                 |
//! | `engine-hang`  | never ends its next step                                |
//! | `engine-abort` | ends the process as a failed assertion of llama.cpp does |

/// The variable's name.
pub const VARIABLE: &str = "AUTOGLMD_FAULT";

/// The fault to inject into the engine's thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    kind: Option<Kind>,
    times: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(debug_assertions), allow(dead_code))]
enum Kind {
    Panic,
    Hang,
    Abort,
}

impl Fault {
    /// Reads the variable. The error is for people.
    pub fn from_environment() -> Result<Fault, String> {
        match std::env::var(VARIABLE) {
            Ok(text) if !text.is_empty() => parse(&text),
            _ => Ok(Fault::default()),
        }
    }

    /// Must be called in each step.
    pub fn strike(&mut self) {
        let Some(kind) = self.kind.filter(|_| self.times > 0) else {
            return;
        };
        self.times -= 1;
        match kind {
            Kind::Panic => panic!("{VARIABLE} asks for a panic"),
            Kind::Abort => std::process::abort(),
            Kind::Hang => loop {
                std::thread::park();
            },
        }
    }
}

#[cfg(debug_assertions)]
fn parse(text: &str) -> Result<Fault, String> {
    let (name, times) = text.split_once(':').unwrap_or((text, "1"));
    let kind = match name {
        "engine-panic" => Kind::Panic,
        "engine-hang" => Kind::Hang,
        "engine-abort" => Kind::Abort,
        _ => {
            return Err(format!(
                "{VARIABLE} is {text:?}; expected engine-panic, engine-hang or engine-abort"
            ));
        }
    };
    let times = times.parse().map_err(|_| {
        format!("{VARIABLE} is {text:?}; expected a number of steps after the colon")
    })?;
    Ok(Fault {
        kind: Some(kind),
        times,
    })
}

#[cfg(not(debug_assertions))]
fn parse(text: &str) -> Result<Fault, String> {
    Err(format!(
        "{VARIABLE} is {text:?}, which works in debug builds only and this is a release build; \
         unset it"
    ))
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_as_often_as_requested() {
        let mut fault = parse("engine-panic:2").unwrap();
        for _ in 0..2 {
            assert!(std::panic::catch_unwind(move || fault.strike()).is_err());
            fault.times -= 1;
        }
        fault.strike();
        Fault::default().strike();
    }

    #[test]
    fn a_fault_that_is_not_known_is_refused_by_name() {
        assert!(parse("engine-fire").unwrap_err().contains("engine-hang"));
        assert!(parse("engine-hang:x").unwrap_err().contains("number"));
    }
}
