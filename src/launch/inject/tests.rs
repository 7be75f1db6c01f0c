//! Injections on images of glibc, of musl, of neither.

use super::*;
use crate::elf::library_cache::LibraryCache;

fn reason() -> Reason {
    Reason::Host("test".to_owned())
}

fn library(name: &str) -> Library {
    Library { name: name.into(), source: Path::new("/host/lib").join(name), reason: reason() }
}

/// One library under its name and another at its place.
fn injection() -> Injection {
    let found = FoundLibrary { name: "libb.so.2".into(), path: "/opt/b/libb.so.2".into(), reason: reason() };
    Injection { libraries: vec![library("liba.so.1")], found: vec![found], ..Injection::default() }
}

fn binds_of(injection: &Injection) -> Binds {
    Binds { binds: injection.binds(), notes: Vec::new() }
}

fn additions(injection: &Injection, loaders: &Loaders) -> Additions {
    injection.additions(loaders, &binds_of(injection))
}

fn image_cache() -> Vec<u8> {
    let mut cache = LibraryCache::default();
    cache.put_first([
        Entry::new(b"liba.so.1".to_vec(), b"/lib/liba.so.1".to_vec()),
        Entry::new(b"libc.so.6".to_vec(), b"/lib/libc.so.6".to_vec()),
    ]);
    cache.to_bytes().unwrap()
}

fn content_of<'a>(additions: &'a Additions, path: &str) -> &'a [u8] {
    let found = additions.grafts.iter().find(|(at, _)| at == Path::new(path));
    match found {
        Some((_, Graft::Content { content, .. })) => content,
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn libraries_lie_under_their_names_in_a_directory_of_their_own() {
    let binds = injection().binds();
    assert_eq!(binds.len(), 1);
    assert_eq!(binds[0].destination, Path::new("/.hpcrun/lib/liba.so.1"));
    assert_eq!(binds[0].source(), Some(Path::new("/host/lib/liba.so.1")));
    assert_eq!(binds[0].access, Access::ReadOnly);
}

#[test]
fn a_cache_gets_them_first() {
    let loaders = Loaders { cache: Some(image_cache()), musl: None };
    let additions = additions(&injection(), &loaders);
    assert!(additions.variables.is_empty() && additions.notes.is_empty());
    let cache = LibraryCache::parse(content_of(&additions, "/etc/ld.so.cache")).unwrap();
    let paths: Vec<String> =
        cache.entries.iter().map(|entry| entry.path.escape_ascii().to_string()).collect();
    assert_eq!(paths, ["/lib/libc.so.6", "/opt/b/libb.so.2", "/.hpcrun/lib/liba.so.1", "/lib/liba.so.1"]);
    assert_eq!(additions.described.len(), 1);
}

#[test]
fn without_a_cache_a_variable_does() {
    for cache in [None, Some(b"damaged".to_vec())] {
        let is_damaged = cache.is_some();
        let additions = additions(&injection(), &Loaders { cache, musl: None });
        assert!(additions.grafts.is_empty());
        let [variable] = additions.variables.as_slice() else { panic!("{additions:?}") };
        assert_eq!(
            (variable.name.as_os_str(), variable.value.as_os_str(), variable.joining),
            ("LD_LIBRARY_PATH".as_ref(), "/.hpcrun/lib:/opt/b".as_ref(), Joining::Prepend)
        );
        assert_eq!(additions.notes.len(), usize::from(is_damaged));
    }
}

#[test]
fn musl_has_a_list_of_directories() {
    for (content, expected) in [
        (None, "/.hpcrun/lib\n/opt/b\n/lib:/usr/local/lib:/usr/lib"),
        (Some(b"/own\n".to_vec()), "/.hpcrun/lib\n/opt/b\n/own\n"),
    ] {
        let path_file = PathBuf::from("/etc/ld-musl-x86_64.path");
        let loaders = Loaders { cache: None, musl: Some(MuslLoader { path_file, content }) };
        let additions = additions(&injection(), &loaders);
        assert_eq!(
            content_of(&additions, "/etc/ld-musl-x86_64.path").escape_ascii().to_string(),
            expected.as_bytes().escape_ascii().to_string()
        );
        assert!(additions.variables.is_empty());
    }
}

#[test]
fn what_was_taken_away_is_not_told() {
    let only = Injection { libraries: vec![library("liba.so.1")], ..Injection::default() };
    let loaders = Loaders { cache: Some(image_cache()), musl: None };
    assert_eq!(only.additions(&loaders, &Binds::default()), Additions::default());
}

#[test]
fn links_and_files_are_grafts_unless_a_bind_covers_them() {
    let link = |path: &str| Link { path: path.into(), target: "x".into(), reason: reason() };
    let file = |path: &str| MadeFile { path: path.into(), content: b"y".to_vec(), reason: reason() };
    let wanted = Injection {
        links: vec![link("/usr/lib/l"), link("/scratch/l")],
        files: vec![file("/etc/f"), file("/scratch/f")],
        ..Injection::default()
    };
    let scratch =
        bind(Path::new("/scratch"), "/scratch".into(), Access::ReadWrite, Need::Required, true, &reason());
    let binds = Binds { binds: vec![scratch], notes: Vec::new() };
    let additions = wanted.additions(&Loaders::default(), &binds);
    let paths: Vec<&Path> = additions.grafts.iter().map(|(path, _)| path.as_path()).collect();
    assert_eq!(paths, [Path::new("/usr/lib/l"), Path::new("/etc/f")]);
    assert_eq!(additions.notes.len(), 2);
}

#[test]
fn the_first_who_wants_a_name_gets_it() {
    let mut first = injection();
    let mut second = injection();
    second.libraries[0].source = "/other".into();
    second.libraries.push(library("libc2.so.1"));
    first.extend(second);
    assert_eq!(first.libraries, [library("liba.so.1"), library("libc2.so.1")]);
    assert_eq!(first.found.len(), 1);
    assert!(Injection::default().is_empty() && !first.is_empty());
}
