//! SIF, the file format of Apptainer and Singularity: where in it the root file system lies and what goes with it.
//!
//! A header of 128 bytes, a table of descriptors, and the objects that they describe; all little-endian, packed. Layout
//! as in `github.com/apptainer/sif/v2`. Nothing is trusted: lengths are held against the file's before anything is read.

use std::io;

use super::config::MAX_CONFIG_BYTES;
use super::foreign::Objects;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 128;
const MAGIC: &[u8] = b"SIF_MAGIC\0";
const MAGIC_AT: usize = 32;
const DESCRIPTOR_BYTES: usize = 585;
/// Most descriptors; Apptainer reserves room for 48.
const MAX_DESCRIPTORS: u64 = 4096;

/// Types of data objects.
mod data_type {
    pub(super) const LABELS: i32 = 0x4003;
    pub(super) const PARTITION: i32 = 0x4004;
    pub(super) const SIGNATURE: i32 = 0x4005;
    pub(super) const GENERIC_JSON: i32 = 0x4006;
    pub(super) const OCI_ROOT_INDEX: i32 = 0x400a;
}

/// Types of file systems in a partition.
mod fs_type {
    pub(super) const SQUASHFS: i32 = 1;
    pub(super) const EXT3: i32 = 2;
    pub(super) const ARCHIVE: i32 = 3;
    pub(super) const RAW: i32 = 4;
    pub(super) const ENCRYPTED_SQUASHFS: i32 = 5;
    /// Apptainer's own, in files that gocryptfs encrypted.
    pub(super) const GOCRYPTFS_SQUASHFS: i32 = 6;
}

/// The type of the partition that is the root file system.
const PRIMARY_SYSTEM: i32 = 2;
/// The type of a partition that Apptainer lays over the root file system.
const OVERLAY: i32 = 4;

/// Architectures by the text in partition and header.
const ARCHITECTURES: [(&[u8; 2], &str); 11] = [
    (b"01", "386"),
    (b"02", "amd64"),
    (b"03", "arm"),
    (b"04", "arm64"),
    (b"05", "ppc64"),
    (b"06", "ppc64le"),
    (b"07", "mips"),
    (b"08", "mipsle"),
    (b"09", "mips64"),
    (b"10", "mips64le"),
    (b"11", "s390x"),
];

/// Why a SIF is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SifError {
    /// The file refused to be read.
    #[error("cannot read the SIF")]
    Read(#[source] io::Error),
    /// No SIF at all.
    #[error("it is not a SIF")]
    NotSif,
    /// Another version of the format.
    #[error("the SIF has format version {0:?}, not \"01\"")]
    Version(String),
    /// A number is impossible.
    #[error("the SIF is malformed: {0}")]
    Malformed(&'static str),
    /// No root file system.
    #[error("the SIF has no primary system partition")]
    NoPartition,
    /// A root file system that is not squashfs.
    #[error("the root file system of the SIF is {0}, not squashfs")]
    FileSystem(&'static str),
    /// SingularityCE's `--oci` images.
    #[error("this is an OCI-SIF, which holds OCI blobs in place of a root file system")]
    OciSif,
}

impl crate::hint::Hint for SifError {
    fn hints(&self) -> Vec<String> {
        let line = match self {
            SifError::FileSystem(what) if what.contains("encrypted") => {
                "decrypt it first: apptainer build --sandbox DIR FILE.sif, then hpcrun convert dir:DIR"
            }
            SifError::FileSystem(_) => {
                "unpack it first: apptainer build --sandbox DIR FILE.sif, then hpcrun convert dir:DIR"
            }
            SifError::OciSif => "convert the image that it was made of",
            _ => return Vec::new(),
        };
        vec![line.to_owned()]
    }
}

/// A data object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Object {
    data_type: i32,
    name: Vec<u8>,
    offset: u64,
    length: u64,
}

/// What a SIF holds, as far as hpcrun cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sif {
    /// Where the squashfs of the root file system begins, bytes.
    pub offset: u64,
    /// How long its partition is, bytes.
    pub length: u64,
    /// Go's name of the architecture; empty when the SIF does not say.
    pub architecture: String,
    /// Whether it has a partition that Apptainer would lay over the root file system.
    pub has_overlay: bool,
    objects: Vec<Object>,
}

/// Reads so many bytes at an offset of the file.
pub type ReadAt<'a> = dyn Fn(u64, &mut [u8]) -> io::Result<()> + 'a;

