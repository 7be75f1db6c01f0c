//! Challenges, logins and tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hpcrun::convert::source::registry::{AuthFile, Login};

use super::scenario::Outcome::{Pulled, Refused};
use super::scenario::{BASIC, CANARY, Scenario, World, run};
use super::scripted::{Log, Reply, Request, honest};

#[test]
fn challenges() {
    run(CHALLENGES);
}

#[test]
fn token_servers() {
    run(TOKEN_SERVERS);
}

#[test]
fn tokens_that_run_out() {
    run(EXPIRY);
}

/// A registry that wants the token `t0ken`, which its own `/token` gives out, and challenges so where `HOST` is itself.
fn with_tokens(world: &mut World, challenges: &'static [&'static str], token: fn(&Request) -> Reply) -> Log {
    let image = world.image.clone();
    world.serve(move |request, _| {
        if request.target.starts_with("/token") {
            return token(request);
        }
        if request.header("authorization") == Some("Bearer t0ken") {
            return honest(&image, request);
        }
        let host = request.header("host").unwrap();
        challenges.iter().fold(Reply::new(401), |reply, challenge| {
            reply.and_header("WWW-Authenticate", &challenge.replace("HOST", host))
        })
    })
}

const BEARER: &[&str] = &["Bearer realm=\"http://HOST/token\",service=\"the registry\",scope=\"x\""];

fn good_token(_: &Request) -> Reply {
    Reply::ok(r#"{"token":"t0ken","expires_in":300}"#)
}

/// A token for the user's password alone.
fn for_the_password(request: &Request) -> Reply {
    match request.header("authorization") == Some(&format!("Basic {BASIC}")) {
        true => Reply::ok(r#"{"access_token":"t0ken"}"#),
        false => Reply::new(401),
    }
}

/// With a login and these challenges the token server gets the password, and the registry never does.
fn password_for_token(world: &mut World, challenges: &'static [&'static str]) {
    world.log_in();
    let log = with_tokens(world, challenges, for_the_password);
    world.after(move || {
        for request in log.seen().iter().filter(|request| !request.target.starts_with("/token")) {
            let sent = request.header("authorization").unwrap_or_default();
            assert!(!sent.starts_with("Basic"), "a token does: {sent}");
        }
    });
}

/// A registry that takes the password itself.
fn with_basic(world: &mut World, challenges: &'static [&'static str]) {
    world.log_in();
    let log = world.registry(move |request, _, reply| match request.header("authorization") {
        Some(sent) if sent == format!("Basic {BASIC}") => reply,
        _ => {
            challenges.iter().fold(Reply::new(401), |reply, text| reply.and_header("WWW-Authenticate", text))
        }
    });
    world.after(move || assert_eq!(log.seen()[0].header("authorization"), None, "nothing is sent unasked"));
}

/// The challenge cannot be answered: no token is asked for.
fn useless(world: &mut World, challenges: &'static [&'static str]) {
    world.log_in();
    let log = with_tokens(world, challenges, good_token);
    world.after(move || assert_eq!(log.count("/token"), 0));
}

