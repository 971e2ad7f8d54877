//! A vector that grows without moving its items.
//!
//! A `Vec` of a million entries that grows copies all of them, 100 MB, while a reactor waits, and
//! then has room for another million. This one takes a block of fixed size at a time, so that each
//! push costs the same and the memory in use is known to a block.

use crate::limits::cache as limits;

const BLOCK: usize = limits::TABLE_BLOCK_ITEMS;

/// See the file's head.
#[derive(Debug)]
pub struct Blocks<T> {
    blocks: Vec<Vec<T>>,
    count: usize,
}

impl<T> Default for Blocks<T> {
    fn default() -> Blocks<T> {
        Blocks::new()
    }
}

impl<T> Blocks<T> {
    pub const fn new() -> Blocks<T> {
        Blocks {
            blocks: Vec::new(),
            count: 0,
        }
    }

    /// Returns how many items were pushed.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Appends an item, and returns its index.
    pub fn push(&mut self, item: T) -> u32 {
        let index = self.count;
        if index.is_multiple_of(BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        self.blocks[index / BLOCK].push(item);
        self.count += 1;
        // A table of four thousand million entries exceeds every machine's memory.
        index as u32
    }

    /// Returns an item. Panics if there is none at this index, as a slice does.
    pub fn at(&self, index: u32) -> &T {
        let index = index as usize;
        &self.blocks[index / BLOCK][index % BLOCK]
    }

    /// Returns an item to change it.
    pub fn at_mut(&mut self, index: u32) -> &mut T {
        let index = index as usize;
        &mut self.blocks[index / BLOCK][index % BLOCK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_stay_where_they_were_pushed() {
        let mut blocks = Blocks::new();
        assert_eq!(blocks.push(0), 0);
        let first: *const u32 = blocks.at(0);
        for number in 1..10_000 {
            assert_eq!(blocks.push(number), number);
        }
        assert_eq!(blocks.count(), 10_000);
        assert!((0..10_000).all(|number| *blocks.at(number) == number));
        *blocks.at_mut(77) = 1;
        assert_eq!(
            (*blocks.at(77), first),
            (1, std::ptr::from_ref(blocks.at(0)))
        );
    }
}
