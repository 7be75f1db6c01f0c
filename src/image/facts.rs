//! What a launch needs to know of an image's content: its C library, what processor it is for, and its libraries of MPI,
//! fabrics and GPUs. Gathered once, when the image is converted, and kept in the trailer.
//!
//! `docs/image-format.md` specifies the section. A wrong one can mislead about its own image only: it says what to warn
//! of and which files of the image a host library may take the place of, and nothing outside of the image.

use serde::{Deserialize, Serialize};

/// Version of the section: readers take a later one for none.
const VERSION: u32 = 1;
/// Most libraries that are told of.
pub const MAX_LIBRARIES: usize = 1024;
/// Longest path or name, bytes.
const MAX_NAME: usize = 4096;
/// Most names that one library needs.
const MAX_NEEDS: usize = 256;

/// The facts of one image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    version: u32,
    /// The C library of the root, where it is one that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libc: Option<Libc>,
    /// The x86-64 level that the C library needs, 1 to 4; none where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isa_level: Option<u8>,
    /// Libraries, by path.
    #[serde(default)]
    pub libraries: Vec<Library>,
}

/// A C library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Libc {
    /// glibc.
    Glibc {
        /// The highest version that it defines: `2.36`.
        version: String,
    },
    /// musl, which runs nothing that was linked to glibc.
    Musl,
    /// Something of a later hpcrun.
    #[serde(other)]
    Other,
}

/// One library of an image: a regular file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Library {
    /// Where it lies, absolute.
    pub path: String,
    /// The name by which programs need it.
    pub soname: String,
    /// What it is.
    pub role: Role,
    /// Of an MPI library, whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// The version that the file's name ends in, or else the soname: `12.1.8`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file_version: String,
    /// Libraries that it needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// The highest versions of symbols that it defines, of those that tell libraries apart: `FABRIC_1.8`, `GLIBCXX_3.4.30`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub defines: Vec<String>,
}

/// What a library is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// MPI itself.
    Mpi,
    /// MPI for another language than C.
    MpiBinding,
    /// `libfabric`.
    Libfabric,
    /// UCX.
    Ucx,
    /// Verbs, of InfiniBand and RoCE.
    Verbs,
    /// Omni-Path.
    Psm2,
    /// Slingshot.
    Cxi,
    /// PMIx.
    Pmix,
    /// A library of PMI-1 or PMI-2.
    Pmi,
    /// CUDA's driver library for newer programs than the node's driver.
    CudaCompat,
    /// What compilers add to programs: `libstdc++`, `libgcc_s`.
    Runtime,
    /// Something of a later hpcrun.
    #[serde(other)]
    Other,
}

/// Names of libraries by what stands before `.so`, and what they are.
const ROLES: [(&str, Role); 28] = [
    ("libmpi", Role::Mpi),
    ("libmpich", Role::Mpi),
    ("libmpi_abi", Role::Mpi),
    ("libmpi_cray", Role::Mpi),
    ("libmpi_mt", Role::Mpi),
    ("libmpifort", Role::MpiBinding),
    ("libmpicxx", Role::MpiBinding),
    ("libmpifort_abi", Role::MpiBinding),
    ("libmpichfort", Role::MpiBinding),
    ("libmpichcxx", Role::MpiBinding),
    ("libmpi_cxx", Role::MpiBinding),
    ("libmpi_mpifh", Role::MpiBinding),
    ("libmpi_usempif08", Role::MpiBinding),
    ("libmpi_usempi_ignore_tkr", Role::MpiBinding),
    ("libfabric", Role::Libfabric),
    ("libucp", Role::Ucx),
    ("libuct", Role::Ucx),
    ("libucs", Role::Ucx),
    ("libucm", Role::Ucx),
    ("libibverbs", Role::Verbs),
    ("librdmacm", Role::Verbs),
    ("libpsm2", Role::Psm2),
    ("libcxi", Role::Cxi),
    ("libpmix", Role::Pmix),
    ("libpmi", Role::Pmi),
    ("libpmi2", Role::Pmi),
    ("libstdc++", Role::Runtime),
    ("libgcc_s", Role::Runtime),
];