const CHALLENGES: &[Scenario] = &[
    ("Bearer", Pulled, |world| password_for_token(world, BEARER)),
    ("Bearer and Negotiate in two headers", Pulled, |world| {
        password_for_token(world, &["Bearer realm=\"http://HOST/token\",service=\"s\"", "Negotiate"]);
    }),
    ("Negotiate first, Bearer in odd case and order", Pulled, |world| {
        password_for_token(world, &["Negotiate", "bEARER service=s, REALM=\"http://HOST/token\""]);
    }),
    ("Basic and Bearer in one header", Pulled, |world| {
        password_for_token(world, &["Basic realm=\"b\", Bearer realm=\"http://HOST/token\",service=\"s\""]);
    }),
    ("Bearer and Basic in one header", Pulled, |world| {
        password_for_token(world, &["Bearer realm=\"http://HOST/token\",service=\"s\", Basic realm=\"b\""]);
    }),
    ("Basic first and Bearer in two headers", Pulled, |world| {
        password_for_token(world, &["Basic realm=\"b\"", "Bearer realm=\"http://HOST/token\""]);
    }),
    ("an unquoted realm", Pulled, |world| {
        password_for_token(world, &["Bearer realm=http://HOST/token,service=s"]);
    }),
    ("a quoted comma and quote", Pulled, |world| {
        password_for_token(
            world,
            &[r#"Bearer error_description="no, \"Basic realm=x\"",realm="http://HOST/token""#],
        );
    }),
    ("the first Bearer is of no use, the second is", Pulled, |world| {
        password_for_token(world, &["Bearer realm=\"nowhere\"", "Bearer realm=\"http://HOST/token\""]);
    }),
    ("Basic", Pulled, |world| with_basic(world, &["Basic realm=\"b\""])),
    ("Basic after Negotiate with a token68", Pulled, |world| {
        with_basic(world, &["Negotiate YII+/abc==, BASIC realm=\"b\""]);
    }),
    ("Basic where Bearer is of no use", Pulled, |world| {
        with_basic(world, &["Bearer realm=\"file:///etc/passwd\", Basic realm=\"b\""]);
    }),
    ("a wrong password", Refused("does not let you pull app"), |world| {
        world.log_in();
        let log = world.serve(|_, _| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"b\""));
        world.after(move || assert_eq!(log.seen().len(), 4, "HEAD and GET, each once more with the login"));
    }),
    ("Basic without a login", Refused("does not let anonymous users pull app"), |world| {
        world.serve(|_, _| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"b\""));
    }),
    ("no challenge", Refused("does not let you"), |world| {
        world.log_in();
        world.serve(|_, _| Reply::new(401));
    }),
    ("Negotiate alone", Refused("does not let you"), |world| useless(world, &["Negotiate"])),
    ("Bearer without a realm", Refused("its address is malformed"), |world| useless(world, &["Bearer"])),
    ("a realm that is a file", Refused("its address is malformed"), |world| {
        useless(world, &["Bearer realm=\"file:///etc/passwd\""]);
    }),
    ("a realm with a password", Refused("its address is malformed"), |world| {
        useless(world, &["Bearer realm=\"http://a:b@HOST/token\""]);
    }),
    ("a realm elsewhere without encryption", Refused("a login would be sent"), |world| {
        useless(world, &["Bearer realm=\"http://auth.invalid/token\""]);
    }),
    ("a challenge without end", Refused("127.0.0.1"), |world| {
        world.serve(|_, _| {
            let endless = format!("Bearer realm=\"{}", "x".repeat(48 << 10));
            Reply::new(401).header("WWW-Authenticate", &endless)
        });
    }),
    ("a login file that is broken", Refused("cannot read logins from /home/u/auth.json"), |world| {
        let contents = format!("{{\"{CANARY}\"").into_bytes();
        world.options.registry.auth_files = vec![AuthFile { path: "/home/u/auth.json".into(), contents }];
        world.serve(|_, _| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""));
    }),
    ("the login of another registry is not used", Refused("does not let anonymous users"), |world| {
        let contents =
            format!(r#"{{"auths":{{"127.0.0.1:1":{{"auth":"{BASIC}"}},"127.0.0.1":{{"auth":"{BASIC}"}}}}}}"#);
        world.options.registry.auth_files =
            vec![AuthFile { path: "/home/u/auth.json".into(), contents: contents.into_bytes() }];
        let log = world.serve(|_, _| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""));
        world.after(move || assert!(!log.heard(BASIC)));
    }),
];

