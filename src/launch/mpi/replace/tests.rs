//! Host libraries and images by the table.

use super::*;
use crate::image::facts::Libc;

fn set(names: &[&str]) -> BTreeSet<Vec<u8>> {
    names.iter().map(|name| name.as_bytes().to_vec()).collect()
}

fn requires(library: &str, version: &str) -> Requirement {
    Requirement { library: library.into(), version: version.into(), is_weak: false }
}

fn host(name: &str, defined: &[&str]) -> HostLibrary {
    HostLibrary {
        name: name.to_owned(),
        path: Path::new("/opt/mpi/lib").join(name),
        is_named: true,
        family: name.starts_with("libmpi.").then_some(Family::Intel),
        file_version: "12.3".to_owned(),
        requires: vec![requires("libc.so.6", "GLIBC_2.34")],
        versions: Vec::new(),
        defined: set(defined),
    }
}

fn dependency(name: &str) -> HostLibrary {
    HostLibrary { is_named: false, ..host(name, &[]) }
}

fn offered(libraries: Vec<HostLibrary>) -> Offered {
    Offered { module: "cray".to_owned(), libraries, ..Offered::default() }
}

fn own(path: &str, soname: &str) -> Library {
    Library {
        path: path.to_owned(),
        soname: soname.to_owned(),
        role: Role::of_path(soname.as_bytes()).unwrap_or(Role::Other),
        family: soname.starts_with("libmpi").then_some(Family::Mpich),
        file_version: "12.2".to_owned(),
        needs: Vec::new(),
        defines: Vec::new(),
    }
}

fn facts(libraries: Vec<Library>) -> Facts {
    Facts::new(Some(Libc::Glibc { version: "2.36".to_owned() }), None, libraries)
}

fn object(name: &str, wanted: &[&str], defined: &[&str]) -> ImageObject {
    ImageObject {
        name: name.to_owned(),
        path: format!("/usr/lib/{name}"),
        wanted: set(wanted),
        defined: set(defined),
        requires: Vec::new(),
    }
}

/// A program that uses two functions of the MPI in `facts`.
fn program() -> Vec<ImageObject> {
    vec![
        object("/app", &["MPI_Init", "MPI_Send", "printf"], &[]),
        object("libmpi.so.12", &[], &["MPI_Init", "MPI_Send", "MPI_Recv"]),
        object("libmpich.so.12", &[], &["MPI_Init", "MPI_Send", "MPI_Recv"]),
    ]
}

fn decided(offered: &Offered, facts: &Facts, loaded: &[ImageObject]) -> Result<Replacement, ReplaceError> {
    decide(offered, ImageSide { facts, loaded: Some(loaded) })
}

#[track_caller]
fn refused(offered: &Offered, facts: &Facts, loaded: &[ImageObject], expected: &str) {
    let error = decided(offered, facts, loaded).expect_err(expected);
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.hints().len(), 1);
}

#[test]
fn a_library_takes_the_place_of_all_files_of_its_name() {
    let facts = facts(vec![
        own("/opt/a/libmpi.so.12", "libmpi.so.12"),
        own("/usr/lib/libmpi.so.12.2", "libmpi.so.12"),
    ]);
    let offered = offered(vec![
        host("libmpi.so.12", &["MPI_Init", "MPI_Send"]),
        dependency("libfabric.so.1"),
        dependency("libc.so.6"),
    ]);
    let replacement = decided(&offered, &facts, &program()).unwrap();
    let mpi = PathBuf::from("/opt/mpi/lib/libmpi.so.12");
    assert_eq!(
        replacement.libraries,
        [
            ("libfabric.so.1".to_owned(), "/opt/mpi/lib/libfabric.so.1".into()),
            ("libmpi.so.12".to_owned(), mpi.clone())
        ]
    );
    assert_eq!(
        replacement.covers,
        [(mpi.clone(), "/opt/a/libmpi.so.12".into()), (mpi, "/usr/lib/libmpi.so.12.2".into())]
    );
}

#[test]
fn debian_s_name_is_another_for_the_same() {
    let facts = facts(vec![own("/usr/lib/libmpich.so.12.1", "libmpich.so.12")]);
    let replacement =
        decided(&offered(vec![host("libmpi.so.12", &["MPI_Init", "MPI_Send"])]), &facts, &program()).unwrap();
    let names: Vec<&str> = replacement.libraries.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["libmpi.so.12", "libmpich.so.12"]);
    assert_eq!(replacement.covers.len(), 1);
}

