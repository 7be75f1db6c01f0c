//! From the options of a launch, and the variables that stand in for them, to a request.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::cli::convert_args::parse_size;
use crate::cli::gpu_request;
use crate::cli::launch_args::{LaunchOptions, Mpi, Share, parse_umask};
use crate::cli::launch_env::Ambient;
use crate::cli::report::Failure;
use crate::host::Environment;
use crate::launch::env_file;
use crate::launch::modules::names;
use crate::launch::mount_option::{MountOption, split_list};
use crate::launch::request::{
    BindOption, EnvOption, HomeWish, Init, Isolation, LeftOut, MpiWish, OverlayOption, Request, RequestError,
    ScratchOption, Verb, Writable,
};
use crate::policy::rules;

/// The largest file of variables, bytes; the kernel takes no longer environment anyway.
const ENV_FILE_MAX_BYTES: u64 = 16 << 20;

/// What does not depend on the verb.
pub(crate) fn request(
    options: &LaunchOptions,
    verb: Verb,
    environment: &Environment,
) -> Result<Request, Failure> {
    let ambient = Ambient(environment);
    let mut request = of_options(options, &ambient).map_err(|error| Failure::new(&error))?;
    request.env = variables(options, &ambient)?;
    request.verb = verb;
    Ok(request)
}

fn of_options(options: &LaunchOptions, ambient: &Ambient<'_>) -> Result<Request, RequestError> {
    let set = |typed: bool, names: &[&str]| if typed { Ok(true) } else { ambient.flag(names) };
    let containall = set(options.containall, &["CONTAINALL"])?;
    let contain = set(options.contain, &["CONTAIN"])?;
    let no_home = options.home.is_none() && set(options.no_home, &["NO_HOME"])?;
    let (left_out, without_home) = left_out(&values(&options.no_mount, ambient, &["NO_MOUNT"]))?;
    let mut request = Request {
        cwd: path(&options.cwd, ambient, &["CWD", "PWD", "TARGET_CWD", "TARGET_PWD"]),
        clean_env: containall || set(options.cleanenv, &["CLEANENV"])?,
        home: home(options, ambient, no_home || without_home)?,
        share: share(options, ambient)?,
        modules: names(&values(&options.modules, ambient, &["MODULE"])),
        contain: match (containall, contain) {
            (true, _) => Some("--containall"),
            (false, true) => Some("--contain"),
            (false, false) => None,
        },
        left_out,
        scratch: scratch(options, ambient),
        workdir: path(&options.workdir, ambient, &["WORKDIR"]),
        writable: writable(options, ambient)?,
        root_mapped: set(options.fakeroot, &["FAKEROOT"])?,
        isolation: Isolation {
            processes: match (containall || set(options.pid, &["PID"])?, set(options.no_init, &["NO_INIT"])?)
            {
                (false, _) => None,
                (true, false) => Some(Init::Own),
                (true, true) => Some(Init::Job),
            },
            ipc: containall || set(options.ipc, &["IPC"])?,
        },
        umask: umask(options, ambient)?,
        gpu: gpu_request::of_options(options, ambient)?,
        mpi: mpi(options, ambient)?,
        ..Request::default()
    };
    request.binds = binds(options, ambient, &mut request.scratch)?;
    // A directory for what is kept in memory otherwise says nothing where nothing is, and a site may set it for all.
    if options.workdir.is_none() && request.contain.is_none() && request.scratch.is_empty() {
        request.workdir = None;
    }
    Ok(request)
}

/// What was typed, else what the strongest variable says.
fn values(typed: &[OsString], ambient: &Ambient<'_>, names: &[&str]) -> Vec<OsString> {
    match ambient.value(names) {
        Some((_, value)) if typed.is_empty() => vec![value.to_owned()],
        _ => typed.to_vec(),
    }
}

fn path(typed: &Option<PathBuf>, ambient: &Ambient<'_>, names: &[&str]) -> Option<PathBuf> {
    typed.clone().or_else(|| ambient.value(names).map(|(_, value)| PathBuf::from(value)))
}

