//! The id table: owners and groups, each number once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::squashfs::writer::WriteError;

/// Ids in the order of their first use.
#[derive(Debug, Default)]
pub(super) struct IdTable {
    ids: Vec<u32>,
    index_by_id: HashMap<u32, u16>,
}

impl IdTable {
    /// The index that stands for a uid or gid in inodes.
    pub(super) fn index(&mut self, id: u32) -> Result<u16, WriteError> {
        match self.index_by_id.entry(id) {
            Entry::Occupied(entry) => Ok(*entry.get()),
            Entry::Vacant(entry) => {
                // The superblock counts them in 16 bits, so the last index stays unused.
                let limit = u16::MAX;
                let index = u16::try_from(self.ids.len()).ok().filter(|index| *index < limit).ok_or(
                    WriteError::TooMany { what: "distinct user and group ids", limit: limit.into() },
                )?;
                self.ids.push(id);
                Ok(*entry.insert(index))
            }
        }
    }

    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.ids.len()).unwrap_or(u16::MAX)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.ids.iter().flat_map(|id| id.to_le_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_distinct_ids_up_to_16_bits() {
        let mut table = IdTable::default();
        assert_eq!((table.index(7).unwrap(), table.index(9).unwrap(), table.index(7).unwrap()), (0, 1, 0));
        for id in 10..65543 {
            table.index(id).unwrap();
        }
        assert_eq!(table.count(), 65535);
        assert!(matches!(table.index(100_000), Err(WriteError::TooMany { limit: 65535, .. })));
        assert_eq!(table.index(9).unwrap(), 1);
    }
}