#[test]
fn every_symbol_in_use_must_be_there() {
    let facts = facts(vec![own("/usr/lib/libmpi.so.12", "libmpi.so.12")]);
    let lacking = offered(vec![host("libmpi.so.12", &["MPI_Init"])]);
    refused(
        &lacking,
        &facts,
        &program(),
        "/usr/lib//app of the image uses MPI_Send, which /opt/mpi/lib/libmpi.so.12 does not define",
    );
    // Another library of the host, or one of the image that stays, may have it.
    let other = offered(vec![host("libmpi.so.12", &["MPI_Init"]), host("libmpifort.so.12", &["MPI_Send"])]);
    decided(&other, &facts, &program()).unwrap();
    let mut loaded = program();
    loaded.push(object("libprofile.so", &[], &["MPI_Send"]));
    decided(&lacking, &facts, &loaded).unwrap();
    // By name alone, or where nobody can know.
    let by_name = Offered { abi: ModuleAbi::Major, ..lacking.clone() };
    decided(&by_name, &facts, &program()).unwrap();
    let unknown = decide(&lacking, ImageSide { facts: &facts, loaded: None }).unwrap();
    assert!(unknown.notes.iter().any(|note| note.contains("not compared")), "{unknown:?}");
    let mut many = program();
    many[0].wanted.extend(set(&["MPI_A", "MPI_B", "MPI_C", "MPI_D"]));
    many[1].defined.extend(set(&["MPI_A", "MPI_B", "MPI_C", "MPI_D"]));
    let text = decided(&lacking, &facts, &many).unwrap_err().to_string();
    assert!(text.contains("uses MPI_A, MPI_B, MPI_C and 2 more, which"), "{text}");
}

#[test]
fn versions_in_use_must_be_there() {
    let facts = facts(vec![own("/usr/lib/libfabric.so.1", "libfabric.so.1")]);
    let mut library = host("libfabric.so.1", &["fi_getinfo"]);
    library.versions = vec![b"FABRIC_1.0".to_vec(), b"FABRIC_1.6".to_vec()];
    let mut loaded =
        vec![object("/app", &["fi_getinfo"], &[]), object("libfabric.so.1", &[], &["fi_getinfo"])];
    loaded[0].requires = vec![requires("libfabric.so.1", "FABRIC_1.6")];
    decided(&offered(vec![library.clone()]), &facts, &loaded).unwrap();
    loaded[0].requires.push(requires("libfabric.so.1", "FABRIC_1.8"));
    refused(
        &offered(vec![library.clone()]),
        &facts,
        &loaded,
        "/usr/lib//app of the image needs FABRIC_1.8 of libfabric.so.1, which the host's /opt/mpi/lib/libfabric.so.1 \
         does not define",
    );
    library.versions.clear();
    decided(&offered(vec![library]), &facts, &loaded).unwrap();
}

#[test]
fn the_image_s_glibc_must_be_new_enough_for_all_that_comes() {
    let old = Facts::new(
        Some(Libc::Glibc { version: "2.31".to_owned() }),
        None,
        vec![own("/usr/lib/libmpi.so.12", "libmpi.so.12")],
    );
    let mut library = host("libmpi.so.12", &["MPI_Init", "MPI_Send"]);
    library.requires = vec![requires("libc.so.6", "GLIBC_2.17")];
    decided(&offered(vec![library.clone()]), &old, &program()).unwrap();
    let mut deep = dependency("libevent_core.so.7");
    deep.requires.push(Requirement { is_weak: true, ..requires("libc.so.6", "GLIBC_2.99") });
    refused(
        &offered(vec![library, deep]),
        &old,
        &program(),
        "/opt/mpi/lib/libevent_core.so.7 needs GLIBC_2.34, and the image has glibc 2.31",
    );
}

#[test]
fn musl_takes_nothing_of_glibc() {
    let library = vec![own("/usr/lib/libmpi.so.12", "libmpi.so.12")];
    for (libc, has) in [(Some(Libc::Musl), "musl"), (None, "no glibc")] {
        let facts = Facts::new(libc, None, library.clone());
        let expected = format!("/opt/mpi/lib/libmpi.so.12 is linked to glibc, and the image has {has}");
        refused(&offered(vec![host("libmpi.so.12", &[])]), &facts, &[], &expected);
    }
}

