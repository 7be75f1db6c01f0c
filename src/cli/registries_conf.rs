//! `registries.conf` of this machine and this user: which files there are, in podman's order, read into one.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::cli::registry::path;
use crate::cli::report::{Failure, chain};
use crate::convert::source::registry::RegistriesConf;
use crate::sys::file;

const SYSTEM: &str = "/etc/containers";

/// What decides which files are read; `None` where unset.
#[derive(Debug, Clone, Default)]
struct Environment {
    /// `CONTAINERS_REGISTRIES_CONF`, or `REGISTRIES_CONFIG_PATH` as it was once called.
    named: Option<PathBuf>,
    /// The user's `containers` directory of settings.
    user: Option<PathBuf>,
    /// Where podman keeps the short names that were answered for.
    remembered: Option<PathBuf>,
}

/// The files to read: one, then those of directories, then the remembered names.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    main: PathBuf,
    /// Whether it must exist.
    is_named: bool,
    drop_ins: Vec<PathBuf>,
    remembered: Option<PathBuf>,
}

/// Everything that the files say.
pub(crate) fn read() -> Result<RegistriesConf, Failure> {
    let home = path("HOME");
    let below_home = |name: &str| home.as_ref().map(|home| home.join(name));
    let cache = if crate::sys::caller::effective_uid() == 0 {
        Some(PathBuf::from("/var/cache"))
    } else {
        path("XDG_CACHE_HOME").or_else(|| below_home(".cache"))
    };
    let environment = Environment {
        named: path("CONTAINERS_REGISTRIES_CONF").or_else(|| path("REGISTRIES_CONFIG_PATH")),
        user: path("XDG_CONFIG_HOME").or_else(|| below_home(".config")).map(|path| path.join("containers")),
        remembered: cache.map(|path| path.join("containers/short-name-aliases.conf")),
    };
    let files = files(environment, &|path| path.exists());
    let mut conf = RegistriesConf::default();
    add(&mut conf, &files.main, files.is_named)?;
    for directory in &files.drop_ins {
        for path in drop_ins(directory)? {
            add(&mut conf, &path, false)?;
        }
    }
    if let Some(path) = &files.remembered {
        add(&mut conf, path, false)?;
    }
    Ok(conf)
}

/// The user's file stands in place of everything of the system, a named one in place of both first files.
fn files(environment: Environment, exists: &dyn Fn(&Path) -> bool) -> Files {
    let system = Path::new(SYSTEM);
    let user = environment.user;
    let own = user.as_ref().map(|user| user.join("registries.conf")).filter(|path| exists(path));
    let system_drop_ins =
        if own.is_some() && environment.named.is_none() { None } else { Some(system.to_owned()) };
    let drop_ins =
        system_drop_ins.into_iter().chain(user).map(|path| path.join("registries.conf.d")).collect();
    let is_named = environment.named.is_some();
    let main = environment.named.or(own).unwrap_or_else(|| system.join("registries.conf"));
    Files { main, is_named, drop_ins, remembered: environment.remembered }
}

/// The `*.conf` of a directory that need not exist, in the order of their names.
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut paths = match file::list(directory) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        listed => listed.map_err(|error| {
            Failure::plain(format!("cannot read {}: {}", directory.display(), chain(&error)))
        })?,
    };
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "conf") && path.is_file());
    Ok(paths)
}

fn add(conf: &mut RegistriesConf, path: &Path, must_exist: bool) -> Result<(), Failure> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => return Ok(()),
        result => result
            .map_err(|error| Failure::plain(format!("cannot read {}: {}", path.display(), chain(&error))))?,
    };
    let unknown = conf.add(path, &text).map_err(|error| Failure::new(&error))?;
    if !unknown.is_empty() {
        log::info!("{}: unknown and passed over: {}", path.display(), unknown.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(named: Option<&str>, own_exists: bool, main: &str, drop_ins: &str) {
        let environment = Environment {
            named: named.map(PathBuf::from),
            user: Some("/home/u/.config/containers".into()),
            remembered: None,
        };
        let files = files(environment, &|path| own_exists && path.starts_with("/home/u"));
        let shown: Vec<_> = files.drop_ins.iter().map(|path| path.display().to_string()).collect();
        assert_eq!((files.main.to_str(), files.is_named), (Some(main), named.is_some()));
        assert_eq!(shown.join(" "), drop_ins);
    }

    #[test]
    fn which_files() {
        const SYSTEM_DROP_INS: &str = "/etc/containers/registries.conf.d";
        const USER_DROP_INS: &str = "/home/u/.config/containers/registries.conf.d";
        let both = format!("{SYSTEM_DROP_INS} {USER_DROP_INS}");
        check(None, false, "/etc/containers/registries.conf", &both);
        check(None, true, "/home/u/.config/containers/registries.conf", USER_DROP_INS);
        check(Some("/x.conf"), false, "/x.conf", &both);
        check(Some("/x.conf"), true, "/x.conf", &both);
        let nobody = files(Environment::default(), &|_| true);
        assert_eq!(nobody.main, Path::new("/etc/containers/registries.conf"));
        assert_eq!(nobody.drop_ins, [Path::new(SYSTEM_DROP_INS)]);
    }
}
