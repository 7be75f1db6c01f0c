//! `hpcrun exec`, `run` and `shell`: from what was typed to a plan, and from the plan to the job.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use crate::cli::args::{Exec, Run, Shell};
use crate::cli::image_file::{self, ImageFile};
use crate::cli::image_traits;
use crate::cli::image_word;
use crate::cli::launch_args::LaunchOptions;
use crate::cli::launch_env::Ambient;
use crate::cli::launch_log::LaunchLog;
use crate::cli::launch_request;
use crate::cli::loaders;
use crate::cli::mpi;
use crate::cli::node_cache;
use crate::cli::output;
use crate::cli::profile::{self, Choice};
use crate::cli::report::Failure;
use crate::cli::site;
use crate::host::{Host, probe};
use crate::launch;
use crate::launch::command::shell_candidates;
use crate::launch::enact::{self, Event};
use crate::launch::gpu::ImageLibraries;
use crate::launch::identity::IDENTITY_FILE_LIMIT_BYTES;
use crate::launch::inject::{Injection, Loaders};
use crate::launch::modules;
use crate::launch::plan::{HostCommand, ImageFacts, LaunchPlan, PlanError, SquashfsFacts};
use crate::launch::record::Role;
use crate::launch::request::{Request, Verb};
use crate::mount::graft::Grafts;
use crate::mount::plan::{Op, RootSource};
use crate::mount::server::Recorder;
use crate::policy::pattern::Pattern;
use crate::policy::rules::Verify;
use crate::policy::{Policy, rules};
use crate::squashfs::format::Codec;
use crate::squashfs::reader::{Filesystem, InodeKind};
use crate::sys::process;

/// Bytes by which the launcher's heap grows: some blocks of an image.
const HEAP_STEP: i32 = 1 << 20;

/// How the image file is read.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    verify: Verify,
    profile: Choice,
    recorder: Option<Recorder>,
}

impl Reading {
    fn new(options: &LaunchOptions, policy: &Policy) -> Reading {
        let profile = match &options.profile {
            _ if options.no_prefetch => Choice::Nothing,
            Some(file) => Choice::File(file.clone()),
            None => Choice::Found,
        };
        let verify = if options.verify { Verify::Always } else { policy.verify() };
        Reading { verify, profile, recorder: None }
    }
}

/// Becomes `command`, whose reads `recorder` notes.
pub(crate) fn traced(
    image: &Path,
    options: &LaunchOptions,
    command: Vec<OsString>,
    recorder: Recorder,
) -> Result<Infallible, Failure> {
    let environment = std::env::vars_os().collect();
    let mut request = launch_request::request(options, Verb::Exec { command }, &environment)?;
    // In the namespaces of another rank that one's server reads.
    request.share = Some(rules::Share::None);
    let host = probe::probe_for_launch(environment).map_err(|error| Failure::new(&error))?;
    let policy = site::policy()?;
    let own = Reading::new(options, &policy);
    // What is read ahead would look as if the command had wanted it.
    let reading = Reading { profile: Choice::Nothing, recorder: Some(recorder), ..own };
    with_policy(&request, image, &reading, host, &policy)
}

/// Runs `hpcrun exec IMAGE COMMAND...`.
pub(crate) fn exec(args: Exec) -> Result<u8, Failure> {
    let (image, command) = split(args.words);
    if command.is_empty() {
        // An option that took the image for its value is the likelier mistake.
        launch_request::request(&args.options, Verb::default(), &std::env::vars_os().collect())?;
        return Err(Failure::plain("no command to execute")
            .hint("hpcrun exec IMAGE COMMAND [ARG]...; 'hpcrun run IMAGE' runs the image's own command"));
    }
    launch(&image, &args.options, Verb::Exec { command }, |_, _| {})
}

/// Runs `hpcrun run IMAGE [ARG]...`.
pub(crate) fn run(args: Run) -> Result<u8, Failure> {
    let (image, args_of_image) = split(args.words);
    launch(&image, &args.options, Verb::Run { args: args_of_image }, |request, ambient| {
        let by_variable = || ambient.value(&["ENTRYPOINT"]).map(|(_, value)| value.to_owned());
        request.entrypoint = args.entrypoint.or_else(by_variable);
    })
}

