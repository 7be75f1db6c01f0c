//! What auth files say, and how they are changed.

use super::*;

fn file(contents: &str) -> AuthFile {
    AuthFile { path: "/home/u/auth.json".into(), contents: contents.as_bytes().to_vec() }
}

fn auth(text: &str) -> String {
    format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(text))
}

fn shown(found: Found) -> String {
    match found {
        Found::Login(Login::Password { user, password }) => format!("{user}:{password}"),
        Found::Login(Login::IdentityToken(token)) => format!("identity:{token}"),
        Found::Login(Login::RegistryToken(token)) => format!("registry:{token}"),
        Found::Helper(name) => format!("helper:{name}"),
    }
}

/// `user:password`, `identity:...`, `registry:...`, `helper:...`, in order.
#[track_caller]
fn check(text: &str, reference: &str, expected: &[&str]) {
    let (registry, repository) = reference.split_once('/').unwrap();
    let found: Vec<String> =
        file(text).search(registry, repository).unwrap().into_iter().map(shown).collect();
    assert_eq!(found, expected, "{reference} in {text}");
}

#[test]
fn most_specific_key_first() {
    let text = format!(
        r#"{{"auths":{{"r.org":{},"r.org/team":{},"r.org/team/app":{},"r.org:5000":{}}}}}"#,
        auth("host:1"),
        auth("team:2"),
        auth("app:3"),
        auth("port:4")
    );
    check(&text, "r.org/other", &["host:1"]);
    check(&text, "r.org/team/x", &["team:2", "host:1"]);
    check(&text, "r.org/team/app", &["app:3", "team:2", "host:1"]);
    check(&text, "r.org/team/app/part", &["app:3", "team:2", "host:1"]);
    check(&text, "r.org/teammate/x", &["host:1"]);
    check(&text, "r.org:5000/team/app", &["port:4"]);
    check(&text, "x.r.org/team", &[]);
    check(&text, "evil-r.org/team", &[]);
}

