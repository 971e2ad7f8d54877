//! The program within the model's output, as it grows.

use crate::engine::code::Extractor;

/// Code without its fences and the prose around it.
#[derive(Debug)]
pub struct CodeStream {
    extractor: Extractor,
    /// All the code so far.
    code: String,
    /// How many bytes of it were taken.
    taken: usize,
}

impl CodeStream {
    pub fn new(language: Option<&str>) -> CodeStream {
        CodeStream {
            extractor: Extractor::new(language),
            code: String::new(),
            taken: 0,
        }
    }

    pub fn push(&mut self, text: &str) {
        self.extractor.push(text, &mut self.code);
    }

    /// Takes code that another extractor has found.
    pub fn push_code(&mut self, code: &str) {
        self.code.push_str(code);
    }

    /// Takes the model's last text: no line is held back any more.
    pub fn end(&mut self, text: &str) {
        self.push(text);
        // Ending consumes the extractor; an unused one takes its place.
        let extractor = std::mem::replace(&mut self.extractor, Extractor::new(None));
        self.code.push_str(&extractor.finish());
    }

    /// Returns the code that no call has returned before.
    pub fn take(&mut self) -> &str {
        let start = std::mem::replace(&mut self.taken, self.code.len());
        &self.code[start..]
    }

    /// Returns all the code so far.
    pub fn as_str(&self) -> &str {
        &self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations that this test catches: `take` from 0, and `end` without `finish`.
    #[test]
    fn each_byte_of_the_code_is_taken_once() {
        let mut stream = CodeStream::new(Some("python"));
        let mut taken = String::new();
        for piece in ["Here:\n```python\nprint", "(1)\npri", "nt(2)\n"] {
            stream.push(piece);
            taken.push_str(stream.take());
            assert_eq!(stream.take(), "");
        }
        stream.end("x = 3");
        taken.push_str(stream.take());
        assert_eq!(taken, "print(1)\nprint(2)\nx = 3");
        assert_eq!(stream.as_str(), taken);
    }
}
