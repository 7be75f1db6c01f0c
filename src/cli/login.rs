//! `hpcrun login` and `hpcrun logout`: ask, have the registry check, keep; or forget.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::cli::convert_args::{Login as LoginArgs, Logout as LogoutArgs};
use crate::cli::report::{Failure, chain};
use crate::cli::{output, registries_conf, registry};
use crate::convert::source::registry::{
    AuthFile, CredentialHelper, Login, LoginCheck, RegistriesConf, RegistryError, candidate_paths,
    check_login, helper_key,
};
use crate::image::reference::{Reference, is_short};
use crate::sys::terminal::{Echo, Terminal};
use crate::sys::{file, lock::Locked, temporary::Temporary, terminal};

const MAX_PASSWORD_BYTES: u64 = 64 << 10;
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// What is logged in to.
struct Target {
    /// `host[:port][/namespace]`, the key in files.
    key: String,
    /// The registry, with a repository that is never asked for.
    reference: Reference,
}

/// Runs `hpcrun login [REGISTRY]`.
pub(crate) fn login(args: &LoginArgs, quiet: bool) -> Result<u8, Failure> {
    let target = parse_target(&args.registry)?;
    let registries = registries_conf::read()?;
    let options = registry::connection(&args.options, &target.reference, registries.clone());
    let environment = registry::auth_environment(args.options.authfile.as_deref());
    let path = environment.login_path().ok_or_else(|| {
        Failure::plain("there is no place for a login: HOME is not set").hint("name a file with --authfile")
    })?;
    let (user, password) = ask(args, &target)?;
    let login = Login::Password { user: user.clone(), password: password.clone() };
    let check = check_login(&target.reference, login, &options).map_err(|error| Failure::new(&error))?;
    if check == LoginCheck::NotAsked {
        log::warn!(
            "{} answers everybody, so that the login could not be checked",
            target.reference.registry()
        );
    }
    let kept = keep(&target, &path, &registries, &user, &password)?;
    if !quiet {
        let ends = if environment.is_of_session(&path) { ", until this session ends" } else { "" };
        output::message(&format!("logged in to {} as {user} ({kept}{ends})", target.key));
    }
    Ok(0)
}

/// Runs `hpcrun logout [REGISTRY]`.
pub(crate) fn logout(args: &LogoutArgs, quiet: bool) -> Result<u8, Failure> {
    let environment = registry::auth_environment(args.authfile.as_deref());
    let registries = registries_conf::read()?;
    // Docker's files are docker's, unless one of them is named.
    let own = candidate_paths(&environment)
        .into_iter()
        .filter(|path| args.authfile.is_some() || path.ends_with("containers/auth.json"));
    let mut forgotten = Vec::new();
    let target = if args.all { None } else { Some(parse_target(&args.registry)?) };
    for path in own.filter(|path| path.exists()) {
        forgotten.extend(forget(target.as_ref(), &path)?);
    }
    if let Some(target) = &target {
        forgotten.extend(registries.helpers().filter_map(|name| erase(name, target.reference.registry())));
    }
    if let Some(target) = target.filter(|_| forgotten.is_empty()) {
        return Err(not_logged_in(&target, &registry::auth_files(&environment, false)?));
    }
    if !quiet {
        let name = if args.all { "all registries" } else { &args.registry };
        let places =
            if forgotten.is_empty() { "there was no login".to_owned() } else { forgotten.join(", ") };
        output::message(&format!("logged out of {name} ({places})"));
    }
    Ok(0)
}

fn not_logged_in(target: &Target, others: &[AuthFile]) -> Failure {
    let failure = Failure::plain(format!("not logged in to {}", target.key));
    let knows = |file: &&AuthFile| file.registries().is_ok_and(|names| names.contains(&target.key));
    match others.iter().find(knows) {
        Some(file) => {
            let path = file.path.display();
            failure.hint(format!("{path} is docker's: docker logout, or hpcrun logout --authfile {path}"))
        }
        None => failure,
    }
}