#[test]
fn docker_hub_and_old_keys() {
    for key in [
        "https://index.docker.io/v1/",
        "https://index.docker.io/v1",
        "index.docker.io/v1/",
        "index.docker.io",
        "docker.io",
        "docker.io/",
        "https://docker.io",
        "registry-1.docker.io",
        "https://index.docker.io/v2/",
    ] {
        check(&format!(r#"{{"auths":{{"{key}":{}}}}}"#, auth("hub:x")), "docker.io/library/a", &["hub:x"]);
    }
    for key in ["https://quay.io/v2/", "http://quay.io/v1", "https://quay.io", "quay.io/"] {
        check(&format!(r#"{{"auths":{{"{key}":{}}}}}"#, auth("q:x")), "quay.io/a", &["q:x"]);
    }
    check(&format!(r#"{{"quay.io":{}}}"#, auth("cfg:x")), "quay.io/a", &["cfg:x"]);
    let namespace = format!(r#"{{"auths":{{"quay.io/v1":{}}}}}"#, auth("namespace:x"));
    check(&namespace, "quay.io/a", &[]);
    check(&namespace, "quay.io/v1/a", &["namespace:x"]);
}

#[test]
fn kinds_of_entries() {
    let one = |entry: &str| format!(r#"{{"auths":{{"r.org":{entry}}}}}"#);
    check(&one(&auth("u:p:with:colons")), "r.org/a", &["u:p:with:colons"]);
    check(&one(&auth("u:p\0\0")), "r.org/a", &["u:p"]);
    check(&one(&auth("<token>:refresh")), "r.org/a", &["identity:refresh"]);
    check(&one(r#"{"auth":"dTpw","identitytoken":"id"}"#), "r.org/a", &["identity:id"]);
    check(&one(r#"{"auth":"dTpw","registrytoken":"rt"}"#), "r.org/a", &["registry:rt"]);
    check(&one(r#"{"username":"u","password":"p"}"#), "r.org/a", &["u:p"]);
    check(&one(r#"{"auth":"","username":"u","password":"p"}"#), "r.org/a", &["u:p"]);
    check(&one(r#"{"auth":"dTpwdw"}"#), "r.org/a", &["u:pw"]);
    check(&one(r#"{"auth":"dTpwdw","email":null,"extra":[1]}"#), "r.org/a", &["u:pw"]);
    for empty in ["{}", "null", "7", r#"{"auth":null}"#, r#"{"auth":7}"#, r#"{"username":"u"}"#] {
        check(&one(empty), "r.org/a", &[]);
    }
}

#[test]
fn null_and_strange_members() {
    for text in [
        "",
        " \n",
        "{}",
        r#"{"auths":null}"#,
        r#"{"auths":[],"credHelpers":null,"credsStore":null}"#,
        r#"{"credsStore":"","credHelpers":{"r.org":null}}"#,
        r#"{"credHelpers":7,"credsStore":[]}"#,
    ] {
        check(text, "r.org/a", &[]);
    }
}

#[test]
fn helpers() {
    let store = r#"{"auths":{"r.org":{}},"credsStore":"desktop"}"#;
    check(store, "r.org/a", &["helper:desktop"]);
    let both = format!(
        r#"{{"auths":{{"r.org":{}}},"credsStore":"s","credHelpers":{{"https://gcr.io":"gcloud","r.org/x":"special"}}}}"#,
        auth("u:p")
    );
    check(&both, "r.org/a", &["u:p", "helper:s"]);
    check(&both, "r.org/x/y", &["helper:special", "u:p", "helper:s"]);
    check(&both, "gcr.io/p/i", &["helper:gcloud", "helper:s"]);
    check(&both, "other.org/p", &["helper:s"]);
    assert_eq!(file(&both).helper("gcr.io").unwrap().as_deref(), Some("gcloud"));
    assert_eq!(file(&both).helper("r.org").unwrap().as_deref(), Some("s"));
    assert_eq!(file("{}").helper("r.org").unwrap(), None);
    assert_eq!(server_names("docker.io"), ["https://index.docker.io/v1/", "docker.io"]);
}

#[test]
fn broken_files_are_named_without_their_content() {
    for (text, part) in [
        (r#"{"auths":{"r.org":{"auth":"canary"#, "line 1"),
        ("{\n\"auths\": {\n\"canary\",\n", "line 3"),
        (r#"["canary"]"#, "not a JSON object"),
        ("canary", "line 1"),
        (r#""canary""#, "not a JSON object"),
        (r#"{"auths":{"r.org":{"auth":"canary!"}}}"#, "\"r.org\": auth is not USER:PASSWORD"),
        (r#"{"auths":{"r.org":{"auth":"bm9jb2xvbg=="}}}"#, "\"r.org\": auth is not"),
    ] {
        let error = file(text).search("r.org", "a").unwrap_err().to_string();
        assert!(error.contains("/home/u/auth.json") && error.contains(part), "{error}");
        assert!(!error.contains("canary"), "{error}");
        if !text.contains("r.org\":{\"auth\":\"canary!") && !text.contains("bm9j") {
            let error = file(text).with_login("r.org", "u", "p").unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("canary"), "{error}");
        }
    }
    let error = file(r#"{"auths":"canary"}"#).with_login("r.org", "u", "p").unwrap_err().to_string();
    assert!(error.contains("auths is not a JSON object") && !error.contains("canary"), "{error}");
    // Only the entry that is asked for has to make sense.
    check(r#"{"auths":{"other.org":{"auth":"!"}}}"#, "r.org/a", &[]);
    assert!(!format!("{:?}", file("canary")).contains("canary"));
}

#[test]
fn secrets() {
    for (text, holds) in [
        ("", false),
        ("broken", false),
        (r#"{"credsStore":"s","auths":{"r.org":{}}}"#, false),
        (r#"{"auths":{"r.org":{"auth":"x"}}}"#, true),
        (r#"{"auths":{"r.org":{"identitytoken":"x"}}}"#, true),
        (r#"{"r.org":{"auth":"x"}}"#, true),
    ] {
        assert_eq!(file(text).holds_secrets(), holds, "{text}");
    }
}

#[track_caller]
fn check_changed(bytes: Vec<u8>, expected: &str) {
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(text, expected);
    serde_json::from_str::<Value>(&text).unwrap();
}

#[test]
fn a_login_is_added() {
    let fresh = "{\n\t\"auths\": {\n\t\t\"r.org\": {\"auth\":\"dTpw\"}\n\t}\n}\n";
    for empty in ["", "\n", "{}", r#"{"auths":{}}"#, r#"{"auths":null}"#] {
        check_changed(file(empty).with_login("r.org", "u", "p").unwrap(), fresh);
    }
    let kept = r#"{"z":1.50e3,"auths":{"b":{"auth":"x",  "k":[1]},"a":{}},"credsStore":"s","a":{"n":9007199254740993}}"#;
    check_changed(
        file(kept).with_login("r.org", "u", "p").unwrap(),
        "{\n\t\"z\": 1.50e3,\n\t\"auths\": {\n\t\t\"b\": {\"auth\":\"x\",  \"k\":[1]},\n\t\t\"a\": {},\n\t\t\"r.org\": \
         {\"auth\":\"dTpw\"}\n\t},\n\t\"credsStore\": \"s\",\n\t\"a\": {\"n\":9007199254740993}\n}\n",
    );
}

#[test]
fn a_login_replaces_all_under_its_names() {
    let old = r#"{"auths":{"x":{},"https://r.org/v1/":{"auth":"1"},"y":{},"r.org":{"auth":"2"},"r.org/ns":{"auth":"3"}}}"#;
    check_changed(
        file(old).with_login("r.org", "u", "p").unwrap(),
        "{\n\t\"auths\": {\n\t\t\"x\": {},\n\t\t\"https://r.org/v1/\": {\"auth\":\"dTpw\"},\n\t\t\"y\": {},\n\t\t\"r.org/ns\": \
         {\"auth\":\"3\"}\n\t}\n}\n",
    );
    let docker = AuthFile { path: "/home/u/.docker/config.json".into(), contents: Vec::new() };
    let written = String::from_utf8(docker.with_login("docker.io", "u", "p").unwrap()).unwrap();
    assert!(written.contains("\"https://index.docker.io/v1/\": {\"auth\""), "{written}");
    let written = String::from_utf8(file("").with_login("docker.io", "u", "p").unwrap()).unwrap();
    assert!(written.contains("\"docker.io\": {\"auth\""), "{written}");
    let ancient =
        AuthFile { path: "/home/u/.dockercfg".into(), contents: br#"{"r.org":{"auth":"1"}}"#.to_vec() };
    check_changed(ancient.with_login("r.org", "u", "p").unwrap(), "{\n\t\"r.org\": {\"auth\":\"dTpw\"}\n}\n");
}

#[test]
fn odd_names_and_passwords_survive() {
    for (user, password) in [("u", "\"\\\n\u{1F600}"), ("a b", "p:q:r"), ("u", "")] {
        let bytes = file("").with_login("r.org", user, password).unwrap();
        let again = AuthFile { path: "/a".into(), contents: bytes };
        let found = again.search("r.org", "x").unwrap();
        assert_eq!(found, [Found::Login(Login::new(user, password).unwrap())]);
    }
}

#[test]
fn a_login_is_taken_out() {
    let text = r#"{"auths":{"r.org":{"auth":"1"},"https://r.org/v2/":{},"r.org/ns":{"auth":"3"}},"k":1}"#;
    check_changed(
        file(text).without_login("r.org").unwrap().unwrap(),
        "{\n\t\"auths\": {\n\t\t\"r.org/ns\": {\"auth\":\"3\"}\n\t},\n\t\"k\": 1\n}\n",
    );
    check_changed(
        file(r#"{"auths":{"r.org":{}}}"#).without_login("r.org").unwrap().unwrap(),
        "{\n\t\"auths\": {}\n}\n",
    );
    assert_eq!(file(text).without_login("other.org").unwrap(), None);
    assert_eq!(file("").without_login("r.org").unwrap(), None);
    check_changed(file(text).without_logins().unwrap(), "{\n\t\"auths\": {},\n\t\"k\": 1\n}\n");
    assert_eq!(file(text).registries().unwrap(), ["r.org", "r.org/ns"]);
}
