//! The level of this node's processor, in the steps in which distributions build for them.

/// The x86-64 level, 1 to 4; none on other machines. Source: the x86-64 psABI, "microarchitecture levels".
#[cfg(target_arch = "x86_64")]
pub fn isa_level() -> Option<u8> {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("cmpxchg16b")
        && has!("popcnt")
        && has!("sse3")
        && has!("sse4.1")
        && has!("sse4.2")
        && has!("ssse3");
    let v3 = has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
    let v3 = v3 && has!("lzcnt") && has!("movbe");
    let v4 = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    // Each level has all of those below it.
    Some(match (v2, v3, v4) {
        (true, true, true) => 4,
        (true, true, false) => 3,
        (true, false, _) => 2,
        (false, ..) => 1,
    })
}

/// The x86-64 level, 1 to 4; none on other machines.
#[cfg(not(target_arch = "x86_64"))]
pub fn isa_level() -> Option<u8> {
    None
}
