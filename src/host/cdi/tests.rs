//! Specifications of every version, and what is done with several of them.

use super::*;

fn spec(version: &str, rest: &str) -> String {
    format!("cdiVersion: {version}\nkind: vendor.example/gpu\n{rest}")
}

const PLAIN: &str = "devices:\n- name: zero\n  containerEdits:\n    env: [A=1]\n";

fn parse(text: &str) -> Result<Spec, SpecError> {
    Spec::parse(Path::new("x.yaml"), text.as_bytes())
}

fn file(path: &str, priority: usize, text: &str) -> SpecFile {
    SpecFile { path: path.into(), priority, content: Ok(text.as_bytes().to_vec()) }
}

#[test]
fn every_version_is_read() {
    // The reference implementation reads the two before 0.3.0, too.
    let versions =
        ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0", "v0.5.0"];
    for version in versions {
        let yaml = parse(&spec(version, PLAIN));
        let json = format!(
            r#"{{"cdiVersion": "{version}", "kind": "vendor.example/gpu",
                "devices": [{{"name": "zero", "containerEdits": {{"env": ["A=1"]}}}}]}}"#
        );
        assert!(yaml.is_ok(), "{version}: {yaml:?}");
        assert_eq!(Spec::parse(Path::new("x.json"), json.as_bytes()), yaml, "{version}");
    }
    for version in ["2.0.0", "0.9.0", "1.2.0", "\"\"", "1"] {
        assert!(parse(&spec(version, PLAIN)).is_err(), "{version}");
    }
}

#[test]
fn every_field_has_its_least_version() {
    let edits = |edits: &str| format!("{PLAIN}containerEdits:\n  {edits}\n");
    let cases = [
        ("0.4.0", edits("mounts: [{hostPath: /a, containerPath: /a, type: bind}]")),
        ("0.5.0", edits("deviceNodes: [{path: /dev/a, hostPath: /dev/b}]")),
        ("0.5.0", PLAIN.replace("zero", "\"0\"")),
        ("0.6.0", format!("{PLAIN}annotations: {{a: b}}\n")),
        ("0.7.0", edits("additionalGids: [5]")),
        ("0.7.0", edits("intelRdt: {closID: a}")),
        ("1.1.0", edits("netDevices: [{hostInterfaceName: a, name: b}]")),
        ("1.1.0", edits("intelRdt: {schemata: [a]}")),
        ("1.1.0", edits("intelRdt: {enableMonitoring: true}")),
    ];
    let versions = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
    for (least, rest) in cases {
        for version in versions {
            let parsed = parse(&spec(version, &rest));
            // The versions of this table sort as text.
            if version < least {
                assert!(
                    matches!(parsed, Err(SpecError::TooOld { needed, .. }) if needed == least),
                    "{version}: {rest}"
                );
            } else {
                assert!(parsed.is_ok(), "{version}: {rest}: {parsed:?}");
            }
        }
    }
    let dotted = spec("0.5.0", PLAIN).replace("/gpu", "/gpu.x");
    assert!(parse(&dotted).is_err() && parse(&dotted.replace("0.5.0", "0.6.0")).is_ok());
}

#[test]
fn bad_files_are_refused() {
    let edits = |edits: &str| spec("1.0.0", &format!("{PLAIN}containerEdits:\n  {edits}\n"));
    for text in [
        spec("1.0.0", &format!("{PLAIN}unknown: 1\n")),
        edits("unknown: 1"),
        edits("env: [A]"),
        edits("env: ['=x']"),
        edits("mounts: [{hostPath: a, containerPath: /a}]"),
        edits("mounts: [{hostPath: /a}]"),
        edits("deviceNodes: [{path: dev/a}]"),
        edits("hooks: [{hookName: never, path: /a}]"),
        edits("hooks: [{hookName: prestart, path: a}]"),
        edits("additionalGids: [-1]"),
        spec("1.0.0", ""),
        spec("1.0.0", "devices: []\n"),
        spec("1.0.0", "devices:\n- name: a\n"),
        spec("1.0.0", "devices:\n- name: a b\n  containerEdits: {env: [A=1]}\n"),
        spec("1.0.0", &format!("{PLAIN}- name: zero\n  containerEdits: {{env: [A=1]}}\n")),
        spec("1.0.0", PLAIN).replace("vendor.example/gpu", "gpu"),
        "kind: a/b\n".to_owned(),
        String::new(),
    ] {
        assert!(parse(&text).is_err(), "{text}");
    }
    assert!(Spec::parse(Path::new("x.json"), b"{\"cdiVersion\": \"1.0.0\"").is_err());
}