const TOKEN_SERVERS: &[Scenario] = &[
    ("an anonymous token, once for the whole pull", Pulled, |world| {
        let log = with_tokens(world, BEARER, good_token);
        world.after(move || {
            let seen = log.seen();
            let asked: Vec<&Request> =
                seen.iter().filter(|request| request.target.starts_with("/token")).collect();
            assert_eq!(asked.len(), 1);
            assert_eq!(asked[0].target, "/token?service=the%20registry&scope=repository%3Aapp%3Apull");
            assert_eq!(asked[0].header("authorization"), None);
        });
    }),
    ("the registry's scope is asked for, but never more than to pull", Pulled, |world| {
        let challenge = &["Bearer realm=\"http://HOST/token\",scope=\"repository:hub/app:pull,push\""];
        let log = with_tokens(world, challenge, good_token);
        world.after(move || assert_eq!(log.count("/token?scope=repository%3Ahub%2Fapp%3Apull"), 1));
    }),
    ("an identity token is exchanged in a POST", Pulled, |world| {
        world.options.registry.login = Some(Login::IdentityToken(CANARY.into()));
        with_tokens(world, BEARER, |request| {
            let right = request.method == "POST"
                && request.target == "/token"
                && request.body.contains("grant_type=refresh_token")
                && request.body.contains(&format!("refresh_token={CANARY}"))
                && request.body.contains("scope=repository%3Aapp%3Apull")
                && request.header("authorization").is_none();
            if right {
                Reply::ok(r#"{"access_token":"t0ken","refresh_token":"other"}"#)
            } else {
                Reply::new(400)
            }
        });
    }),
    ("an identity token is not sent where a redirect leads", Refused("which is not followed"), |world| {
        world.options.registry.login = Some(Login::IdentityToken(CANARY.into()));
        let (address, log) = world.stranger(good_token_of);
        let location: &'static str = Box::leak(format!("http://{address}/token").into_boxed_str());
        let image = world.image.clone();
        world.serve(move |request, _| match request.target.starts_with("/token") {
            true => Reply::redirect(location),
            false if request.header("authorization") == Some("Bearer t0ken") => honest(&image, request),
            false => {
                let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host").unwrap());
                Reply::new(401).header("WWW-Authenticate", &realm)
            }
        });
        world.after(move || assert!(log.seen().is_empty()));
    }),
    ("an identity token that has run out", Refused("status 400: token expired"), |world| {
        world.options.registry.login = Some(Login::IdentityToken(CANARY.into()));
        with_tokens(world, BEARER, |_| {
            Reply::new(400).body(r#"{"error":"invalid_grant","error_description":"token expired"}"#)
        });
    }),
    ("a token server that knows POST only", Pulled, |world| {
        world.log_in();
        with_tokens(world, BEARER, |request| match request.method.as_str() {
            "POST"
                if request.body.contains(&format!("grant_type=password&username=me&password={CANARY}")) =>
            {
                good_token(request)
            }
            "POST" => Reply::new(401),
            _ => Reply::new(405),
        });
    }),
    ("a password is not sent where a redirect leads", Refused("does not let you pull app"), |world| {
        world.log_in();
        let (address, _) = world.stranger(for_the_password_of);
        let location: &'static str = Box::leak(format!("http://{address}/token").into_boxed_str());
        world.serve(move |request, _| match request.target.starts_with("/token") {
            true => Reply::redirect(location),
            false => {
                let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host").unwrap());
                Reply::new(401).header("WWW-Authenticate", &realm)
            }
        });
    }),
    ("a token of a token server elsewhere", Pulled, |world| {
        let (address, _) = world.stranger(good_token_of);
        let image = world.image.clone();
        world.serve(move |request, _| match request.header("authorization") {
            Some("Bearer t0ken") => honest(&image, request),
            _ => Reply::new(401).header("WWW-Authenticate", &format!("Bearer realm=\"http://{address}/t\"")),
        });
    }),
    (
        "the token server refuses the password",
        Refused("gives no token, status 401: incorrect username"),
        |world| {
            world.log_in();
            with_tokens(world, BEARER, |_| {
                Reply::new(401).body(r#"{"details":"incorrect username or password"}"#)
            });
        },
    ),
    ("the token server forbids", Refused("does not let you pull app"), |world| {
        world.log_in();
        with_tokens(world, BEARER, |_| Reply::new(403));
    }),
    ("the token server does not exist", Refused("it answered with status 404"), |world| {
        with_tokens(world, BEARER, |_| Reply::new(404));
    }),
    ("an answer without a token", Refused("its answer holds no token"), |world| {
        with_tokens(world, BEARER, |_| Reply::ok("{}"));
    }),
    ("a token that is garbage", Refused("its answer holds no token"), |world| {
        with_tokens(world, BEARER, |_| Reply::ok("garbage"));
    }),
    ("a token that would be a header of its own", Refused("its answer holds no token"), |world| {
        with_tokens(world, BEARER, |_| Reply::ok(r#"{"token":"a\r\nX-Injected: b"}"#));
    }),
    ("a token of more than 1 MiB", Refused("more than 1048576 bytes as a token"), |world| {
        with_tokens(world, BEARER, |_| Reply::ok(vec![b' '; (1 << 20) + 1]));
    }),
    ("a token server that is busy", Pulled, |world| {
        let asked = Arc::new(AtomicUsize::new(0));
        let image = world.image.clone();
        world.serve(move |request, _| {
            if request.target.starts_with("/token") {
                return match asked.fetch_add(1, Ordering::SeqCst) {
                    0 => Reply::new(503).header("Retry-After", "0"),
                    1 => Reply::new(429),
                    _ => good_token(request),
                };
            }
            match request.header("authorization") {
                Some("Bearer t0ken") => honest(&image, request),
                _ => {
                    let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host").unwrap());
                    Reply::new(401).header("WWW-Authenticate", &realm)
                }
            }
        });
    }),
    ("a token server that is always busy", Refused("answered 503 when asked for a token"), |world| {
        with_tokens(world, BEARER, |_| Reply::new(503));
    }),
    ("a token server that limits", Refused("limits its requests and still does after 4 tries"), |world| {
        with_tokens(world, BEARER, |_| Reply::new(429));
    }),
    ("a token that the registry does not take", Refused("does not let you pull app"), |world| {
        world.log_in();
        let log = with_tokens(world, BEARER, |_| Reply::ok(r#"{"token":"not-the-one"}"#));
        world.after(move || assert!(log.count("/token") <= 2, "{}", log.count("/token")));
    }),
];

fn good_token_of(request: &Request, _: usize) -> Reply {
    good_token(request)
}

fn for_the_password_of(request: &Request, _: usize) -> Reply {
    for_the_password(request)
}

/// Each token is good for so many requests; the large layer breaks off, so that one is needed in its middle.
fn short_lived(world: &mut World, uses: usize, expires_in: &'static str) {
    world.large();
    let image = world.image.clone();
    let (issued, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let log = world.serve(move |request, before| {
        if request.target.starts_with("/token") {
            used.store(0, Ordering::SeqCst);
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::ok(format!(r#"{{"token":"t{number}"{expires_in}}}"#));
        }
        let current = format!("Bearer t{}", issued.load(Ordering::SeqCst));
        let sent = request.header("authorization");
        if sent != Some(current.as_str()) || used.fetch_add(1, Ordering::SeqCst) >= uses {
            let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host").unwrap());
            return Reply::new(401).header("WWW-Authenticate", &realm);
        }
        let reply = honest(&image, request);
        let long = request.range_start().unwrap_or(0) < 2 << 20;
        let layer =
            request.target.ends_with(hpcrun::image::digest::Digest::of(&image.layers[1].blob).as_str());
        if layer && long && before < 4 { reply.cut(700_000) } else { reply }
    });
    world.after(move || assert!(log.count("/token") >= 3, "{}", log.count("/token")));
}

const EXPIRY: &[Scenario] = &[
    ("a token runs out in the middle of a layer", Pulled, |world| short_lived(world, 3, "")),
    ("a token runs out before it says so", Pulled, |world| short_lived(world, 3, r#","expires_in":3600"#)),
    ("a lifetime that is no number", Pulled, |world| short_lived(world, 3, r#","expires_in":"soon""#)),
];
