//! The site policy: errors with their exact place, rules on resolved paths, the file's trust, its documentation.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that fails, panics"
)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use hpcrun::hint::Hint;
use hpcrun::host::{Kind, probe};
use hpcrun::policy::decide::{HostPath, Variables};
use hpcrun::policy::read::keys;
use hpcrun::policy::rules::Share;
use hpcrun::policy::rules::gpu::GpuMode;
use hpcrun::policy::rules::images::Owner;
use hpcrun::policy::{POLICY_PATH, Policy};

use crate::support;

mod paths;
mod site;

const FILE: &str = "/etc/hpcrun/policy.toml";

fn policy(text: &str) -> Policy {
    Policy::parse(Path::new(FILE), text).unwrap_or_else(|error| panic!("{:#?}", error.problems))
}

/// The policy must be refused with exactly these problems, `line:column: what`.
#[track_caller]
fn check_problems(text: &str, expected: &[&str]) {
    let found: Vec<String> = match Policy::parse(Path::new(FILE), text) {
        Ok(_) => Vec::new(),
        Err(error) => error.problems.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(found, expected, "{text}");
}

#[test]
fn an_empty_policy_says_nothing() {
    for text in [
        "",
        "\n",
        "# only a comment\n",
        "[binds]\n[home]\n[env]\n[images]\n[launch]\n[convert]\n[premounted]\n",
        "[store]\n[gpu]\n[mpi]\n[modules]\n[log]\n[policy]\n[modules.a]\n",
    ] {
        let policy = policy(text);
        assert_eq!(policy.home(), (true, false, None));
        assert_eq!(policy.share(), Share::Step);
        assert!(policy.rules().binds.forced.is_empty());
    }
}

#[test]
fn mistakes_are_shown_where_they_are() {
    check_problems("[bind]\n", &["1:2: unknown section [bind]"]);
    check_problems("x = 1\n", &["1:1: unknown section [x]"]);
    check_problems("[binds]\nforcd = []\n", &["2:1: unknown key \"forcd\" in [binds]"]);
    check_problems("[binds]\n  forcd = []\n", &["2:3: unknown key \"forcd\" in [binds]"]);
    check_problems("binds.forcd = []\n", &["1:7: unknown key \"forcd\" in [binds]"]);
    check_problems("binds = 1\n", &["1:9: binds wants a table, not an integer"]);
    check_problems("[binds]\nforced = \"/a\"\n", &["2:10: binds.forced wants an array, not a string"]);
    check_problems(
        "[binds]\nforced = [1]\n",
        &["2:11: an element of binds.forced wants a string, not an integer"],
    );
    check_problems(
        "[binds]\nforced = [\n  \"/a\",\n  true,\n]\n",
        &["4:3: an element of binds.forced wants a string, not a boolean"],
    );
    check_problems("[home]\nbind = \"yes\"\n", &["2:8: home.bind wants true or false, not a string"]);
    check_problems("[home]\nbind = 1\n", &["2:8: home.bind wants true or false, not an integer"]);
    check_problems("[launch]\nserver_threads = 0\n", &["2:18: launch.server_threads must be 1 to 16"]);
    check_problems("[launch]\nserver_threads = 17\n", &["2:18: launch.server_threads must be 1 to 16"]);
    check_problems("[launch]\nserver_threads = -1\n", &["2:18: launch.server_threads must be 1 to 16"]);
    check_problems(
        "[launch]\nserver_threads = 99999999999999999999\n",
        &["2:18: launch.server_threads must be 1 to 16"],
    );
    check_problems(
        "[launch]\nserver_threads = 2.5\n",
        &["2:18: launch.server_threads wants a whole number, not a float"],
    );
    check_problems(
        "[launch]\nshare = \"steps\"\n",
        &["2:9: launch.share: \"steps\" is none of step, job, none"],
    );
    check_problems(
        "[convert]\nmax_size = \"64 gib\"\n",
        &["2:12: convert.max_size: \"64 gib\" is not a size"],
    );
    check_problems(
        "[convert]\nmax_size = 0\n",
        &["2:12: convert.max_size must be 1 to 18446744073709551615"],
    );
    check_problems(
        "[convert]\nmax_size = []\n",
        &["2:12: convert.max_size wants a whole number, not an array"],
    );
}

#[test]
fn syntax_and_duplicates_are_shown_where_they_are() {
    check_problems("[home]\nbind = true\nbind = false\n", &["3:1: duplicate key"]);
    check_problems("[home]\n[home]\n", &["2:2: duplicate key"]);
    let error = Policy::parse(Path::new(FILE), "[home]\nbind = \n").unwrap_err();
    assert_eq!(error.problems[0].at.line, 2, "{error}");
    let error = Policy::parse(Path::new(FILE), "[home\nbind = true\n").unwrap_err();
    assert_eq!(error.problems[0].at.line, 1, "{error}");
    check_problems(
        "[binds]\nallowed = [\"/a\", \"/b\", \"/a\"]\n",
        &["2:24: \"/a\" stands in binds.allowed already, line 2"],
    );
    check_problems(
        "[binds]\nforced = [\"/a\"]\noptional = [\"/b:/a\"]\n",
        &["3:13: /a is a destination already, line 2"],
    );
    check_problems(
        "[binds]\noptional = [\"/a\", \"/c:/a/\"]\n",
        &["2:19: /a is a destination already, line 2"],
    );
    check_problems(
        "[env]\nunset = [\"A_*\"]\nset = { A_B = \"1\" }\n",
        &["3:9: A_B is given a value here and unset at line 2"],
    );
    check_problems(
        "[premounted]\ntrees = [\n { image = \"/i\", directory = \"/d\" },\n { image = \"/i\", directory = \"/e\" },\n]\n",
        &["4:2: /i has a tree already, line 3"],
    );
}

#[test]
fn impossible_values_are_shown_where_they_are() {
    let cases: &[(&str, &str)] = &[
        ("[binds]\nforced = [\"a\"]", "2:11: a bind: \"a\" is not an absolute path"),
        ("[binds]\nforced = [\"\"]", "2:11: \"\" is no bind: the source is empty"),
        (
            "[binds]\nforced = [\"/a:ro\"]",
            "2:11: \"/a:ro\" is no bind: the destination is missing before its access",
        ),
        ("[binds]\nforced = [\"/a:/b:rx\"]", "2:11: \"/a:/b:rx\" is no bind: the access must be ro or rw"),
        (
            "[binds]\nforced = [\"/a:b\"]",
            "2:11: \"/a:b\" is no bind: the destination must be an absolute path",
        ),
        ("[binds]\nforced = [\"/a/../b\"]", "2:11: a bind: \"/a/../b\" has a component '..'"),
        ("[binds]\nforced = [\"/a:/\"]", "2:11: nothing can be bound onto /"),
        ("[binds]\nforced = [\"/\"]", "2:11: nothing can be bound onto /"),
        ("[binds]\nforced = [\"/a://\"]", "2:11: nothing can be bound onto /"),
        ("[binds]\noptional = [\"/x:/proc\"]", "2:13: nothing can be bound onto /proc"),
        ("[binds]\noptional = [\"/x:/dev/\"]", "2:13: nothing can be bound onto /dev"),
        (
            "[binds]\noptional = [\"/x/$\"]",
            "2:13: \"/x/$\" has a '$' without a variable's name; a dollar sign is written '$$'",
        ),
        ("[binds]\noptional = [\"/x/${A\"]", "2:13: \"/x/${A\" has a '${' without its '}'"),
        ("[binds]\nforced = [{}]", "2:11: a bind in binds.forced without its source"),
        ("[binds]\nforced = [{ destination = \"/a\" }]", "2:11: a bind in binds.forced without its source"),
        (
            "[binds]\nforced = [{ source = 1 }]",
            "2:22: a bind in binds.forced.source wants a string, not an integer",
        ),
        (
            "[binds]\nforced = [{ source = \"/a\", readonly = true }]",
            "2:28: unknown key \"readonly\" in a bind in binds.forced",
        ),
        ("[binds]\ndenied = [\"etc\"]", "2:11: denied: \"etc\" is not an absolute path"),
        ("[binds]\nallowed = [\"/a/..\"]", "2:12: allowed: \"/a/..\" has a component '..'"),
        (
            "[binds]\nallowed = [\"$SCRATCH\"]",
            "2:12: $SCRATCH comes from the user's environment and cannot decide in allowed",
        ),
        (
            "[images]\ndirectories = [\"/i/$TEAM\"]",
            "2:16: $TEAM comes from the user's environment and cannot decide in directories",
        ),
        ("[images]\nregistries = [\"Docker.io\"]", "2:15: \"Docker.io\" is no registry"),
        ("[images]\nregistries = [\"https://docker.io\"]", "2:15: \"https://docker.io\" is no registry"),
        ("[images]\nregistries = [\"docker.io:99999\"]", "2:15: \"docker.io:99999\" is no registry"),
        ("[images]\nregistries = [\"a//b\"]", "2:15: \"a//b\" is no registry"),
        ("[images]\nregistries = [\"\"]", "2:15: \"\" is no registry"),
        ("[env]\nset = { \"A B\" = \"1\" }", "2:9: \"A B\" cannot be the name of a variable"),
        ("[env]\nset = { A = 1 }", "2:13: env.set.A wants a string, not an integer"),
        (
            "[env]\nset = { A = \"$\" }",
            "2:9: \"$\" has a '$' without a variable's name; a dollar sign is written '$$'",
        ),
        ("[env]\nunset = [\"*\"]", "2:10: \"*\" in env.unset is neither a name nor a beginning like SLURM_*"),
        (
            "[env]\npass = [\"A*B\"]",
            "2:9: \"A*B\" in env.pass is neither a name nor a beginning like SLURM_*",
        ),
        ("[env]\nset = [\"A=1\"]", "2:7: env.set wants a table, not an array"),
        (
            "[premounted]\ntrees = [\"/i\"]",
            "2:10: a tree in premounted.trees wants a table { image, directory }",
        ),
        (
            "[premounted]\ntrees = [{ image = \"/i\" }]",
            "2:10: a tree in premounted.trees without its directory",
        ),
        (
            "[premounted]\ntrees = [{ image = \"/i/$USER\", directory = \"/d\" }]",
            "2:20: a tree in premounted.trees: variables mean nothing here",
        ),
        ("[convert]\nmax_jobs = 0", "2:12: convert.max_jobs must be 1 to 1024"),
        ("[convert]\nmax_entries = 4294967296", "2:15: convert.max_entries must be 1 to 4294967295"),
    ];
    for (text, expected) in cases {
        check_problems(text, &[expected]);
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let text = "[home]\nbnd = true\n[launch]\nshare = 3\nserver_threads = 99\n[nonsense]\n";
    check_problems(
        text,
        &[
            "2:1: unknown key \"bnd\" in [home]",
            "4:9: launch.share wants a string, not an integer",
            "5:18: launch.server_threads must be 1 to 16",
            "6:2: unknown section [nonsense]",
        ],
    );
    let error = Policy::parse(Path::new(FILE), text).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/etc/hpcrun/policy.toml:2:1: unknown key \"bnd\" in [home] (and 3 more problems)"
    );
    assert_eq!(error.hints()[0], "did you mean \"bind\"?");
}

#[test]
fn what_was_meant_is_guessed() {
    for (text, expected) in [
        ("[bind]\n", "did you mean \"binds\"?"),
        ("[image]\n", "did you mean \"images\"?"),
        ("[binds]\ndeny = []\n", "valid here: forced, optional, denied, allowed"),
        ("[binds]\nallow = []\n", "did you mean \"allowed\"?"),
        ("[env]\nunsets = []\n", "did you mean \"unset\"?"),
        ("[launch]\nserver-threads = 1\n", "did you mean \"server_threads\"?"),
        ("[launch]\nshare = \"stp\"\n", "did you mean \"step\"?"),
        (
            "[zzz]\n",
            "valid here: binds, home, env, images, store, gpu, mpi, modules, launch, convert, premounted, log, policy",
        ),
    ] {
        let error = Policy::parse(Path::new(FILE), text).unwrap_err();
        assert_eq!(error.hints()[0], expected, "{text}");
    }
}

#[test]
fn columns_count_characters_not_bytes() {
    check_problems(
        "[env]\nset = { A = \"\u{e9}\u{e9}\", \"B C\" = \"\" }\n",
        &["2:19: \"B C\" cannot be the name of a variable"],
    );
}

/// Whatever is done to a policy's text, it is read or refused with a place that is in it.
#[test]
fn broken_text_is_refused_in_its_place() {
    let mut random = support::Random::new(support::seed());
    let shipped = fs::read_to_string(repository().join("site-config/examples/slurm-gpu.toml")).unwrap();
    let pieces: Vec<char> = "[]{}=\"'#,.$\\\n 0x-_\u{e9}\0".chars().collect();
    let mut refused = 0;
    for _ in 0..3000 {
        let mut text: Vec<char> = shipped.chars().collect();
        for _ in 0..=random.below(3) {
            let at = random.below(text.len() as u64) as usize;
            match random.below(4) {
                0 => text[at] = pieces[random.below(pieces.len() as u64) as usize],
                1 => text.insert(at, pieces[random.below(pieces.len() as u64) as usize]),
                2 => text.truncate(at + 1),
                _ => drop(text.drain(at..(at + 1 + random.below(20) as usize).min(text.len()))),
            }
            if text.is_empty() {
                text.push('#');
            }
        }
        let text: String = text.into_iter().collect();
        if let Err(error) = Policy::parse(Path::new(FILE), &text) {
            refused += 1;
            let lines = text.split('\n').count();
            for problem in &error.problems {
                assert!(
                    (1..=lines).contains(&problem.at.line) && problem.at.column >= 1,
                    "{problem:?}\n{text}"
                );
                assert!(!problem.what.is_empty() && !problem.what.contains('\n'), "{problem:?}\n{text}");
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn deep_and_large_policies_end() {
    for text in [
        format!("x = {}", "[".repeat(100_000)),
        format!("x = {}", "{a=".repeat(100_000)),
        format!("{}x = 1", "a.".repeat(50_000)),
        format!("[{}a]", "a.".repeat(50_000)),
        "[binds]\n".repeat(10_000),
        "\"".repeat(100_000),
    ] {
        let error = Policy::parse(Path::new(FILE), &text).unwrap_err();
        assert!(error.to_string().len() < 1_000_000);
    }
}

/// A user named ada whose environment says what it likes.
struct Ada {
    trusted: Vec<(&'static str, OsString)>,
    environment: Vec<(OsString, OsString)>,
}

fn ada() -> Ada {
    let pairs = |pairs: &[(&'static str, &str)]| pairs.iter().map(|(n, v)| (*n, OsString::from(v))).collect();
    Ada {
        trusted: pairs(&[("USER", "ada"), ("HOME", "/home/ada"), ("UID", "1000"), ("GROUP", "users")]),
        environment: [("SCRATCH", "/lustre/ada"), ("USER", "root"), ("RELATIVE", "x")]
            .map(|(name, value)| (name.into(), value.into()))
            .to_vec(),
    }
}

impl Ada {
    fn variables(&self) -> Variables<'_> {
        Variables { trusted: &self.trusted, environment: &self.environment }
    }
}

/// On this imaginary host `/scratch` and `/allowed-link` are links.
fn resolve(path: &Path) -> PathBuf {
    for (link, target) in
        [("/scratch", "/lustre/scratch"), ("/allowed-link", "/data/real"), ("/hidden", "/data/secret")]
    {
        if let Ok(rest) = path.strip_prefix(link) {
            return if rest.as_os_str().is_empty() {
                PathBuf::from(target)
            } else {
                Path::new(target).join(rest)
            };
        }
    }
    path.to_owned()
}

#[track_caller]
fn check_bind(text: &str, path: &str, line: Result<Option<usize>, usize>) {
    let ada = ada();
    let resolved = resolve(Path::new(path));
    let found = policy(text)
        .user_bind(HostPath { typed: OsStr::new(path), resolved: &resolved }, &ada.variables(), &resolve)
        .map(|rule| rule.map(|rule| rule.line))
        .map_err(|refusal| refusal.rule.line);
    assert_eq!(found, line, "{path} under {text}");
}

#[test]
fn user_binds_match_by_components() {
    let text = "[binds]\nallowed = [\n\"/data\",\n\"/project/$USER\",\n\"$HOME\",\n\"/trail/\",\n\"//double//x\",\n\"/allowed-link\",\n]\ndenied = [\n\"/data/secret\",\n\"/project/ada/.ssh\",\n]\n";
    for (path, line) in [
        ("/data", Err(11)), // shows what is denied
        ("/data/x", Ok(Some(3))),
        ("/data/x/y", Ok(Some(3))),
        ("/data2", Err(2)),
        ("/dat", Err(2)),
        ("/Data/x", Err(2)),
        ("/data/secret", Err(11)),
        ("/data/secret/x", Err(11)),
        ("/data/secret2", Ok(Some(3))),
        ("/hidden", Err(11)),
        ("/hidden/x", Err(11)),
        ("/project/ada/x", Ok(Some(4))),
        ("/project/ada", Err(12)),
        ("/project", Err(12)),
        ("/project/bob", Err(2)),
        ("/project/ada2", Err(2)),
        ("/project/root", Err(2)), // USER of the environment is not believed
        ("/home/ada", Ok(Some(5))),
        ("/home/ada/deep/er", Ok(Some(5))),
        ("/home/adam", Err(2)),
        ("/home", Err(2)),
        ("/trail", Ok(Some(6))),
        ("/trail/x", Ok(Some(6))),
        ("/double/x/y", Ok(Some(7))),
        ("/double", Err(2)),
        ("/data/real", Ok(Some(3))),
        ("/allowed-link/x", Ok(Some(3))),
        ("/", Err(11)),
        ("/etc", Err(2)),
        ("/data\n", Err(2)),
        ("/data /x", Err(2)),
    ] {
        check_bind(text, path, line);
    }
}

#[test]
fn rules_hold_behind_links() {
    let text = "[binds]\nallowed = [\"/scratch\"]\n";
    for (path, line) in [
        ("/scratch", Ok(Some(2))),
        ("/scratch/x", Ok(Some(2))),
        ("/lustre/scratch/x", Ok(Some(2))),
        ("/lustre", Err(2)),
        ("/lustre/scratch2", Err(2)),
        ("/scratch2", Err(2)),
    ] {
        check_bind(text, path, line);
    }
    let denied = "[binds]\ndenied = [\"/scratch\"]\n";
    for (path, line) in [
        ("/scratch", Err(2)),
        ("/lustre/scratch", Err(2)),
        ("/lustre/scratch/x", Err(2)),
        ("/lustre", Err(2)),
        ("/", Err(2)),
        ("/lustre/scratch2", Ok(None)),
        ("/home", Ok(None)),
    ] {
        check_bind(denied, path, line);
    }
}

#[test]
fn absent_and_empty_lists_differ() {
    check_bind("", "/etc", Ok(None));
    check_bind("[binds]\n", "/", Ok(None));
    check_bind("[binds]\nallowed = []\n", "/home/ada", Err(2));
    check_bind("[binds]\nallowed = [\"/\"]\n", "/etc", Ok(Some(2)));
    check_bind("[binds]\nallowed = [\"/\"]\n", "/", Ok(Some(2)));
    check_bind("[binds]\ndenied = [\"/\"]\n", "/anything", Err(2));
    check_bind("[binds]\ndenied = []\n", "/anything", Ok(None));
}

#[test]
fn a_denied_path_that_cannot_be_told_denies_everything() {
    let nobody = Variables { trusted: &[], environment: &[("HOME".into(), "/tmp/x".into())] };
    let path = HostPath { typed: OsStr::new("/data"), resolved: Path::new("/data") };
    let refusal =
        policy("[binds]\ndenied = [\"$HOME/.ssh\"]\n").user_bind(path, &nobody, &resolve).unwrap_err();
    assert_eq!(refusal.rule.line, 2);
    // A grant that cannot be told grants nothing.
    let path = HostPath { typed: OsStr::new("/tmp/x"), resolved: Path::new("/tmp/x") };
    assert!(policy("[binds]\nallowed = [\"$HOME\"]\n").user_bind(path, &nobody, &resolve).is_err());
}

#[test]
fn a_refusal_names_rule_line_and_what_is_allowed() {
    let ada = ada();
    let path = HostPath { typed: OsStr::new("/scratch/../etc"), resolved: Path::new("/etc") };
    let text = "[binds]\nallowed = [\"/data\", \"/project/$USER\"]\n";
    let refusal = policy(text).user_bind(path, &ada.variables(), &resolve).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "refused by site policy: bind of /scratch/../etc (that is /etc), which is outside the allowed paths \
         (/etc/hpcrun/policy.toml:2 [binds] allowed)"
    );
    assert_eq!(refusal.hints(), ["allowed paths: /data, /project/ada"]);
    let refusal = policy("[binds]\nallowed = []").user_bind(path, &ada.variables(), &resolve).unwrap_err();
    assert_eq!(refusal.hints(), ["allowed paths: none"]);
}

#[test]
fn site_binds_are_expanded() {
    let ada = ada();
    let text = "[binds]\nforced = [\"/apps::ro\", { source = \"/data/$GROUP\", destination = \"/group\" }]\n\
                optional = [\"$SCRATCH\", \"/x/$NOBODY\", \"/y/$$USER\", \"/z/$USER:/mine:ro\"]\n";
    let (binds, left_out) = policy(text).site_binds(&ada.variables(), None).unwrap();
    let shown: Vec<String> = binds
        .iter()
        .map(|b| {
            let flags =
                format!("ro={} optional={} forced={} {:?}", b.read_only, b.optional, b.forced, b.origin);
            format!("{} -> {} {flags} :{}", b.source.display(), b.destination.display(), b.rule.line)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "/apps -> /apps ro=true optional=false forced=true Site :2",
            "/data/users -> /group ro=false optional=false forced=true Site :2",
            "/lustre/ada -> /lustre/ada ro=false optional=true forced=false Environment :3",
            "/y/$USER -> /y/$USER ro=false optional=true forced=false Site :3",
            "/z/ada -> /mine ro=true optional=true forced=false Site :3",
        ]
    );
    assert_eq!(
        left_out,
        ["/x/$NOBODY left out: $NOBODY is not set (/etc/hpcrun/policy.toml:3 [binds] optional)"]
    );
}

#[test]
fn a_forced_bind_without_its_variable_is_refused() {
    let ada = ada();
    for text in ["[binds]\nforced = [\"$NOBODY/x\"]", "[binds]\nforced = [\"$RELATIVE/x\"]"] {
        let refusal = policy(text).site_binds(&ada.variables(), None).unwrap_err();
        assert_eq!(refusal.rule.line, 2);
        assert!(refusal.what.contains("must be bound"), "{refusal}");
    }
    let text = "[binds]\nforced = [{ source = \"$NOBODY/x\", optional = true }]";
    assert_eq!(policy(text).site_binds(&ada.variables(), None).unwrap().0.len(), 0);
}

#[test]
fn registries() {
    let text = "[images]\nregistries = [\"docker.io/library\", \"ghcr.io\", \"*.example.org\", \"r.site:5000/team/a\"]\n";
    let policy = policy(text);
    for (host, repository, allowed) in [
        ("docker.io", "library/debian", true),
        ("docker.io", "library", true),
        ("docker.io", "library2/debian", false),
        ("docker.io", "ada/library", false),
        ("docker.io", "", false),
        ("ghcr.io", "anything/at/all", true),
        ("ghcr.io:443", "x", false),
        ("xghcr.io", "x", false),
        ("a.example.org", "x", true),
        ("a.b.example.org", "x", true),
        ("example.org", "x", false),
        ("badexample.org", "x", false),
        (".example.org", "x", false),
        ("example.org.evil", "x", false),
        ("r.site:5000", "team/a", true),
        ("r.site:5000", "team/a/b", true),
        ("r.site:5000", "team/ab", false),
        ("r.site", "team/a", false),
    ] {
        assert_eq!(policy.registry(host, repository).is_ok(), allowed, "{host}/{repository}");
    }
    let refusal = policy.registry("quay.io", "x/y").unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "refused by site policy: registry quay.io, repository x/y (/etc/hpcrun/policy.toml:2 [images] registries)"
    );
    assert_eq!(
        refusal.hints(),
        ["allowed registries: docker.io/library, ghcr.io, *.example.org, r.site:5000/team/a"]
    );
    assert!(Policy::builtin().registry("quay.io", "x").is_ok());
}

#[test]
fn image_directories() {
    let ada = ada();
    let policy = policy("[images]\ndirectories = [\"/images\", \"$HOME/images\", \"/scratch/i\"]\n");
    for (path, allowed) in [
        ("/images/a.sqsh", true),
        ("/images/x/a.sqsh", true),
        ("/images2/a.sqsh", false),
        ("/home/ada/images/a.sqsh", true),
        ("/home/ada/a.sqsh", false),
        ("/lustre/scratch/i/a", true),
        ("/tmp/a.sqsh", false),
    ] {
        let path = HostPath { typed: OsStr::new(path), resolved: Path::new(path) };
        assert_eq!(policy.image_file(path, &ada.variables(), &resolve).is_ok(), allowed, "{path:?}");
    }
}

/// A policy file as root would leave it, in directories that root alone may write to; none for an ordinary user, who
/// cannot make one.
fn root_file(text: &str) -> Option<(tempfile::TempDir, PathBuf)> {
    let dir = support::scratch();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = dir.path().join("policy.toml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    support::is_root().then_some((dir, path))
}

/// What an ordinary user can show of the trust in files: his own is not trusted.
fn own_file_is_refused() {
    let dir = support::scratch();
    let path = dir.path().join("policy.toml");
    fs::write(&path, "").unwrap();
    let error = probe::read_policy(&path).unwrap_err();
    assert!(error.to_string().contains("not to root"), "{error}");
}

#[test]
fn a_missing_file_is_no_policy() {
    assert_eq!(probe::read_policy(Path::new("/nonexistent/policy.toml")).unwrap(), None);
}

#[test]
fn a_file_of_root_is_read() {
    let passwd = probe::read_policy(Path::new("/etc/passwd")).unwrap().unwrap();
    assert!(passwd.contains("root:"));
    let Some((_dir, path)) = root_file("[home]\n") else {
        return own_file_is_refused();
    };
    assert_eq!(probe::read_policy(&path).unwrap().as_deref(), Some("[home]\n"));
}

#[test]
fn a_file_that_others_could_have_written_is_refused() {
    let Some((_dir, path)) = root_file("") else {
        return own_file_is_refused();
    };
    for mode in [0o664, 0o646, 0o666, 0o622, 0o777] {
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let error = probe::read_policy(&path).unwrap_err();
        assert!(error.to_string().contains("can be written by others"), "{mode:o}: {error}");
        assert_eq!(error.hints(), [format!("as root: chmod go-w {}", path.display())]);
    }
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    std::os::unix::fs::chown(&path, Some(1001), None).unwrap();
    let error = probe::read_policy(&path).unwrap_err();
    assert!(error.to_string().contains("belongs to uid 1001, not to root"), "{error}");
}

#[test]
fn a_directory_that_others_could_have_written_is_refused() {
    let Some((dir, path)) = root_file("") else {
        return own_file_is_refused();
    };
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let error = probe::read_policy(&path).unwrap_err();
    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(dir.path(), Some(1001), None).unwrap();
    assert!(probe::read_policy(&path).is_err());
}

#[test]
fn a_link_on_the_way_is_as_good_as_its_directory() {
    let Some((dir, path)) = root_file("[home]\n") else {
        return own_file_is_refused();
    };
    // In a directory of somebody's.
    let own = support::scratch();
    std::os::unix::fs::chown(own.path(), Some(1001), None).unwrap();
    let inside = own.path().join("link");
    symlink(dir.path(), &inside).unwrap();
    let refused = |path: &Path, named: &Path| {
        let error = probe::read_policy(path).unwrap_err().to_string();
        assert!(
            error.starts_with("site policy cannot be trusted") && error.contains(named.to_str().unwrap()),
            "{error}"
        );
    };
    refused(&inside.join("policy.toml"), own.path());
    // Through a second link of root's, in root's directory.
    let outside = dir.path().join("outside");
    symlink(&inside, &outside).unwrap();
    refused(&outside.join("policy.toml"), own.path());
    // Somebody's own link.
    let his = dir.path().join("his");
    symlink(dir.path(), &his).unwrap();
    std::os::unix::fs::lchown(&his, Some(1001), None).unwrap();
    refused(&his.join("policy.toml"), &his);
    // Root's, also to and fro.
    let good = dir.path().join("good");
    symlink(format!("../{}/.", dir.path().file_name().unwrap().to_str().unwrap()), &good).unwrap();
    assert_eq!(probe::read_policy(&good.join("policy.toml")).unwrap().as_deref(), Some("[home]\n"));
    // Drop-ins that somebody else could have taken away.
    let drop_ins = path.with_extension("d");
    fs::create_dir(&drop_ins).unwrap();
    assert_eq!(probe::read_policy_files(&path).unwrap().len(), 1);
    std::os::unix::fs::chown(&drop_ins, Some(1001), None).unwrap();
    let error = probe::read_policy_files(&path).unwrap_err().to_string();
    assert!(error.contains("policy.d belongs to uid 1001"), "{error}");
}

#[test]
fn what_is_no_policy_file_is_refused() {
    let Some((dir, path)) = root_file("") else {
        return own_file_is_refused();
    };
    let error = probe::read_policy(dir.path()).unwrap_err();
    assert!(error.to_string().starts_with("cannot read site policy"), "{error}");
    fs::write(&path, b"[home]\nbind = \xc3\xa9\xff").unwrap();
    let error = probe::read_policy(&path).unwrap_err().to_string();
    assert!(error.ends_with("policy.toml:2:9: not UTF-8"), "{error}");
    fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(probe::read_policy(&path).unwrap_err().to_string().contains("larger than 1048576 bytes"));
    // A fifo must not hang every launch, and a link is followed to what it names.
    let fifo = dir.path().join("fifo");
    support::stdout(std::process::Command::new("mkfifo").arg(&fifo));
    assert!(probe::read_policy(&fifo).unwrap_err().to_string().contains("is not a regular file"));
    fs::write(&path, "").unwrap();
    let link = dir.path().join("link.toml");
    symlink(&path, &link).unwrap();
    assert_eq!(probe::read_policy(&link).unwrap().as_deref(), Some(""));
    // The file system behind it may come back, and its rules with it.
    symlink("/tmp/nonexistent-policy", dir.path().join("dangling")).unwrap();
    for gone in ["dangling", "dangling/policy.toml"] {
        let error = probe::read_policy(&dir.path().join(gone)).unwrap_err();
        assert!(error.to_string().contains("cannot read site policy"), "{error}");
    }
}

#[test]
fn the_probe_sees_this_node() {
    let host = probe::probe_for_launch(vec![("SLURM_JOB_ID".into(), "7".into())]).unwrap();
    assert_eq!(host.launcher.job.as_deref(), Some("slurm 7"));
    assert!(host.kernel.version >= (4, 18), "{:?}", host.kernel);
    assert_eq!(host.namespaces.len(), 7);
    assert!(host.cpus >= 1);
    assert!(!host.hostname.is_empty());
    assert_eq!(host.cwd.as_deref(), Some(std::env::current_dir().unwrap().as_path()));
    assert!(host.user.known && host.user.home.is_some());
    assert!(host.share_directory.is_some());
}

#[test]
fn the_probe_follows_links_to_what_will_be_mounted() {
    let dir = support::scratch();
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    fs::create_dir(&real).unwrap();
    fs::write(real.join("file"), "").unwrap();
    symlink(&real, &link).unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    let mut host = probe::probe_for_launch(Vec::new()).unwrap();
    let ask = |name: &str| dir.path().join(name);
    let names = ["link", "link/file", "link/../real", "loop", "none", "real/file/x"];
    probe::add_paths(&mut host, names.map(ask));
    for (name, kind, resolved) in [
        ("link", Kind::Directory, "real"),
        ("link/file", Kind::File, "real/file"),
        ("link/../real", Kind::Directory, "real"),
        ("none", Kind::Missing, "none"),
        ("real/file/x", Kind::Missing, "real/file/x"),
    ] {
        let fact = &host.paths[&ask(name)];
        assert_eq!((&fact.kind, &fact.resolved), (&kind, &ask(resolved)), "{name}");
    }
    assert!(matches!(host.paths[&ask("loop")].kind, Kind::Unreachable(_)));
}

/// Everything below `directory` that is a policy.
fn policy_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(policy_files(&path));
        } else if path.extension() == Some(OsStr::new("toml")) {
            found.push(path);
        }
    }
    found
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_shipped_policy_is_valid() {
    let files = policy_files(&repository().join("site-config"));
    assert!(files.len() >= 2, "{files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        if let Err(error) = Policy::parse(&file, &text) {
            panic!("{error}");
        }
    }
}

/// The shipped default decides nothing until a line of it is uncommented, and every such line is valid.
#[test]
fn the_default_policy_shows_every_key() {
    let file = repository().join("site-config/policy.toml");
    let text = fs::read_to_string(&file).unwrap();
    let modules = text.replace("#: [modules.host-mpi]", "[modules.host-mpi]");
    assert_ne!(text, modules);
    let uncommented: String = text
        .lines()
        .map(|line| line.strip_prefix("#: ").unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect();
    let policy = Policy::parse(&file, &uncommented).unwrap_or_else(|error| panic!("{error}"));
    assert!(policy.rules().binds.allowed.is_some());
    for key in keys() {
        let (section, key) = match key.strip_prefix("modules.NAME.") {
            Some(key) => ("modules.host-mpi", key),
            None => key.split_once('.').unwrap_or((&key, "")),
        };
        assert!(text.contains(&format!("[{section}]")), "[{section}] is not in site-config/policy.toml");
        assert!(
            key.is_empty() || text.contains(&format!("\n#: {key} =")),
            "{key} is not in site-config/policy.toml"
        );
    }
}

#[test]
fn the_reference_names_every_key_and_no_other() {
    let text = fs::read_to_string(repository().join("docs/policy.md")).unwrap();
    let mut documented: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(key, _)| key.to_owned()))
        .filter(|key| key.contains('.'))
        .collect();
    let mut known = keys();
    documented.sort();
    known.sort();
    assert_eq!(documented, known);
    assert!(text.contains(POLICY_PATH));
}

/// Every TOML example of the reference is a valid policy.
#[test]
fn the_examples_of_the_reference_are_valid() {
    let text = fs::read_to_string(repository().join("docs/policy.md")).unwrap();
    let examples: Vec<&str> =
        text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        policy(example);
    }
}

#[test]
fn what_the_keys_of_sections_want() {
    let cases: &[(&str, &str)] = &[
        ("[store]\nuser_dir = \"images\"", "2:12: store.user_dir: \"images\" is not an absolute path"),
        ("[store]\nsite_dir = \"/images/$USER\"", "2:12: store.site_dir: variables mean nothing here"),
        (
            "[store]\nnode_cache = \"/local/../x\"",
            "2:14: store.node_cache: \"/local/../x\" has a component '..'",
        ),
        ("[store]\nnode_cache_size = \"20GB!\"", "2:19: store.node_cache_size: \"20GB!\" is not a size"),
        ("[store]\nnode_cache_min = 0", "2:18: store.node_cache_min must be 1 to 18446744073709551615"),
        (
            "[store]\nnode_cache_min = 4097\nnode_cache_size = \"4 KiB\"",
            "2:18: store.node_cache_min is more than the cache holds, line 3",
        ),
        (
            "[home]\nbind = false\nread_only = true",
            "3:13: home.read_only means nothing while home.bind is false, line 2",
        ),
        (
            "[convert]\nallow_layer_cache = false\nlayer_cache = \"/x\"",
            "3:15: convert.layer_cache means nothing while convert.allow_layer_cache is false, line 2",
        ),
        ("[store]\nshort_names = { \"a/b\" = \"x\" }", "2:17: \"a/b\" is no short name"),
        (
            "[store]\nshort_names = { a = \"X\" }",
            "2:17: store.short_names: reference \"X\" has upper-case letters in its repository",
        ),
        ("[store]\nshort_names = { a = 1 }", "2:21: store.short_names.a wants a string, not an integer"),
        ("[images]\nowners = [\"\"]", "2:11: an element of images.owners is no user"),
        ("[images]\nowners = [-1]", "2:11: an element of images.owners is no user"),
        ("[images]\nowners = [4294967296]", "2:11: an element of images.owners is no user"),
        ("[images]\nowners = [\"12\"]", "2:11: an element of images.owners is no user"),
        ("[images]\nowners = [0, 0]", "2:14: this owner stands in images.owners already, line 2"),
        ("[images]\nformats = [\"ext4\"]", "2:12: images.formats: \"ext4\" is none of hpcrun, squashfs, sif"),
        ("[images]\ndeny_registries = [\"A\"]", "2:20: \"A\" is no registry"),
        (
            "[images]\nregistries = [\"a.b\"]\ndeny_registries = [\"a.b\"]",
            "2:15: a.b is allowed here and denied at line 3",
        ),
        (
            "[images]\nmirrors = { \"a.b\" = \"c.d\" }",
            "2:21: images.mirrors.a.b wants an array, not a string",
        ),
        ("[images]\nmirrors = { \"a.b\" = [] }", "2:13: a.b without a mirror"),
        ("[images]\nmirrors = { \"*.b\" = [\"c.d\"] }", "2:13: *.b cannot name a mirror or what it mirrors"),
        ("[images]\nmirrors = { \"a.b\" = [\"*.d\"] }", "2:22: *.d cannot name a mirror or what it mirrors"),
        ("[images]\nmirrors = { \"a.b\" = [\"https://c\"] }", "2:22: \"https://c\" is no registry"),
        (
            "[images]\ndeny_digests = [\"latest\"]",
            "2:17: images.deny_digests: digest \"latest\" has no algorithm before a colon",
        ),
        (
            "[images]\nrequire_signature = 1",
            "2:21: images.require_signature wants true or false, not an integer",
        ),
        ("[gpu]\nmode = \"nvidea\"", "2:8: gpu.mode: \"nvidea\" is none of auto, none, nvidia, amd, intel"),
        ("[gpu]\nmode = \"cdi:gpu\"", "2:8: gpu.mode: \"cdi:gpu\" names no CDI device"),
        ("[gpu]\ncdi_dirs = [\"cdi\"]", "2:13: gpu.cdi_dirs: \"cdi\" is not an absolute path"),
        ("[gpu]\nrequire = \"error\"", "2:11: gpu.require: \"error\" is none of warn, fail, off"),
        ("[gpu]\ncuda_compat = true", "2:15: gpu.cuda_compat wants a string, not a boolean"),
        ("[mpi]\ncheck = \"on\"", "2:9: mpi.check: \"on\" is none of check, strict, off"),
        ("[mpi]\nhost_module = \"m\"", "2:15: mpi.host_module: there is no [modules.m]"),
        ("[modules]\nm = 1", "2:5: modules.m wants a table, not an integer"),
        ("[modules.\"a/b\"]\n", "1:10: \"a/b\" cannot be the name of a module"),
        ("[modules.m]\nbind = []", "2:1: unknown key \"bind\" in [modules.m]"),
        ("[modules.m]\nbinds = [\"x\"]", "2:10: a bind: \"x\" is not an absolute path"),
        ("[modules.m]\nbinds = [\"/x:/proc\"]", "2:10: nothing can be bound onto /proc"),
        ("[modules.m.env]\npass = [\"A\"]", "2:1: unknown key \"pass\" in [modules.m.env]"),
        (
            "[modules.m.env]\nunset = [\"A\"]\nset = { A = \"1\" }",
            "3:9: A is given a value here and unset at line 2",
        ),
        (
            "[modules.m]\nlibraries = [\"libx.so\"]",
            "2:14: modules.m.libraries: \"libx.so\" is not an absolute path",
        ),
        (
            "[modules.m]\nlibraries = [\"/opt/*/libx.so\"]",
            "2:14: modules.m.libraries: \"/opt/*/libx.so\" has a wildcard before its last component",
        ),
        ("[modules.m]\ndevices = [\"/etc/passwd\"]", "2:12: /etc/passwd is not below /dev"),
        ("[modules.m]\nmode = \"auto\"", "2:8: the module m is automatic and says not for what"),
        ("[modules.m]\nmatch = { image = \"a,\" }", "2:19: the pattern \"a,\" has an empty alternative"),
        ("[modules.m]\nmatch.soname = \"/lib/x.so\"", "2:16: \"/lib/x.so\" is no soname"),
        ("[modules.m]\nmatch.images = \"x\"", "2:7: unknown key \"images\" in [modules.m.match]"),
        ("[modules.m]\nabi = \"exact\"", "2:7: modules.m.abi: \"exact\" is none of symbols, major, minor"),
        ("[log]\nlaunches = \"journald\"", "2:12: log.launches: \"journald\" is none of none, syslog, file"),
        ("[log]\nlaunches = \"file\"", "2:12: log.launches is \"file\" and log.file names none"),
        ("[log]\nfile = \"/x\"", "2:8: log.file means nothing while log.launches is not \"file\""),
        ("[log]\nlaunches = \"file\"\nfile = \"x\"", "3:8: log.file: \"x\" is not an absolute path"),
        ("[log]\nformat = \"xml\"", "2:10: log.format: \"xml\" is none of json, text"),
        ("[premounted]\ndirectory = \"/run/x\"", "2:13: premounted.directory: \"/run/x\" needs one {digest}"),
        (
            "[premounted]\ndirectory = \"run/{digest}\"",
            "2:13: premounted.directory: \"run/{digest}\" is not an absolute path",
        ),
        ("[policy]\nallow_user_files = true", "2:1: unknown key \"allow_user_files\" in [policy]"),
        ("[launch]\nallow_no_home = \"no\"", "2:17: launch.allow_no_home wants true or false, not a string"),
        (
            "[binds]\noptional = [{ source = \"/a\", when = \"\" }]",
            "2:37: the pattern \"\" has an empty alternative",
        ),
        (
            "[binds]\noptional = [{ source = \"/a\", host = \"x\" }]",
            "2:30: unknown key \"host\" in a bind in binds.optional",
        ),
    ];
    for (text, expected) in cases {
        check_problems(text, &[expected]);
    }
    let facilities = "user, daemon, auth, local0, local1, local2, local3, local4, local5, local6, local7";
    let expected = format!("2:12: log.facility: \"kern\" is none of {facilities}");
    check_problems("[log]\nfacility = \"kern\"", &[&expected]);
}

#[test]
fn values_arrive_as_written() {
    let text = "[store]\nuser_dir = \"/p/$USER\"\nsite_dir = \"//images/./x/\"\nnode_cache_size = \"2 GiB\"\n\
                short_names = { b = \"debian\", a = \"r.example/x:1\" }\n\
                [images]\nowners = [\"root\", \"self\", 17, \"ada\"]\nmirrors = { \"a.b\" = [\"c.d/e\", \"f.g:5000\"] }\n\
                [gpu]\nmode = \"cdi:v.example/gpu=0\"\n[mpi]\nhost_module = \"m\"\n\
                [modules.z]\nmode = \"never\"\n[modules.m]\nmatch = { soname = \"libx.so.1\" }\nmode = \"auto\"\n\
                devices = [\"/dev/cxi*\"]\n[log]\nlaunches = \"file\"\nfile = \"/log/$JOB\"\nfacility = \"local7\"\n\
                [premounted]\ndirectory = \"/run/x/{digest}\"\n";
    let policy = policy(text);
    let rules = policy.rules();
    let store = &rules.store;
    assert_eq!(store.user_dir.as_ref().unwrap().value.as_written(), "/p/$USER");
    assert_eq!(store.site_dir.as_ref().unwrap().value, Path::new("/images/x"));
    assert_eq!(store.node_cache_size_bytes.as_ref().unwrap().value, 2 << 30);
    let names: Vec<String> = store
        .short_names
        .iter()
        .map(|short| format!("{}={} :{}", short.name, short.reference, short.at.line))
        .collect();
    assert_eq!(names, ["b=docker.io/library/debian:latest :5", "a=r.example/x:1 :5"]);
    let owners = &rules.images.owners.as_ref().unwrap().rules;
    assert_eq!(
        owners.iter().map(|owner| owner.value.clone()).collect::<Vec<_>>(),
        [Owner::Root, Owner::Myself, Owner::Uid(17), Owner::Name("ada".to_owned())]
    );
    let mirror = &rules.images.mirrors[0];
    assert_eq!((mirror.registry.host.as_str(), mirror.registry.at.line), ("a.b", 8));
    assert_eq!((mirror.mirrors[0].repository.as_str(), mirror.mirrors[1].host.as_str()), ("e", "f.g:5000"));
    assert_eq!(rules.gpu.mode.as_ref().unwrap().value, GpuMode::Cdi("v.example/gpu=0".to_owned()));
    let modules: Vec<&str> = rules.modules.iter().map(|module| module.name.as_str()).collect();
    assert_eq!(modules, ["z", "m"]);
    assert_eq!(rules.modules[1].devices[0].value, "/dev/cxi*");
    assert_eq!(rules.log.facility.as_ref().unwrap().value, 23);
    assert_eq!(rules.premounted.directory.as_ref().unwrap().value, "/run/x/{digest}");
}

#[test]
fn owners() {
    for (owner, uid, name, is) in [
        (Owner::Root, 0, Some("root"), true),
        (Owner::Root, 1000, Some("root"), false),
        (Owner::Myself, 1000, None, true),
        (Owner::Myself, 0, None, false),
        (Owner::Uid(7), 7, None, true),
        (Owner::Uid(7), 8, None, false),
        (Owner::Name("images".into()), 7, Some("images"), true),
        (Owner::Name("images".into()), 7, Some("image"), false),
        (Owner::Name("images".into()), 7, None, false),
    ] {
        assert_eq!(owner.is(uid, name.map(OsStr::new), 1000), is, "{owner:?} {uid} {name:?}");
    }
}

/// Every key has a default to show, and none that is not a key.
#[test]
fn every_key_has_its_default() {
    let defaults: Vec<&str> = hpcrun::policy::defaults::DEFAULTS.iter().map(|(key, _)| *key).collect();
    let known = keys();
    let of_sections: Vec<&str> =
        known.iter().map(String::as_str).filter(|key| !key.starts_with("modules.")).collect();
    assert_eq!(defaults, of_sections);
}
