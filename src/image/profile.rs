//! A start-up profile: which blocks of an image a start of a program reads, in the order in which it does.
//!
//! `docs/image-format.md` specifies it byte by byte. A profile is a hint of unknown origin: what it says is held against
//! the image and against limits, and the worst that a wrong one can do is to have the wrong bytes read ahead.

use std::collections::HashSet;

use sha2::{Digest as _, Sha256};

/// First bytes of a profile. CR and LF show a transfer in text mode.
pub const MAGIC: &[u8; 16] = b"hpcrun profile\r\n";
const MAJOR: u16 = 1;
const MINOR: u16 = 0;
const HEADER_BYTES: usize = 96;
const ENTRY_BYTES: usize = 16;
/// Largest profile, bytes.
pub const MAX_BYTES: u64 = 1 << 20;
/// Most blocks in a profile.
pub const MAX_BLOCKS: usize = 60_000;
/// Most bytes of the image that a profile has read, as they are stored.
pub const MAX_STORED_BYTES: u64 = 256 << 20;
/// Most commands that are named in a profile, and bytes of one.
const MAX_COMMANDS: usize = 16;
const MAX_COMMAND_BYTES: usize = 256;
/// Largest block of any squashfs, bytes.
const MAX_BLOCK_BYTES: u32 = 1 << 20;
/// Bit 24 of a data block's size word: stored uncompressed.
const UNCOMPRESSED: u32 = 1 << 24;
/// Bytes of a metadata block as stored, header included, at most.
const METADATA_BYTES: u64 = 8194;

/// Which image a profile belongs to: SHA-256 of its superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl Key {
    /// Of the superblock's 96 bytes.
    pub fn of(superblock: &[u8]) -> Key {
        Key(Sha256::digest(superblock).into())
    }
}

/// A block of a squashfs, with all that is needed to read and to decompress it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Block {
    /// A metadata block.
    Metadata {
        /// Position in the squashfs.
        position: u64,
    },
    /// A fragment block.
    Fragment {
        /// Position in the squashfs.
        position: u64,
        /// Size as in the fragment table.
        size_word: u32,
    },
    /// A data block.
    Data {
        /// Position in the squashfs.
        position: u64,
        /// Size as in the block list.
        size_word: u32,
        /// Bytes of the file that it holds.
        length: u32,
    },
}

const METADATA: u32 = 1;
const FRAGMENT: u32 = 2;
const DATA: u32 = 3;
const KIND_SHIFT: u32 = 30;

impl Block {
    /// Where it begins in the squashfs.
    pub fn position(&self) -> u64 {
        match self {
            Block::Metadata { position }
            | Block::Fragment { position, .. }
            | Block::Data { position, .. } => *position,
        }
    }

    /// Bytes as stored; for a metadata block, the most that it can have.
    pub fn stored(&self) -> u64 {
        match self {
            Block::Metadata { .. } => METADATA_BYTES,
            Block::Fragment { size_word, .. } | Block::Data { size_word, .. } => {
                u64::from(size_word & !UNCOMPRESSED)
            }
        }
    }

    /// As two numbers: the position, and size word (upper half), kind and length. The second is never 0.
    pub fn to_words(self) -> (u64, u64) {
        let word = |size_word: u32, kind: u32, length: u32| {
            u64::from(size_word) << 32 | u64::from(kind << KIND_SHIFT | length)
        };
        match self {
            Block::Metadata { position } => (position, word(0, METADATA, 0)),
            Block::Fragment { position, size_word } => (position, word(size_word, FRAGMENT, 0)),
            Block::Data { position, size_word, length } => (position, word(size_word, DATA, length)),
        }
    }

    /// The block behind two numbers; none if no block has them.
    pub fn from_words(position: u64, word: u64) -> Option<Block> {
        let size_word = u32::try_from(word >> 32).ok()?;
        let code = u32::try_from(word & u64::from(u32::MAX)).ok()?;
        let (kind, length) = (code >> KIND_SHIFT, code & !(3 << KIND_SHIFT));
        let size = size_word & !UNCOMPRESSED;
        let is_block = (1..=MAX_BLOCK_BYTES).contains(&size);
        match kind {
            METADATA if size_word == 0 && length == 0 => Some(Block::Metadata { position }),
            FRAGMENT if is_block && length == 0 => Some(Block::Fragment { position, size_word }),
            DATA if is_block && (1..=MAX_BLOCK_BYTES).contains(&length) => {
                Some(Block::Data { position, size_word, length })
            }
            _ => None,
        }
    }
}

