//! Slurm's side: the symbols that it looks for in a plugin and those that it offers, as `slurm/spank.h` documents them.
//!
//! The only unsafe code of the plugin. Everything of Slurm's is looked up when it is needed, so that the plugin links to
//! no library of a release, and a call that a release lacks is a value. No panic gets out of here: slurmd would end.

#![allow(unsafe_code, reason = "a C interface")]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

use crate::options::{Bytes, OPTIONS, Opt};
use crate::plugin;

/// The name that Slurm knows the plugin by.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "Slurm's name")]
pub static plugin_name: [u8; 7] = *b"hpcrun\0";

/// What kind of plugin it is.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "Slurm's name")]
pub static plugin_type: [u8; 6] = *b"spank\0";

/// The release that it was built for; others refuse it.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "Slurm's name")]
pub static plugin_version: c_uint = number(env!("SLURM_VERSION_NUMBER"));

/// The version of the plugin interface.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "Slurm's name")]
pub static spank_plugin_version: c_uint = 1;

/// A decimal number that the build script wrote.
const fn number(text: &str) -> c_uint {
    match c_uint::from_str_radix(text, 10) {
        Ok(number) => number,
        Err(_) => 0,
    }
}

/// Called in every process that has plugins, first.
#[unsafe(no_mangle)]
pub extern "C" fn slurm_spank_init(spank: *mut c_void, _count: c_int, _words: *const *const c_char) -> c_int {
    guarded(|| plugin::init(&Spank(spank)));
    0
}

/// Called in a task's process, as its user, right before the task is executed.
#[unsafe(no_mangle)]
pub extern "C" fn slurm_spank_task_init(
    spank: *mut c_void,
    count: c_int,
    words: *const *const c_char,
) -> c_int {
    let spank = Spank(spank);
    // SAFETY: Slurm passes `count` strings that live as long as the plugin.
    let arguments = unsafe { strings(count, words) };
    if guarded(|| plugin::task_init(&spank, &arguments)).is_none() {
        spank.error("hpcrun: the plugin failed");
        spank.end_task(125);
    }
    0
}

/// Called when an option is given: in `srun` and its like, and in slurmstepd with what they were given.
extern "C" fn option_given(value: c_int, argument: *const c_char, _remote: c_int) -> c_int {
    let accepted = guarded(|| {
        // SAFETY: null, or a string that Slurm keeps during the call.
        let argument = unsafe { string(argument) }.unwrap_or_default();
        let at = usize::try_from(value).map_err(|_| "an option that is none".to_owned())?;
        OPTIONS.get(at).ok_or("an option that is none")?.check(&argument)?;
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        given.resize(OPTIONS.len(), None);
        if let Some(slot) = given.get_mut(at) {
            *slot = Some(argument);
        }
        Ok::<(), String>(())
    });
    match accepted {
        Some(Ok(())) => 0,
        Some(Err(why)) => {
            log(&format!("hpcrun: {why}"));
            -1
        }
        None => -1,
    }
}

/// The values of [`OPTIONS`] so far. Options are read before there is a second thread or a task.
static GIVEN: Mutex<Vec<Option<Bytes>>> = Mutex::new(Vec::new());

/// The value of `body`; none if it panics.
fn guarded<T>(body: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(body)).ok()
}

/// Where the plugin is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Context {
    /// `srun`.
    Srun,
    /// A step's slurmstepd and its tasks.
    Task,
    /// `sbatch` or `salloc`.
    Allocator,
    /// slurmd itself, its prolog or epilog.
    Other,
}

/// What kind of step a task belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// One of srun's.
    Tasks,
    /// The batch script.
    Batch,
    /// The shell of an allocation, or no tasks of the user's at all.
    Other,
}

// spank_context_t
const S_CTX_LOCAL: c_int = 1;
const S_CTX_REMOTE: c_int = 2;
const S_CTX_ALLOCATOR: c_int = 3;

// spank_item_t
const S_JOB_STEPID: c_int = 3;
const S_JOB_ARGV: c_int = 9;

// slurm/slurm.h: SLURM_BATCH_SCRIPT, and the least number that is no step of srun's.
const SLURM_BATCH_SCRIPT: u32 = 0xffff_fffb;
const SLURM_MAX_NORMAL_STEP_ID: u32 = 0xffff_fff0;

/// Bytes of a variable that are looked at.
const VARIABLE_BYTES: usize = 128 << 10;

