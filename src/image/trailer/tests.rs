//! Round trips, damage and lies.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of tests")]

use std::cell::Cell;

use super::*;

fn sample() -> Trailer {
    Trailer {
        manifest: b"{\"layers\":[]}".to_vec(),
        config: b"{\"architecture\":\"amd64\"}".to_vec(),
        provenance: Provenance {
            origin: "docker://localhost:5000/app:1".into(),
            manifest_digest: format!("sha256:{}", "0".repeat(64)),
            manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            platform: "linux/amd64".into(),
            layers: vec![
                LayerProvenance { digest: None, diff_id: format!("sha256:{}", "1".repeat(64)), size: None },
                LayerProvenance {
                    digest: Some(format!("sha256:{}", "2".repeat(64))),
                    diff_id: format!("sha256:{}", "3".repeat(64)),
                    size: Some(1 << 40),
                },
            ],
            conversion: Conversion { codec: "zstd".into(), level: Some(3), block_size: 131_072 },
            hpcrun_version: "0.1.0".into(),
        },
        others: Vec::new(),
    }
}

/// An image file: `squashfs_length` bytes of `s`, then the trailer.
fn file(trailer: &Trailer, squashfs_length: usize) -> Vec<u8> {
    let mut bytes = vec![b's'; squashfs_length];
    bytes.extend(trailer.encode(squashfs_length as u64));
    bytes
}