#[test]
fn open_mpi_comes_whole_or_not_at_all() {
    let mut open_mpi = host("libmpi.so.40", &["MPI_Init", "MPI_Send"]);
    open_mpi.family = Some(Family::OpenMpi);
    let mut image = own("/usr/lib/libmpi.so.40.30", "libmpi.so.40");
    image.family = Some(Family::OpenMpi);
    let facts = facts(vec![image]);
    let mut offered = offered(vec![open_mpi, dependency("libopen-pal.so.40")]);
    refused(
        &offered,
        &facts,
        &[],
        "/opt/mpi/lib/libmpi.so.40 is Open MPI, which works only together with its directory of components",
    );
    offered.prefixes = vec!["/opt/mpi".into()];
    let replacement = decided(&offered, &facts, &[]).unwrap();
    assert!(replacement.libraries.is_empty() && replacement.covers.is_empty(), "{replacement:?}");
    assert_eq!(replacement.found.len(), 2);
}

#[test]
fn what_is_not_alike_is_refused() {
    let mpich = own("/usr/lib/libmpi.so.12", "libmpi.so.12");
    let library = || host("libmpi.so.12", &["MPI_Init", "MPI_Send"]);
    let none = facts(vec![Library {
        family: Some(Family::OpenMpi),
        ..own("/usr/lib/libmpi.so.40.30.4", "libmpi.so.40")
    }]);
    let mut open = none.clone();
    open.libraries[0].file_version = "40.30.4".to_owned();
    refused(
        &offered(vec![library()]),
        &open,
        &[],
        "the image has no libmpi.so.12; it has Open MPI 4.1 (libmpi.so.40.30.4)",
    );
    refused(&offered(vec![library()]), &facts(Vec::new()), &[], "the image has no libmpi.so.12");
    let old_open_mpi = facts(vec![Library { family: Some(Family::OpenMpi), ..mpich.clone() }]);
    refused(
        &offered(vec![library()]),
        &old_open_mpi,
        &[],
        "/opt/mpi/lib/libmpi.so.12 is Intel MPI, and the image's /usr/lib/libmpi.so.12 is Open MPI",
    );
    let newer = facts(vec![Library { file_version: "12.10".to_owned(), ..mpich.clone() }]);
    let minor = Offered { abi: ModuleAbi::Minor, ..offered(vec![library()]) };
    refused(
        &minor,
        &newer,
        &[],
        "/opt/mpi/lib/libmpi.so.12 has version 12.3, and the image's /usr/lib/libmpi.so.12 has 12.10",
    );
    decided(&minor, &facts(vec![mpich.clone()]), &[]).unwrap();
    let missing =
        Offered { missing: vec![("libcxi.so.1".into(), "/opt/mpi/lib/libmpi.so.12".into())], ..minor };
    refused(
        &missing,
        &facts(vec![mpich]),
        &[],
        "/opt/mpi/lib/libmpi.so.12 needs libcxi.so.1, which this node does not have",
    );
}

#[test]
fn the_newer_of_the_compilers_libraries_serves_both() {
    let mut library = host("libmpi.so.12", &["MPI_Init", "MPI_Send"]);
    library.requires.push(requires("libstdc++.so.6", "GLIBCXX_3.4.29"));
    let runtime = dependency("libstdc++.so.6");
    for (has, stays) in [("GLIBCXX_3.4.30", true), ("GLIBCXX_3.4.29", true), ("GLIBCXX_3.4.28", false)] {
        let mut own_runtime = own("/usr/lib/libstdc++.so.6", "libstdc++.so.6");
        own_runtime.defines = vec![has.to_owned()];
        let facts = facts(vec![own("/usr/lib/libmpi.so.12", "libmpi.so.12"), own_runtime]);
        let replacement =
            decided(&offered(vec![library.clone(), runtime.clone()]), &facts, &program()).unwrap();
        let is_injected = replacement.libraries.iter().any(|(name, _)| name == "libstdc++.so.6");
        assert_eq!(is_injected, !stays, "{has}");
    }
}

#[test]
fn nothing_offered_is_nothing_done() {
    assert_eq!(decided(&Offered::default(), &Facts::default(), &[]), Ok(Replacement::default()));
}