/// Runs `hpcrun shell IMAGE`.
pub(crate) fn shell(args: &Shell) -> Result<u8, Failure> {
    launch(&args.image, &args.options, Verb::Shell, |request, ambient| {
        let by_variable = || ambient.value(&["SHELL"]).map(|(_, value)| PathBuf::from(value));
        request.shell = args.shell.clone().or_else(by_variable);
    })
}

/// The image and what follows; one `--` between them is a habit from other tools.
pub(crate) fn split(words: Vec<OsString>) -> (PathBuf, Vec<OsString>) {
    let mut words = words.into_iter().peekable();
    let image = PathBuf::from(words.next().unwrap_or_default());
    if words.peek().is_some_and(|word| word == "--") {
        words.next();
    }
    (image, words.collect())
}

/// Plans the launch, and either prints the plan or becomes the job. `complete` adds what only the verb has.
fn launch(
    image: &Path,
    options: &LaunchOptions,
    verb: Verb,
    complete: impl FnOnce(&mut Request, &Ambient<'_>),
) -> Result<u8, Failure> {
    process::keep_heap(HEAP_STEP);
    let environment = std::env::vars_os().collect();
    let mut request = launch_request::request(options, verb, &environment)?;
    complete(&mut request, &Ambient(&environment));
    let host = probe::probe_for_launch(environment).map_err(|error| Failure::new(&error))?;
    let policy = site::policy()?;
    let image = image_word::locate_for_launch(image, &policy, &host.environment).inspect_err(|failure| {
        if !options.explain {
            LaunchLog::begin(&policy, &host, image).failed(failure);
        }
    })?;
    let reading = Reading::new(options, &policy);
    if options.explain {
        let (plan, _, _) = planned(&request, &image, &reading, host, &policy, None)?;
        return output::data(plan.to_string().as_bytes());
    }
    with_policy(&request, &image, &reading, host, &policy).map(|never| match never {})
}

/// Plans the launch and becomes the job.
pub(crate) fn with_policy(
    request: &Request,
    image: &Path,
    reading: &Reading,
    host: Host,
    policy: &Policy,
) -> Result<Infallible, Failure> {
    let mut log = LaunchLog::begin(policy, &host, image);
    let launched = launched(request, image, reading, host, policy, &mut log);
    launched.inspect_err(|failure| log.failed(failure))
}

fn launched(
    request: &Request,
    image: &Path,
    reading: &Reading,
    host: Host,
    policy: &Policy,
    log: &mut LaunchLog,
) -> Result<Infallible, Failure> {
    let is_first_rank = host.launcher.local_rank.is_none_or(|rank| rank == 0);
    let (plan, images, grafts) = planned(request, image, reading, host, policy, Some(log))?;
    if is_first_rank {
        plan.about.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        plan.about.notes.iter().for_each(|note| log::info!("{note}"));
    }
    become_job(plan, images, grafts, log)
}

/// Plans the launch of `image` and leaves it at that.
pub(crate) fn plan_only(request: &Request, image: &Path, host: Host, policy: &Policy) -> Result<(), Failure> {
    planned(request, image, &Reading::default(), host, policy, None).map(drop)
}

/// Everything decided, nothing done. Gives the images that the plan serves, in its order.
fn planned(
    request: &Request,
    image: &Path,
    reading: &Reading,
    mut host: Host,
    policy: &Policy,
    log: Option<&mut LaunchLog>,
) -> Result<(LaunchPlan, Vec<Filesystem>, Grafts), Failure> {
    let image = ImageFile::open_verified(image, reading.verify)?;
    let mut facts = facts(&image, &host, policy)?;
    if let Some(log) = log {
        log.found(&facts);
    }
    let modules = modules::chosen(request, &facts, policy, &host).map_err(|error| plan_failure(&error))?;
    let fits =
        |pattern: &str, name: &[u8]| Pattern::parse(pattern).is_ok_and(|pattern| pattern.matches(name));
    probe::add_globs(&mut host, modules::globs_to_probe(request, &modules), &fits);
    let wish = launch::gpu::wish(request, policy).map_err(|refusal| Failure::refused(&refusal))?;
    host.gpu = probe::gpu(&wish);
    let paths = launch::paths_to_probe(request, &modules, policy, &host);
    probe::add_paths(&mut host, paths);
    if host.gpu.may_have_libraries() {
        facts.loaders = loaders::of_image(&image)?;
        facts.libraries = loaders::libraries(&image)?;
    }
    probe::add_trees(&mut host, launch::trees_to_probe(&facts, policy));
    for backing in host.trees.values_mut().filter_map(|tree| tree.backing.as_mut()) {
        backing.hash = image_file::root_hash_of(&backing.file);
    }
    let mut plan = launch::plan(request, &facts, policy, &host).map_err(|error| plan_failure(&error))?;
    let considered = mpi::consider(request, policy, &host, &image, &facts, &modules, &plan)?;
    if !considered.injection.is_empty() {
        facts.modules = considered.injection;
        facts.loaders = loaders::of_image(&image)?;
        plan = launch::plan(request, &facts, policy, &host).map_err(|error| plan_failure(&error))?;
    }
    plan.about.warnings.extend(considered.warnings);
    plan.about.notes.extend(considered.notes);
    plan.about.warnings.extend(image.warnings.iter().cloned());
    let mut grafts = Grafts::default();
    launch::resolve(&mut plan, |path, graft| {
        grafts
            .add(&image.filesystem, path.as_os_str().as_bytes(), graft.clone())
            .map(|resolved| PathBuf::from(OsString::from_vec(resolved)))
    })
    .map_err(|error| Failure::new(&error))?;
    plan.startup = profile::startup(&image, &reading.profile)?;
    plan.node_cache = node_cache::wanted(&plan, &image, reading.verify, policy);
    let mut root = image.filesystem;
    if let Some(recorder) = reading.recorder {
        // From here on only the server reads.
        root.watch(Arc::new(recorder));
    }
    let images = served(&mut plan, root, reading.verify, policy)?;
    Ok((plan, images, grafts))
}

/// The root's image, unless the site has mounted it, and the data images. Ranks share only what they have judged, so
/// that each file opened here is in the key by which they find each other.
fn served(
    plan: &mut LaunchPlan,
    root: Filesystem,
    verify: Verify,
    policy: &Policy,
) -> Result<Vec<Filesystem>, Failure> {
    let mut root = Some(root);
    let mut images = Vec::new();
    for planned in &plan.mount.ops {
        match &planned.op {
            Op::Root(RootSource::Image(_)) => images.extend(root.take()),
            Op::DataImage { source, .. } => {
                let image = ImageFile::open_verified(source, verify)?;
                // What it is, only the opened file says.
                let judged = policy.image(source, &image_traits::of(&image, policy)?, plan.uid);
                judged.map_err(|refusal| Failure::refused(&refusal))?;
                let file = image.identity.file_id();
                plan.share = plan.share.take().map(|key| key.with_file(&file, image.length));
                images.push(image.filesystem);
            }
            _ => {}
        }
    }
    Ok(images)
}

pub(crate) fn plan_failure(error: &PlanError) -> Failure {
    match error {
        PlanError::Refused(refusal) => Failure::refused(refusal),
        error => Failure::new(error),
    }
}

fn become_job(
    plan: LaunchPlan,
    images: Vec<Filesystem>,
    grafts: Grafts,
    log: &mut LaunchLog,
) -> Result<Infallible, Failure> {
    let before = plan.before.clone();
    let mut observer = |event: Event<'_>| match event {
        Event::Creating => {
            log.open();
            before.iter().filter(|command| !command.makes.exists()).for_each(run_first);
        }
        Event::Created { is_shared } => log.launched(if is_shared { Role::First } else { Role::Alone }),
        Event::NotShared { .. } => log::warn!("{event}"),
        event => log::info!("{event}"),
    };
    enact::enact(plan, images, grafts, &mut observer)
        .map_err(|error| Failure::new(&error).with_status(error.exit_status()))
}

