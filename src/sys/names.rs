//! Names of hosts, users and groups in a static program.

/// Keeps a static program's C library from loading the host's modules of nsswitch.conf: they are made for the host's C
/// library, which may be another version, and loading one crashes. Call it first.
///
/// glibc has `files` and `dns` built in; what they do not know, [`super::caller`] asks getent(1) for. musl knows no modules.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
#[expect(unsafe_code, reason = "__nss_configure_lookup has no safe wrapper")]
pub fn use_builtin_services() {
    unsafe extern "C" {
        fn __nss_configure_lookup(
            database: *const libc::c_char,
            services: *const libc::c_char,
        ) -> libc::c_int;
    }
    for (database, services) in [(c"passwd", c"files"), (c"group", c"files"), (c"hosts", c"files dns")] {
        // SAFETY: the function reads two terminated strings that live for ever; no thread looks names up yet.
        unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    }
}

/// A dynamic program loads the modules of the C library it runs with, and musl has none.
#[cfg(not(all(target_env = "gnu", target_feature = "crt-static")))]
pub fn use_builtin_services() {}