/// `struct spank_option`.
#[repr(C)]
struct SpankOption {
    name: *const c_char,
    arginfo: *const c_char,
    usage: *const c_char,
    has_arg: c_int,
    val: c_int,
    cb: extern "C" fn(c_int, *const c_char, c_int) -> c_int,
}

/// The handle of one call from Slurm.
pub(crate) struct Spank(*mut c_void);

impl Spank {
    pub(crate) fn context(&self) -> Context {
        let Some(call) = symbol(c"spank_context") else { return Context::Other };
        // SAFETY: spank_context_t spank_context(void)
        let context = unsafe {
            let call: extern "C" fn() -> c_int = std::mem::transmute(call);
            call()
        };
        match context {
            S_CTX_LOCAL => Context::Srun,
            S_CTX_REMOTE => Context::Task,
            S_CTX_ALLOCATOR => Context::Allocator,
            _ => Context::Other,
        }
    }

    /// Adds an option to the command line; the error is Slurm's.
    pub(crate) fn register(&self, option: &Opt) -> Result<(), c_int> {
        let Some(call) = symbol(c"spank_option_register") else { return Err(-1) };
        let Some(val) = OPTIONS.iter().position(|known| known.name == option.name) else { return Err(-1) };
        // Slurm keeps some of these pointers for as long as it runs.
        let leak = |text: &str| CString::new(text).map_or(ptr::null_mut(), CString::into_raw).cast_const();
        let option = Box::leak(Box::new(SpankOption {
            name: leak(option.name),
            arginfo: option.argument.map_or(ptr::null(), leak),
            usage: leak(option.usage),
            has_arg: c_int::from(option.argument.is_some()),
            val: c_int::try_from(val).map_err(|_| -1)?,
            cb: option_given,
        }));
        // SAFETY: spank_err_t spank_option_register(spank_t, struct spank_option *); the option is never freed.
        let status = unsafe {
            let call: extern "C" fn(*mut c_void, *mut SpankOption) -> c_int = std::mem::transmute(call);
            call(self.0, option)
        };
        if status == 0 { Ok(()) } else { Err(status) }
    }

