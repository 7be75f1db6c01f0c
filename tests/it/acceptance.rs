//! What users of container runtimes on clusters rely on, row by row.
//!
//! Two lists of behaviours that people expect from such a tool: [`OF_APPTAINER`], what scripts written for Apptainer take
//! for granted, and [`OF_PEERS`], the launch as Charliecloud, Shifter, Sarus and enroot have it. Each row names the tests
//! that show it, or the heading of `docs/differences.md` that says why hpcrun differs; [`every_row_is_shown`] checks that
//! these exist. The tests of this module carry the number of their row.

mod containers;
mod environment;
mod images;
mod mounts;
mod process;
mod root;
mod terminal;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::busybox_image::{convert, image};
use crate::layer_building::{Member, tar};
use crate::support::{hpcrun, scratch, text};

/// A row: its number, the behaviour, what shows it. `module::function` is a test, or the beginning of the names of
/// several; anything with a space a heading of `docs/differences.md`.
type Row = (u8, &'static str, &'static [&'static str]);

const OF_APPTAINER: &[Row] = &[
    (1, "exit statuses", &["acceptance::row_01_and_31", "launch::exit_statuses_are_the_jobs_own"]),
    (2, "death by a signal", &["acceptance::row_02_and_31"]),
    (
        3,
        "command not found: 127",
        &["launch::commands_that_cannot_be_executed", "Exit statuses of hpcrun's own"],
    ),
    (
        4,
        "command not executable: 126",
        &["launch::commands_that_cannot_be_executed", "Exit statuses of hpcrun's own"],
    ),
    (
        5,
        "failure before the job: 125",
        &["launch::binds", "bad_input::damaged_image_files", "Exit statuses of hpcrun's own"],
    ),
    (
        6,
        "no command",
        &["launch::commands_that_cannot_be_executed", "cli::a_wrong_command_line_is_one_line_and_status_125"],
    ),
    (7, "signals reach the payload", &["acceptance::row_07_and_32", "launch::a_job_can_trap"]),
    (8, "Ctrl-C comes once", &["acceptance::row_08"]),
    (
        9,
        "nothing is left of a killed job",
        &["acceptance::row_09_and_32", "launch::nothing_is_left_of_a_job"],
    ),
    (10, "stop and continue", &["acceptance::row_10_and_32"]),
    (11, "standard streams", &["acceptance::row_11", "launch::standard_streams_pass_through"]),
    (12, "ids and names", &["launch::the_job_is_its_user_without_any_privilege"]),
    (13, "the host's name for the id", &["acceptance::row_13"]),
    (14, "images without passwd, with odd files in /etc", &["acceptance::row_14_and_29"]),
    (15, "a user without home", &["acceptance::row_15"]),
    (16, "working directory and --cwd", &["launch::host_directories_are_where_the_user_expects_them"]),
    (17, "odd working directories", &["acceptance::row_17_and_38"]),
    (18, "the root is read-only", &["launch::the_image_is_complete_and_read_only"]),
    (19, "--writable-tmpfs", &["options::a_root_in_memory_takes_any_write"]),
    (20, "binds onto new paths and files", &["launch::binds", "acceptance::row_20_and_22"]),
    (21, "nested binds", &["acceptance::row_21"]),
    (
        22,
        "destinations behind links",
        &["acceptance::row_20_and_22", "plan::destinations_follow_the_images_links"],
    ),
    (23, "a missing source", &["launch::binds", "plan::site_binds_that_are_missing"]),
    (24, "read-only binds, submounts too", &["acceptance::row_24_and_25"]),
    (25, "names with comma and colon", &["acceptance::row_22_to_24", "options::lists_of_binds"]),
    (26, "binds by option and by variable", &["options::variables_stand_in"]),
    (27, "--home, --no-home", &["plan::the_home_directory", "options::homes_and_what_is_left_out"]),
    (28, "--contain, --workdir", &["options::a_contained_job", "options::private_directories"]),
    (29, "/var/tmp that is a link to /tmp", &["acceptance::row_29"]),
    (30, "--no-mount", &["options::homes_and_what_is_left_out"]),
    (31, "--pid", &["options::processes_of_its_own"]),
    (32, "umask", &["launch::descriptors_and_limits", "acceptance::row_34_and_36", "options::umasks"]),
    (33, "no descriptor of the runtime's", &["acceptance::row_33_and_37", "launch::descriptors_and_limits"]),
    (34, "limits", &["acceptance::row_34_and_36"]),
    (
        35,
        "precedence of variables",
        &["launch::the_environment_is_the_images_over_the_hosts", "options::files_of_variables"],
    ),
    (36, "values are bytes", &["acceptance::row_36_values", "enact::passes_the_environment_as_bytes"]),
    (37, "odd names of variables", &["acceptance::row_37", "Functions of the host's shell stay there"]),
    (38, "PATH", &["acceptance::row_38_and_39", "PATH is the image's, and that alone"]),
    (39, "LD_LIBRARY_PATH", &["acceptance::row_38_and_39", "plan::every_stripped_name"]),
    (
        40,
        "run: entrypoint and command",
        &["launch::run_combines_entrypoint_and_command", "acceptance::row_40_and_41"],
    ),
    (
        41,
        "WORKDIR and USER",
        &["acceptance::row_40_and_41", "launch::host_directories", "USER of an image is ignored"],
    ),
    (42, "inspect without execution", &["acceptance::row_42", "cli::inspect_json_is_json"]),
    (
        43,
        "whiteouts and links over layers",
        &["layer_cases::every_stack", "merge::trap_", "rules::every_rule_holds"],
    ),
    (
        44,
        "every kind of file",
        &["tar_reader::every_type", "squashfs_writer::xattrs_of_every_kind", "tar_reader::sparse_files"],
    ),
    (
        45,
        "several at once",
        &[
            "acceptance::row_45",
            "layer_cache::processes_that_fill_one_cache",
            "layer_cache::a_killed_conversion",
        ],
    ),
    (
        46,
        "umask, no overwriting, names",
        &[
            "acceptance::row_46",
            "cli::an_existing_destination_is_refused",
            "registry_config::login_pull_logout",
        ],
    ),
    (
        47,
        "whose credentials count",
        &["registry_config::login_pull_logout", "registry_config::credential_helpers"],
    ),
    (
        48,
        "another architecture",
        &[
            "launch::commands_that_cannot_be_executed",
            "Programs of another architecture fail when they start",
        ],
    ),
    (
        49,
        "keys of the site's policy",
        &[
            "policy::mistakes_are_shown",
            "policy::a_file_that_others_could_have_written",
            "launch::the_site_refuses",
            "launch::a_policy_with_a_mistake",
        ],
    ),
    (50, "64 at once, exhausted limits", &["acceptance::row_50"]),
];

const OF_PEERS: &[Row] = &[
    (
        19,
        "read-only root",
        &["launch::the_image_is_complete_and_read_only", "options::a_root_in_memory_takes_any_write"],
    ),
    (20, "a destination that is an absolute link", &["acceptance::row_20_and_22"]),
    (
        21,
        "a destination with ..",
        &["acceptance::row_20_and_22", "A destination with .. ends at the image's root"],
    ),
    (22, "a missing source", &["launch::binds", "plan::site_binds_that_are_missing"]),
    (23, "a missing destination, below a file", &["launch::binds", "acceptance::row_22_to_24"]),
    (
        24,
        "sources: relative, with spaces, colon, comma",
        &["acceptance::row_22_to_24", "options::lists_of_binds"],
    ),
    (25, "read-only binds, submounts too", &["acceptance::row_24_and_25"]),
    (
        26,
        "what the policy denies, however spelt",
        &[
            "policy::rules_hold_behind_links",
            "plan::the_policy_judges_every_spelling",
            "launch::the_site_refuses",
        ],
    ),
    (27, "devices", &["acceptance::row_27"]),
    (
        28,
        "corrupt images",
        &[
            "bad_input::damaged_image_files",
            "bad_input::truncated_image_files",
            "hostile_squashfs::mutated_images",
        ],
    ),
    (
        29,
        "a matrix of broken images",
        &[
            "acceptance::row_29_of_the_peers",
            "bad_input::images_whose_directories",
            "bad_input::an_image_with_nothing",
        ],
    ),
    (30, "where the image file lies", &["acceptance::row_30"]),
    (
        31,
        "statuses 0 to 255, 126, 127, signals",
        &["acceptance::row_01_and_31", "acceptance::row_02_and_31", "launch::commands_that_cannot"],
    ),
    (
        32,
        "signals, SIGWINCH among them",
        &[
            "acceptance::row_07_and_32",
            "acceptance::row_10_and_32",
            "acceptance::row_27_and_32",
            "acceptance::row_09_and_32",
        ],
    ),
    (33, "hang-up and time limit", &["acceptance::row_33_of_the_peers"]),
    (34, "children that outlive the command", &["launch::a_background_process_reads_the_image"]),
    (35, "identity", &["acceptance::row_35_of_the_peers", "launch::the_job_is_its_user"]),
    (
        36,
        "no capability, no_new_privs, what is kept",
        &["acceptance::row_36_of_the_peers", "acceptance::row_34_and_36"],
    ),
    (37, "descriptors", &["acceptance::row_33_and_37"]),
    (38, "working directory", &["acceptance::row_17_and_38", "launch::host_directories"]),
    (
        39,
        "variables",
        &["acceptance::row_38_and_39", "plan::the_image_is_over_the_host", "plan::env_options"],
    ),
    (40, "a setuid tool; real root", &["acceptance::row_40_of_the_peers"]),
    (41, "no user namespaces, no /dev/fuse", &["bad_input::no_user_namespaces", "bad_input::no_fuse_device"]),
];

/// The numbers are complete, and what the rows name is there.
#[test]
fn every_row_is_shown() {
    let numbers = |rows: &[Row]| rows.iter().map(|(number, ..)| *number).collect::<Vec<u8>>();
    assert_eq!(numbers(OF_APPTAINER), (1..=50).collect::<Vec<u8>>());
    assert_eq!(numbers(OF_PEERS), (19..=41).collect::<Vec<u8>>());
    let differences =
        fs::read_to_string(repository().join("docs/differences.md")).expect("docs/differences.md");
    let mut missing = Vec::new();
    for (number, what, shown) in OF_APPTAINER.iter().chain(OF_PEERS) {
        assert!(!shown.is_empty(), "{number} {what}");
        for by in *shown {
            let is_there = match by.split_once("::") {
                Some((module, beginning)) => has_test(module, beginning),
                None => differences
                    .lines()
                    .any(|line| line.trim_start_matches('#').trim() == *by && line.starts_with('#')),
            };
            if !is_there {
                missing.push(format!("{number} {what}: {by}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether a test of `module` has a name that begins so.
fn has_test(module: &str, beginning: &str) -> bool {
    let sources = sources_of(module);
    let test = format!("#[test]\nfn {beginning}");
    sources.iter().any(|source| fs::read_to_string(source).is_ok_and(|text| text.contains(&test)))
}

/// `MODULE.rs` and the files of `MODULE/`.
fn sources_of(module: &str) -> Vec<PathBuf> {
    let directory = repository().join("tests/it");
    let own = directory.join(format!("{module}.rs"));
    let below =
        fs::read_dir(directory.join(module)).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(own).filter(|path| path.exists()).chain(below).collect()
}

/// `hpcrun exec OPTIONS IMAGE COMMAND` with the shared image.
fn exec_with(options: &[&str], words: &[&str]) -> Command {
    let mut command = hpcrun(["exec"]);
    command.args(options).arg(image()).args(words);
    command
}

fn exec(words: &[&str]) -> Command {
    exec_with(&[], words)
}

fn exec_image(image: &Path, words: &[&str]) -> Command {
    let mut command = hpcrun(["exec"]);
    command.arg(image).args(words);
    command
}

/// An image that has next to nothing: with `--bind /usr:/usr:ro` it shows the host's programs.
fn tools() -> &'static Path {
    static TOOLS: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, image) = TOOLS.get_or_init(|| {
        let dir = scratch();
        let mut members = vec![Member::directory("usr"), Member::directory("data"), Member::directory("etc")];
        members
            .extend(["bin", "sbin", "lib", "lib64"].map(|name| Member::symlink(name, format!("usr/{name}"))));
        members.push(Member::file("data/text", "read of the image\n"));
        let config = json!({"Env": ["PATH=/usr/bin:/bin"]});
        let image = convert(dir.path(), "tools", &config, &[tar(&members)]);
        (dir, image)
    });
    image
}

/// Starts a job and waits for its line `ready`.
#[track_caller]
fn ready(command: &mut Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("spawn");
    let mut line = Vec::new();
    let mut byte = [0];
    let pipe = child.stdout.as_mut().expect("piped");
    while pipe.read(&mut byte).expect("read") == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    assert_eq!(text(&line), "ready");
    child
}

#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within ten seconds");
        std::thread::sleep(Duration::from_millis(10));
    }
}