/// Runs a program of the host. That it fails is told; whether the job can do without is the job's to find out.
fn run_first(command: &HostCommand) {
    let HostCommand { program, arguments, reason, .. } = command;
    log::info!("run {} {}  # {reason}", program.display(), arguments.join(" "));
    let mut child = std::process::Command::new(program);
    match child.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status() {
        Ok(status) if status.success() => {}
        Ok(status) => log::warn!("{} failed ({status}); {reason}", program.display()),
        Err(error) => log::warn!("cannot run {}: {}; {reason}", program.display(), error.kind()),
    }
}

/// What the plan needs to know of the image.
pub(crate) fn facts(image: &ImageFile, host: &Host, policy: &Policy) -> Result<ImageFacts, Failure> {
    let filesystem = &image.filesystem;
    let mut shell = None;
    for candidate in shell_candidates(host) {
        if is_program(image, &candidate)? {
            shell = Some(candidate);
            break;
        }
    }
    let provenance = image.provenance()?;
    let superblock = filesystem.superblock();
    let root = filesystem.inode(filesystem.root()).map_err(|error| Failure::new(&error))?;
    let squashfs = SquashfsFacts {
        offset: filesystem.offset(),
        bytes_used: superblock.bytes_used,
        block_size: superblock.block_size,
        inodes: superblock.inode_count,
        root: root.number,
        hash: policy.rules().premounted.directory.is_some().then(|| image.root_hash()).transpose()?.flatten(),
    };
    Ok(ImageFacts {
        squashfs,
        typed: image.path.clone(),
        path: std::fs::canonicalize(&image.path).unwrap_or_else(|_| image.path.clone()),
        size_bytes: image.length,
        file: image.identity.file_id(),
        origin: provenance.map(|provenance| provenance.origin.clone()),
        digest: provenance.map(|provenance| provenance.manifest_digest.clone()),
        compression: Codec::from_id(filesystem.superblock().codec_id).map_or("", Codec::name).to_owned(),
        config: image.config.clone(),
        passwd: small_file(image, "/etc/passwd")?,
        group: small_file(image, "/etc/group")?,
        shell,
        loaders: Loaders::default(),
        traits: image_traits::of(image, policy)?,
        libraries: ImageLibraries::default(),
        modules: Injection::default(),
    })
}

