//! Capabilities and `no_new_privs`: dropping everything, and asking the kernel what is left.
#![expect(unsafe_code, reason = "capget, capset, getauxval and the capability prctls have no safe wrapper")]

use nix::errno::Errno;

use super::Error;

/// What a process may do beyond its user id, as the kernel tells it. Capability sets have bit N for capability N.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privileges {
    /// Capabilities in force.
    pub effective: u64,
    /// Capabilities that could be put in force.
    pub permitted: u64,
    /// Capabilities that a program with matching file capabilities would get.
    pub inheritable: u64,
    /// Capabilities that any program would get.
    pub ambient: u64,
    /// Capabilities that exec may give at most.
    pub bounding: u64,
    /// Whether exec can give nothing at all, not even by a setuid bit.
    pub no_new_privs: bool,
}

impl Privileges {
    /// Nothing left, nothing to be had.
    pub const NONE: Privileges = Privileges {
        effective: 0,
        permitted: 0,
        inheritable: 0,
        ambient: 0,
        bounding: 0,
        no_new_privs: true,
    };
}

impl std::fmt::Display for Privileges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "effective {:x}, permitted {:x}, inheritable {:x}, ambient {:x}, bounding {:x}, no_new_privs {}",
            self.effective,
            self.permitted,
            self.inheritable,
            self.ambient,
            self.bounding,
            u8::from(self.no_new_privs)
        )
    }
}

/// `struct __user_cap_header_struct` of `capset(2)`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// One of the two `struct __user_cap_data_struct`, 32 capabilities each.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: 64 capabilities in two [`Data`].
const VERSION_3: u32 = 0x2008_0522;

/// More capabilities than a set has bits there cannot be; the kernel answers `EINVAL` for the first that it lacks.
const CAPABILITIES_MAX: u64 = 64;

/// Drops every capability from every set for good, and sets `no_new_privs`. Needs `CAP_SETPCAP` in the present user
/// namespace, as its creator and whoever joins it have.
pub fn drop_all() -> Result<(), Error> {
    for capability in 0..CAPABILITIES_MAX {
        match prctl("CAPBSET_DROP", libc::PR_CAPBSET_DROP, capability, 0) {
            Err(error) if error.errno == Errno::EINVAL => break,
            dropped => dropped.map(drop)?,
        }
    }
    prctl(
        "CAP_AMBIENT, CLEAR_ALL",
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned().into(),
        0,
    )?;
    let header = Header { version: VERSION_3, pid: 0 };
    let data = [Data::default(); 2];
    // SAFETY: the kernel reads a header and, for version 3, two data structures.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } != 0 {
        return Err(Error::last("capset(0, 0, 0)"));
    }
    prctl("SET_NO_NEW_PRIVS, 1", libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// What the calling thread holds now.
pub fn held() -> Result<Privileges, Error> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: the kernel writes, for version 3, two data structures.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) } != 0 {
        return Err(Error::last("capget()"));
    }
    let [low, high] = data;
    let join = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let is_set = libc::PR_CAP_AMBIENT_IS_SET.cast_unsigned().into();
    let mut held = Privileges {
        effective: join(low.effective, high.effective),
        permitted: join(low.permitted, high.permitted),
        inheritable: join(low.inheritable, high.inheritable),
        no_new_privs: prctl("GET_NO_NEW_PRIVS", libc::PR_GET_NO_NEW_PRIVS, 0, 0)? == 1,
        ..Privileges::NONE
    };
    for capability in 0..CAPABILITIES_MAX {
        let bit = 1 << capability;
        match prctl("CAPBSET_READ", libc::PR_CAPBSET_READ, capability, 0) {
            Ok(0) => {}
            Ok(_) => held.bounding |= bit,
            Err(error) if error.errno == Errno::EINVAL => break,
            Err(error) => return Err(error),
        }
        // Only what is permitted and inheritable can be ambient: the kernel sees to that (capabilities(7)).
        if held.permitted & held.inheritable & bit != 0
            && prctl("CAP_AMBIENT, IS_SET", libc::PR_CAP_AMBIENT, is_set, capability)? == 1
        {
            held.ambient |= bit;
        }
    }
    Ok(held)
}

/// Wrapper for `prctl(2)` with operations that take numbers.
fn prctl(name: &str, operation: libc::c_int, second: u64, third: u64) -> Result<libc::c_int, Error> {
    // SAFETY: every operation used here takes numbers only; what it does not use must be zero.
    match unsafe { libc::prctl(operation, second, third, 0u64, 0u64) } {
        -1 => Err(Error::last(format!("prctl({name})"))),
        answer => Ok(answer),
    }
}

/// Whether the program was started with more rights than its caller has: setuid, setgid or file capabilities.
pub fn is_elevated() -> bool {
    // SAFETY: reads the auxiliary vector that the kernel gave the process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_proc_shows() {
        let held = held().unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        assert_eq!(held.effective, field("CapEff:"));
        assert_eq!(held.permitted, field("CapPrm:"));
        assert_eq!(held.inheritable, field("CapInh:"));
        assert_eq!(held.ambient, field("CapAmb:"));
        assert_eq!(held.bounding, field("CapBnd:"));
        assert_eq!(u64::from(held.no_new_privs), field("NoNewPrivs:"));
    }

    #[test]
    fn the_test_program_is_not_elevated() {
        assert!(!is_elevated());
    }
}
