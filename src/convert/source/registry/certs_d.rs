//! `certs.d/HOST[:PORT]/`: certificate authorities and client certificates for one registry, as containers-certs.d(5) and
//! docker have them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::endpoints::{ClientCertificate, Tls};
use super::error::RegistryError;
use crate::sys::file;

/// What the directories say of `authority` (`host[:port]`): every `*.crt` is an authority, the first `NAME.cert` with its
/// `NAME.key` is shown to servers that ask for one.
pub(super) fn tls_of(authority: &str, directories: &[PathBuf]) -> Result<Tls, RegistryError> {
    let mut tls = Tls::default();
    for directory in directories {
        let files = list(&directory.join(authority))?;
        let found = files_of(&files)?;
        tls.authorities.extend(found.authorities);
        tls.client = tls.client.or(found.client.filter(is_ours));
    }
    Ok(tls)
}

/// What a directory that was named holds itself; it must be there.
pub(super) fn named(directory: &Path) -> Result<Tls, RegistryError> {
    files_of(&file::list(directory).map_err(|source| unreadable(directory, source))?)
}

fn unreadable(directory: &Path, source: std::io::Error) -> RegistryError {
    RegistryError::CertificateDirectory { path: directory.display().to_string(), source }
}

/// The files of a directory that need not exist, sorted.
fn list(directory: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    match file::list(directory) {
        // What may not be read is for others: a site's docker daemon has its keys here.
        Err(error)
            if [ErrorKind::NotFound, ErrorKind::NotADirectory, ErrorKind::PermissionDenied]
                .contains(&error.kind()) =>
        {
            Ok(Vec::new())
        }
        listed => listed.map_err(|source| unreadable(directory, source)),
    }
}

/// Whether the key may be read by us.
fn is_ours(client: &ClientCertificate) -> bool {
    let denied =
        std::fs::File::open(&client.key).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
    if denied {
        log::info!("{} is not for us and is left out", client.key.display());
    }
    !denied
}

fn files_of(files: &[PathBuf]) -> Result<Tls, RegistryError> {
    let with = |wanted: &'static str| {
        files.iter().filter(move |file| file.extension().is_some_and(|extension| extension == wanted))
    };
    let alone = |file: &Path, other: &str| RegistryError::HalfPair {
        path: file.display().to_string(),
        missing: file.with_extension(other).display().to_string(),
    };
    let mut pairs = Vec::new();
    for certificate in with("cert") {
        let key = certificate.with_extension("key");
        if !files.contains(&key) {
            return Err(alone(certificate, "key"));
        }
        pairs.push(ClientCertificate { certificate: certificate.clone(), key });
    }
    if let Some(key) = with("key").find(|key| !files.contains(&key.with_extension("cert"))) {
        return Err(alone(key, "cert"));
    }
    Ok(Tls {
        unverified: false,
        authorities: with("crt").cloned().collect(),
        client: pairs.into_iter().next(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(names: &[&str], authorities: &[&str], client: Option<&str>) {
        let files: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
        let tls = files_of(&files).unwrap();
        assert_eq!(tls.authorities, authorities.iter().map(PathBuf::from).collect::<Vec<_>>(), "{names:?}");
        assert_eq!(tls.client.map(|client| client.certificate), client.map(PathBuf::from), "{names:?}");
    }

    #[test]
    fn which_file_is_what() {
        check(&[], &[], None);
        check(&["a.crt", "b.crt", "readme.txt", "c.pem", "crt"], &["a.crt", "b.crt"], None);
        check(&["ca.crt", "client.cert", "client.key"], &["ca.crt"], Some("client.cert"));
        check(&["a.cert", "a.key", "b.cert", "b.key"], &[], Some("a.cert"));
    }

    #[test]
    fn half_a_pair_names_the_other_half() {
        for (names, missing) in [(vec!["a.cert"], "a.key"), (vec!["a.key", "b.crt"], "a.cert")] {
            let files: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
            let error = files_of(&files).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }

    #[test]
    fn directories_in_order() {
        let scratch = tempfile::tempdir().unwrap();
        for (place, name) in [("one", "x.crt"), ("two", "a.crt"), ("two", "k.cert"), ("two", "k.key")] {
            let directory = scratch.path().join(place).join("r.org:5000");
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join(name), "").unwrap();
        }
        let directories: Vec<PathBuf> =
            ["one", "absent", "two"].iter().map(|place| scratch.path().join(place)).collect();
        let tls = tls_of("r.org:5000", &directories).unwrap();
        let names: Vec<_> = tls.authorities.iter().filter_map(|path| path.file_name()).collect();
        assert_eq!(names, ["x.crt", "a.crt"]);
        assert!(tls.client.is_some());
        assert_eq!(tls_of("r.org", &directories).unwrap(), Tls::default());
    }
}