/// What was recorded of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The image.
    pub key: Key,
    /// What was started, for people.
    pub commands: Vec<String>,
    /// The blocks, in the order in which they were first wanted.
    pub blocks: Vec<Block>,
}

/// Why bytes are no profile that can be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProfileError {
    /// It does not begin like one.
    #[error("it is no start-up profile")]
    Unknown,
    /// Written by a later hpcrun.
    #[error("it has format version {major}, this hpcrun reads {MAJOR}")]
    Version {
        /// Major version found.
        major: u16,
    },
    /// A digest does not match.
    #[error("it is damaged")]
    Damaged,
    /// A number is impossible.
    #[error("it is malformed: {0}")]
    Malformed(&'static str),
    /// It was recorded with another image.
    #[error("it was recorded with another image")]
    OtherImage,
}

impl Profile {
    /// A profile of nothing yet.
    pub fn new(key: Key) -> Profile {
        Profile { key, commands: Vec::new(), blocks: Vec::new() }
    }

    /// Adds what a start of `command` read, behind what is there already; as much as the limits allow. Gives the number
    /// of blocks that are new.
    pub fn add(&mut self, command: &str, blocks: impl IntoIterator<Item = Block>) -> usize {
        let command = shortened(command);
        if !self.commands.contains(&command) && self.commands.len() < MAX_COMMANDS {
            self.commands.push(command);
        }
        let mut known: HashSet<Block> = self.blocks.iter().copied().collect();
        let mut stored = self.stored_bytes();
        let before = self.blocks.len();
        for block in blocks {
            let is_over = self.blocks.len() >= MAX_BLOCKS || stored + block.stored() > MAX_STORED_BYTES;
            if !is_over && known.insert(block) {
                stored += block.stored();
                self.blocks.push(block);
            }
        }
        self.blocks.len() - before
    }

    /// Bytes of the image that its blocks take, as stored.
    pub fn stored_bytes(&self) -> u64 {
        self.blocks.iter().map(Block::stored).sum()
    }

