//! Ways to ask for a program, to be compared with the daemon's own.
//!
//! A wording is a complete [`Family`]: everything that a row of the daemon's table decides can be
//! compared, and a wording that wins is copied into that row.

use autoglmd::engine::family::{Asking, Family, Opening};

/// Changes a model's row, for a comparison.
pub struct Wording {
    pub name: &'static str,
    change: fn(&mut Family),
}

/// The daemon's own wording.
pub const SHIPPED: &str = "shipped";

pub const WORDINGS: &[Wording] = &[
    Wording {
        name: SHIPPED,
        change: |_| {},
    },
    Wording {
        name: "neutral",
        change: |family| family.asking = PROGRAM,
    },
    Wording {
        name: "bare",
        change: |family| {
            family.asking = Asking {
                before: "",
                ..PROGRAM
            };
        },
    },
    Wording {
        name: "in-language",
        change: |family| {
            family.asking = Asking {
                before: "",
                after: "\nUse {}.",
                ..PROGRAM
            };
        },
    },
    Wording {
        name: "function",
        change: |family| {
            family.asking = Asking {
                before: "Write a {} function.\n",
                ..PROGRAM
            };
        },
    },
    Wording {
        name: "code",
        change: |family| {
            family.asking = Asking {
                before: "Write {} code.\n",
                ..PROGRAM
            };
        },
    },
    Wording {
        name: "exact",
        change: |family| {
            family.asking = Asking {
                before: "Write {} code for the following task, with all imports. Output exactly \
                         what the task asks for and nothing else.\n\n",
                ..PROGRAM
            };
        },
    },
    Wording {
        name: "exact-after",
        change: |family| {
            family.asking = Asking {
                before: "",
                after: "\n\nWrite complete, correct {} code with all imports. Do not add \
                        examples.",
                ..PROGRAM
            };
        },
    },
    Wording {
        name: "complete-after",
        change: |family| {
            family.asking = Asking {
                before: "",
                after: "\n\nWrite complete, correct {} code with all imports.",
                ..PROGRAM
            };
        },
    },
    Wording {
        name: "program-complete",
        change: |family| {
            family.asking = Asking {
                after: "\n\nThe code must be complete and correct, with all imports.",
                ..PROGRAM
            };
        },
    },
    Wording {
        name: "expert",
        change: |family| {
            family.asking = Asking {
                system: Some(
                    "You are an expert programmer. You write complete, correct code with all \
                     imports. Programs print exactly what is asked for, without prompts or labels.",
                ),
                before: "Write {} code.\n",
                ..PROGRAM
            };
        },
    },
    Wording {
        name: "no-fence",
        change: |family| family.asking.opening = Opening::Nothing,
    },
    Wording {
        name: "with-examples",
        change: |family| family.asking.cuts_examples = false,
    },
    Wording {
        name: "penalty-1.0",
        change: |family| family.repeat_penalty = 1.0,
    },
    Wording {
        name: "penalty-1.05",
        change: |family| family.repeat_penalty = 1.05,
    },
    Wording {
        name: "penalty-1.1",
        change: |family| family.repeat_penalty = 1.1,
    },
];

const PROGRAM: Asking = Asking {
    system: None,
    before: "Write a {} program.\n",
    before_in: &[],
    before_any: "",
    after: "",
    after_in: &[],
    opening: Opening::Fence,
    cuts_examples: true,
};

impl Wording {
    pub fn find(name: &str) -> Option<&'static Wording> {
        WORDINGS.iter().find(|wording| wording.name == name)
    }

    /// Returns the changed row. It lives as long as the bench, as the daemon's own rows do.
    pub fn family(&self, own: &Family) -> &'static Family {
        let mut family = own.clone();
        (self.change)(&mut family);
        Box::leak(Box::new(family))
    }
}