/// Where the squashfs begins in a file that begins so, bytes: behind the line that makes an image of Singularity 2 a
/// program, else at 0.
pub fn squashfs_offset(start: &[u8]) -> u64 {
    const LINE_END: &[u8] = b" run-singularity\n";
    let line = start.starts_with(b"#!").then(|| start.windows(LINE_END.len()).position(|at| at == LINE_END));
    line.flatten().map_or(0, |at| (at + LINE_END.len()) as u64)
}

/// Whether a file that begins so is a SIF.
pub fn is_sif(start: &[u8]) -> bool {
    start.get(MAGIC_AT..).is_some_and(|rest| rest.starts_with(MAGIC))
}

impl Sif {
    /// Reads header and descriptors of a file of `file_length` bytes.
    pub fn read(file_length: u64, read_at: &ReadAt<'_>) -> Result<Sif, SifError> {
        let mut header = [0; HEADER_BYTES];
        if file_length < HEADER_BYTES as u64 {
            return Err(SifError::NotSif);
        }
        read_at(0, &mut header).map_err(SifError::Read)?;
        if !is_sif(&header) {
            return Err(SifError::NotSif);
        }
        let header = Fields(&header);
        match header.bytes(42, 3)? {
            b"01\0" => {}
            other => return Err(SifError::Version(String::from_utf8_lossy(other).into_owned())),
        }
        let (count, offset) = (header.length(88)?, header.length(96)?);
        if count > MAX_DESCRIPTORS {
            return Err(SifError::Malformed("too many descriptors"));
        }
        let table_bytes = count * DESCRIPTOR_BYTES as u64;
        if offset.checked_add(table_bytes).is_none_or(|end| end > file_length) {
            return Err(SifError::Malformed("its descriptors lie behind the end of the file"));
        }
        let mut table = vec![0; usize::try_from(table_bytes).unwrap_or_default()];
        read_at(offset, &mut table).map_err(SifError::Read)?;
        Sif::of(&table, file_length)
    }

    fn of(table: &[u8], file_length: u64) -> Result<Sif, SifError> {
        let mut objects = Vec::new();
        let (mut primary, mut has_overlay) = (None, false);
        for descriptor in table.chunks_exact(DESCRIPTOR_BYTES) {
            let fields = Fields(descriptor);
            if fields.bytes(4, 1)? == [0] {
                continue;
            }
            let object = Object {
                data_type: fields.i32(0)?,
                name: until_nul(fields.bytes(73, 128)?).to_vec(),
                offset: fields.length(17)?,
                length: fields.length(25)?,
            };
            if object.offset.checked_add(object.length).is_none_or(|end| end > file_length) {
                return Err(SifError::Malformed("an object lies behind the end of the file"));
            }
            let part_type = if object.data_type == data_type::PARTITION { fields.i32(205)? } else { 0 };
            has_overlay |= part_type == OVERLAY;
            if part_type == PRIMARY_SYSTEM {
                let architecture = architecture(fields.bytes(209, 2)?);
                let found = (object.offset, object.length, fields.i32(201)?, architecture);
                if primary.replace(found).is_some() {
                    return Err(SifError::Malformed("it has two primary system partitions"));
                }
            }
            objects.push(object);
        }
        let Some((offset, length, file_system, architecture)) = primary else {
            let is_oci = objects.iter().any(|object| object.data_type == data_type::OCI_ROOT_INDEX);
            return Err(if is_oci { SifError::OciSif } else { SifError::NoPartition });
        };
        match file_system {
            fs_type::SQUASHFS => {
                let architecture = architecture.to_owned();
                Ok(Sif { offset, length, architecture, has_overlay, objects })
            }
            fs_type::EXT3 => Err(SifError::FileSystem("ext3")),
            fs_type::ARCHIVE => Err(SifError::FileSystem("an archive")),
            fs_type::RAW => Err(SifError::FileSystem("raw data")),
            fs_type::ENCRYPTED_SQUASHFS | fs_type::GOCRYPTFS_SQUASHFS => {
                Err(SifError::FileSystem("an encrypted squashfs"))
            }
            _ => Err(SifError::FileSystem("of an unknown type")),
        }
    }

    /// What a user of only its root file system should know.
    pub fn warning(&self) -> Option<String> {
        let text = "the SIF has an overlay partition, which is not used: what was changed in it is missing";
        self.has_overlay.then(|| text.to_owned())
    }

    /// Whether anybody has signed it.
    pub fn is_signed(&self) -> bool {
        self.objects.iter().any(|object| object.data_type == data_type::SIGNATURE)
    }

