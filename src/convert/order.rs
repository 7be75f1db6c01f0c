//! Files whose data goes first: what a program reads when it starts, in one region of the image file.
//!
//! The layers are then read twice, or copied out of the layer cache: once for the files listed, once for the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::budget::Budget;
use super::layer::path;
use crate::squashfs::writer::{FileId, InodeIndex, InodeKind, Tree};

/// Paths of regular files in the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// Cleaned, without a slash at the start.
    paths: Vec<Vec<u8>>,
    /// Lines that can be no path.
    malformed: usize,
}

impl Order {
    /// Reads a list: a path a line, the slash at its start optional. Empty lines and those that begin with `#` do not
    /// count.
    pub fn parse(text: &[u8]) -> Order {
        let mut order = Order::default();
        for line in text.split(|byte| *byte == b'\n') {
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            match cleaned(line) {
                Some(path) => order.paths.push(path),
                None => order.malformed += 1,
            }
        }
        order.paths.sort_unstable();
        order.paths.dedup();
        order
    }

    /// Whether nothing is listed.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.malformed == 0
    }
}

fn cleaned(path: &[u8]) -> Option<Vec<u8>> {
    let components = path::clean(path, &Budget::default()).ok()?;
    (!components.is_empty()).then(|| components.join(&b"/"[..]))
}

/// An entry: its layer and its number there.
pub(super) type Place = (usize, u32);

/// Which files a pass over the layers stores.
#[derive(Debug)]
pub(super) enum Choice<'a, 'o> {
    /// All.
    All,
    /// Those listed; of the others only where they are.
    Listed(&'a mut Survey<'o>),
    /// All but those that are stored already.
    Rest(&'a HashMap<Place, FileId>),
}

/// The first of two passes.
#[derive(Debug)]
pub(super) struct Survey<'a> {
    listed: HashSet<&'a [u8]>,
    /// By the id that stands for the file in this pass.
    seen: Vec<Place>,
    stored: HashMap<Place, FileId>,
}

impl Choice<'_, '_> {
    /// Whether the data of an entry has to be stored now.
    pub(super) fn wants(&self, place: Place, path: &[u8]) -> bool {
        match self {
            Choice::All => true,
            Choice::Listed(survey) => {
                cleaned(path).is_some_and(|path| survey.listed.contains(path.as_slice()))
            }
            Choice::Rest(stored) => !stored.contains_key(&place),
        }
    }

    /// The same for an entry that turns out to be needed at the end of its layer, under another name than its own.
    pub(super) fn wants_hidden(&self, place: Place) -> bool {
        match self {
            Choice::All => true,
            Choice::Listed(_) => false,
            Choice::Rest(stored) => !stored.contains_key(&place),
        }
    }

    /// The id of a file of the tree, with that of its data if it was stored just now.
    pub(super) fn settle(&mut self, place: Place, stored: Option<FileId>) -> FileId {
        match self {
            Choice::All => stored.unwrap_or(FileId(u32::MAX)),
            Choice::Rest(known) => stored.or_else(|| known.get(&place).copied()).unwrap_or(FileId(u32::MAX)),
            Choice::Listed(survey) => {
                survey.stored.extend(stored.map(|file| (place, file)));
                let id = u32::try_from(survey.seen.len()).unwrap_or(u32::MAX);
                survey.seen.push(place);
                FileId(id)
            }
        }
    }
}

impl<'a> Survey<'a> {
    pub(super) fn new(order: &'a Order) -> Survey<'a> {
        let listed = order.paths.iter().map(Vec::as_slice).collect();
        Survey { listed, seen: Vec::new(), stored: HashMap::new() }
    }

    /// Looks the listed paths up in the tree that the pass made.
    pub(super) fn finish(self, order: &Order, tree: &Tree) -> Surveyed {
        let Survey { seen, stored, .. } = self;
        let mut surveyed = Surveyed { stored, missing: BTreeMap::new(), unknown: order.malformed };
        for path in &order.paths {
            let file = find_file(tree, path).and_then(|id| seen.get(usize::try_from(id.0).ok()?).copied());
            match file {
                None => surveyed.unknown += 1,
                Some(place) if surveyed.stored.contains_key(&place) => {}
                Some((layer, number)) => {
                    surveyed.missing.entry(layer).or_default().insert(number);
                }
            }
        }
        surveyed
    }
}

/// What the first pass found.
#[derive(Debug, Default)]
pub(super) struct Surveyed {
    /// Listed files that are stored.
    pub(super) stored: HashMap<Place, FileId>,
    /// Listed files whose entry has another name, by layer: hard links, and files behind symbolic links of their layer.
    pub(super) missing: BTreeMap<usize, BTreeSet<u32>>,
    /// Paths that are no regular file of the image.
    pub(super) unknown: usize,
}

/// The data of the regular file at a path; symbolic links are not followed.
fn find_file(tree: &Tree, path: &[u8]) -> Option<FileId> {
    let get = |index: InodeIndex| tree.inodes.get(usize::try_from(index).ok()?);
    let mut inode = get(tree.root)?;
    for name in path.split(|byte| *byte == b'/') {
        let InodeKind::Directory(entries) = &inode.kind else { return None };
        let at = entries.binary_search_by(|(other, _)| other.as_slice().cmp(name)).ok()?;
        inode = get(entries.get(at)?.1)?;
    }
    match inode.kind {
        InodeKind::File(id) => Some(id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let order = Order::parse(b"# comment\n/b/c\n\na\n./b//c\n../x\nwith space \n/\n\xff\nend");
        let expected: [&[u8]; 5] = [b"a", b"b/c", b"end", b"with space ", b"\xff"];
        assert_eq!(order.paths, expected);
        assert_eq!(order.malformed, 2, "the one that leaves the image and the root");
        assert!(Order::parse(b"#\n\n").is_empty());
    }
}