impl Role {
    /// What a file at this path is by its name: `libmpi.so.12.1.8`. Files of other names are not looked at.
    pub fn of_path(path: &[u8]) -> Option<Role> {
        let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (path.get(..at)?, path.get(at.checked_add(1)?..)?),
            None => (&b""[..], path),
        };
        let at = name.windows(3).position(|window| window == b".so")?;
        let (stem, version) = (name.get(..at)?, name.get(at.checked_add(3)?..)?);
        let is_version = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
        let is_library = version.is_empty() || (version.starts_with(b".") && version.iter().all(is_version));
        if !is_library {
            return None;
        }
        if stem == b"libcuda" {
            return directory.ends_with(b"/compat").then_some(Role::CudaCompat);
        }
        ROLES.iter().find(|(known, _)| known.as_bytes() == stem).map(|(_, role)| *role)
    }

    /// The name at the beginning of a line.
    pub fn label(self) -> &'static str {
        match self {
            Role::Mpi | Role::MpiBinding => "mpi",
            Role::Pmix | Role::Pmi => "pmi",
            Role::Libfabric | Role::Ucx | Role::Verbs | Role::Psm2 | Role::Cxi => "fabric",
            Role::CudaCompat => "gpu",
            Role::Runtime | Role::Other => "library",
        }
    }

    /// The name for people.
    pub fn name(self) -> &'static str {
        match self {
            Role::Mpi => "MPI",
            Role::MpiBinding => "MPI binding",
            Role::Libfabric => "libfabric",
            Role::Ucx => "UCX",
            Role::Verbs => "verbs",
            Role::Psm2 => "PSM2",
            Role::Cxi => "CXI",
            Role::Pmix => "PMIx",
            Role::Pmi => "PMI",
            Role::CudaCompat => "CUDA compatibility",
            Role::Runtime => "runtime",
            Role::Other => "other",
        }
    }
}

/// Whose an MPI library is. Those of MPICH's kin stand in for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Open MPI.
    OpenMpi,
    /// MPICH.
    Mpich,
    /// Intel MPI.
    Intel,
    /// MVAPICH.
    Mvapich,
    /// Cray MPICH.
    Cray,
    /// Somebody else's.
    #[serde(other)]
    Unknown,
}

impl Family {
    /// Whose a library is that has this soname and defines these symbols.
    pub fn of<'s>(soname: &[u8], defined: impl IntoIterator<Item = &'s [u8]>) -> Family {
        if soname.starts_with(b"libmpi_cray") {
            return Family::Cray;
        }
        let mut family = Family::Unknown;
        for name in defined {
            // Open MPI has parts of MPICH in it, and Intel MPI is made of MPICH.
            if name == b"ompi_mpi_comm_world" {
                return Family::OpenMpi;
            }
            if name.starts_with(b"I_MPI_") || name.starts_with(b"impi_") {
                family = Family::Intel;
            } else if family != Family::Intel && (name.starts_with(b"mv2_") || name.starts_with(b"MVP_")) {
                family = Family::Mvapich;
            } else if family == Family::Unknown
                && [&b"MPIR_"[..], b"MPII_", b"MPL_"].iter().any(|start| name.starts_with(start))
            {
                family = Family::Mpich;
            }
        }
        family
    }

    /// The name for people.
    pub fn name(self) -> &'static str {
        match self {
            Family::OpenMpi => "Open MPI",
            Family::Mpich => "MPICH",
            Family::Intel => "Intel MPI",
            Family::Mvapich => "MVAPICH",
            Family::Cray => "Cray MPICH",
            Family::Unknown => "an unknown MPI",
        }
    }
}

impl Library {
    /// The release of Open MPI, which its file version tells: `4.1`.
    pub fn open_mpi_release(&self) -> Option<&'static str> {
        if self.family != Some(Family::OpenMpi) {
            return None;
        }
        let mut numbers = self.file_version.split('.').map(|part| part.parse::<u32>().ok());
        match (numbers.next()??, numbers.next().flatten()) {
            (40, Some(0..10)) => Some("3.0"),
            (40, Some(10..20)) => Some("3.1"),
            (40, Some(20..30)) => Some("4.0"),
            (40, Some(30..40)) => Some("4.1"),
            (40, Some(40..)) => Some("5.0"),
            // A file that is named as its soname is: from release 5 on the run-time layer is no part of Open MPI.
            (40, None) if self.needs_library("libopen-rte.so") => Some("4"),
            (40, None) => Some("5.0"),
            (20, _) => Some("2"),
            (12, _) => Some("1"),
            _ => None,
        }
    }

    /// Whether it needs a library whose name begins so.
    pub fn needs_library(&self, start: &str) -> bool {
        self.needs.iter().any(|name| name.starts_with(start))
    }

    /// `Open MPI 4.1 (libmpi.so.40.30.4)`
    pub fn describe(&self) -> String {
        let file = self.path.rsplit('/').next().unwrap_or_default();
        match (self.family, self.open_mpi_release()) {
            (Some(family), Some(release)) => format!("{} {release} ({file})", family.name()),
            (Some(family), None) => format!("{} ({file})", family.name()),
            (None, _) => format!("{} ({file})", self.role.name()),
        }
    }
}