    /// The bytes of a profile, at most [`MAX_BYTES`].
    #[expect(clippy::cast_possible_truncation, reason = "both are bounded by MAX_BYTES")]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = serde_json::to_vec(&self.commands).unwrap_or_default();
        let text = body.len() as u32;
        for block in &self.blocks {
            let (position, word) = block.to_words();
            body.extend_from_slice(&position.to_le_bytes());
            body.extend_from_slice(&word.to_le_bytes());
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&MAJOR.to_le_bytes());
        bytes.extend_from_slice(&MINOR.to_le_bytes());
        bytes.extend_from_slice(&(self.blocks.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&text.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        bytes.extend_from_slice(&self.key.0);
        bytes.extend_from_slice(&Sha256::digest(&body));
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads the profile of the image with `key` whose squashfs has `squashfs_length` bytes. Blocks that lie outside of
    /// it are left out, and so is what goes beyond the limits.
    pub fn parse(bytes: &[u8], key: Key, squashfs_length: u64) -> Result<Profile, ProfileError> {
        let malformed = |what| ProfileError::Malformed(what);
        let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(ProfileError::Unknown)?;
        let mut fields = header.as_slice();
        if take::<16>(&mut fields) != Some(*MAGIC) {
            return Err(ProfileError::Unknown);
        }
        let mut number = || take::<4>(&mut fields).map(u32::from_le_bytes);
        let major = number().and_then(|version| u16::try_from(version & 0xffff).ok()).unwrap_or_default();
        if major != MAJOR {
            return Err(ProfileError::Version { major });
        }
        let (count, text, _reserved) = (number(), number(), number());
        let own = take::<32>(&mut fields).map(Key);
        if take::<32>(&mut fields) != Some(Sha256::digest(body).into()) {
            return Err(ProfileError::Damaged);
        }
        if own != Some(key) {
            return Err(ProfileError::OtherImage);
        }
        let as_length = |number: Option<u32>| number.and_then(|number| usize::try_from(number).ok());
        let text = as_length(text).and_then(|length| body.split_at_checked(length));
        let (text, list) = text.ok_or(malformed("its commands are cut short"))?;
        if as_length(count).and_then(|count| count.checked_mul(ENTRY_BYTES)) != Some(list.len()) {
            return Err(malformed("its list of blocks has another length"));
        }
        let commands: Vec<String> = serde_json::from_slice(text).map_err(|_| malformed("its commands"))?;
        let mut profile = Profile::new(key);
        profile.commands = commands.iter().take(MAX_COMMANDS).map(|command| shortened(command)).collect();
        let block = |entry: &[u8]| {
            let mut entry = entry;
            let position = u64::from_le_bytes(take(&mut entry)?);
            let block = Block::from_words(position, u64::from_le_bytes(take(&mut entry)?))?;
            // The last metadata block may be shorter than the longest.
            let least = if matches!(block, Block::Metadata { .. }) { 3 } else { block.stored() };
            (position.checked_add(least)? <= squashfs_length).then_some(block)
        };
        let mut stored = 0;
        for block in list.chunks_exact(ENTRY_BYTES).take(MAX_BLOCKS).filter_map(block) {
            stored += block.stored();
            if stored > MAX_STORED_BYTES {
                break;
            }
            profile.blocks.push(block);
        }
        Ok(profile)
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

/// At most [`MAX_COMMAND_BYTES`] of `command`.
fn shortened(command: &str) -> String {
    let end = (0..=MAX_COMMAND_BYTES).rev().find(|end| command.is_char_boundary(*end));
    command.get(..end.unwrap_or(0)).unwrap_or(command).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key([7; 32]);
    const LENGTH: u64 = 1 << 30;

    fn sample() -> Profile {
        let blocks = vec![
            Block::Metadata { position: LENGTH - 3 },
            Block::Fragment { position: 96, size_word: 5000 },
            Block::Data { position: 104, size_word: UNCOMPRESSED | 131_072, length: 131_072 },
            Block::Data { position: 1 << 20, size_word: 1, length: 1 << 20 },
        ];
        Profile { key: KEY, commands: vec!["python3 -c 'import numpy'".into()], blocks }
    }

    /// Puts the digest right after a change of the body.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let digest = Sha256::digest(&bytes[HEADER_BYTES..]);
        bytes[64..96].copy_from_slice(&digest);
        bytes
    }

    #[test]
    fn round_trip() {
        for profile in [sample(), Profile::new(KEY)] {
            assert_eq!(Profile::parse(&profile.encode(), KEY, LENGTH), Ok(profile));
        }
    }

    #[test]
    fn bytes_are_as_documented() {
        let bytes = sample().encode();
        assert_eq!(&bytes[..16], b"hpcrun profile\r\n");
        assert_eq!(bytes[16..24], [1, 0, 0, 0, 4, 0, 0, 0]);
        let text = br#"["python3 -c 'import numpy'"]"#;
        assert_eq!(text.len(), 29);
        assert_eq!(bytes[24..32], [29, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[32..64], [7; 32]);
        assert_eq!(bytes[64..96], Sha256::digest(&bytes[96..])[..]);
        assert_eq!(&bytes[96..96 + text.len()], text);
        let entries = &bytes[96 + text.len()..];
        assert_eq!(entries.len(), 4 * 16);
        assert_eq!(entries[..16], [(LENGTH - 3).to_le_bytes(), [0, 0, 0, 0x40, 0, 0, 0, 0]].concat());
        assert_eq!(entries[16..32], [96u64.to_le_bytes(), [0, 0, 0, 0x80, 0x88, 0x13, 0, 0]].concat());
        assert_eq!(entries[32..48], [104u64.to_le_bytes(), [0, 0, 2, 0xc0, 0, 0, 2, 1]].concat());
    }

    #[test]
    fn others_profiles_are_told_apart_from_damage() {
        let good = sample().encode();
        assert_eq!(Profile::parse(&good, Key([8; 32]), LENGTH), Err(ProfileError::OtherImage));
        assert_eq!(Profile::parse(&[], KEY, LENGTH), Err(ProfileError::Unknown));
        assert_eq!(Profile::parse(&good[..95], KEY, LENGTH), Err(ProfileError::Unknown));
        assert_eq!(Profile::parse(&good[..good.len() - 1], KEY, LENGTH), Err(ProfileError::Damaged));
        let mut later = good.clone();
        later[16] = 2;
        assert_eq!(Profile::parse(&later, KEY, LENGTH), Err(ProfileError::Version { major: 2 }));
        let mut minor = good;
        minor[18] = 9;
        assert_eq!(Profile::parse(&minor, KEY, LENGTH), Ok(sample()));
    }

    #[test]
    fn lengths_that_lie_are_malformed() {
        let good = sample().encode();
        for (at, value) in [(20, 3u32), (20, 5), (20, u32::MAX), (24, 0), (24, 5), (24, u32::MAX)] {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let found = Profile::parse(&bad, KEY, LENGTH);
            assert!(matches!(found, Err(ProfileError::Malformed(_))), "{at} {value}: {found:?}");
        }
    }

    #[test]
    fn blocks_outside_the_image_are_left_out() {
        let profile = sample();
        let parsed = |length| Profile::parse(&profile.encode(), KEY, length).unwrap().blocks;
        assert_eq!(parsed(LENGTH - 1), profile.blocks[1..]);
        assert_eq!(parsed(5096), profile.blocks[1..2]);
        assert_eq!(parsed(5095), []);
        let mut far = Profile::new(KEY);
        far.blocks = vec![Block::Data { position: u64::MAX, size_word: 1, length: 1 }];
        assert_eq!(Profile::parse(&far.encode(), KEY, u64::MAX).unwrap().blocks, []);
    }

    #[test]
    fn words_of_no_block_are_left_out() {
        for (size_word, code) in [
            (0u32, 0u32),
            (0, DATA << 30 | 5),
            (5, DATA << 30),
            (5, (DATA << 30) | ((1 << 20) + 1)),
            ((1 << 20) + 1, DATA << 30 | 5),
            (1 << 25, DATA << 30 | 5),
            (5, METADATA << 30),
            (0, METADATA << 30 | 1),
            (5, FRAGMENT << 30 | 1),
            (0, FRAGMENT << 30),
        ] {
            assert_eq!(Block::from_words(0, u64::from(size_word) << 32 | u64::from(code)), None);
        }
        for block in sample().blocks {
            let (position, word) = block.to_words();
            assert_eq!(Block::from_words(position, word), Some(block));
        }
    }

    #[test]
    fn merging_keeps_the_order_and_the_limits() {
        let block = |number: u64| Block::Data { position: number << 20, size_word: 1 << 20, length: 1 };
        let mut profile = Profile::new(KEY);
        assert_eq!(profile.add("a", [3, 1, 3, 2].map(block)), 3);
        assert_eq!(profile.add("b", [2, 9, 1].map(block)), 1);
        assert_eq!(profile.add("a", [9].map(block)), 0);
        assert_eq!(profile.blocks, [3, 1, 2, 9].map(block));
        assert_eq!(profile.commands, ["a", "b"]);
        assert_eq!(profile.add("c", (100..1000).map(block)), 252);
        assert_eq!(profile.stored_bytes(), MAX_STORED_BYTES);
        let small = |position| Block::Fragment { position, size_word: 1 };
        let mut many = Profile::new(KEY);
        for number in 0..40 {
            many.add(&format!("{number}{}", "\u{e9}".repeat(300)), (0..70_000).map(small));
        }
        assert_eq!((many.blocks.len(), many.commands.len()), (MAX_BLOCKS, MAX_COMMANDS));
        assert!(many.encode().len() as u64 <= MAX_BYTES);
        assert_eq!(Profile::parse(&many.encode(), KEY, LENGTH), Ok(many));
    }

    #[test]
    fn a_list_beyond_the_limit_is_cut() {
        let mut profile = Profile::new(KEY);
        profile.blocks = vec![Block::Data { position: 0, size_word: 1 << 20, length: 1 }; 1000];
        assert_eq!(Profile::parse(&profile.encode(), KEY, LENGTH).unwrap().blocks.len(), 256);
    }

    #[test]
    fn mutated_profiles_never_panic() {
        let good = sample().encode();
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % bound
        };
        let mut accepted = 0;
        for _ in 0..20_000 {
            let mut bad = good.clone();
            for _ in 0..=next(4) {
                let at = next(bad.len());
                bad[at] = u8::try_from(next(256)).unwrap();
            }
            bad.truncate(bad.len() - next(3));
            if next(4) > 0 && bad.len() >= HEADER_BYTES {
                bad = sealed(bad);
            }
            if let Ok(profile) = Profile::parse(&bad, KEY, LENGTH) {
                accepted += 1;
                let inside = |block: &Block| block.position() < LENGTH && block.stored() <= 1 << 20;
                assert!(profile.blocks.iter().all(inside));
            }
        }
        assert!(accepted > 1000, "{accepted}");
    }
}