/// Lists with commas.
fn scratch(options: &LaunchOptions, ambient: &Ambient<'_>) -> Vec<ScratchOption> {
    let is_ambient = options.scratch.is_empty();
    let values = values(&options.scratch, ambient, &["SCRATCH", "SCRATCHDIR"]);
    let directories = values.iter().flat_map(|value| split_list(value)).map(PathBuf::from);
    directories.map(|directory| ScratchOption { directory, is_ambient }).collect()
}

/// Binds add up, whoever names them.
fn binds(
    options: &LaunchOptions,
    ambient: &Ambient<'_>,
    scratch: &mut Vec<ScratchOption>,
) -> Result<Vec<BindOption>, RequestError> {
    let mut binds = Vec::new();
    if let Some((option, value)) = ambient.value(&["BIND", "BINDPATH"]) {
        for bind in BindOption::parse_list(&option, value)? {
            binds.push(BindOption { is_ambient: true, ..bind });
        }
    }
    let mut mounts = Vec::new();
    if let Some((_, value)) = ambient.value(&["MOUNT"]) {
        let lines = value.as_bytes().split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        mounts.extend(lines.map(|line| (true, OsStr::from_bytes(line).to_owned())));
    }
    for typed in &options.binds {
        binds.extend(BindOption::parse_list("--bind", typed)?);
    }
    mounts.extend(options.mounts.iter().map(|typed| (false, typed.clone())));
    for (is_ambient, typed) in mounts {
        match MountOption::parse(&typed)? {
            MountOption::Bind(bind) => binds.push(BindOption { is_ambient, ..bind }),
            MountOption::Tmpfs(directory) => scratch.push(ScratchOption { directory, is_ambient }),
        }
    }
    Ok(binds)
}

fn home(options: &LaunchOptions, ambient: &Ambient<'_>, left_out: bool) -> Result<HomeWish, RequestError> {
    let by_variable = ambient.value(&["HOME"]).filter(|_| !left_out);
    let (option, typed) = match (&options.home, by_variable) {
        (Some(typed), _) => ("--home".to_owned(), typed.as_os_str()),
        (None, Some((option, value))) => (option, value),
        (None, None) if left_out => return Ok(HomeWish::LeaveOut),
        (None, None) => return Ok(HomeWish::SiteDefault),
    };
    let mut binds = BindOption::parse_list(&option, typed)?;
    match (binds.pop(), binds.is_empty()) {
        (Some(bind), true) if !bind.is_image => {
            Ok(HomeWish::At(BindOption { is_ambient: options.home.is_none(), ..bind }))
        }
        _ => Err(RequestError::Value {
            option,
            typed: typed.to_owned(),
            why: "there is one home directory".to_owned(),
            usage: "write --home SRC[:DST]",
        }),
    }
}

/// What `--no-mount` names, and whether the home directory is among it.
fn left_out(values: &[OsString]) -> Result<(Vec<LeftOut>, bool), RequestError> {
    let mut left_out = Vec::new();
    let mut without_home = false;
    for name in values.iter().flat_map(|value| split_list(value)) {
        match name.as_bytes() {
            b"home" => without_home = true,
            b"tmp" => left_out.push(LeftOut::Tmp),
            b"cwd" => left_out.push(LeftOut::Cwd),
            b"bind-paths" => left_out.push(LeftOut::SiteBinds),
            b"dev" => left_out.push(LeftOut::System("/dev")),
            b"proc" => left_out.push(LeftOut::System("/proc")),
            b"sys" => left_out.push(LeftOut::System("/sys")),
            b"devpts" => left_out.push(LeftOut::Path(PathBuf::from("/dev/pts"))),
            // Apptainer's names for what is never there.
            b"hostfs" | b"" => {}
            path if path.starts_with(b"/") => left_out.push(LeftOut::Path(PathBuf::from(&name))),
            _ => {
                return Err(RequestError::Value {
                    option: "--no-mount".to_owned(),
                    typed: name,
                    why: "it is neither a name nor an absolute path".to_owned(),
                    usage: "names are home, tmp, cwd, dev, devpts, proc, sys, hostfs and bind-paths",
                });
            }
        }
    }
    Ok((left_out, without_home))
}