fn is_program(image: &ImageFile, path: &Path) -> Result<bool, Failure> {
    let found = image.resolve(path.as_os_str().as_bytes())?;
    Ok(found.is_some_and(|inode| matches!(inode.kind, InodeKind::File(_)) && inode.mode & 0o111 != 0))
}

/// The content of a regular file of the image, if it is not larger than an identity file may be.
fn small_file(image: &ImageFile, path: &str) -> Result<Option<Vec<u8>>, Failure> {
    let Some(inode) = image.resolve(path.as_bytes())? else { return Ok(None) };
    let InodeKind::File(layout) = &inode.kind else { return Ok(None) };
    if layout.size > IDENTITY_FILE_LIMIT_BYTES {
        return Ok(None);
    }
    let Ok(size) = usize::try_from(layout.size) else { return Ok(None) };
    Ok(Some(image.read(layout, size)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_double_dash_after_the_image_is_dropped_once() {
        for (typed, command) in [
            (&["a", "--", "x"][..], &["x"][..]),
            (&["a", "x", "--", "y"], &["x", "--", "y"]),
            (&["a", "--", "--", "y"], &["--", "y"]),
            (&["a"], &[]),
        ] {
            let (image, rest) = split(typed.iter().map(OsString::from).collect());
            assert_eq!((image, rest), (PathBuf::from("a"), command.iter().map(OsString::from).collect()));
        }
    }
}
