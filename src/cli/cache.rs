//! `hpcrun cache`: copies of images in the node's cache, before a job wants them.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::image_file::ImageFile;
use crate::cli::report::{Failure, STATUS_FAILED, chain};
use crate::cli::{image_word, node_cache, output, site, size};
use crate::mount::node_cache::{Settings, Wanted};
use crate::policy::Policy;
use crate::policy::rules::Verify;
use crate::sys::caller;

/// Arguments of `cache`.
#[derive(Debug, Args)]
pub(crate) struct Cache {
    /// Image files, or names of images
    #[arg(required = true)]
    pub(crate) images: Vec<PathBuf>,
}

/// Copies all that can be copied.
pub(crate) fn run(args: &Cache, quiet: bool) -> Result<u8, Failure> {
    let policy = site::policy()?;
    let Some(settings) = node_cache::settings(&policy) else {
        return Err(Failure::plain("this site has no cache on its nodes")
            .hint("[store] node_cache in the site's policy names its directory"));
    };
    let mut status = 0;
    for image in &args.images {
        match copy(image, &settings, &policy) {
            Ok(line) if !quiet => output::message(&line),
            Ok(_) => {}
            Err(failure) => {
                failure.print();
                status = STATUS_FAILED;
            }
        }
    }
    Ok(status)
}

fn copy(word: &Path, settings: &Settings, policy: &Policy) -> Result<String, Failure> {
    let image = ImageFile::open(&image_word::locate(word, policy)?).map_err(|error| Failure::new(&error))?;
    let (shown, directory) = (word.display(), settings.directory.display());
    let failed = |why: String| Failure::plain(format!("cannot copy {shown} to {directory}: {why}"));
    // How a copy is read is for those who read it to say.
    let original = image.original(Verify::Always).map_err(|error| failed(chain(&error)))?;
    let wanted = Wanted { settings: settings.clone(), original };
    if !wanted.fits() {
        let [min, max] = [settings.min_bytes, settings.size_bytes].map(size::bytes);
        let why = format!("it has {}, and the site's cache takes {min} to {max}", size::bytes(image.length));
        return Err(failed(why).hint("[store] node_cache_min and node_cache_size set these limits"));
    }
    match wanted.fill(caller::effective_uid(), image.filesystem.file()) {
        Ok(true) => Ok(format!("{shown}: copied to {directory}")),
        Ok(false) => Ok(format!("{shown}: in {directory} already")),
        Err(error) => Err(failed(chain(&error))),
    }
}
