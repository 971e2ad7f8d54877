//! Decides which pieces of which prompts one batch reads. Pure.

/// A prompt that is being read.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    /// The order of its job among those that got a slot.
    pub used: u64,
    /// Its slot.
    pub index: usize,
    /// How many tokens may be read in one batch.
    pub piece: usize,
}

/// Takes the oldest prompt's piece up to `first` tokens, then others' until `chunk` tokens are
/// reached. Returns slots, in rising order, and their numbers of tokens.
pub fn share(mut readers: Vec<Reader>, first: usize, chunk: usize) -> Vec<(usize, usize)> {
    readers.sort_unstable_by_key(|reader| (reader.used, reader.index));
    let mut taken = 0;
    let mut pieces: Vec<(usize, usize)> = Vec::new();
    for reader in readers {
        let bound = if taken == 0 { first } else { chunk };
        let piece = reader.piece.min(bound.saturating_sub(taken));
        taken += piece;
        if piece > 0 {
            pieces.push((reader.index, piece));
        }
    }
    pieces.sort_unstable();
    pieces
}

/// Takes the oldest prompt's piece, whole and alone.
pub fn oldest(readers: &[Reader]) -> Vec<(usize, usize)> {
    let readers = readers.iter().filter(|reader| reader.piece > 0);
    let oldest = readers.min_by_key(|reader| (reader.used, reader.index));
    oldest
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
mod tests {
    use super::*;

    fn reader(used: u64, index: usize, piece: usize) -> Reader {
        Reader { used, index, piece }
    }

    #[test]
    fn oldest_reads_first_and_others_fill_the_chunk() {
        let readers = vec![reader(2, 0, 9), reader(1, 1, 3), reader(3, 2, 9)];
        assert_eq!(share(readers.clone(), 4, 4), [(0, 1), (1, 3)]);
        assert_eq!(share(readers.clone(), 16, 8), [(0, 5), (1, 3)]);
        assert_eq!(share(readers.clone(), 16, 2), [(1, 3)]);
        assert_eq!(oldest(&readers), [(1, 3)]);
        assert_eq!(oldest(&[reader(1, 0, 0)]), []);
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
