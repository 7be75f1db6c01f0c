//! `docker-daemon:` against a scripted daemon on a socket.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Output;
use std::thread::JoinHandle;

use super::pipes::squashfs;
use crate::busybox_image::{archive, assert_fails, image, names_in};
use crate::support::{self, hpcrun, scratch, text};

/// A daemon that gives one answer; what it was asked comes back.
fn daemon(socket: &Path, answer: Vec<u8>) -> JoinHandle<Vec<String>> {
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    fs::set_permissions(socket, PermissionsExt::from_mode(0o666)).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let asked = lines.map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
        // It may have heard enough.
        let _ = stream.write_all(&answer);
        asked
    })
}

fn convert(socket: &Path, name: &str, dest: &Path) -> Output {
    let host = format!("unix://{}", socket.display());
    support::run(hpcrun(["convert", &format!("docker-daemon:{name}")]).arg(dest).env("DOCKER_HOST", host))
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [head.replace('\n', "\r\n").as_bytes(), b"\r\n", body].concat()
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in body.chunks(65_521) {
        out.extend(format!("{:X}\r\n", chunk.len()).into_bytes());
        out.extend(chunk);
        out.extend(b"\r\n");
    }
    [out, b"0\r\n\r\n".to_vec()].concat()
}

#[test]
fn an_image_of_a_daemon() {
    let dir = scratch();
    let (socket, dest) = (dir.path().join("d.sock"), dir.path().join("app.sqsh"));
    let saved = fs::read(archive()).unwrap();
    let length = format!("HTTP/1.1 200 OK\nContent-Length: {}\n", saved.len());
    for (name, path, answer) in [
        (
            "app",
            "/images/app:latest/get",
            answer("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n", &chunked(&saved)),
        ),
        ("localhost:5000/a/app:1", "/images/localhost:5000/a/app:1/get", answer(&length, &saved)),
        ("0123456789abcdef", "/images/0123456789abcdef/get", answer("HTTP/1.0 200 OK\n", &saved)),
    ] {
        let daemon = daemon(&socket, answer);
        let output = convert(&socket, name, &dest);
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        assert!(squashfs(&dest) == squashfs(image()));
        let asked = daemon.join().unwrap();
        assert_eq!(asked[0], format!("GET {path} HTTP/1.1"));
        assert!(asked.contains(&"Host: docker".to_owned()), "{asked:?}");
        let shown = support::stdout(hpcrun(["inspect"]).arg(&dest));
        assert!(shown.contains(&format!("docker-daemon:{name}")), "{shown}");
        fs::remove_file(&dest).unwrap();
    }
}

#[test]
fn a_daemon_that_does_not_give_it() {
    let dir = scratch();
    let (socket, dest) = (dir.path().join("d.sock"), dir.path().join("app.sqsh"));
    let saved = fs::read(archive()).unwrap();
    let no_such = br#"{"message":"No such image: app:1"}"#;
    let head = |status: &str| format!("HTTP/1.1 {status}\nContent-Type: application/json\n");
    let cut = chunked(&saved);
    for (answer, expected) in [
        (
            answer(&head("404 Not Found"), no_such),
            &["the daemon says 404: No such image: app:1", "docker images"][..],
        ),
        (answer(&head("500 Internal Server Error"), b"out of order"), &["the daemon says 500: out of order"]),
        (answer(&head("301 Moved Permanently"), b""), &["the daemon says 301"]),
        (b"SSH-2.0-OpenSSH\r\n".to_vec(), &["the daemon's answer is not HTTP"]),
        (Vec::new(), &["the daemon's answer is not HTTP"]),
        (
            answer("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n", &cut[..cut.len() / 2]),
            &["cannot read docker-daemon:app:1: unexpected end of file"],
        ),
        (
            answer("HTTP/1.1 200 OK\nContent-Length: 99999999\n", &saved),
            &["cannot read docker-daemon:app:1: unexpected end of file"],
        ),
        (answer("HTTP/1.1 200 OK\nContent-Length: 4\n", b"text"), &["not a tar archive"]),
    ] {
        let daemon = daemon(&socket, answer);
        assert_fails(&convert(&socket, "app:1", &dest), 125, expected);
        daemon.join().unwrap();
        assert_eq!(names_in(dir.path()), ["d.sock"]);
    }
    // Nobody listens any more.
    assert_fails(
        &convert(&socket, "app:1", &dest),
        125,
        &["cannot connect to", "ECONNREFUSED", "hint: is the daemon running?"],
    );
    assert_fails(
        &convert(Path::new("/nonexistent"), "app:1", &dest),
        125,
        &["ENOENT", "DOCKER_HOST=unix://"],
    );
    let listener = UnixListener::bind(dir.path().join("closed.sock")).unwrap();
    fs::set_permissions(dir.path().join("closed.sock"), PermissionsExt::from_mode(0o600)).unwrap();
    let output = convert(&dir.path().join("closed.sock"), "app:1", &dest);
    assert_fails(&output, 125, &["EACCES", "docker save NAME | hpcrun convert docker-archive:-"]);
    drop(listener);
    let remote = support::run(
        hpcrun(["convert", "docker-daemon:app:1"]).arg(&dest).env("DOCKER_HOST", "tcp://build.example:2375"),
    );
    assert_fails(&remote, 125, &["DOCKER_HOST is", "unix:///PATH only"]);
}