    /// The values of [`OPTIONS`], as far as given.
    pub(crate) fn given(&self) -> Vec<Option<Bytes>> {
        GIVEN.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn step(&self) -> Step {
        let mut step = 0u32;
        // SAFETY: S_JOB_STEPID takes one uint32_t *.
        let status = unsafe { get_item().map(|call| call(self.0, S_JOB_STEPID, &raw mut step)) };
        match step {
            _ if status != Some(0) => Step::Other,
            SLURM_BATCH_SCRIPT => Step::Batch,
            0..SLURM_MAX_NORMAL_STEP_ID => Step::Tasks,
            _ => Step::Other,
        }
    }

    /// The task's words.
    pub(crate) fn command(&self) -> Option<Vec<Bytes>> {
        let (count, words) = self.argv()?;
        // SAFETY: Slurm's own array of so many strings, which nobody changes during the call.
        Some(unsafe { strings(count, words.cast_const().cast()) })
    }

    fn argv(&self) -> Option<(c_int, *mut *mut c_char)> {
        let (mut count, mut words) = (0 as c_int, ptr::null_mut::<*mut c_char>());
        // SAFETY: S_JOB_ARGV takes an int * and a char ***.
        let status =
            unsafe { get_item().map(|call| call(self.0, S_JOB_ARGV, &raw mut count, &raw mut words)) };
        (status == Some(0) && !words.is_null()).then_some((count, words))
    }

    /// A variable of the task.
    pub(crate) fn variable(&self, name: &str) -> Option<Bytes> {
        let call = symbol(c"spank_getenv")?;
        let name = CString::new(name).ok()?;
        let mut buffer = vec![0u8; VARIABLE_BYTES];
        // SAFETY: spank_err_t spank_getenv(spank_t, const char *, char *, int), which writes at most so many bytes.
        let status = unsafe {
            let call: extern "C" fn(*mut c_void, *const c_char, *mut c_char, c_int) -> c_int =
                std::mem::transmute(call);
            call(self.0, name.as_ptr(), buffer.as_mut_ptr().cast(), c_int::try_from(buffer.len()).ok()?)
        };
        let value = CStr::from_bytes_until_nul(&buffer).ok()?;
        (status == 0).then(|| value.to_bytes().to_vec())
    }

    /// Sets a variable of the task.
    pub(crate) fn set_variable(&self, name: &str, value: &[u8]) -> Result<(), String> {
        let call = symbol(c"spank_setenv").ok_or("Slurm has no spank_setenv")?;
        let (name, value) = (c_string(name.as_bytes())?, c_string(value)?);
        // SAFETY: spank_err_t spank_setenv(spank_t, const char *, const char *, int), which copies both.
        let status = unsafe {
            let call: extern "C" fn(*mut c_void, *const c_char, *const c_char, c_int) -> c_int =
                std::mem::transmute(call);
            call(self.0, name.as_ptr(), value.as_ptr(), 1)
        };
        if status == 0 {
            Ok(())
        } else {
            Err(format!("cannot set the task's {name:?}: Slurm's error {status}"))
        }
    }

    /// Puts words before the task's own; false where Slurm cannot, before 23.11.
    pub(crate) fn prepend(&self, words: &[Bytes]) -> Result<bool, String> {
        let Some(call) = symbol(c"spank_prepend_task_argv") else { return Ok(false) };
        let words = words.iter().map(|word| c_string(word)).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> =
            words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect();
        let count = c_int::try_from(words.len()).map_err(|_| "too many words".to_owned())?;
        // SAFETY: spank_err_t spank_prepend_task_argv(spank_t, int, const char *[]), which copies them.
        let status = unsafe {
            let call: extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int =
                std::mem::transmute(call);
            call(self.0, count, pointers.as_ptr())
        };
        if status == 0 {
            Ok(true)
        } else {
            Err(format!("cannot put hpcrun before the task: Slurm's error {status}"))
        }
    }

    /// Exchanges the first of the task's words, which is what Slurm executes.
    pub(crate) fn replace_program(&self, program: &[u8]) -> Result<(), String> {
        let (count, words) = self.argv().ok_or("Slurm does not tell the task's command")?;
        if count < 1 {
            return Err("no command to run in the image".to_owned());
        }
        let program = c_string(program)?.into_raw();
        // SAFETY: the array has `count` >= 1 places, is this forked process's alone, and outlives the task's execve; the
        // new string is never freed.
        unsafe { words.write(program) };
        Ok(())
    }

    /// Says something to the user and to the log of slurmd.
    pub(crate) fn error(&self, text: &str) {
        log(text);
    }

    /// Ends this process: only for a task's.
    pub(crate) fn end_task(&self, status: c_int) -> ! {
        // SAFETY: a forked child of a threaded process: no handler of its parent's exit may run.
        unsafe { libc::_exit(status) }
    }
}

type GetItem = unsafe extern "C" fn(*mut c_void, c_int, ...) -> c_int;

fn get_item() -> Option<GetItem> {
    // SAFETY: spank_err_t spank_get_item(spank_t, spank_item_t, ...)
    symbol(c"spank_get_item").map(|call| unsafe { std::mem::transmute::<NonNull<c_void>, GetItem>(call) })
}

fn log(text: &str) {
    let Some(call) = symbol(c"slurm_error") else { return };
    let Ok(text) = c_string(text.as_bytes()) else { return };
    // SAFETY: void slurm_error(const char *format, ...), one string for one %s.
    unsafe {
        let call: unsafe extern "C" fn(*const c_char, ...) = std::mem::transmute(call);
        call(c"%s".as_ptr(), text.as_ptr());
    }
}

/// A function of the program that loaded the plugin, or of its libraries.
fn symbol(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: looks a name up in what is loaded.
    NonNull::new(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
}

fn c_string(bytes: &[u8]) -> Result<CString, String> {
    CString::new(bytes).map_err(|_| format!("'{}' has a NUL in it", bytes.escape_ascii()))
}

/// # Safety
///
/// `text` is null or a string that ends with a NUL.
unsafe fn string(text: *const c_char) -> Option<Bytes> {
    // SAFETY: the caller's word.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes().to_vec())
}

/// # Safety
///
/// `words` is null or has `count` places, each null or a string that ends with a NUL.
unsafe fn strings(count: c_int, words: *const *const c_char) -> Vec<Bytes> {
    let count = if words.is_null() { 0 } else { usize::try_from(count).unwrap_or(0) };
    // SAFETY: the caller's word.
    (0..count).map_while(|at| unsafe { string(*words.add(at)) }).collect()
}
