//! What `--bind` and `--mount` mean: lists of binds as Apptainer writes them, and Docker's fields. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::request::{BindOption, RequestError};
use crate::policy::bind_spec::{BindSpec, BindSpecError};

/// One `--mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountOption {
    /// `type=bind` and `type=image`
    Bind(BindOption),
    /// `type=tmpfs`: an empty directory, as of `--scratch`.
    Tmpfs(PathBuf),
}

impl BindOption {
    /// Parses one `SRC[:DST[:ro|rw|image]]`; the escapes are those of [`BindSpec::parse`].
    pub fn parse(typed: &OsStr) -> Result<BindOption, RequestError> {
        BindOption::parse_one("--bind", typed)
    }

    /// Parses `SRC[:DST[:ro|rw|image]]` with commas between several; `\,` is a comma in a path.
    pub fn parse_list(option: &str, typed: &OsStr) -> Result<Vec<BindOption>, RequestError> {
        split_list(typed).iter().map(|one| BindOption::parse_one(option, one)).collect()
    }

    fn parse_one(option: &str, typed: &OsStr) -> Result<BindOption, RequestError> {
        let error =
            |mistake| RequestError::Bind { option: option.to_owned(), typed: typed.to_owned(), mistake };
        // Apptainer's way to say it; only the whole tree can be seen here.
        let image =
            [&b":image-src=/"[..], b":image"].iter().find_map(|end| typed.as_bytes().strip_suffix(*end));
        let image = image.filter(|rest| rest.contains(&b':'));
        let spec = BindSpec::parse(image.map_or(typed, OsStr::from_bytes)).map_err(error)?;
        // The policy's form knows variables; here a dollar sign is a dollar sign.
        if spec.destination.as_ref().is_some_and(|path| !path.as_bytes().starts_with(b"/")) {
            return Err(error(BindSpecError::RelativeDestination));
        }
        let is_image = image.is_some();
        Ok(BindOption {
            option: option.to_owned(),
            typed: typed.to_owned(),
            spec,
            is_image,
            is_ambient: false,
        })
    }
}

/// Splits at commas that are not escaped. Other escapes are left for those who read the parts.
pub fn split_list(text: &OsStr) -> Vec<OsString> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut bytes = text.as_bytes().iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next() {
                Some(b',') => part.push(b','),
                next => part.extend([b'\\'].into_iter().chain(next)),
            },
            b',' => parts.push(OsString::from_vec(std::mem::take(&mut part))),
            byte => part.push(byte),
        }
    }
    parts.push(OsString::from_vec(part));
    parts
}

impl MountOption {
    /// Parses Docker's `type=bind,src=SRC,dst=DST[,ro]`, fields of CSV: quotes around a field that holds a comma, two
    /// for one.
    pub fn parse(typed: &OsStr) -> Result<MountOption, RequestError> {
        Fields::read(typed)
            .and_then(|fields| fields.option(typed))
            .map_err(|why| RequestError::Mount { typed: typed.to_owned(), why })
    }
}

/// The fields of one `--mount`.
#[derive(Default)]
struct Fields {
    kind: Option<OsString>,
    source: Option<OsString>,
    destination: Option<OsString>,
    read_only: bool,
    is_image: bool,
}

impl Fields {
    fn read(typed: &OsStr) -> Result<Fields, String> {
        let mut fields = Fields::default();
        if typed.as_bytes().contains(&0) {
            return Err("it contains a NUL byte".to_owned());
        }
        for field in csv(typed.as_bytes())? {
            let mut parts = field.splitn(2, |byte| *byte == b'=');
            let name = parts.next().unwrap_or_default();
            fields.set(name, parts.next())?;
        }
        Ok(fields)
    }

