//! Files of `registries.conf`, alone and over each other.

use super::*;

fn read(text: &str) -> RegistriesConf {
    let mut conf = RegistriesConf::default();
    conf.add(Path::new("/r.conf"), text).unwrap_or_else(|error| panic!("{text}: {error}"));
    conf
}

#[track_caller]
fn check_refused(text: &str, expected: &str) {
    let mut conf = RegistriesConf::default();
    let error = conf.add(Path::new("/r.conf"), text).expect_err(text).to_string();
    assert_eq!(error, format!("cannot use /r.conf:{expected}"), "{text}");
    assert_eq!(conf, RegistriesConf::default(), "what is broken changes nothing");
}

/// The prefix of the rule for a reference, or nothing.
#[track_caller]
fn check_rule(conf: &RegistriesConf, reference: &str, prefix: &str) {
    let reference = Reference::parse(reference).unwrap();
    let found = conf.rule_for(&reference).map_or("", |(rule, _)| rule.prefix.as_str());
    assert_eq!(found, prefix, "{reference}");
}

#[test]
fn a_registry_with_everything() {
    let conf = read(
        "unqualified-search-registries = ['a.org', 'b.org:5000/x/']\nshort-name-mode = 'enforcing'\n\n[[registry]]\n\
         prefix = 'c.org/x/'\nlocation = 'd.org:1/y'\ninsecure = true\nblocked = true\n[[registry.mirror]]\n\
         location = 'e.org'\n[[registry.mirror]]\nlocation = 'f.org/z'\ninsecure = true\npull-from-mirror = 'tag-only'\n",
    );
    let rule = &conf.rules[0];
    assert_eq!((rule.prefix.as_str(), rule.location.as_deref()), ("c.org/x", Some("d.org:1/y")));
    assert!(rule.insecure && rule.blocked);
    assert_eq!(rule.at.to_string(), "/r.conf:4");
    let mirrors: Vec<_> = rule
        .mirrors
        .iter()
        .map(|mirror| (mirror.location.as_str(), mirror.insecure, mirror.serves))
        .collect();
    assert_eq!(mirrors, [("e.org", false, Serves::All), ("f.org/z", true, Serves::TagsOnly)]);
    assert_eq!(conf.search().0, ["a.org", "b.org:5000/x"]);
    assert_eq!(conf.search().1.map(|at| at.line), Some(1));
}

#[test]
fn the_longest_prefix_wins() {
    let registry = |prefix: &str| format!("[[registry]]\nprefix = '{prefix}'\nlocation = 'x.org'\n");
    let text: String = [
        "a.org",
        "a.org/ns",
        "a.org/ns/app",
        "a.org:5000",
        "*.b.org",
        "c.b.org",
        "d.org/app:1",
        "docker.io/library",
    ]
    .map(registry)
    .concat();
    let conf = read(&text);
    check_rule(&conf, "a.org/other", "a.org");
    check_rule(&conf, "a.org/ns", "a.org/ns");
    check_rule(&conf, "a.org/ns:5", "a.org/ns");
    check_rule(&conf, "a.org/nsx/y", "a.org");
    check_rule(&conf, "a.org/ns/app/part:1", "a.org/ns/app");
    check_rule(&conf, "a.org:5000/ns/app", "a.org:5000");
    check_rule(&conf, "a.org:5001/ns/app", "");
    check_rule(&conf, "a.org.evil/ns", "");
    check_rule(&conf, "x.b.org/a", "*.b.org");
    check_rule(&conf, "x.y.b.org:99/a", "*.b.org");
    check_rule(&conf, "c.b.org/a", "c.b.org");
    check_rule(&conf, "b.org/a", "");
    check_rule(&conf, "d.org/app:1", "d.org/app:1");
    check_rule(&conf, "d.org/app:10", "");
    check_rule(&conf, "alpine", "docker.io/library");
    check_rule(&conf, "me/app", "");
}

