//! The trailer of an image file: what hpcrun adds behind the squashfs, where other readers do not look.
//!
//! `docs/image-format.md` specifies it byte by byte. Reading trusts nothing: lengths are held against the file's and
//! against a cap before anything is allocated, digests are checked before anything is parsed.

use std::io;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Alignment of the trailer's start and end, bytes.
pub const ALIGNMENT: u64 = 4096;
/// Length of the footer at the end of the file, bytes.
pub const FOOTER_BYTES: usize = 128;
const FOOTER_LENGTH: u32 = 128;
/// The footer's first bytes. CR and LF show a transfer in text mode.
pub const MAGIC: &[u8; 16] = b"hpcrun trailer\r\n";
/// Version of the format: readers refuse a higher major, ignore a higher minor.
pub const MAJOR: u16 = 1;
const MINOR: u16 = 0;
const ENTRY_BYTES: usize = 64;
const ENTRY_LENGTH: u32 = 64;
const MAX_SECTIONS: u32 = 256;
const SECTION_ALIGNMENT: u64 = 8;

/// What a section holds. Readers ignore numbers that they do not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum SectionKind {
    /// The OCI or Docker manifest, verbatim.
    Manifest = 1,
    /// The image config, verbatim.
    Config = 2,
    /// [`Provenance`] as JSON.
    Provenance = 3,
    /// SHA-256 of each chunk of the squashfs with their Merkle root, see [`super::chunks`].
    ChunkHashes = 4,
    /// What a launch needs to know of the content, see [`super::facts`].
    Facts = 5,
    /// Signatures of the rest of the table, see [`super::signature`].
    Signatures = 6,
    /// What a start reads, see [`super::profile`].
    Profile = 7,
}

/// The kinds that a trailer may lack.
const OTHER_KINDS: [SectionKind; 4] =
    [SectionKind::ChunkHashes, SectionKind::Facts, SectionKind::Signatures, SectionKind::Profile];

impl SectionKind {
    /// The number in the section table.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// Whether this version knows sections of that number.
    pub fn is_known(number: u32) -> bool {
        let required = [SectionKind::Manifest, SectionKind::Config, SectionKind::Provenance];
        required.iter().chain(&OTHER_KINDS).any(|kind| kind.number() == number)
    }

    /// Largest section of this kind that is read, bytes.
    pub fn max_bytes(self) -> u64 {
        match self {
            SectionKind::Manifest => super::manifest::MAX_MANIFEST_BYTES,
            SectionKind::Config => super::config::MAX_CONFIG_BYTES,
            SectionKind::Provenance | SectionKind::Signatures => 1 << 20,
            SectionKind::Facts => 16 << 20,
            // 36 bytes a block: the blocks of 3.5 TiB at 128 KiB each.
            SectionKind::ChunkHashes => 1 << 30,
            SectionKind::Profile => super::profile::MAX_BYTES,
        }
    }
}

/// Where an image file came from and how it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// What was asked for, in canonical form: `docker://docker.io/library/debian:12`.
    pub origin: String,
    /// Digest of the manifest section.
    pub manifest_digest: String,
    /// Media type of the manifest section.
    pub manifest_media_type: String,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// The layers, bottom first.
    pub layers: Vec<LayerProvenance>,
    /// How the squashfs was written.
    pub conversion: Conversion,
    /// Version of the hpcrun that wrote it.
    pub hpcrun_version: String,
}

/// One layer of [`Provenance`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerProvenance {
    /// Digest of the blob; none from a docker archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Digest of the uncompressed tar.
    pub diff_id: String,
    /// Size of the blob, bytes, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// Parameters of the squashfs writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversion {
    /// `zstd`, `gzip`, `lz4`, `xz`.
    pub codec: String,
    /// Level, where the codec has levels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<i32>,
    /// Block size, bytes.
    pub block_size: u32,
}

/// The content of a trailer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailer {
    /// The manifest, verbatim.
    pub manifest: Vec<u8>,
    /// The image config, verbatim.
    pub config: Vec<u8>,
    /// Where the image came from.
    pub provenance: Provenance,
    /// Other sections, in the order they are to be written.
    pub others: Vec<(SectionKind, Vec<u8>)>,
}

