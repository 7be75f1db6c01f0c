//! `WWW-Authenticate`: every challenge of every header, in any order and case (RFC 9110, section 11.6.1).

/// One challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// Lower case: `bearer`, `basic`.
    pub(super) scheme: String,
    /// Names in lower case.
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The parameter `name`.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Parses the values of all `WWW-Authenticate` headers of an answer. What cannot be understood is passed over: another
/// challenge may still do.
pub(super) fn parse_challenges<'a>(headers: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    headers.into_iter().flat_map(parse_header).collect()
}

/// The scopes of a challenge's `scope` that are repositories, each reduced to `repository:NAME:pull`.
pub(super) fn pull_scopes(text: &str) -> Vec<String> {
    /// No registry needs more for one image.
    const MOST: usize = 4;
    let repository = |scope: &str| {
        let name = scope.strip_prefix("repository:")?.rsplit_once(':')?.0;
        // A name may hold a host with its port.
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b"._-/:".contains(&b);
        let sensible = (1..=512).contains(&name.len()) && name.bytes().all(is_name);
        sensible.then(|| format!("repository:{name}:pull"))
    };
    let mut scopes: Vec<String> = Vec::new();
    for scope in text.split_ascii_whitespace().filter_map(repository).take(MOST) {
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    scopes
}

fn parse_header(text: &str) -> Vec<Challenge> {
    let mut scanner = Scanner { rest: text };
    let mut challenges: Vec<Challenge> = Vec::new();
    while !scanner.rest.is_empty() {
        scanner.skip(|c| c == ',' || c == ' ' || c == '\t');
        let word = scanner.take(is_token);
        if word.is_empty() {
            // Not a token: pass over one character and go on.
            scanner.advance();
            continue;
        }
        let spaces = scanner.skip(|c| c == ' ' || c == '\t');
        if scanner.rest.starts_with('=') && !scanner.rest.starts_with("==") {
            let value = scanner.value();
            if let (Some(challenge), Some(value)) = (challenges.last_mut(), value) {
                challenge.parameters.push((word.to_ascii_lowercase(), value));
            }
        } else {
            challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
            if spaces {
                scanner.skip_token68();
            }
        }
    }
    challenges
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        let (head, tail) = self.rest.split_at_checked(end).unwrap_or((self.rest, ""));
        self.rest = tail;
        head
    }

    fn skip(&mut self, wanted: impl Fn(char) -> bool) -> bool {
        !self.take(wanted).is_empty()
    }

    fn advance(&mut self) {
        let mut characters = self.rest.chars();
        characters.next();
        self.rest = characters.as_str();
    }

    /// After a name: `= value` or `= "quoted"`; none if the quote does not end.
    fn value(&mut self) -> Option<String> {
        self.advance();
        self.skip(|c| c == ' ' || c == '\t');
        if !self.rest.starts_with('"') {
            // Some registries send unquoted URLs.
            return Some(self.take(|c| c != ',' && c != ' ' && c != '\t').to_owned());
        }
        let mut value = String::new();
        let mut characters = self.rest.chars();
        characters.next();
        while let Some(character) = characters.next() {
            match character {
                '"' => {
                    self.rest = characters.as_str();
                    return Some(value);
                }
                '\\' => value.extend(characters.next()),
                _ => value.push(character),
            }
        }
        self.rest = "";
        None
    }

    /// A token68 such as Negotiate's, which is one blob and no parameter.
    fn skip_token68(&mut self) {
        let end = self.rest.find(',').unwrap_or(self.rest.len());
        let (blob, tail) = self.rest.split_at_checked(end).unwrap_or((self.rest, ""));
        let blob = blob.trim_end();
        let body = blob.trim_end_matches('=');
        let is_blob =
            !body.is_empty() && body.chars().all(|c| c.is_ascii_alphanumeric() || "-._~+/".contains(c));
        // "a=" could be a parameter without value; with a blob nothing follows but a comma.
        if is_blob {
            self.rest = tail;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scheme key=value key=value; scheme ...`
    #[track_caller]
    fn check(headers: &[&str], expected: &str) {
        let found: Vec<String> = parse_challenges(headers.iter().copied())
            .iter()
            .map(|challenge| {
                let parameters = challenge.parameters.iter().map(|(key, value)| format!(" {key}={value}"));
                format!("{}{}", challenge.scheme, parameters.collect::<String>())
            })
            .collect();
        assert_eq!(found.join("; "), expected, "{headers:?}");
    }

    #[test]
    fn real_registries() {
        check(
            &[
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull""#,
            ],
            "bearer realm=https://auth.docker.io/token service=registry.docker.io scope=repository:library/debian:pull",
        );
        check(&[r#"Basic realm="Registry Realm""#], "basic realm=Registry Realm");
        check(
            &[r#"Basic realm="a", Bearer realm="b",service="c""#],
            "basic realm=a; bearer realm=b service=c",
        );
        check(
            &[r#"Bearer realm="b",service="c",Basic realm="a""#],
            "bearer realm=b service=c; basic realm=a",
        );
        check(&["Negotiate", r#"Basic realm="x""#], "negotiate; basic realm=x");
        check(&["Negotiate, NTLM", r#"Bearer realm="x""#], "negotiate; ntlm; bearer realm=x");
        check(&[r#"Negotiate YII+/abc==, Basic realm="x""#], "negotiate; basic realm=x");
        check(
            &[r#"Bearer realm="x", error="invalid_token", error_description="The, token=expired""#],
            "bearer realm=x error=invalid_token error_description=The, token=expired",
        );
    }

    #[test]
    fn odd_but_legal() {
        check(&[r#"bEaReR REALM="X""#], "bearer realm=X");
        check(&[r#"Bearer realm=https://h/token,service=s"#], "bearer realm=https://h/token service=s");
        check(&[r#"Bearer realm = "x" , service	=	"y""#], "bearer realm=x service=y");
        check(&[r#"Bearer realm="a\"b\\c""#], r#"bearer realm=a"b\c"#);
        check(&[r#",, Basic realm="x",,"#], "basic realm=x");
        check(&["Basic"], "basic");
        check(&[""], "");
        check(&[], "");
        check(&[r#"Bearer realm="",service="s""#], "bearer realm= service=s");
        check(&[r#"Basic realm="x" charset="UTF-8""#], "basic realm=x charset=UTF-8");
    }

    #[test]
    fn scopes() {
        for (text, expected) in [
            ("repository:a/b:pull", "repository:a/b:pull"),
            ("repository:a/b:pull,push,delete", "repository:a/b:pull"),
            ("repository:a:* repository:b:pull", "repository:a:pull repository:b:pull"),
            ("repository:host:5000/a:pull", "repository:host:5000/a:pull"),
            ("repository:a:pull  repository:a:push", "repository:a:pull"),
            ("registry:catalog:*", ""),
            ("repository:a", ""),
            ("repository::pull", ""),
            ("repository:a&b=c:pull", ""),
            ("x", ""),
            ("", ""),
        ] {
            assert_eq!(pull_scopes(text).join(" "), expected, "{text:?}");
        }
        assert_eq!(
            pull_scopes(&(0..50).map(|n| format!("repository:r{n}:pull ")).collect::<String>()).len(),
            4
        );
        assert!(pull_scopes(&format!("repository:{}:pull", "x".repeat(5000))).is_empty());
    }

    #[test]
    fn hostile() {
        check(&[r#"Bearer realm="unterminated"#], "bearer");
        check(&[r#"="x", realm="y""#], "x realm=y");
        check(&["\"\"\"\u{e9}\u{0}()<>@"], "");
        check(&[r#"realm="x" Basic realm="y""#], "basic realm=y");
        let long = "a,".repeat(100_000);
        assert_eq!(parse_challenges([long.as_str()]).len(), 100_000);
        let mut state = 1u64;
        for _ in 0..20_000 {
            let text: String = (0..20)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                    char::from(b"aB=\",\\ \t~/\xe9"[(state >> 33) as usize % 11])
                })
                .collect();
            parse_challenges([text.as_str()]);
        }
    }

    #[test]
    fn any_text_ends() {
        let pieces = [
            "Bearer ",
            "realm",
            "=",
            "\"",
            "\\",
            ",",
            " ",
            "\t",
            "abc==",
            "\u{e9}",
            "\0",
            "Basic",
            "scope=\"x\"",
            "==",
        ];
        // Every row of up to five pieces: more than half a million texts.
        let count = pieces.len();
        for number in 0..count.pow(5) {
            let text: String = (0..5).map(|at| pieces[number / count.pow(at) % count]).collect();
            for challenge in parse_challenges([text.as_str()]) {
                assert!(!challenge.scheme.is_empty() && challenge.scheme.chars().all(is_token), "{text:?}");
            }
        }
    }
}
