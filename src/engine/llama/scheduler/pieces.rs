//! Decides which pieces of which prompts one batch reads. Pure.
//!
//! The prompt with the fewest tokens left is read first, so that a short one does not wait for a
//! long one. A quarter of each step goes to the prompts in turn, so that a long one is read beside
//! short ones that never end. A step of few tokens is one prompt's, and every fourth goes in turn.

use std::cmp::Reverse;

use crate::limits::engine as limits;

/// A prompt that is being read.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    /// The order of its job among those that got a slot.
    pub used: u64,
    /// Its slot.
    pub index: usize,
    /// How many tokens may be read in one batch.
    pub piece: usize,
    /// How many tokens are left of the prompt.
    pub left: usize,
    /// The steps that have read other prompts since its last piece.
    pub passed: u32,
}

/// Takes up to `tokens` of the prompts: of one prompt if they are few
/// (`PROMPT_STEP_DIVIDED_TOKENS_MIN`), else [`divided`]. Returns slots, in rising order, and their
/// numbers of tokens.
pub fn shortest_first(mut readers: Vec<Reader>, tokens: usize) -> Vec<(usize, usize)> {
    if tokens >= limits::PROMPT_STEP_DIVIDED_TOKENS_MIN {
        return divided(readers, tokens);
    }
    for reader in &mut readers {
        reader.piece = reader.piece.min(tokens);
    }
    one(&readers)
}

/// Divides up to `tokens` among the prompts, the shortest first and a quarter in turn.
pub fn divided(mut readers: Vec<Reader>, tokens: usize) -> Vec<(usize, usize)> {
    readers.sort_unstable_by_key(|reader| (reader.left, reader.used));
    let passed = readers.iter().filter(|reader| reader.passed > 0);
    let next = passed
        .max_by_key(|reader| reader.passed)
        .map(|reader| reader.index);
    let in_turn = |reader: &Reader| match Some(reader.index) == next {
        true => reader
            .piece
            .min(tokens.div_ceil(limits::PROMPT_TURN_DIVISOR)),
        false => 0,
    };
    let mut pieces: Vec<(usize, usize)> = Vec::with_capacity(readers.len());
    let mut left = tokens - readers.iter().map(in_turn).sum::<usize>().min(tokens);
    for reader in &readers {
        let reserved = in_turn(reader);
        let more = (reader.piece - reserved).min(left);
        left -= more;
        if reserved + more > 0 {
            pieces.push((reader.index, reserved + more));
        }
    }
    pieces.sort_unstable();
    pieces
}

/// Takes one prompt's piece, whole and alone: the shortest prompt's, and now and then that of the
/// one passed over longest.
pub fn one(readers: &[Reader]) -> Vec<(usize, usize)> {
    let readers = readers.iter().filter(|reader| reader.piece > 0);
    let urgency = |reader: &&Reader| {
        let is_late = reader.passed as usize >= limits::PROMPT_TURN_DIVISOR;
        let passed = if is_late { reader.passed } else { 0 };
        (Reverse(passed), reader.left, reader.used)
    };
    let first = readers.min_by_key(urgency);
    first
        .map(|reader| (reader.index, reader.piece))
        .into_iter()
        .collect()
}

/// Returns where a piece that begins at `computed` ends. All readings of one prompt stop at the
/// same places: at multiples of `chunk`, counted from the prompt's beginning and again from the end
/// of the daemon's own text, and at that end.
pub fn next_stop(computed: usize, common: usize, length: usize, chunk: usize) -> usize {
    let (start, end) = match computed < common {
        true => (0, common),
        false => (common, length),
    };
    let chunks = (computed - start) / chunk + 1;
    (start + chunks * chunk).min(end)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const LATE: u32 = limits::PROMPT_TURN_DIVISOR as u32;

    fn reader(used: u64, index: usize, left: usize, passed: u32) -> Reader {
        let piece = left;
        Reader {
            used,
            index,
            piece,
            left,
            passed,
        }
    }

    /// The policy that was measured and not chosen: equal shares for all prompts.
    pub fn equal_shares(mut readers: Vec<Reader>, tokens: usize) -> Vec<(usize, usize)> {
        readers.sort_unstable_by_key(|reader| (reader.left, reader.used));
        let mut left = tokens;
        let mut pieces = Vec::new();
        for (number, reader) in readers.iter().enumerate() {
            let share = left.div_ceil(readers.len() - number);
            let piece = reader.piece.min(share);
            left -= piece;
            if piece > 0 {
                pieces.push((reader.index, piece));
            }
        }
        pieces.sort_unstable();
        pieces
    }

    /// Mutations that this test catches: the oldest first; a prompt in turn that takes the whole
    /// step; no turns; tokens of a piece counted twice.
    #[test]
    fn shortest_prompt_is_read_first_and_others_have_a_quarter_in_turn() {
        let long = reader(1, 0, 90, 0);
        let short = reader(2, 1, 3, 0);
        let other = reader(3, 2, 20, 0);
        assert_eq!(divided(vec![long, short, other], 16), [(1, 3), (2, 13)]);
        assert_eq!(divided(vec![long, short], 16), [(0, 13), (1, 3)]);
        assert_eq!(divided(vec![long], 16), [(0, 16)]);
        let late = Reader {
            passed: LATE,
            ..long
        };
        assert_eq!(
            divided(vec![late, short, other], 16),
            [(0, 4), (1, 3), (2, 9)]
        );
        assert_eq!(divided(vec![late, short], 16), [(0, 13), (1, 3)]);
        assert_eq!(divided(vec![late], 16), [(0, 16)]);
        let passed = Reader { passed: 1, ..short };
        assert_eq!(divided(vec![passed], 16), [(1, 3)]);
        // The one that was passed over longest has its turn.
        let later = Reader {
            passed: LATE + 1,
            ..other
        };
        assert_eq!(divided(vec![late, later], 16), [(2, 16)]);
        assert_eq!(divided(vec![reader(1, 0, 0, 0)], 16), []);
    }

    /// Mutation: a small step that is divided.
    #[test]
    fn a_small_step_reads_one_prompt() {
        let (long, short) = (reader(1, 0, 900, 1), reader(2, 1, 3, 0));
        assert_eq!(shortest_first(vec![long, short], 16), [(1, 3)]);
        let late = Reader {
            passed: LATE,
            ..long
        };
        assert_eq!(shortest_first(vec![late, short], 16), [(0, 16)]);
        assert_eq!(shortest_first(vec![late, short], 1), [(0, 1)]);
    }

    #[test]
    fn one_prompt_is_read_alone_in_reproducible_mode() {
        let (long, short) = (reader(1, 0, 90, 0), reader(2, 1, 3, 0));
        assert_eq!(one(&[long, short]), [(1, 3)]);
        let late = Reader {
            passed: LATE,
            ..long
        };
        assert_eq!(one(&[late, short]), [(0, 90)]);
        assert_eq!(one(&[reader(1, 0, 0, 0)]), []);
    }

    /// Mutations that this test catches: stops counted from where the reading began; no stop at the
    /// end of the own text.
    #[test]
    fn stops_do_not_depend_on_where_a_reading_begins() {
        let stops = |from: usize| {
            let next = |at: &usize| Some(next_stop(*at, 10, 25, 4)).filter(|stop| stop > at);
            std::iter::successors(Some(from), next).collect::<Vec<_>>()
        };
        assert_eq!(stops(0), [0, 4, 8, 10, 14, 18, 22, 25]);
        assert_eq!(stops(10), [10, 14, 18, 22, 25]);
    }
}