    fn set(&mut self, name: &[u8], value: Option<&[u8]>) -> Result<(), String> {
        let shown = String::from_utf8_lossy(name).into_owned();
        let path = || {
            let value = value.filter(|value| !value.is_empty());
            value
                .map(|value| OsStr::from_bytes(value).to_owned())
                .ok_or_else(|| format!("{shown} has no value"))
        };
        match name {
            b"type" => self.kind = Some(path()?),
            b"source" | b"src" => self.source = Some(path()?),
            b"destination" | b"dst" | b"target" => self.destination = Some(path()?),
            b"ro" | b"readonly" => {
                self.read_only = truth(value).ok_or(format!("{shown} is true or false"))?
            }
            b"rw" => self.read_only = !truth(value).ok_or(format!("{shown} is true or false"))?,
            b"image-src" if value == Some(b"/") => self.is_image = true,
            b"image-src" => return Err("only the whole tree of an image can be seen: image-src=/".to_owned()),
            _ => return Err(format!("there is no field {shown:?}")),
        }
        Ok(())
    }

    fn option(self, typed: &OsStr) -> Result<MountOption, String> {
        let kind = self.kind.ok_or("its type is missing")?;
        let destination = self.destination.ok_or("its destination is missing")?;
        if !destination.as_bytes().starts_with(b"/") {
            return Err(BindSpecError::RelativeDestination.to_string());
        }
        let is_image = match kind.as_bytes() {
            b"tmpfs" if self.source.is_some() => return Err("a tmpfs has no source".to_owned()),
            b"tmpfs" => return Ok(MountOption::Tmpfs(PathBuf::from(destination))),
            b"bind" => self.is_image,
            b"image" => true,
            _ => return Err(format!("there is no type {:?}: bind, image or tmpfs", kind.display())),
        };
        let source = self.source.ok_or("its source is missing")?;
        Ok(MountOption::Bind(BindOption {
            option: "--mount".to_owned(),
            typed: typed.to_owned(),
            spec: BindSpec { source, destination: Some(destination), read_only: self.read_only },
            is_image,
            is_ambient: false,
        }))
    }
}

/// The truth of `ro`, `ro=true`, `ro=0`.
fn truth(value: Option<&[u8]>) -> Option<bool> {
    match value {
        None | Some(b"true" | b"1") => Some(true),
        Some(b"false" | b"0") => Some(false),
        Some(_) => None,
    }
}