fn reader(file: &[u8]) -> impl Fn(u64, &mut [u8]) -> io::Result<()> + '_ {
    move |offset, buffer| {
        let start = usize::try_from(offset).unwrap();
        let end = start.checked_add(buffer.len());
        match end.and_then(|end| file.get(start..end)) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn read(file: &[u8]) -> Result<Option<Trailer>, TrailerError> {
    let read_at = reader(file);
    match Contents::read(file.len() as u64, &read_at)? {
        None => Ok(None),
        Some(contents) => contents.trailer(&read_at).map(Some),
    }
}

/// Puts `bytes` at `offset` of the footer and makes its digest right again.
fn patch_footer(file: &mut [u8], offset: usize, bytes: &[u8]) {
    let start = file.len() - FOOTER_BYTES;
    let footer = &mut file[start..];
    footer[offset..offset + bytes.len()].copy_from_slice(bytes);
    let digest = Sha256::digest(&footer[..96]);
    footer[96..].copy_from_slice(&digest);
}

/// Puts `bytes` at `offset` of entry `index` and makes all digests above it right again.
fn patch_entry(file: &mut [u8], index: usize, offset: usize, bytes: &[u8], sections: usize) {
    let table = file.len() - FOOTER_BYTES - sections * ENTRY_BYTES;
    let at = table + index * ENTRY_BYTES + offset;
    file[at..at + bytes.len()].copy_from_slice(bytes);
    let digest = Sha256::digest(&file[table..table + sections * ENTRY_BYTES]);
    patch_footer(file, 64, &digest);
}

#[test]
fn round_trip_at_any_length() {
    let trailer = sample();
    for length in [0, 1, 96, 4095, 4096, 4097, 12_288, 100_001] {
        let file = file(&trailer, length);
        assert_eq!(read(&file).unwrap().as_ref(), Some(&trailer), "{length}");
        assert_eq!(file.len() % 4096, 0);
        assert!(file[length..length.next_multiple_of(4096)].iter().all(|byte| *byte == 0));
        assert_eq!(trailer.encode(length as u64), trailer.encode(length as u64));
        let contents = Contents::read(file.len() as u64, &reader(&file)).unwrap().unwrap();
        assert_eq!(contents.squashfs_length(), length as u64);
        assert_eq!(contents.place(SectionKind::Manifest).map(|place| place.length), Some(13));
        assert_eq!(contents.place(SectionKind::Facts), None);
    }
}

#[test]
fn reserved_sections_and_sizes() {
    let mut trailer = sample();
    trailer.others = vec![
        (SectionKind::ChunkHashes, vec![7; 100_000]),
        (SectionKind::Facts, Vec::new()),
        (SectionKind::Signatures, vec![9; 64]),
    ];
    trailer.manifest = vec![b'm'; 4096 * 3 - 64 * 6 - 128];
    trailer.config = Vec::new();
    assert_eq!(read(&file(&trailer, 5000)).unwrap(), Some(trailer));
}

#[test]
fn bytes_are_as_documented() {
    let file = file(&sample(), 5000);
    let footer = &file[file.len() - 128..];
    assert_eq!(&footer[..16], b"hpcrun trailer\r\n");
    assert_eq!(&footer[16..24], [1, 0, 0, 0, 128, 0, 0, 0]);
    assert_eq!(footer[24..32], 8192u64.to_le_bytes());
    assert_eq!(footer[32..40], (file.len() as u64 - 128 - 3 * 64).to_le_bytes());
    assert_eq!(footer[40..48], [3, 0, 0, 0, 64, 0, 0, 0]);
    assert_eq!(footer[48..56], 5000u64.to_le_bytes());
    assert_eq!(footer[56..64], (file.len() as u64).to_le_bytes());
    assert_eq!(&file[8192..8205], b"{\"layers\":[]}");
    let table = &file[file.len() - 128 - 3 * 64..];
    assert_eq!(&table[..4], [1, 0, 0, 0]);
    assert_eq!(table[8..16], 8192u64.to_le_bytes());
    assert_eq!(table[16..24], 13u64.to_le_bytes());
}

#[test]
fn files_without_a_trailer() {
    for bytes in [vec![], vec![0; 127], vec![0; 128], vec![b's'; 100_000]] {
        assert_eq!(read(&bytes).unwrap(), None, "{}", bytes.len());
    }
    let mut cut = file(&sample(), 5000);
    cut.pop();
    assert_eq!(read(&cut).unwrap(), None, "the footer is no longer at the end");
    let mut longer = file(&sample(), 5000);
    longer.extend([0; 512]);
    assert_eq!(read(&longer).unwrap(), None);
}

#[track_caller]
fn check_refused(file: &[u8], part: &str) {
    match read(file) {
        Ok(found) => panic!("accepted: {found:?}"),
        Err(error) => assert!(error.to_string().contains(part), "{error}"),
    }
}

#[test]
fn later_versions() {
    let mut minor = file(&sample(), 5000);
    patch_footer(&mut minor, 18, &7u16.to_le_bytes());
    assert_eq!(read(&minor).unwrap(), Some(sample()));
    let mut major = file(&sample(), 5000);
    patch_footer(&mut major, 16, &2u16.to_le_bytes());
    check_refused(&major, "format version 2.0");
    let mut unhashed = file(&sample(), 5000);
    let at = unhashed.len() - 112;
    unhashed[at] = 3;
    check_refused(&unhashed, "format version 3.0");
    let mut unknown = file(&sample(), 5000);
    patch_entry(&mut unknown, 2, 0, &77u32.to_le_bytes(), 3);
    check_refused(&unknown, "no Provenance section");
    let mut extra = sample();
    extra.others = vec![(SectionKind::Facts, vec![1, 2, 3])];
    let mut bytes = file(&extra, 5000);
    patch_entry(&mut bytes, 3, 0, &78u32.to_le_bytes(), 4);
    assert_eq!(read(&bytes).unwrap(), Some(sample()), "an unknown section is ignored");
}

#[test]
fn lies_in_the_footer() {
    let good = file(&sample(), 5000);
    let length = good.len() as u64;
    let far = u64::MAX;
    for (offset, value, part) in [
        (20, 127u32.to_le_bytes().to_vec(), "another size"),
        (44, 63u32.to_le_bytes().to_vec(), "another size"),
        (44, 0u32.to_le_bytes().to_vec(), "another size"),
        (40, u32::MAX.to_le_bytes().to_vec(), "too many sections"),
        (40, 257u32.to_le_bytes().to_vec(), "too many sections"),
        (40, 4u32.to_le_bytes().to_vec(), "does not end at the footer"),
        (40, 0u32.to_le_bytes().to_vec(), "does not end at the footer"),
        (24, far.to_le_bytes().to_vec(), "off its alignment"),
        (24, 8193u64.to_le_bytes().to_vec(), "off its alignment"),
        (24, 4096u64.to_le_bytes().to_vec(), "inside the squashfs"),
        (24, (length + 4096).to_le_bytes().to_vec(), "before the trailer"),
        (32, far.to_le_bytes().to_vec(), "does not end at the footer"),
        (32, 0u64.to_le_bytes().to_vec(), "does not end at the footer"),
        (48, far.to_le_bytes().to_vec(), "inside the squashfs"),
        (56, (length + 1).to_le_bytes().to_vec(), "written for a file of"),
        (56, 0u64.to_le_bytes().to_vec(), "written for a file of"),
        (64, vec![0; 32], "section table does not match"),
    ] {
        let mut bad = good.clone();
        patch_footer(&mut bad, offset, &value);
        check_refused(&bad, part);
    }
}

#[test]
fn lies_in_the_table() {
    let good = file(&sample(), 5000);
    for (offset, value, part) in [
        (8, 0u64.to_le_bytes().to_vec(), "outside the trailer"),
        (8, 8191u64.to_le_bytes().to_vec(), "outside the trailer"),
        (8, u64::MAX.to_le_bytes().to_vec(), "outside the trailer"),
        (16, u64::MAX.to_le_bytes().to_vec(), "outside the trailer"),
        (16, (good.len() as u64 - 8192).to_le_bytes().to_vec(), "outside the trailer"),
        (16, 12u64.to_le_bytes().to_vec(), "a section does not match"),
        (32, vec![0; 32], "a section does not match"),
    ] {
        let mut bad = good.clone();
        patch_entry(&mut bad, 0, offset, &value, 3);
        check_refused(&bad, part);
    }
}

#[test]
fn nothing_is_allocated_for_a_lie() {
    // A file that claims a terabyte, all of it in one manifest section; reads are only counted.
    let mut trailer = file(&sample(), 0);
    let length: u64 = 1 << 40;
    let delta = length - trailer.len() as u64;
    patch_entry(&mut trailer, 0, 16, &(length / 2).to_le_bytes(), 3);
    patch_footer(&mut trailer, 56, &length.to_le_bytes());
    let table = length - 128 - 3 * 64;
    patch_footer(&mut trailer, 32, &table.to_le_bytes());
    let largest = Cell::new(0);
    let read_at = |offset: u64, buffer: &mut [u8]| {
        largest.set(largest.get().max(buffer.len()));
        reader(&trailer)(offset - delta, buffer)
    };
    let contents = Contents::read(length, &read_at).unwrap().unwrap();
    let error = contents.trailer(&read_at).unwrap_err();
    assert!(matches!(error, TrailerError::TooLarge { kind: SectionKind::Manifest, .. }), "{error}");
    assert!(largest.get() < 1 << 20, "{}", largest.get());
}

#[test]
fn any_flipped_bit_is_noticed() {
    let good = file(&sample(), 100);
    let end = good.len();
    let table = end - 128 - 3 * 64;
    let sections = 4096..4096 + 900;
    let mut noticed = 0;
    for at in sections.chain(table..end) {
        for bit in [0, 7] {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            match read(&bad) {
                Err(_) | Ok(None) => noticed += 1,
                // Padding between and behind the sections is in nobody's digest.
                Ok(Some(found)) => assert!(good[at] == 0 && found == sample(), "byte {at}"),
            }
        }
    }
    assert!(noticed > 1500, "{noticed}");
}

#[test]
fn random_bytes_never_panic() {
    let good = file(&sample(), 100);
    let mut state = 0x2545_f491_4f6c_dd1du64;
    for _ in 0..20_000 {
        let mut bad = good.clone();
        for _ in 0..4 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = bad.len() - 128 - 192 + (state >> 33) as usize % 320;
            bad[at] = state as u8;
        }
        let at = bad.len() - 128;
        bad[at..at + 18].copy_from_slice(&good[at..at + 18]);
        if state & 1 == 0 {
            patch_footer(&mut bad, 0, MAGIC);
        }
        let _ = read(&bad);
    }
}

