//! Any bytes as a SIF: what is found lies inside the file.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run sif_read`; start it on the first 4 KiB of any SIF.

#![no_main]

use std::io;

use hpcrun::image::sif::Sif;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let read_at = |offset: u64, out: &mut [u8]| {
        let from = usize::try_from(offset).ok().and_then(|start| bytes.get(start..start.checked_add(out.len())?));
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    if let Ok(sif) = Sif::read(bytes.len() as u64, &read_at) {
        assert!(sif.offset.checked_add(sif.length).is_some_and(|end| end <= bytes.len() as u64));
        sif.objects(&read_at);
    }
});
