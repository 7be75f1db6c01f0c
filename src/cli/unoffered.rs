//! Options of other tools that hpcrun has on purpose not: typed, they get a reason and a way on.

use crate::cli::report::Failure;

/// Names of options, why hpcrun has none of them, and what to do instead.
type Unoffered = (&'static [&'static str], &'static str, &'static str);

const UNOFFERED: &[Unoffered] = &[
    (
        &["--writable", "-w"],
        "an image file never changes while it is run",
        "--writable-tmpfs keeps what is written in memory, --overlay DIR keeps it in a directory; the directory to start \
         in is --cwd",
    ),
    (
        &["--user", "-u"],
        "you are yourself inside: no other user is mapped",
        "--fakeroot makes you user 0 inside; leave out Apptainer's -u (--userns), which is always so here",
    ),
    (&["--userns"], "every launch has a user namespace", "leave it out"),
    (
        &["--net", "-n", "--network", "--network-args", "--netns-path", "--publish", "--dns"],
        "a job uses the network of its node",
        "leave it out; another resolver is bound with --bind FILE:/etc/resolv.conf",
    ),
    (&["--uts", "--hostname"], "a job has the name of its node, which launchers rely on", "leave it out"),
    (
        &[
            "--security",
            "--add-caps",
            "--drop-caps",
            "--cap-add",
            "--cap-drop",
            "--keep-privs",
            "--no-privs",
            "--allow-setuid",
            "--privileged",
            "--security-opt",
        ],
        "a job never has a capability, and no set-id bit counts",
        "leave it out",
    ),
    (
        &[
            "--apply-cgroups",
            "--cpus",
            "--cpu-shares",
            "--cpuset-cpus",
            "--cpuset-mems",
            "--memory",
            "--memory-reservation",
            "--memory-swap",
            "--pids-limit",
            "--oom-kill-disable",
            "--blkio-weight",
            "--ulimit",
        ],
        "a job keeps the limits that it was started with",
        "ask the batch system, 'systemd-run --user --scope' or 'ulimit' for others",
    ),
    (
        &["--nvccli", "--gpus"],
        "hpcrun brings the driver in itself and leaves the choice of devices to the batch system",
        "--gpu=nvidia, or nothing at all",
    ),
    (&["--sharens"], "ranks of a job step share their namespaces without being told", "see --share"),
    (
        &["--compat"],
        "it stands for several options",
        "--containall --no-umask --writable-tmpfs are what it stands for",
    ),
    (&["--oci", "--no-compat"], "there is one way to run an image", "leave it out"),
    (&["--no-eval"], "nothing that you type or set is ever evaluated", "leave it out"),
    (&["--volume"], "it is called --bind", "--bind SRC[:DST[:ro]]"),
    (&["--tty", "-t", "--interactive"], "a job has the terminal that hpcrun has", "leave it out"),
    (
        &["--detach", "-d", "--rm", "--name"],
        "a job is the process that was started, and leaves nothing",
        "leave it out",
    ),
    (&["--device"], "/dev is the node's", "leave it out; with --contain, --bind the device"),
    (&["--init"], "it belongs to a process namespace", "--pid has an init; --no-init is without"),
    (
        &["--app"],
        "images are run as the OCI image config says",
        "name the program: hpcrun exec IMAGE PROGRAM",
    ),
    (&["--fusemount"], "hpcrun starts no other program", "mount it first, then --bind it"),
    (&["--underlay", "--unsquash", "--containlibs"], "no launch needs it", "leave it out"),
    (
        &["--passphrase", "--pem-path"],
        "hpcrun reads no encrypted image",
        "keep the image where only you can read it",
    ),
];

/// The failure for `option`, as typed, of a launch; none for one that nobody has.
pub(crate) fn failure(option: &str) -> Option<Failure> {
    let name = option.split('=').next().unwrap_or_default();
    let (_, why, instead) = UNOFFERED.iter().find(|(names, ..)| names.contains(&name))?;
    Some(Failure::plain(format!("there is no {name}: {why}")).hint(*instead))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_is_both_offered_and_not() {
        let command = crate::cli::command();
        for verb in ["exec", "run", "shell"] {
            let verb = command.find_subcommand(verb).expect("a verb");
            for argument in verb.get_arguments() {
                let names = argument.get_long_and_visible_aliases().unwrap_or_default();
                for name in names.into_iter().chain(argument.get_all_aliases().unwrap_or_default()) {
                    assert!(failure(&format!("--{name}")).is_none(), "--{name}");
                }
                for letter in argument.get_short_and_visible_aliases().unwrap_or_default() {
                    assert!(failure(&format!("-{letter}")).is_none(), "-{letter}");
                }
            }
        }
        assert!(failure("--user=1000").is_some());
        assert!(failure("--nosuch").is_none());
    }
}
