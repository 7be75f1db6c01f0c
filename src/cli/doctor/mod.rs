//! `hpcrun doctor`: what this node offers and lacks, what of an image fits it, and a launch as the proof.

mod image;
pub(crate) mod keeps;
mod trial;

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::report::Failure;
use crate::cli::{output, signatures, site, version};
use crate::host::doctor::{self, Check, Status, Subject, site as site_checks};
use crate::host::{Host, probe};
use crate::policy::{POLICY_PATH, Policy};
use site_checks::PolicyOutcome;

/// Something keeps images, or this image, from running.
const STATUS_UNUSABLE: u8 = 1;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Look at this image file too: does it fit this node?
    #[arg(long, value_name = "IMAGE")]
    image: Option<PathBuf>,
}

/// Prints all checks; status 0 if images can run here.
pub(crate) fn run(args: &Doctor) -> Result<u8, Failure> {
    let host =
        probe::probe_for_launch(std::env::vars_os().collect()).map_err(|error| Failure::new(&error))?;
    let subject = subject(args, &host);
    let mut checks = doctor::checks(&probe::probe_for_doctor(&host));
    let trial = trial::launch(host.clone());
    if trial.status == Status::Ok {
        doctor::settle(&mut checks);
    }
    let (outcome, policy) = policy();
    checks.push(site_checks::policy(Path::new(POLICY_PATH), &outcome));
    if let Some(policy) = &policy {
        checks.extend(signers(policy));
        checks.extend(keeps::gather(policy).iter().map(site_checks::keep));
    }
    if let Some(path) = &args.image {
        checks.extend(image::checks(path, host, policy.as_ref()));
    }
    checks.push(trial);
    let text = match args.json {
        true => format!("{:#}\n", doctor::render_json(&subject, &checks)),
        false => doctor::render_text(&subject, &checks),
    };
    output::data(text.as_bytes())?;
    let usable = checks.iter().all(|check: &Check| check.status != Status::No);
    Ok(if usable { 0 } else { STATUS_UNUSABLE })
}

fn subject(args: &Doctor, host: &Host) -> Subject {
    Subject {
        hpcrun: version::short(),
        node: output::one_line(&host.hostname.to_string_lossy()),
        kernel: host.kernel.to_string(),
        uid: host.user.uid,
        job: host.launcher.step.as_deref().map(output::one_line),
        image: args.image.as_ref().map(|image| output::one_line(&image.to_string_lossy())),
    }
}

/// The list of signers, where the site requires signatures.
fn signers(policy: &Policy) -> Option<Check> {
    policy.requires_signature()?;
    let now = signatures::now().map_err(Failure::plain);
    let found = now.and_then(|now| Ok(signatures::of_site(policy)?.count(now)));
    let found = found.map_err(|failure| (failure.message().to_owned(), failure.hints().to_vec()));
    Some(site_checks::signers(policy.signers(), &found))
}

/// The site's policy as every launch reads it.
fn policy() -> (PolicyOutcome, Option<Policy>) {
    match site::policy() {
        Ok(policy) if !policy.files().is_empty() => (PolicyOutcome::Valid, Some(policy)),
        Ok(policy) => (PolicyOutcome::Absent, Some(policy)),
        Err(failure) => (PolicyOutcome::Broken(failure.message().to_owned(), failure.hints().to_vec()), None),
    }
}
