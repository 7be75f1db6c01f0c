//! The caller's line in `/etc/passwd` and `/etc/group` of the new root.
//!
//! The generated file is the image's own, without its entries of the caller's id or name, and then one line. An entry
//! of the same id would answer first and call the caller by another name with another home (images often have uid 1000
//! as `ubuntu`); one of the same name would give the caller two ids.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::binds::{destination_of, source_of};
use super::request::{HomeWish, Request};
use crate::hint::Hint;
use crate::host::{Host, User};

/// The largest `/etc/passwd` or `/etc/group` that is worth reading out of an image; a larger one counts as absent.
pub const IDENTITY_FILE_LIMIT_BYTES: u64 = 1 << 20;

/// Who is launching cannot be written as a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot make an entry of {file} for {what} {value:?}: {why}")]
pub struct IdentityError {
    /// The file.
    pub file: &'static str,
    /// Which of its fields.
    pub what: &'static str,
    /// The field's value, for people.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Hint for IdentityError {
    fn hints(&self) -> Vec<String> {
        vec![
            "hpcrun takes it from the user database, and from the environment where that has no entry"
                .to_owned(),
        ]
    }
}

/// The user as the job knows him.
pub fn inside(host: &Host, request: &Request) -> User {
    let mut inside = User { home: home(host, request), ..host.user.clone() };
    if request.root_mapped {
        inside = User { uid: 0, gid: 0, name: "root".into(), group_name: "root".into(), ..inside };
    }
    inside
}

/// The job's home directory.
pub fn home(host: &Host, request: &Request) -> Option<PathBuf> {
    home_of_request(request, host).or_else(|| host.user.home.clone())
}

/// Where `--home` puts it.
pub fn home_of_request(request: &Request, host: &Host) -> Option<PathBuf> {
    match &request.home {
        HomeWish::At(option) => Some(destination_of(option, &source_of(option, host))),
        HomeWish::SiteDefault | HomeWish::LeaveOut => None,
    }
}

/// `/etc/passwd` of the new root. `shell` is one that the image has.
pub fn passwd(image: Option<&[u8]>, user: &User, shell: &Path) -> Result<Vec<u8>, IdentityError> {
    const FILE: &str = "/etc/passwd";
    let name = login_name(FILE, "user", user.name.as_bytes())?;
    let home = user.home.as_deref().unwrap_or(Path::new("/")).as_os_str().as_bytes();
    check_field(FILE, "home directory", home)?;
    let shell = shell.as_os_str().as_bytes();
    check_field(FILE, "shell", shell)?;
    // A full name is decoration: one that would break the line is left out.
    let gecos =
        Some(user.gecos.as_bytes()).filter(|gecos| check_field(FILE, "", gecos).is_ok()).unwrap_or(b"");
    let ids = format!("{}:{}", user.uid, user.gid);
    let line = [name, b"x", ids.as_bytes(), gecos, home, shell].join(&b':');
    Ok(with_line(image, name, user.uid, &line))
}

/// `/etc/group` of the new root: the caller's group alone, as no other is mapped.
pub fn group(image: Option<&[u8]>, user: &User) -> Result<Vec<u8>, IdentityError> {
    let name = login_name("/etc/group", "group", user.group_name.as_bytes())?;
    let gid = user.gid.to_string();
    let line = [name, b"x", gid.as_bytes(), b""].join(&b':');
    Ok(with_line(image, name, user.gid, &line))
}

/// The image's lines but those of the name or the id, each byte for byte, then `line`.
fn with_line(image: Option<&[u8]>, name: &[u8], id: u32, line: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    for old in image.unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
        if !is_entry_of(old, name, id) {
            file.extend_from_slice(old);
        }
    }
    if file.last().is_some_and(|byte| *byte != b'\n') {
        file.push(b'\n');
    }
    file.extend_from_slice(line);
    file.push(b'\n');
    file
}

fn is_entry_of(line: &[u8], name: &[u8], id: u32) -> bool {
    let mut fields = line.trim_ascii_end().split(|byte| *byte == b':');
    let (first, third) = (fields.next(), fields.nth(1));
    let line_id = third.and_then(|field| std::str::from_utf8(field).ok()?.trim().parse::<u32>().ok());
    // A comment or a broken line is nobody's entry.
    third.is_some() && (first == Some(name) || line_id == Some(id))
}

/// A name that reads as a name: `+` and `-` begin entries of NIS, `#` a comment.
fn login_name<'n>(file: &'static str, what: &'static str, name: &'n [u8]) -> Result<&'n [u8], IdentityError> {
    let error = |why| IdentityError { file, what, value: String::from_utf8_lossy(name).into_owned(), why };
    match name.first() {
        None => return Err(error("it is empty")),
        Some(b'+' | b'-' | b'#') => return Err(error("it begins like no name")),
        Some(_) => {}
    }
    if name.iter().any(|byte| matches!(byte, b'/' | b',') || byte.is_ascii_whitespace()) {
        return Err(error("it holds a character that no name can have"));
    }
    check_field(file, what, name)?;
    Ok(name)
}