#[test]
fn a_read_error_is_passed_on() {
    let refused = |_: u64, _: &mut [u8]| Err(io::ErrorKind::PermissionDenied.into());
    assert!(matches!(Contents::read(4096, &refused), Err(TrailerError::Read(_))));
}

#[test]
fn a_section_is_added_and_replaced_without_moving_the_others() {
    let mut trailer = sample();
    trailer.others = vec![(SectionKind::ChunkHashes, vec![7; 100_000])];
    let first = file(&trailer, 5000);
    let contents = Contents::read(first.len() as u64, &reader(&first)).unwrap().unwrap();
    for profile in [vec![1; 5000], vec![2; 9]] {
        let with = |contents: &Contents, file: &[u8]| {
            let added = contents.with_section(SectionKind::Profile, &profile, &reader(file)).unwrap();
            [&file[..5000], &added].concat()
        };
        let added = with(&contents, &first);
        let contents = Contents::read(added.len() as u64, &reader(&added)).unwrap().unwrap();
        let found = contents.trailer(&reader(&added)).unwrap();
        assert_eq!(
            found.others,
            [trailer.others.clone(), vec![(SectionKind::Profile, profile.clone())]].concat()
        );
        assert_eq!((found.manifest, found.config), (trailer.manifest.clone(), trailer.config.clone()));
        let kept = contents.place(SectionKind::ChunkHashes).unwrap();
        assert_eq!(
            added[..(kept.offset + kept.length) as usize],
            first[..(kept.offset + kept.length) as usize]
        );
        assert_eq!(with(&contents, &added), added);
    }
    let mut unknown = first.clone();
    patch_entry(&mut unknown, 3, 0, &77u32.to_le_bytes(), 4);
    let contents = Contents::read(unknown.len() as u64, &reader(&unknown)).unwrap().unwrap();
    let added = contents.with_section(SectionKind::Profile, b"p", &reader(&unknown)).unwrap();
    let added = [&unknown[..5000], &added].concat();
    let contents = Contents::read(added.len() as u64, &reader(&added)).unwrap().unwrap();
    assert_eq!(contents.entries().iter().map(|entry| entry.number).collect::<Vec<_>>(), [1, 2, 3, 77, 7]);
    let signed = contents.with_section(SectionKind::Signatures, b"s", &reader(&added)).unwrap();
    let signed = [&added[..5000], &signed].concat();
    let contents = Contents::read(signed.len() as u64, &reader(&signed)).unwrap().unwrap();
    assert_eq!(contents.entries().iter().map(|entry| entry.number).collect::<Vec<_>>(), [1, 2, 3, 77, 6, 7]);
}
