//! Doubly linked lists through the slots of a table: the most recently used slot first.
//!
//! Owns the links alone. Each slot is in two lists, one of all entries and one of its tenant's, so
//! a list is named by its ends and by the [`Order`] whose links it uses.

use super::blocks::Blocks;
use super::index::NONE;

/// Which of a slot's two pairs of links a list uses.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    All,
    Tenant,
}

#[derive(Clone, Copy, Debug)]
pub struct Neighbours {
    newer: u32,
    older: u32,
}

/// The links of a slot, by [`Order`].
pub type Links = [Neighbours; 2];

/// The links of a slot that is in no list.
pub const UNLINKED: Links = [Neighbours {
    newer: NONE,
    older: NONE,
}; 2];

/// The ends of a list.
#[derive(Clone, Copy, Debug)]
pub struct List {
    newest: u32,
    oldest: u32,
}

impl List {
    pub const EMPTY: List = List {
        newest: NONE,
        oldest: NONE,
    };

    /// Returns the least recently used slot.
    pub fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    pub fn push_newest(&mut self, links: &mut Blocks<Links>, order: Order, slot: u32) {
        let older = std::mem::replace(&mut self.newest, slot);
        links.at_mut(slot)[order as usize] = Neighbours { newer: NONE, older };
        match older {
            NONE => self.oldest = slot,
            older => links.at_mut(older)[order as usize].newer = slot,
        }
    }

    pub fn push_oldest(&mut self, links: &mut Blocks<Links>, order: Order, slot: u32) {
        let newer = std::mem::replace(&mut self.oldest, slot);
        links.at_mut(slot)[order as usize] = Neighbours { newer, older: NONE };
        match newer {
            NONE => self.newest = slot,
            newer => links.at_mut(newer)[order as usize].older = slot,
        }
    }

    /// Takes a slot out, which must be in the list.
    pub fn remove(&mut self, links: &mut Blocks<Links>, order: Order, slot: u32) {
        let Neighbours { newer, older } = links.at(slot)[order as usize];
        match newer {
            NONE => self.newest = older,
            newer => links.at_mut(newer)[order as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => links.at_mut(older)[order as usize].newer = newer,
        }
    }
}