    /// What it holds beside partitions that says something of the image.
    pub fn objects(&self, read_at: &ReadAt<'_>) -> Objects {
        let labels = self.objects.iter().find(|object| object.data_type == data_type::LABELS);
        Objects {
            oci_config: self.json("oci-config.json", read_at),
            metadata: self.json("inspect-metadata.json", read_at),
            labels: labels.and_then(|object| read_object(object, read_at)),
        }
    }

    fn json(&self, name: &str, read_at: &ReadAt<'_>) -> Option<Vec<u8>> {
        let is_it =
            |object: &&Object| object.data_type == data_type::GENERIC_JSON && object.name == name.as_bytes();
        read_object(self.objects.iter().find(is_it)?, read_at)
    }
}

/// A small object; none if it cannot be one.
fn read_object(object: &Object, read_at: &ReadAt<'_>) -> Option<Vec<u8>> {
    let length = usize::try_from(object.length).ok().filter(|_| object.length <= MAX_CONFIG_BYTES)?;
    let mut bytes = vec![0; length];
    read_at(object.offset, &mut bytes).ok()?;
    Some(bytes)
}

fn architecture(text: &[u8]) -> &'static str {
    ARCHITECTURES.iter().find(|(code, _)| code.as_slice() == text).map_or("", |(_, name)| name)
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Fixed fields by their offset.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&self, at: usize, length: usize) -> Result<&'a [u8], SifError> {
        let field = self.0.get(at..).and_then(|rest| rest.get(..length));
        field.ok_or(SifError::Malformed("a field is missing"))
    }

    fn i32(&self, at: usize) -> Result<i32, SifError> {
        let bytes = self.bytes(at, 4)?.first_chunk().copied();
        bytes.map(i32::from_le_bytes).ok_or(SifError::Malformed("a field is missing"))
    }

    /// An offset, a length or a count, which Go writes as signed numbers.
    fn length(&self, at: usize) -> Result<u64, SifError> {
        let bytes = self.bytes(at, 8)?.first_chunk().copied();
        let number = bytes.map(i64::from_le_bytes).ok_or(SifError::Malformed("a field is missing"))?;
        u64::try_from(number).map_err(|_| SifError::Malformed("a length is negative"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object as the table has it: data type, name, content, and for a partition its types and architecture.
    struct Part {
        data_type: i32,
        name: &'static str,
        bytes: Vec<u8>,
        partition: Option<(i32, i32, [u8; 2])>,
    }

    fn partition(fs_type: i32, part_type: i32) -> Part {
        let partition = Some((fs_type, part_type, *b"04"));
        Part { data_type: data_type::PARTITION, name: "rootfs", bytes: b"hsqs".to_vec(), partition }
    }

    fn object(data_type: i32, name: &'static str, bytes: &[u8]) -> Part {
        Part { data_type, name, bytes: bytes.to_vec(), partition: None }
    }

    fn sif_of(parts: &[Part]) -> Vec<u8> {
        let mut file = vec![0; HEADER_BYTES + (parts.len() + 1) * DESCRIPTOR_BYTES];
        file[..32].copy_from_slice(b"#!/usr/bin/env run-singularity\n\0");
        file[32..42].copy_from_slice(MAGIC);
        file[42..45].copy_from_slice(b"01\0");
        file[88..96].copy_from_slice(&(parts.len() as i64 + 1).to_le_bytes());
        file[96..104].copy_from_slice(&128i64.to_le_bytes());
        for (index, part) in parts.iter().enumerate() {
            let offset = file.len() as i64;
            let at = HEADER_BYTES + index * DESCRIPTOR_BYTES;
            let mut put = |field: usize, bytes: &[u8]| {
                file[at + field..at + field + bytes.len()].copy_from_slice(bytes);
            };
            put(0, &part.data_type.to_le_bytes());
            put(4, &[1]);
            put(17, &offset.to_le_bytes());
            put(25, &(part.bytes.len() as i64).to_le_bytes());
            put(73, part.name.as_bytes());
            if let Some((fs_type, part_type, architecture)) = part.partition {
                put(201, &fs_type.to_le_bytes());
                put(205, &part_type.to_le_bytes());
                put(209, &architecture);
            }
            file.extend_from_slice(&part.bytes);
        }
        file
    }

    fn reader(file: &[u8]) -> impl Fn(u64, &mut [u8]) -> io::Result<()> + '_ {
        |offset, out: &mut [u8]| {
            let start = usize::try_from(offset).unwrap();
            let from = file.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(from);
            Ok(())
        }
    }

    fn read(file: &[u8]) -> Result<Sif, SifError> {
        Sif::read(file.len() as u64, &reader(file))
    }

    #[test]
    fn finds_the_root_file_system() {
        let file = sif_of(&[object(0x4001, "def", b"Bootstrap: x"), partition(1, 3), partition(1, 2)]);
        let sif = read(&file).unwrap();
        assert_eq!((sif.offset, sif.length), (file.len() as u64 - 4, 4));
        assert_eq!(sif.architecture, "arm64");
        assert!(is_sif(&file) && !is_sif(b"hsqs"));
    }

    #[test]
    fn names_what_it_cannot_use() {
        let cases = [
            (vec![partition(2, 2)], "is ext3, not squashfs"),
            (vec![partition(3, 2)], "is an archive"),
            (vec![partition(4, 2)], "is raw data"),
            (vec![partition(5, 2)], "is an encrypted squashfs"),
            (vec![partition(6, 2)], "is an encrypted squashfs"),
            (vec![partition(77, 2)], "of an unknown type"),
            (vec![partition(1, 3)], "no primary system partition"),
            (vec![], "no primary system partition"),
            (vec![partition(1, 2), partition(1, 2)], "two primary"),
            (vec![object(data_type::OCI_ROOT_INDEX, "", b"{}")], "OCI-SIF"),
        ];
        for (parts, expected) in cases {
            let error = read(&sif_of(&parts)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn lies_are_noticed() {
        let good = sif_of(&[partition(1, 2)]);
        let changed = |at: usize, bytes: &[u8]| {
            let mut file = good.clone();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            read(&file).unwrap_err().to_string()
        };
        assert!(changed(42, b"99").contains("version"));
        assert!(changed(32, b"X").contains("not a SIF"));
        assert!(changed(88, &i64::MAX.to_le_bytes()).contains("too many"));
        assert!(changed(88, &(-1i64).to_le_bytes()).contains("negative"));
        assert!(changed(88, &100i64.to_le_bytes()).contains("behind the end"));
        assert!(changed(96, &i64::MAX.to_le_bytes()).contains("behind the end"));
        assert!(changed(128 + 17, &i64::MAX.to_le_bytes()).contains("behind the end"));
        assert!(changed(128 + 25, &(-1i64).to_le_bytes()).contains("negative"));
        for cut in 0..good.len() {
            assert!(read(&good[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn mutations_never_lead_out_of_the_file() {
        let metadata = object(data_type::GENERIC_JSON, "inspect-metadata.json", br#"{"data":{}}"#);
        let good = sif_of(&[partition(1, 2), metadata, object(data_type::LABELS, "", b"{}")]);
        let mut state = 1u64;
        let mut random = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % bound
        };
        for _ in 0..20_000 {
            let mut file = good.clone();
            for _ in 0..=random(4) {
                // Where the fields are: header, first descriptors.
                let at = random(HEADER_BYTES + 3 * DESCRIPTOR_BYTES);
                file[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)];
            }
            if let Ok(sif) = read(&file) {
                assert!(sif.offset + sif.length <= file.len() as u64);
                sif.objects(&reader(&file));
            }
        }
    }

    #[test]
    fn objects_are_found_by_type_and_name() {
        let json = |name, text: &str| object(data_type::GENERIC_JSON, name, text.as_bytes());
        let file = sif_of(&[
            partition(1, 2),
            json("oci-config.json", "1"),
            json("inspect-metadata.json", "2"),
            json("other.json", "3"),
            object(data_type::LABELS, "", b"4"),
            object(0x4007, "oci-config.json", b"a generic object"),
        ]);
        let sif = read(&file).unwrap();
        let found = sif.objects(&reader(&file));
        let texts = [found.oci_config, found.metadata, found.labels].map(|text| text.unwrap());
        assert_eq!(texts, [b"1", b"2", b"4"]);
        assert!(!sif.has_overlay && !sif.is_signed());
        let file = sif_of(&[partition(1, 2), partition(2, 4), object(data_type::SIGNATURE, "", b"pgp")]);
        let sif = read(&file).unwrap();
        assert!(sif.has_overlay && sif.is_signed());
        assert_eq!(sif.objects(&reader(&file)), Objects::default());
    }

    #[test]
    fn an_image_of_singularity_2_begins_with_a_line() {
        for (start, offset) in [
            (&b"#!/usr/bin/env run-singularity\nhsqs"[..], 31),
            (b"#!/bin/sh\n", 0),
            (b"hsqs run-singularity\n", 0),
            (b"", 0),
        ] {
            assert_eq!(squashfs_offset(start), offset);
        }
    }
}