/// Why a trailer cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrailerError {
    /// The file refused to be read.
    #[error("cannot read the trailer")]
    Read(#[source] io::Error),
    /// Written by a later hpcrun.
    #[error("the trailer has format version {major}.{minor}, this hpcrun reads up to {MAJOR}")]
    Version {
        /// Major version found.
        major: u16,
        /// Minor version found.
        minor: u16,
    },
    /// Bytes are missing or were added: the footer states another length.
    #[error("the trailer was written for a file of {stated} bytes, this one has {actual}")]
    FileLength {
        /// The footer's word.
        stated: u64,
        /// The file's.
        actual: u64,
    },
    /// A digest does not match.
    #[error("the trailer is damaged: {0} does not match its SHA-256")]
    Damaged(&'static str),
    /// A number is impossible.
    #[error("the trailer is malformed: {0}")]
    Malformed(&'static str),
    /// A section is larger than any hpcrun writes.
    #[error("the trailer's {kind:?} section has {length} bytes, more than the limit of {}", .kind.max_bytes())]
    TooLarge {
        /// Which.
        kind: SectionKind,
        /// Its length, bytes.
        length: u64,
    },
    /// A section that every trailer has is not there.
    #[error("the trailer has no {0:?} section")]
    Missing(SectionKind),
    /// The provenance is no JSON of the right shape.
    #[error("the trailer's provenance cannot be understood")]
    Provenance(#[source] serde_json::Error),
}

impl crate::hint::Hint for TrailerError {
    fn hints(&self) -> Vec<String> {
        let line = match self {
            TrailerError::Version { .. } => "use a newer hpcrun, or convert the image again with this one",
            TrailerError::FileLength { .. } | TrailerError::Damaged(_) => {
                "the file was damaged or cut short on its way; copy or convert it again"
            }
            _ => return Vec::new(),
        };
        vec![line.to_owned()]
    }
}

impl Trailer {
    /// The bytes that follow a squashfs of `squashfs_length` bytes (`bytes_used`), from the padding up to the alignment
    /// to the footer. Depends on its arguments alone, so that equal images are equal files.
    pub fn encode(&self, squashfs_length: u64) -> Vec<u8> {
        let provenance = json_of(&self.provenance);
        let mut sections = vec![
            Section::new(SectionKind::Manifest, &self.manifest),
            Section::new(SectionKind::Config, &self.config),
            Section::new(SectionKind::Provenance, &provenance),
        ];
        sections.extend(self.others.iter().map(|(kind, bytes)| Section::new(*kind, bytes)));
        assemble(&sections, squashfs_length)
    }
}

/// A section to be written.
struct Section<'a> {
    number: u32,
    flags: u32,
    reserved: u64,
    bytes: &'a [u8],
}

impl Section<'_> {
    fn new(kind: SectionKind, bytes: &[u8]) -> Section<'_> {
        Section { number: kind.number(), flags: 0, reserved: 0, bytes }
    }
}