/// `host[:port][/namespace]`, also as people paste it, with a scheme.
fn parse_target(typed: &str) -> Result<Target, Failure> {
    let bare = ["https://", "http://", "docker://"].iter().find_map(|scheme| typed.strip_prefix(scheme));
    let bare = bare.unwrap_or(typed).trim_end_matches('/');
    let named = format!("{bare}/x");
    let no_registry = || {
        Failure::plain(format!("{typed:?} is no registry"))
            .hint("a registry is HOST.DOMAIN[:PORT] or HOST:PORT")
    };
    let reference = Reference::parse(&named).ok().filter(|_| !is_short(&named)).ok_or_else(no_registry)?;
    let key = match bare.split_once('/') {
        Some((_, namespace)) => format!("{}/{namespace}", reference.registry()),
        None => reference.registry().to_owned(),
    };
    Ok(Target { key, reference })
}

/// User and password, from the options or from the person at the terminal.
fn ask(args: &LoginArgs, target: &Target) -> Result<(String, String), Failure> {
    let mut terminal = None;
    let mut answer = |question: String, echo| {
        if terminal.is_none() {
            terminal = Some(interactive_terminal()?);
        }
        let asked = terminal.as_mut().map(|terminal| terminal.ask(&question, echo)).transpose();
        let answer = asked.map_err(|error| Failure::plain(format!("cannot ask: {error}")))?.flatten();
        String::from_utf8(answer.unwrap_or_default()).map_err(|_| Failure::plain("the answer is not UTF-8"))
    };
    let user = match &args.username {
        Some(user) => user.clone(),
        None => answer(format!("user name for {}: ", target.key), Echo::Shown)?.trim().to_owned(),
    };
    if user.is_empty() || user.contains(':') {
        return Err(Failure::plain(format!("{user:?} is no user name")));
    }
    let password = if args.password_stdin {
        password_from_stdin()?
    } else {
        answer(format!("password of {user} for {}: ", target.key), Echo::Hidden)?
    };
    if password.is_empty() {
        return Err(Failure::plain("the password is empty"));
    }
    Ok((user, password))
}

/// Nobody is asked in a batch job, and no script is held up by a question.
fn interactive_terminal() -> Result<Terminal, Failure> {
    let terminal = if terminal::is_interactive() { Terminal::open() } else { None };
    terminal.ok_or_else(|| {
        Failure::plain("there is no terminal to ask for the login at")
            .hint("hpcrun login -u USER --password-stdin HOST <file-with-the-password")
    })
}

/// All of standard input without the line's end.
fn password_from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    let mut input = std::io::stdin().lock().take(MAX_PASSWORD_BYTES);
    input
        .read_to_string(&mut text)
        .map_err(|error| Failure::plain(format!("cannot read the password: {}", chain(&error))))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

/// Keeps the login with the helper that is configured for it, else in the file; tells where.
fn keep(
    target: &Target,
    path: &Path,
    registries: &RegistriesConf,
    user: &str,
    password: &str,
) -> Result<String, Failure> {
    let registry = target.reference.registry();
    let of_file = read(path)?.helper(registry).map_err(|error| Failure::new(&error))?;
    let Some(name) = registries.login_helper().map(str::to_owned).or(of_file) else {
        update(path, |file| file.with_login(&target.key, user, password).map(Some))?;
        return Ok(path.display().to_string());
    };
    let helper = CredentialHelper::new(&name).map_err(|error| Failure::new(&error))?;
    helper.store(helper_key(registry), user, password).map_err(|error| Failure::new(&error))?;
    Ok(format!("kept by docker-credential-{name}"))
}