/// The fields of a line of comma-separated values (RFC 4180).
fn csv(line: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut fields = Vec::new();
    let mut bytes = line.iter().copied().peekable();
    loop {
        let mut field = Vec::new();
        if bytes.next_if_eq(&b'"').is_some() {
            loop {
                match bytes.next() {
                    Some(b'"') if bytes.next_if_eq(&b'"').is_some() => field.push(b'"'),
                    Some(b'"') => break,
                    Some(byte) => field.push(byte),
                    None => return Err("a quote is not closed".to_owned()),
                }
            }
        } else {
            while let Some(byte) = bytes.next_if(|byte| *byte != b',') {
                if byte == b'"' {
                    return Err("quotes belong around a whole field".to_owned());
                }
                field.push(byte);
            }
        }
        fields.push(field);
        match bytes.next() {
            None => return Ok(fields),
            Some(b',') => {}
            Some(_) => return Err("quotes belong around a whole field".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::Hint;

    fn words(parts: &[OsString]) -> Vec<&str> {
        parts.iter().map(|part| part.to_str().unwrap()).collect()
    }

    #[test]
    fn lists() {
        for (text, expected) in [
            ("/a", &["/a"][..]),
            ("/a,/b:/c", &["/a", "/b:/c"]),
            ("/a\\,b", &["/a,b"]),
            ("/a\\\\,b", &["/a\\\\", "b"]),
            ("/a\\:b,c", &["/a\\:b", "c"]),
            ("a\\", &["a\\"]),
            (",", &["", ""]),
        ] {
            assert_eq!(words(&split_list(OsStr::new(text))), expected, "{text}");
        }
    }

    #[test]
    fn binds_keep_what_was_typed() {
        let bind = BindOption::parse(OsStr::new("/a:/b:ro")).unwrap();
        assert_eq!(bind.typed, "/a:/b:ro");
        assert!(bind.spec.read_only);
        let error = BindOption::parse(OsStr::new("/a:$HOME")).unwrap_err();
        let expected = "cannot understand --bind \"/a:$HOME\": the destination must be an absolute path";
        assert_eq!(error.to_string(), expected);
        let error = BindOption::parse(OsStr::new("/a:ro")).unwrap_err();
        assert_eq!(error.hints(), ["write SRC::ro to bind a path onto itself"]);
        let list = BindOption::parse_list("HPCRUN_BIND", OsStr::new("/a\\:x,/b:/c\\,d:ro")).unwrap();
        assert_eq!(list[0].spec.source, "/a:x");
        assert_eq!(list[1].spec.destination.as_deref(), Some(OsStr::new("/c,d")));
        assert!(BindOption::parse_list("--bind", OsStr::new("/a,")).is_err());
    }

    #[test]
    fn data_images() {
        for (text, source, destination, is_image) in [
            ("d.sqsh:/data:image", "d.sqsh", Some("/data"), true),
            ("d.sqsh:/data:image-src=/", "d.sqsh", Some("/data"), true),
            ("/d.sqsh::image", "/d.sqsh", None, true),
            ("/d.sqsh:/image", "/d.sqsh", Some("/image"), false),
            ("d:/data", "d", Some("/data"), false),
        ] {
            let bind = BindOption::parse(OsStr::new(text)).unwrap();
            let found = (bind.spec.source.to_str().unwrap(), bind.spec.destination.as_ref());
            assert_eq!(found, (source, destination.map(OsString::from).as_ref()), "{text}");
            assert_eq!(bind.is_image, is_image, "{text}");
        }
        for text in ["d.sqsh:image", "d:/data:image-src=/x", ":/data:image"] {
            assert!(BindOption::parse(OsStr::new(text)).is_err(), "{text}");
        }
    }

    fn mounted(text: &str) -> String {
        match MountOption::parse(OsStr::new(text)) {
            Ok(MountOption::Tmpfs(path)) => format!("tmpfs {}", path.display()),
            Ok(MountOption::Bind(bind)) => format!(
                "{} {} {}{}",
                bind.spec.source.display(),
                bind.spec.destination.unwrap().display(),
                if bind.spec.read_only { "ro" } else { "rw" },
                if bind.is_image { " image" } else { "" }
            ),
            Err(RequestError::Mount { why, .. }) => why,
            Err(other) => other.to_string(),
        }
    }

    #[test]
    fn mounts() {
        for (text, expected) in [
            ("type=bind,src=/a,dst=/b", "/a /b rw"),
            ("type=bind,source=/a,target=/b,ro", "/a /b ro"),
            ("readonly=true,destination=/b,src=a,type=bind", "a /b ro"),
            ("type=bind,src=/a,dst=/b,ro=false", "/a /b rw"),
            ("type=bind,src=/a,dst=/b,ro,rw", "/a /b rw"),
            ("type=bind,\"src=/a,b:c\",dst=/b", "/a,b:c /b rw"),
            ("type=bind,\"src=/a\"\"b\",dst=/b", "/a\"b /b rw"),
            ("type=bind,src=/a=b,dst=/b", "/a=b /b rw"),
            ("type=bind,src=d.sqsh,dst=/d,image-src=/", "d.sqsh /d rw image"),
            ("type=image,src=d.sqsh,dst=/d", "d.sqsh /d rw image"),
            ("type=tmpfs,dst=/x", "tmpfs /x"),
            ("src=/a,dst=/b", "its type is missing"),
            ("type=volume,src=a,dst=/b", "there is no type \"volume\": bind, image or tmpfs"),
            ("type=bind,dst=/b", "its source is missing"),
            ("type=bind,src=/a", "its destination is missing"),
            ("type=bind,src=/a,dst=b", "the destination must be an absolute path"),
            ("type=bind,src=/a,dst=/b,ro=maybe", "ro is true or false"),
            ("type=bind,src=,dst=/b", "src has no value"),
            ("type=bind,src=/a,dst=/b,size=1", "there is no field \"size\""),
            ("type=tmpfs,src=/a,dst=/b", "a tmpfs has no source"),
            (
                "type=bind,image-src=/x,src=a,dst=/b",
                "only the whole tree of an image can be seen: image-src=/",
            ),
            ("", "there is no field \"\""),
            ("\"type=bind", "a quote is not closed"),
            ("\"type=bind\"x", "quotes belong around a whole field"),
            ("type=\"bind\"", "quotes belong around a whole field"),
        ] {
            assert_eq!(mounted(text), expected, "{text}");
        }
    }
}