/// A trailer of sections in this order.
#[expect(clippy::cast_possible_truncation, reason = "lengths of what is in memory, few sections")]
fn assemble(sections: &[Section<'_>], squashfs_length: u64) -> Vec<u8> {
    let mut out = Output { bytes: Vec::new(), base: squashfs_length };
    out.pad_to(ALIGNMENT);
    let start = out.position();
    let mut table = Vec::with_capacity(sections.len() * ENTRY_BYTES);
    for Section { number, flags, reserved, bytes } in sections {
        out.pad_to(SECTION_ALIGNMENT);
        table.extend_from_slice(&number.to_le_bytes());
        table.extend_from_slice(&flags.to_le_bytes());
        table.extend_from_slice(&out.position().to_le_bytes());
        table.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        table.extend_from_slice(&reserved.to_le_bytes());
        table.extend_from_slice(&Sha256::digest(bytes));
        out.bytes.extend_from_slice(bytes);
    }
    // Table and footer end on the alignment, so that the file fits block devices without a ragged end.
    let tail = (table.len() + FOOTER_BYTES) as u64;
    let end = (out.position() + tail).next_multiple_of(ALIGNMENT);
    out.bytes.resize((end - tail - squashfs_length) as usize, 0);
    let footer = Footer {
        start,
        table_offset: out.position(),
        section_count: sections.len() as u32,
        squashfs_length,
        file_length: end,
        table_digest: Sha256::digest(&table).into(),
    };
    out.bytes.extend_from_slice(&table);
    out.bytes.extend_from_slice(&footer.encode());
    out.bytes
}

/// JSON of a struct whose members serialise by construction.
fn json_of(provenance: &Provenance) -> Vec<u8> {
    let mut text = serde_json::to_vec(provenance).unwrap_or_default();
    text.push(b'\n');
    text
}

struct Output {
    bytes: Vec<u8>,
    base: u64,
}

impl Output {
    fn position(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "less than one alignment")]
    fn pad_to(&mut self, alignment: u64) {
        let gap = self.position().next_multiple_of(alignment) - self.position();
        self.bytes.resize(self.bytes.len() + gap as usize, 0);
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Footer {
    start: u64,
    table_offset: u64,
    section_count: u32,
    squashfs_length: u64,
    file_length: u64,
    table_digest: [u8; 32],
}

impl Footer {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FOOTER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&MAJOR.to_le_bytes());
        bytes.extend_from_slice(&MINOR.to_le_bytes());
        bytes.extend_from_slice(&FOOTER_LENGTH.to_le_bytes());
        bytes.extend_from_slice(&self.start.to_le_bytes());
        bytes.extend_from_slice(&self.table_offset.to_le_bytes());
        bytes.extend_from_slice(&self.section_count.to_le_bytes());
        bytes.extend_from_slice(&ENTRY_LENGTH.to_le_bytes());
        bytes.extend_from_slice(&self.squashfs_length.to_le_bytes());
        bytes.extend_from_slice(&self.file_length.to_le_bytes());
        bytes.extend_from_slice(&self.table_digest);
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }

    /// None when the bytes are no footer at all.
    fn parse(bytes: &[u8; FOOTER_BYTES], file_length: u64) -> Result<Option<Footer>, TrailerError> {
        let mut fields = Fields(bytes);
        if fields.take::<16>()? != *MAGIC {
            return Ok(None);
        }
        // The version comes before the digest: a later major may lay out all that follows in another way.
        let (major, minor) = (fields.u16()?, fields.u16()?);
        if major != MAJOR {
            return Err(TrailerError::Version { major, minor });
        }
        let (body, digest) = bytes.split_at(FOOTER_BYTES - 32);
        if Sha256::digest(body).as_slice() != digest {
            return Err(TrailerError::Damaged("the footer"));
        }
        let footer_bytes = fields.u32()?;
        let (start, table_offset) = (fields.u64()?, fields.u64()?);
        let (section_count, entry_bytes) = (fields.u32()?, fields.u32()?);
        let footer = Footer {
            start,
            table_offset,
            section_count,
            squashfs_length: fields.u64()?,
            file_length: fields.u64()?,
            table_digest: fields.take()?,
        };
        if footer_bytes != FOOTER_LENGTH || entry_bytes != ENTRY_LENGTH {
            return Err(TrailerError::Malformed("footer or table entries of another size"));
        }
        if footer.file_length != file_length {
            return Err(TrailerError::FileLength { stated: footer.file_length, actual: file_length });
        }
        footer.check_layout()?;
        Ok(Some(footer))
    }

    fn table_bytes(&self) -> u64 {
        u64::from(self.section_count) * ENTRY_BYTES as u64
    }

    fn check_layout(&self) -> Result<(), TrailerError> {
        let fail = |what| Err(TrailerError::Malformed(what));
        if self.section_count > MAX_SECTIONS {
            return fail("too many sections");
        }
        if self.start < self.squashfs_length || !self.start.is_multiple_of(ALIGNMENT) {
            return fail("it begins inside the squashfs or off its alignment");
        }
        let table_end = self.table_offset.checked_add(self.table_bytes());
        let footer_start = self.file_length.checked_sub(FOOTER_BYTES as u64);
        if table_end.is_none() || table_end != footer_start {
            return fail("the section table does not end at the footer");
        }
        if self.table_offset < self.start {
            return fail("the section table lies before the trailer");
        }
        Ok(())
    }
}

/// Little-endian fields, one after another.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], TrailerError> {
        let (head, rest) =
            self.0.split_first_chunk::<N>().ok_or(TrailerError::Malformed("a field is cut short"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, TrailerError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, TrailerError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, TrailerError> {
        self.take().map(u64::from_le_bytes)
    }
}

/// Reads exactly the buffer's length at an offset of the image file.
pub type ReadAt<'a> = dyn Fn(u64, &mut [u8]) -> io::Result<()> + 'a;

/// Where a section lies and what it holds, to be read later; nothing of it was read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// SHA-256.
    pub digest: [u8; 32],
}

impl Place {
    /// Reads the section, which must have at most `most` bytes, and checks its SHA-256.
    pub fn read(&self, most: u64, read_at: &ReadAt<'_>) -> Result<Vec<u8>, TrailerError> {
        let length = usize::try_from(self.length).ok().filter(|_| self.length <= most);
        let mut bytes = vec![0; length.ok_or(TrailerError::Malformed("a section is too large"))?];
        read_at(self.offset, &mut bytes).map_err(TrailerError::Read)?;
        if Sha256::digest(&bytes).as_slice() != self.digest {
            return Err(TrailerError::Damaged("a section"));
        }
        Ok(bytes)
    }
}

/// The checked section table of an image file: what is there and where, nothing read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    footer: Footer,
    entries: Vec<Entry>,
}

/// An entry of the section table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The kind of the section, known or not.
    pub number: u32,
    /// 0 in this version.
    pub flags: u32,
    /// 0 in this version.
    pub reserved: u64,
    /// The section itself.
    pub place: Place,
}