/// Why the section cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the facts cannot be understood")]
pub struct FactsError(#[from] serde_json::Error);

impl Facts {
    /// Facts with these libraries, sorted by path; as many as the limit allows.
    pub fn new(libc: Option<Libc>, isa_level: Option<u8>, mut libraries: Vec<Library>) -> Facts {
        libraries.sort_by(|a, b| a.path.cmp(&b.path));
        libraries.truncate(MAX_LIBRARIES);
        Facts { version: VERSION, libc, isa_level, libraries }
    }

    /// The section.
    pub fn encode(&self) -> Vec<u8> {
        // Strings and numbers always serialise.
        let mut text = serde_json::to_vec(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Reads the section, whose length the trailer has checked. None if a later hpcrun wrote it in another form. What is
    /// beyond the limits, or no absolute path, is left out.
    pub fn parse(section: &[u8]) -> Result<Option<Facts>, FactsError> {
        #[derive(Deserialize)]
        struct Any {
            version: u32,
        }
        if serde_json::from_slice::<Any>(section)?.version != VERSION {
            return Ok(None);
        }
        let mut facts: Facts = serde_json::from_slice(section)?;
        facts.isa_level = facts.isa_level.filter(|level| (1..=4).contains(level));
        facts.libraries.truncate(MAX_LIBRARIES);
        facts.libraries.retain(|library| is_path(&library.path) && is_soname(&library.soname));
        for library in &mut facts.libraries {
            library.needs.truncate(MAX_NEEDS);
        }
        Ok(Some(facts))
    }

    /// The libraries of a role.
    pub fn of_role(&self, role: Role) -> impl Iterator<Item = &Library> {
        self.libraries.iter().filter(move |library| library.role == role)
    }

    /// The files that programs may get under a soname.
    pub fn named<'f, 's>(&'f self, soname: &'s str) -> impl Iterator<Item = &'f Library> + use<'f, 's> {
        self.libraries.iter().filter(move |library| library.soname == soname)
    }

    /// The version of glibc, if that is the C library.
    pub fn glibc(&self) -> Option<&str> {
        match &self.libc {
            Some(Libc::Glibc { version }) => Some(version),
            _ => None,
        }
    }

    /// Whether programs linked to glibc do not run in the image.
    pub fn is_musl(&self) -> bool {
        self.libc == Some(Libc::Musl)
    }
}

fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= MAX_NAME
        && !path.contains('\0')
        && path.split('/').skip(1).all(|name| !["", ".", ".."].contains(&name))
}

fn is_soname(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.contains(['/', '\0']) && ![".", ".."].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library(path: &str, soname: &str, family: Family, version: &str, needs: &[&str]) -> Library {
        Library {
            path: path.to_owned(),
            soname: soname.to_owned(),
            role: Role::Mpi,
            family: Some(family),
            file_version: version.to_owned(),
            needs: needs.iter().map(|name| (*name).to_owned()).collect(),
            defines: Vec::new(),
        }
    }

    #[test]
    fn files_are_chosen_by_name() {
        for (path, role) in [
            ("/usr/lib/libmpi.so", Some(Role::Mpi)),
            ("/usr/lib/libmpi.so.12", Some(Role::Mpi)),
            ("/usr/lib/libmpi.so.40.30.4", Some(Role::Mpi)),
            ("libmpich.so.12.1.12", Some(Role::Mpi)),
            ("/x/libmpi_abi.so.0", Some(Role::Mpi)),
            ("/x/libmpifort.so.12", Some(Role::MpiBinding)),
            ("/x/libfabric.so.1.18.1", Some(Role::Libfabric)),
            ("/x/libmpi.so.12.debug", None),
            ("/x/libmpi.so-old", None),
            ("/x/libmpi.soap", None),
            ("/x/libmpi.a", None),
            ("/x/libmpi2.so", None),
            ("/x/notlibmpi.so", None),
            ("/x/mpi.so", None),
            ("/x/libpmi2.so.0", Some(Role::Pmi)),
            ("/usr/local/cuda/compat/libcuda.so.550.54.15", Some(Role::CudaCompat)),
            ("/usr/lib/libcuda.so.1", None),
            ("/usr/lib/libstdc++.so.6.0.30", Some(Role::Runtime)),
            ("", None),
            ("/", None),
        ] {
            assert_eq!(Role::of_path(path.as_bytes()), role, "{path}");
        }
    }

    #[test]
    fn families_by_what_they_define() {
        for (soname, defined, family) in [
            ("libmpi.so.40", &["ADIO_Open", "MPL_x", "MPIR_x", "ompi_mpi_comm_world"][..], Family::OpenMpi),
            ("libmpi.so.12", &["MPI_Init", "MPIR_F08", "MPII_x"], Family::Mpich),
            ("libmpi.so.12", &["MPIR_F08", "impi_info", "MPL_trmalloc"], Family::Intel),
            ("libmpi.so.12", &["impi_info", "mv2_x"], Family::Intel),
            ("libmpi.so.12", &["MPIR_x", "mv2_tune"], Family::Mvapich),
            ("libmpi_cray.so.12", &["MPIR_x"], Family::Cray),
            ("libmpi.so.0", &["MPI_Init"], Family::Unknown),
            ("libmpi.so.0", &[], Family::Unknown),
        ] {
            let defined = defined.iter().map(|name| name.as_bytes());
            assert_eq!(Family::of(soname.as_bytes(), defined), family, "{soname}");
        }
    }

    #[test]
    fn releases_of_open_mpi() {
        for (version, needs, release) in [
            ("40.30.4", &[][..], Some("4.1")),
            ("40.20.3", &[], Some("4.0")),
            ("40.10.0", &[], Some("3.1")),
            ("40.00.0", &[], Some("3.0")),
            ("40.40.7", &[], Some("5.0")),
            ("40", &["libpmix.so.2"], Some("5.0")),
            ("40", &["libopen-rte.so.40"], Some("4")),
            ("20.10.1", &[], Some("2")),
            ("12.0.3", &[], Some("1")),
            ("x", &[], None),
        ] {
            let library = library("/x/libmpi.so", "libmpi.so.40", Family::OpenMpi, version, needs);
            assert_eq!(library.open_mpi_release(), release, "{version}");
        }
        assert_eq!(library("/x", "x", Family::Mpich, "40.30", &[]).open_mpi_release(), None);
    }

    #[test]
    fn the_section_is_read_as_it_was_written() {
        let mpi =
            library("/usr/lib/libmpi.so.12.1.8", "libmpi.so.12", Family::Mpich, "12.1.8", &["libc.so.6"]);
        let libc = Some(Libc::Glibc { version: "2.36".to_owned() });
        let facts =
            Facts::new(libc, Some(2), vec![mpi.clone(), Library { path: "/a/libmpi.so".to_owned(), ..mpi }]);
        assert_eq!(facts.libraries[0].path, "/a/libmpi.so");
        assert_eq!(Facts::parse(&facts.encode()).unwrap(), Some(facts));
        let musl = Facts::new(Some(Libc::Musl), None, Vec::new());
        assert_eq!(Facts::parse(&musl.encode()).unwrap(), Some(musl.clone()));
        assert!(musl.is_musl() && musl.glibc().is_none());
    }

    #[test]
    fn what_is_no_fact_is_refused_or_left_out() {
        for text in
            ["", "[]", "{}", "{\"version\":\"1\"}", "{\"version\":1,\"libraries\":{}}", "{\"version\":-1}"]
        {
            assert!(Facts::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(Facts::parse(b"{\"version\":2,\"libraries\":7}").unwrap(), None);
        let later = b"{\"version\":1,\"libc\":{\"kind\":\"of-tomorrow\",\"version\":\"1\"},\"libraries\":[]}";
        assert_eq!(Facts::parse(later).unwrap().unwrap().libc, Some(Libc::Other));
        let parse = |path: &str, soname: &str, level: u8| {
            let text = format!(
                "{{\"version\":1,\"isa_level\":{level},\"new\":[],\"libraries\":[{{\"path\":{path:?},\"soname\":{soname:?},\
                 \"role\":\"of-tomorrow\",\"family\":\"x\"}}]}}"
            );
            Facts::parse(text.as_bytes()).unwrap().unwrap()
        };
        let fine = parse("/lib/x", "x.so", 4);
        assert_eq!((fine.libraries[0].role, fine.libraries[0].family), (Role::Other, Some(Family::Unknown)));
        assert_eq!(fine.isa_level, Some(4));
        assert_eq!(parse("/lib/x", "x.so", 9).isa_level, None);
        for (path, soname) in
            [("lib/x", "x"), ("/a/../b", "x"), ("/a//b", "x"), ("/x", "a/b"), ("/x", ""), ("/x", "..")]
        {
            assert!(parse(path, soname, 1).libraries.is_empty(), "{path} {soname}");
        }
        let many = vec![library("/x", "x", Family::Mpich, "", &[]); MAX_LIBRARIES + 5];
        assert_eq!(Facts::new(None, None, many).libraries.len(), MAX_LIBRARIES);
    }
}