#[test]
fn json_and_yaml_say_the_same() {
    let json = r#"{"cdiVersion": "1.0.0", "kind": "vendor.example/gpu", "devices":
        [{"name": "zero", "containerEdits": {"env": ["A=1"], "mounts": null}}]}"#;
    assert_eq!(Spec::parse(Path::new("x.json"), json.as_bytes()), parse(&spec("1.0.0", PLAIN)));
}

#[test]
fn a_later_directory_is_stronger_and_equals_are_a_conflict() {
    let device = |name: &str, value: &str| {
        spec("1.0.0", &format!("devices:\n- name: {name}\n  containerEdits: {{env: [A={value}]}}\n"))
    };
    let registry = Registry::new([
        file("/etc/cdi/a.yaml", 0, &device("one", "weak")),
        file("/run/cdi/a.yaml", 1, &device("one", "strong")),
        file("/etc/cdi/b.yaml", 0, &device("two", "x")),
        file("/etc/cdi/c.yaml", 0, &device("two", "y")),
        file("/etc/cdi/bad.yaml", 1, "bad"),
        SpecFile {
            path: "/etc/cdi/secret.yaml".into(),
            priority: 1,
            content: Err("Permission denied".to_owned()),
        },
    ]);
    let edits = |name: &str| registry.edits(&[format!("vendor.example/gpu={name}")]);
    assert_eq!(edits("one").unwrap().env, [("A".to_owned(), "strong".to_owned())]);
    assert!(matches!(edits("two"), Err(ResolveError::Conflict { files, .. }) if files.len() == 2));
    assert!(matches!(edits("three"), Err(ResolveError::Unknown { known, .. }) if known.len() == 2));
    assert_eq!(registry.problems.len(), 3, "{:?}", registry.problems);
    assert!(registry.problems[2].contains("/etc/cdi/b.yaml, /etc/cdi/c.yaml"), "{:?}", registry.problems);
    assert_eq!(registry.all_of("vendor.example/gpu"), ["vendor.example/gpu=one"]);
}

#[test]
fn edits_come_together() {
    let text = spec(
        "1.0.0",
        "containerEdits:\n  env: [A=spec, B=spec]\n  hooks: [{hookName: createContainer, path: /h}]\n  mounts:\n  - {hostPath: /x/y/z, \
         containerPath: /x/y/z}\n  - {hostPath: /x, containerPath: /x}\n  additionalGids: [7, 0]\ndevices:\n- name: a\n  \
         containerEdits:\n    env: [A=a]\n    deviceNodes: [{path: /dev/a}]\n    additionalGids: [7, 5]\n- name: b\n  containerEdits:\n    \
         deviceNodes: [{path: /dev/a, hostPath: /dev/b}]\n    mounts: [{hostPath: /other, containerPath: /x}]\n- name: all\n  \
         containerEdits: {env: [A=all]}\n",
    );
    let registry = Registry::new([file("/etc/cdi/a.yaml", 0, &text)]);
    let names = ["a", "b"].map(|name| format!("vendor.example/gpu={name}"));
    let edits = registry.edits(&names).unwrap();
    assert_eq!(
        edits.env,
        [("B", "spec"), ("A", "a")].map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
    assert_eq!(edits.hooks.len(), 1, "a specification's own edits come once");
    let mounts: Vec<(&str, &str)> =
        edits.mounts.iter().map(|mount| (mount.host_path.as_str(), mount.container_path.as_str())).collect();
    assert_eq!(mounts, [("/other", "/x"), ("/x/y/z", "/x/y/z")]);
    assert_eq!(edits.device_nodes.len(), 1);
    assert_eq!(edits.device_nodes[0].host_path.as_deref(), Some("/dev/b"));
    assert_eq!(edits.groups, [5, 7]);
    assert_eq!(registry.all_of("vendor.example/gpu"), ["vendor.example/gpu=all"]);
}