/// Takes the login, or all of them, out of a file and from the helpers that it names; tells from where.
fn forget(target: Option<&Target>, path: &Path) -> Result<Vec<String>, Failure> {
    let file = read(path)?;
    let failed = |error: RegistryError| Failure::new(&error);
    let registries = match target {
        Some(target) => vec![target.reference.registry().to_owned()],
        None => file.registries().map_err(failed)?,
    };
    let mut forgotten = Vec::new();
    for registry in &registries {
        if let Some(name) = file.helper(registry).map_err(failed)? {
            forgotten.extend(erase(&name, registry));
        }
    }
    let had = update(path, |file| match target {
        Some(target) => file.without_login(&target.key),
        None if file.holds_secrets() => file.without_logins().map(Some),
        None => Ok(None),
    })?;
    forgotten.extend(had.then(|| path.display().to_string()));
    Ok(forgotten)
}

/// Has a helper forget a login. One that does not work is told of, and does not stop the rest.
fn erase(name: &str, registry: &str) -> Option<String> {
    match CredentialHelper::new(name).and_then(|helper| helper.erase(helper_key(registry))) {
        Ok(true) => Some(format!("docker-credential-{name}")),
        Ok(false) => None,
        Err(error) => {
            log::warn!("{}", chain(&error));
            None
        }
    }
}

/// The file; one that is not there is empty.
fn read(path: &Path) -> Result<AuthFile, Failure> {
    let contents = match std::fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        result => result.map_err(|error| cannot_change(path, &chain(&error)))?,
    };
    Ok(AuthFile { path: path.to_owned(), contents })
}

fn cannot_change(path: &Path, why: &str) -> Failure {
    Failure::plain(format!("cannot change {}: {why}", path.display()))
}

/// Replaces a file by what `change` makes of it: at once, readable by its owner alone, and without losing what another
/// `login` writes at the same time. False: nothing had to be changed.
fn update(
    path: &Path,
    change: impl Fn(&AuthFile) -> Result<Option<Vec<u8>>, RegistryError>,
) -> Result<bool, Failure> {
    let failed = |why: &str| cannot_change(path, why);
    // What a link leads to is replaced, not the link: people keep these files elsewhere.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (parent, name) = split(&target).ok_or_else(|| failed("it is no file"))?;
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(&parent)
        .map_err(|error| failed(&chain(&error)))?;
    let directory = file::open_directory(&parent).map_err(|error| failed(&chain(&error)))?;
    // Network file systems that cannot lock a directory leave the race of two logins in one second.
    let lock = directory.try_clone().ok().and_then(|copy| Locked::exclusive(File::from(copy), &parent).ok());
    let Some(bytes) = change(&read(&target)?).map_err(|error| Failure::new(&error))? else {
        return Ok(false);
    };
    let (temporary, mut output) =
        Temporary::create_file(directory.as_fd(), FILE_MODE).map_err(|error| failed(&chain(&error)))?;
    output.write_all(&bytes).map_err(|error| failed(&chain(&error)))?;
    file::sync(&output)
        .and_then(|()| temporary.replace(name))
        .and_then(|()| file::sync_directory(directory.as_fd()))
        .map_err(|error| failed(&chain(&error)))?;
    drop(lock);
    Ok(true)
}

/// The directory and the name in it.
fn split(path: &Path) -> Option<(PathBuf, &OsStr)> {
    let parent = path.parent()?;
    let parent = if parent == Path::new("") { Path::new(".") } else { parent };
    Some((parent.to_owned(), path.file_name()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_as_people_write_them() {
        for (typed, key) in [
            ("docker.io", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("https://r.org/", "r.org"),
            ("r.org:5000", "r.org:5000"),
            ("localhost", "localhost"),
            ("docker://r.org/team", "r.org/team"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(parse_target(typed).ok().map(|target| target.key).as_deref(), Some(key), "{typed}");
        }
        for typed in ["", "registry", "ftp://r.org", "r.org/Upper", "r.org:99999", "a b.org"] {
            assert!(parse_target(typed).is_err(), "{typed}");
        }
    }
}
