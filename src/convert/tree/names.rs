//! Every name once: bytes to small numbers and back.

use std::hash::{BuildHasher, RandomState};

use super::TreeError;

/// A name in [`Names`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NameId(u32);

/// Names back to back in one buffer, found by an open hash table of their numbers. Hashing is keyed at random, since
/// the names come from outside; their numbers do not depend on it.
#[derive(Debug, Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    /// Where each name ends.
    ends: Vec<u32>,
    /// `number + 1`, or 0 for a free slot; a power of two long, at most three quarters full.
    slots: Vec<u32>,
    hasher: RandomState,
}

impl Names {
    /// The bytes of a name.
    pub(super) fn get(&self, NameId(number): NameId) -> &[u8] {
        let number = number as usize;
        let end_of = |number: usize| self.ends.get(number).map_or(0, |end| *end as usize);
        let start = number.checked_sub(1).map_or(0, end_of);
        self.bytes.get(start..end_of(number)).unwrap_or_default()
    }

    /// The number of a name, new or known.
    pub(super) fn intern(&mut self, name: &[u8]) -> Result<NameId, TreeError> {
        if self.ends.len() >= self.slots.len() / 4 * 3 {
            self.grow();
        }
        let slot = self.slot_of(name).ok_or(TreeError::Full)?;
        let slot = self.slots.get_mut(slot).ok_or(TreeError::Full)?;
        if let Some(number) = slot.checked_sub(1) {
            return Ok(NameId(number));
        }
        let number = u32::try_from(self.ends.len()).map_err(|_| TreeError::Full)?;
        let end = u32::try_from(self.bytes.len() + name.len()).map_err(|_| TreeError::Full)?;
        *slot = number.checked_add(1).ok_or(TreeError::Full)?;
        self.bytes.extend_from_slice(name);
        self.ends.push(end);
        Ok(NameId(number))
    }

    /// Memory in use, bytes.
    pub(super) fn memory(&self) -> u64 {
        // Half as much again for the slots: while they grow there are two tables.
        (self.bytes.len() + 4 * self.ends.len() + 6 * self.slots.len()) as u64
    }

    /// The slot that holds `name`, or the free one where it belongs; none only while the table is empty.
    fn slot_of(&self, name: &[u8]) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        #[expect(clippy::cast_possible_truncation, reason = "the mask keeps only low bits")]
        let mut slot = self.hasher.hash_one(name) as usize & mask;
        loop {
            match self.slots.get(slot)?.checked_sub(1) {
                Some(number) if self.get(NameId(number)) != name => slot = (slot + 1) & mask,
                _ => return Some(slot),
            }
        }
    }

    fn grow(&mut self) {
        self.slots = vec![0; (self.slots.len() * 2).max(64)];
        for number in 0..self.ends.len() {
            let Ok(number) = u32::try_from(number) else { return };
            let slot = self.slot_of(self.get(NameId(number)));
            if let Some(slot) = slot.and_then(|slot| self.slots.get_mut(slot)) {
                *slot = number + 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_have_one_number() {
        let mut names = Names::default();
        let numbers: Vec<NameId> =
            (0..10_000).map(|n| names.intern(format!("name-{n}").as_bytes()).expect("room")).collect();
        for (n, number) in numbers.iter().enumerate() {
            let name = format!("name-{n}");
            assert_eq!(names.get(*number), name.as_bytes());
            assert_eq!(names.intern(name.as_bytes()).expect("room"), *number);
        }
        let empty = names.intern(b"").expect("room");
        assert_eq!(names.get(empty), b"");
        assert_eq!(names.intern(b"").expect("room"), empty);
    }
}