#[test]
fn later_files_lie_over_earlier_ones() {
    let mut conf = read(
        "unqualified-search-registries = ['a.org']\ncredential-helpers = ['one']\n[[registry]]\nlocation = 'r.org'\n\
         blocked = true\n[[registry]]\nlocation = 's.org'\ninsecure = true\n[aliases]\n'x' = 'a.org/x'\n'y' = 'a.org/y'\n",
    );
    let later =
        "[[registry]]\nlocation = 'r.org'\n[aliases]\n'x' = ''\n'y' = 'b.org/y'\n'z' = 'docker.io/z'\n";
    conf.add(Path::new("/later.conf"), later).unwrap();
    let rule = |name: &str| conf.rule_for(&Reference::parse(name).unwrap()).unwrap().0.clone();
    assert!(!rule("r.org/a").blocked && rule("r.org/a").at.path == Path::new("/later.conf"));
    assert!(rule("s.org/a").insecure);
    assert_eq!(conf.search().0, ["a.org"]);
    assert_eq!(conf.credential_helpers(), ["one"]);
    assert_eq!(conf.alias("x"), None);
    assert_eq!(conf.alias("y").unwrap().name, "b.org/y");
    assert_eq!(conf.alias("z").unwrap().name, "docker.io/library/z");
    let last = "unqualified-search-registries = []\ncredential-helpers = ['containers-auth.json', 'two']";
    conf.add(Path::new("/last.conf"), last).unwrap();
    assert!(conf.search().0.is_empty());
    assert_eq!(conf.credential_helpers(), ["containers-auth.json", "two"]);
    assert_eq!(RegistriesConf::default().credential_helpers(), [AUTH_FILES]);
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    check_refused("\nregistry = 7", "2: invalid type: integer `7`, expected a sequence");
    check_refused("a = 1\na = 2", "2: duplicate key");
    check_refused("[[registry]]\n[[registry]]\n", "1: a registry has neither prefix nor location");
    check_refused(
        "\n\n[[registry]]\nprefix = 'a.org'",
        "3: a registry with a prefix other than *.DOMAIN needs a location",
    );
    check_refused(
        "[[registry]]\nlocation = 'https://a.org'",
        "1: \"https://a.org\" is a URL; host[:port][/path] is expected, without a scheme",
    );
    for bad in ["mirror", "mirror/x", "a.org/Upper", "a.org//x", "-a.org", "a b.org"] {
        let text = format!("[[registry]]\nlocation = '{bad}'");
        check_refused(&text, &format!("1: {bad:?} does not begin with a registry, host[:port][/path]"));
    }
    for bad in ["*.a.org/x", "*.a.org:50", "*.", "*.*.org"] {
        let text = format!("[[registry]]\nprefix = '{bad}'");
        check_refused(
            &text,
            &format!("1: {bad:?}: a wildcard stands for the first part of a host, *.DOMAIN"),
        );
    }
    check_refused(
        "[[registry]]\nlocation='a.org'\npull-from-mirror='all'",
        "1: pull-from-mirror is said of a mirror, not of a registry",
    );
    let mirror = |text: &str| format!("[[registry]]\nlocation='a.org'\n{text}");
    check_refused(&mirror("[[registry.mirror]]\ninsecure=true"), "3: a mirror has no location");
    check_refused(
        &mirror("[[registry.mirror]]\nlocation='b.org'\npull-from-mirror='some'"),
        "3: pull-from-mirror is all, digest-only or tag-only, not \"some\"",
    );
    check_refused(
        &mirror("mirror-by-digest-only=true\n[[registry.mirror]]\nlocation='b.org'\npull-from-mirror='all'"),
        "4: pull-from-mirror cannot be said together with the registry's mirror-by-digest-only",
    );
}

#[test]
fn aliases_that_make_no_sense() {
    for name in ["a.org/x", "x:1", "localhost/x", "X", ""] {
        check_refused(
            &format!("[aliases]\n'{name}' = 'a.org/x'"),
            &format!("2: alias {name:?} is no short name: it has a registry, a tag or a digest"),
        );
    }
    for value in ["x", "team/x", "a.org/x:1", "https://a.org/x"] {
        check_refused(
            &format!("[aliases]\n'x' = '{value}'"),
            "2: alias \"x\" must stand for registry/repository, without tag or digest",
        );
    }
}

#[test]
fn unknown_keys_are_told_and_passed_over() {
    let mut conf = RegistriesConf::default();
    let text = "colour = 1\n[[registry]]\nlocation = 'a.org'\nblockd = true\n[[registry.mirror]]\nlocation = 'b.org'\n\
                speed = 9\n[aliases]\n'x' = 'a.org/x'\n";
    assert_eq!(
        conf.add(Path::new("/r"), text).unwrap(),
        ["colour", "registry.blockd", "registry.mirror.speed"]
    );
    check_rule(&conf, "a.org/x", "a.org");
    assert_eq!(read(""), RegistriesConf::default());
}

#[test]
fn version_1() {
    let conf = read(
        "[registries.search]\nregistries = ['a.org', 'b.org']\n[registries.insecure]\nregistries = ['c.org:5000']\n\
         [registries.block]\nregistries = ['d.org', 'c.org:5000']\n",
    );
    assert_eq!(conf.search().0, ["a.org", "b.org"]);
    let rule = |name: &str| conf.rule_for(&Reference::parse(name).unwrap()).unwrap().0.clone();
    assert!(rule("c.org:5000/x").insecure && rule("c.org:5000/x").blocked);
    assert!(!rule("d.org/x").insecure && rule("d.org/x").blocked);
    assert_eq!(rule("d.org/x").at.line, 6);
    check_refused(
        "[registries.block]\nregistries = ['a.org']\n[[registry]]\nlocation = 'b.org'",
        "1: it mixes version 1, [registries.*], with version 2",
    );
}
