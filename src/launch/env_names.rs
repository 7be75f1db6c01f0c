//! Names of environment variables, by what becomes of them. `docs/environment.md` lists them for users.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Names of variables, exact or by their beginning (`SLURM_*`).
pub type Names = &'static [&'static str];

/// Host variables that lead programs of the image to files of the host: never passed, unless asked for by name.
pub const STRIPPED: Names = &[
    // The dynamic loader and language runtimes.
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LD_AUDIT",
    "LD_RUN_PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "PYTHONUSERBASE",
    "VIRTUAL_ENV",
    "CONDA_*",
    "PERL5LIB",
    "PERLLIB",
    "PERL5OPT",
    "RUBYLIB",
    "RUBYOPT",
    "GEM_HOME",
    "GEM_PATH",
    "R_HOME",
    "R_LIBS",
    "R_LIBS_SITE",
    "JULIA_LOAD_PATH",
    "JULIA_DEPOT_PATH",
    "JAVA_HOME",
    "CLASSPATH",
    "NODE_PATH",
    "LUA_PATH",
    "LUA_CPATH",
    "TCLLIBPATH",
    "GCONV_PATH",
    "LOCPATH",
    "NLSPATH",
    "GUILE_LOAD_PATH",
    // Installations of MPI and its kin; a leaked prefix loads the host's library into the image's program.
    "OPAL_PREFIX",
    "OPAL_LIBDIR",
    "PMIX_PREFIX",
    "PRTE_PREFIX",
    "MPI_HOME",
    "MPI_ROOT",
    "I_MPI_ROOT",
    "FI_PROVIDER_PATH",
    "UCX_MODULE_DIR",
    // Environment modules and what they set for compilers.
    "MODULEPATH",
    "MODULEPATH_ROOT",
    "MODULESHOME",
    "MODULES_*",
    "LOADEDMODULES",
    "_LMFILES_",
    "LMOD_*",
    "__LMOD_*",
    "_ModuleTable*",
    "__MODULES_*",
    "LIBRARY_PATH",
    "CPATH",
    "C_INCLUDE_PATH",
    "CPLUS_INCLUDE_PATH",
    "PKG_CONFIG_PATH",
    "CMAKE_PREFIX_PATH",
    "ACLOCAL_PATH",
    "MANPATH",
    "INFOPATH",
    // Shells: start-up files and functions of the host (`module` is one), and the shell itself.
    "BASH_ENV",
    "ENV",
    "BASH_FUNC_*",
    "ZDOTDIR",
    "FPATH",
    "SHELL",
    "SHLVL",
    "OLDPWD",
    "_",
    // Desktops.
    "XDG_DATA_DIRS",
    "XDG_CONFIG_DIRS",
    "GTK_PATH",
    "GIO_MODULE_DIR",
    "QT_PLUGIN_PATH",
    "TERMINFO_DIRS",
    // hpcrun's own, which describe the launch that set them.
    "HPCRUN_*",
    "HPCRUNENV_*",
    // Those of the tools that hpcrun takes the place of: options of this launch, or news of another.
    "APPTAINER_*",
    "APPTAINERENV_*",
    "SINGULARITY_*",
    "SINGULARITYENV_*",
    // The image decides where its programs are.
    "PATH",
];

/// What connects a rank with its launcher: a second process with the same would take the rank's place.
pub const RANK: Names = &[
    "PMI_*",
    "PMI2_*",
    "PMIX_*",
    "OMPI_COMM_WORLD_*",
    "OMPI_UNIVERSE_SIZE",
    "MPI_LOCALNRANKS",
    "MPI_LOCALRANKID",
    "HYDI_CONTROL_FD",
];

/// What belongs to the terminal that a person sits at.
pub const TERMINAL: Names = &["TERM", "COLORTERM"];

/// What a launcher tells its ranks. Only a launcher can: values that were baked into an image are dropped.
pub const LAUNCHER: Names = &[
    "SLURM_*",
    "SLURMD_*",
    "SRUN_*",
    "PMI_*",
    "PMI2_*",
    "PMIX_*",
    "PRTE_*",
    "OMPI_COMM_WORLD_*",
    "OMPI_UNIVERSE_SIZE",
    "MPI_LOCALNRANKS",
    "MPI_LOCALRANKID",
    "HYDI_CONTROL_FD",
    "FLUX_*",
    "PALS_*",
    "PBS_*",
    "LSB_*",
    "LSF_*",
    "JSM_*",
    "ALPS_*",
    "SLINGSHOT_*",
];

/// Variables whose host value, if there is one, beats the image's: the person, the terminal, the devices the job was
/// given, and how this machine wants its network and its cores used.
pub const HOST_FIRST: Names = &[
    "HOME",
    "USER",
    "LOGNAME",
    "TERM",
    "COLORTERM",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "SSH_AUTH_SOCK",
    "SSH_CONNECTION",
    "KRB5CCNAME",
    "PWD",
    "TMPDIR",
    "TZ",
    "XDG_RUNTIME_DIR",
    "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "ONEAPI_DEVICE_SELECTOR",
    "CUDA_MPS_*",
    "OMP_*",
    "GOMP_*",
    "KMP_*",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "OMPI_*",
    "MPICH_*",
    "MPIR_*",
    "MV2_*",
    "I_MPI_*",
    "UCX_*",
    "FI_*",
    "PSM2_*",
    "NCCL_*",
    "RCCL_*",
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "no_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];

/// Host variables that name a directory, and mean nothing where the new root does not show it.
pub const DIRECTORIES: Names = &["TMPDIR", "XDG_RUNTIME_DIR"];

/// What keeps MPI libraries working when each rank has a user namespace of its own, where the kernel refuses
/// cross-memory attach: Open MPI 4 would hang, MPICH 5 and UCX would abort. What follows in a group goes only with what
/// stands before it.
pub const UNSHARED_MPI: [&[(&str, &str)]; 4] = [
    &[("OMPI_MCA_btl_vader_single_copy_mechanism", "none")],
    &[("MPIR_CVAR_CH4_CMA_ENABLE", "0")],
    &[("UCX_POSIX_USE_PROC_LINK", "n")],
    &[
        // All but cross-memory attach, whatever fabric there is. UCX knows such lists since 1.11.
        ("UCX_TLS", "^cma"),
        // Else UCX moves large messages between ranks of one node over TCP rather than through shared memory, and then
        // MPI_Finalize of MPICH 4.0 hangs now and then. TCP to other nodes stays. A list without TCP would make UCX warn
        // of a variable that nobody uses.
        ("UCX_TCP_PUT_ENABLE", "n"),
    ],
];

/// Whether `name` is one of `names`.
pub fn is_one_of(name: &OsStr, names: Names) -> bool {
    let name = name.as_bytes();
    names.iter().any(|entry| match entry.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning.as_bytes()),
        None => name == entry.as_bytes(),
    })
}
