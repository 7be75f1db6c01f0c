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
use hpcrun::policy::{POLICY_PATH, Policy};

use crate::support;

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
        ("[zzz]\n", "valid here: binds, home, env, images, launch, convert, premounted"),
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
    let (binds, left_out) = policy(text).site_binds(&ada.variables()).unwrap();
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
        let refusal = policy(text).site_binds(&ada.variables()).unwrap_err();
        assert_eq!(refusal.rule.line, 2);
        assert!(refusal.what.contains("must be bound"), "{refusal}");
    }
    let text = "[binds]\nforced = [{ source = \"$NOBODY/x\", optional = true }]";
    assert_eq!(policy(text).site_binds(&ada.variables()).unwrap().0.len(), 0);
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
fn what_is_no_policy_file_is_refused() {
    let Some((dir, path)) = root_file("") else {
        return own_file_is_refused();
    };
    let error = probe::read_policy(dir.path()).unwrap_err();
    assert!(error.to_string().starts_with("cannot read site policy"), "{error}");
    fs::write(&path, b"# \xff\n").unwrap();
    let error = probe::read_policy(&path).unwrap_err().to_string();
    assert!(error.ends_with("is not UTF-8 (at byte 2)"), "{error}");
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
    symlink("/tmp/nonexistent-policy", dir.path().join("dangling")).unwrap();
    assert_eq!(probe::read_policy(&dir.path().join("dangling")).unwrap(), None);
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
    let uncommented: String = text
        .lines()
        .map(|line| line.strip_prefix("#: ").unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect();
    let policy = Policy::parse(&file, &uncommented).unwrap_or_else(|error| panic!("{error}"));
    assert!(policy.rules().binds.allowed.is_some());
    for key in keys() {
        let (section, key) = key.split_once('.').unwrap_or((&key, ""));
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
    let mut known: Vec<String> = keys().into_iter().filter(|key| key.contains('.')).collect();
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