fn check_field(file: &'static str, what: &'static str, field: &[u8]) -> Result<(), IdentityError> {
    let why = if field.contains(&b':') {
        "it holds a colon, which ends a field"
    } else if field.iter().any(u8::is_ascii_control) {
        "it holds a control character"
    } else {
        return Ok(());
    };
    Err(IdentityError { file, what, value: String::from_utf8_lossy(field).into_owned(), why })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn ada() -> User {
        User {
            uid: 1000,
            effective_uid: 1000,
            gid: 100,
            name: "ada".into(),
            group_name: "users".into(),
            gecos: "Ada Lovelace,,,".into(),
            home: Some("/home/ada".into()),
            known: true,
            ..User::default()
        }
    }

    const LINE: &str = "ada:x:1000:100:Ada Lovelace,,,:/home/ada:/bin/sh\n";

    #[test]
    fn passwd_is_the_images_and_one_line() {
        let cases: &[(&str, &str)] = &[
            ("", ""),
            ("root:x:0:0:root:/root:/bin/sh\n", "root:x:0:0:root:/root:/bin/sh\n"),
            ("root:x:0:0:root:/root:/bin/sh", "root:x:0:0:root:/root:/bin/sh\n"),
            ("ubuntu:x:1000:1000::/home/ubuntu:/bin/bash\nroot:x:0:0:::\n", "root:x:0:0:::\n"),
            ("ada:x:5:5::/x:/bin/zsh\nbin:x:1:1:::\n", "bin:x:1:1:::\n"),
            ("a:x:1000:1:::\nb:x:1000:1:::\nada:x:1:1:::\n", ""),
            ("adam:x:10000:1:::\n", "adam:x:10000:1:::\n"),
            ("# ada\n\nbroken\n+::::::\n", "# ada\n\nbroken\n+::::::\n"),
            ("x:y:01000:1:::\n", ""),
            ("x:y: 1000:1:::\n", ""),
            ("x:y:-1000:1:::\n", "x:y:-1000:1:::\n"),
            ("x:y:1000x:1:::\n", "x:y:1000x:1:::\n"),
            ("x:1000\n", "x:1000\n"),
            ("crlf:x:2:2:::\r\n", "crlf:x:2:2:::\r\n"),
        ];
        for (image, kept) in cases {
            let file = passwd(Some(image.as_bytes()), &ada(), Path::new("/bin/sh")).unwrap();
            assert_eq!(String::from_utf8(file).unwrap(), format!("{kept}{LINE}"), "{image:?}");
        }
        assert_eq!(passwd(None, &ada(), Path::new("/bin/sh")).unwrap(), LINE.as_bytes());
    }

    #[test]
    fn bytes_of_the_image_stay_as_they_are() {
        let file = passwd(Some(b"m\xfcller:x:7:7:\xff:/:/bin/sh\n"), &ada(), Path::new("/bin/sh")).unwrap();
        assert!(file.starts_with(b"m\xfcller:x:7:7:\xff:/:/bin/sh\nada:"));
    }

    #[test]
    fn group_is_the_images_and_one_line() {
        for (image, kept) in [
            ("", ""),
            ("root:x:0:\nusers:x:100:bob\n", "root:x:0:\n"),
            ("staff:x:100:\n", ""),
            ("users:x:50:\n", ""),
            ("usersx:x:1000:\n", "usersx:x:1000:\n"),
        ] {
            let file = group(Some(image.as_bytes()), &ada()).unwrap();
            assert_eq!(String::from_utf8(file).unwrap(), format!("{kept}users:x:100:\n"), "{image:?}");
        }
    }

    #[test]
    fn hostile_names_are_refused() {
        for name in [
            "",
            "a:b",
            "a\nroot:x:0:0:::",
            "a\n",
            "\0",
            "+",
            "+ada",
            "-ada",
            "#ada",
            "a b",
            "a/b",
            "a,b",
            "a\tb",
            "\x1b[2J",
        ] {
            let user = User { name: name.into(), group_name: name.into(), ..ada() };
            assert!(passwd(None, &user, Path::new("/bin/sh")).is_err(), "{name:?}");
            assert!(group(None, &user).is_err(), "{name:?}");
        }
        for name in ["ada", "ada.l", "ADA", "a-b", "ada$", "user@realm", "DOM\\ada", "m\u{fc}ller", "1000"] {
            let user = User { name: name.into(), ..ada() };
            assert!(passwd(None, &user, Path::new("/bin/sh")).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn hostile_homes_and_full_names() {
        for home in ["/a:b", "/a\nroot:x:0:0", "/a\rb"] {
            let user = User { home: Some(home.into()), ..ada() };
            let error = passwd(None, &user, Path::new("/bin/sh")).unwrap_err();
            assert!(error.to_string().starts_with("cannot make an entry of /etc/passwd for home directory"));
        }
        for gecos in ["a:b", "a\nb"] {
            let user = User { gecos: gecos.into(), ..ada() };
            let file = passwd(None, &user, Path::new("/bin/sh")).unwrap();
            assert_eq!(file, b"ada:x:1000:100::/home/ada:/bin/sh\n");
        }
        let user = User { gecos: OsStr::from_bytes(b"\xff").to_owned(), home: None, ..ada() };
        assert_eq!(passwd(None, &user, Path::new("/b")).unwrap(), b"ada:x:1000:100:\xff:/:/b\n");
    }
}