impl Contents {
    /// Reads the footer and the section table of a file of `file_length` bytes. `None`: the file has no trailer.
    pub fn read(file_length: u64, read_at: &ReadAt<'_>) -> Result<Option<Contents>, TrailerError> {
        let Some(footer_offset) = file_length.checked_sub(FOOTER_BYTES as u64) else { return Ok(None) };
        let mut bytes = [0; FOOTER_BYTES];
        read_at(footer_offset, &mut bytes).map_err(TrailerError::Read)?;
        let Some(footer) = Footer::parse(&bytes, file_length)? else { return Ok(None) };
        // At most MAX_SECTIONS entries: 16 KiB.
        let table_bytes =
            usize::try_from(footer.table_bytes()).map_err(|_| TrailerError::Malformed("size"))?;
        let mut table = vec![0; table_bytes];
        read_at(footer.table_offset, &mut table).map_err(TrailerError::Read)?;
        if Sha256::digest(&table).as_slice() != footer.table_digest {
            return Err(TrailerError::Damaged("the section table"));
        }
        let mut entries = Vec::new();
        for bytes in table.chunks_exact(ENTRY_BYTES) {
            entries.push(Entry::parse(bytes, &footer)?);
        }
        Ok(Some(Contents { footer, entries }))
    }

    /// Length of the squashfs at the start of the file (`bytes_used`), bytes.
    pub fn squashfs_length(&self) -> u64 {
        self.footer.squashfs_length
    }

    fn entry(&self, kind: SectionKind) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.number == kind.number())
    }

    /// Reads section `kind` and checks its SHA-256.
    pub fn section(&self, kind: SectionKind, read_at: &ReadAt<'_>) -> Result<Option<Vec<u8>>, TrailerError> {
        let Some(place) = self.place(kind) else { return Ok(None) };
        if place.length > kind.max_bytes() {
            return Err(TrailerError::TooLarge { kind, length: place.length });
        }
        place.read(kind.max_bytes(), read_at).map(Some)
    }

    /// Where section `kind` lies; none when it is not there.
    pub fn place(&self, kind: SectionKind) -> Option<Place> {
        self.entry(kind).map(|entry| entry.place)
    }

    /// The section table, in its order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The trailer with `bytes` as its section `kind`. All other sections are as they are in the file, unknown ones
    /// included. Signatures and profile come last, so that the others stay where they are whatever becomes of these.
    pub fn with_section(
        &self,
        kind: SectionKind,
        bytes: &[u8],
        read_at: &ReadAt<'_>,
    ) -> Result<Vec<u8>, TrailerError> {
        let mut kept = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.number != kind.number()) {
            kept.push((entry, entry.place.read(SectionKind::ChunkHashes.max_bytes(), read_at)?));
        }
        let mut sections: Vec<Section<'_>> = kept
            .iter()
            .map(|(entry, bytes)| {
                let Entry { number, flags, reserved, .. } = **entry;
                Section { number, flags, reserved, bytes }
            })
            .collect();
        sections.push(Section::new(kind, bytes));
        let last = [SectionKind::Signatures.number(), SectionKind::Profile.number()];
        sections.sort_by_key(|section| last.iter().position(|other| *other == section.number));
        Ok(assemble(&sections, self.footer.squashfs_length))
    }

    /// Reads and parses the provenance alone.
    pub fn provenance(&self, read_at: &ReadAt<'_>) -> Result<Provenance, TrailerError> {
        let bytes = self.required(SectionKind::Provenance, read_at)?;
        serde_json::from_slice(&bytes).map_err(TrailerError::Provenance)
    }

    /// Reads a section that every trailer has.
    pub fn required(&self, kind: SectionKind, read_at: &ReadAt<'_>) -> Result<Vec<u8>, TrailerError> {
        self.section(kind, read_at)?.ok_or(TrailerError::Missing(kind))
    }

    /// Reads all sections that this version knows.
    pub fn trailer(&self, read_at: &ReadAt<'_>) -> Result<Trailer, TrailerError> {
        let mut others = Vec::new();
        for kind in OTHER_KINDS {
            if let Some(bytes) = self.section(kind, read_at)? {
                others.push((kind, bytes));
            }
        }
        Ok(Trailer {
            manifest: self.required(SectionKind::Manifest, read_at)?,
            config: self.required(SectionKind::Config, read_at)?,
            provenance: self.provenance(read_at)?,
            others,
        })
    }
}

impl Entry {
    fn parse(bytes: &[u8], footer: &Footer) -> Result<Entry, TrailerError> {
        let mut fields = Fields(bytes);
        let number = fields.u32()?;
        let flags = fields.u32()?;
        let (offset, length) = (fields.u64()?, fields.u64()?);
        let reserved = fields.u64()?;
        let place = Place { offset, length, digest: fields.take()? };
        let entry = Entry { number, flags, reserved, place };
        let end = offset.checked_add(length);
        if offset < footer.start || end.is_none_or(|end| end > footer.table_offset) {
            return Err(TrailerError::Malformed("a section lies outside the trailer"));
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests;