fn writable(options: &LaunchOptions, ambient: &Ambient<'_>) -> Result<Writable, RequestError> {
    let overlays = values(&options.overlays, ambient, &["OVERLAY", "OVERLAYIMAGE"]);
    let overlays = overlays.iter().flat_map(|value| split_list(value)).map(|one| overlay(&one));
    let overlays: Vec<OverlayOption> = overlays.collect();
    let mut tmpfs = options.writable_tmpfs;
    if tmpfs.is_none()
        && let Some((_, value)) = ambient.value(&["WRITABLE_TMPFS"])
    {
        // Both "yes" and how much.
        let size =
            value.to_str().filter(|text| !["0", "1"].contains(text)).and_then(|text| parse_size(text).ok());
        tmpfs = match size {
            Some(size) => Some(Some(size)),
            None => ambient.flag(&["WRITABLE_TMPFS"])?.then_some(None),
        };
    }
    Ok(Writable { overlays, tmpfs })
}

fn overlay(typed: &OsStr) -> OverlayOption {
    let bytes = typed.as_bytes();
    let read_only = bytes.strip_suffix(b":ro");
    let directory = read_only.or_else(|| bytes.strip_suffix(b":rw")).unwrap_or(bytes);
    OverlayOption { directory: PathBuf::from(OsStr::from_bytes(directory)), read_only: read_only.is_some() }
}

fn umask(options: &LaunchOptions, ambient: &Ambient<'_>) -> Result<Option<u32>, RequestError> {
    if options.umask.is_some() || options.no_umask {
        return Ok(options.umask.or(Some(0o022)));
    }
    if let Some((option, value)) = ambient.value(&["UMASK"]) {
        let umask = parse_umask(&value.to_string_lossy());
        let wrong =
            |why| RequestError::Value { option, typed: value.to_owned(), why, usage: "write it as 0027" };
        return umask.map(Some).map_err(wrong);
    }
    Ok(ambient.flag(&["NO_UMASK"])?.then_some(0o022))
}

fn share(options: &LaunchOptions, ambient: &Ambient<'_>) -> Result<Option<rules::Share>, RequestError> {
    let share = ambient.choice(options.share, &["SHARE"], "write step, job or none")?;
    Ok(share.map(|share| match share {
        Share::Step => rules::Share::Step,
        Share::Job => rules::Share::Job,
        Share::None => rules::Share::None,
    }))
}

fn mpi(options: &LaunchOptions, ambient: &Ambient<'_>) -> Result<Option<MpiWish>, RequestError> {
    let mpi = ambient.choice(options.mpi, &["MPI"], "write check, strict, off or host")?;
    Ok(mpi.map(|mpi| match mpi {
        Mpi::Check => MpiWish::Check,
        Mpi::Strict => MpiWish::Strict,
        Mpi::Off => MpiWish::Off,
        Mpi::Host => MpiWish::Host,
    }))
}

/// The user's word on variables, weakest first: variables, files, options.
fn variables(options: &LaunchOptions, ambient: &Ambient<'_>) -> Result<Vec<EnvOption>, Failure> {
    let wrong = |error: RequestError| Failure::new(&error);
    let mut variables = ambient.variables().map_err(wrong)?;
    let mut files = options.env_files.clone();
    if let Some((_, file)) = ambient.value(&["ENV_FILE"]).filter(|_| files.is_empty()) {
        files.push(PathBuf::from(file));
    }
    for file in &files {
        let content = read_env_file(file)?;
        variables.extend(env_file::parse(&file.display().to_string(), &content).map_err(wrong)?);
    }
    for typed in &options.env {
        variables.push(EnvOption::parse(typed).map_err(wrong)?);
    }
    Ok(variables)
}

fn read_env_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed =
        |why: String| Failure::plain(format!("cannot read the variables of {}: {why}", path.display()));
    let refused = |error: std::io::Error| {
        failed(error.raw_os_error().map_or_else(
            || error.to_string(),
            |number| nix::errno::Errno::from_raw(number).desc().to_owned(),
        ))
    };
    let mut content = Vec::new();
    let file = File::open(path).map_err(refused)?;
    file.take(ENV_FILE_MAX_BYTES + 1).read_to_end(&mut content).map_err(refused)?;
    if u64::try_from(content.len()).is_ok_and(|length| length > ENV_FILE_MAX_BYTES) {
        return Err(failed(format!("it is larger than {ENV_FILE_MAX_BYTES} bytes")));
    }
    Ok(content)
}
