#![expect(unsafe_code, reason = "functions are found by name in libraries that are opened at run time")]

//! Functions of libraries that are opened when the first of them is called.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A shared library that may be missing.
pub(crate) struct Library {
    /// Under which it is looked for, the first that is found.
    pub(crate) file_names: &'static [&'static CStr],
    /// Stands in for each of its functions that is not there.
    pub(crate) absent: extern "C" fn() -> c_int,
    pub(crate) handle: OnceLock<Handle>,
}

/// What `dlopen` returned; null where there is no library.
pub(crate) struct Handle(*mut c_void);

// SAFETY: a handle is a name that any thread may use, and is never closed.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

const RTLD_NOW: c_int = 2;
const RTLD_GLOBAL: c_int = 0x100;

unsafe extern "C" {
    fn dlopen(file_name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

impl Library {
    fn open(&self) -> Handle {
        for file_name in self.file_names {
            // SAFETY: the name ends with a zero. The libraries' own start-up code is trusted as that of any dependency.
            let handle = unsafe { dlopen(file_name.as_ptr(), RTLD_NOW | RTLD_GLOBAL) };
            if !handle.is_null() {
                return Handle(handle);
            }
        }
        Handle(std::ptr::null_mut())
    }

    fn find(&self, name: &CStr) -> *mut c_void {
        let Handle(handle) = self.handle.get_or_init(|| self.open());
        let found = match handle.is_null() {
            true => std::ptr::null_mut(),
            // SAFETY: the handle was opened and is never closed.
            false => unsafe { dlsym(*handle, name.as_ptr()) },
        };
        if found.is_null() { self.absent as *mut c_void } else { found }
    }
}

/// Fills a function's slot and returns what it holds now. Two threads may do so at once: they find the same.
pub(crate) extern "C" fn resolve(slot: &AtomicPtr<c_void>, name: *const c_char, library: &Library) -> *mut c_void {
    // SAFETY: the name is one that `lazy_functions` wrote, with a zero at its end.
    let found = library.find(unsafe { CStr::from_ptr(name) });
    slot.store(found, Ordering::Release);
    found
}

// A first call arrives here with the slot in r11, the name in r10 and the library in rax, none of which carries an
// argument. Those that do are kept. The stack is at 8 modulo 16, as at any function's first instruction: six pushes and
// the area for the vectors keep that, so 8 more bytes align it for the call.
std::arch::global_asm!(
    ".text",
    ".type passerelle_lazy_first_call,@function",
    ".globl passerelle_lazy_first_call",
    ".hidden passerelle_lazy_first_call",
    "passerelle_lazy_first_call:",
    "push rdi",
    "push rsi",
    "push rdx",
    "push rcx",
    "push r8",
    "push r9",
    "sub rsp, 136",
    "movups [rsp], xmm0",
    "movups [rsp + 16], xmm1",
    "movups [rsp + 32], xmm2",
    "movups [rsp + 48], xmm3",
    "movups [rsp + 64], xmm4",
    "movups [rsp + 80], xmm5",
    "movups [rsp + 96], xmm6",
    "movups [rsp + 112], xmm7",
    "mov rdi, r11",
    "mov rsi, r10",
    "mov rdx, rax",
    "call {resolve}",
    "movups xmm0, [rsp]",
    "movups xmm1, [rsp + 16]",
    "movups xmm2, [rsp + 32]",
    "movups xmm3, [rsp + 48]",
    "movups xmm4, [rsp + 64]",
    "movups xmm5, [rsp + 80]",
    "movups xmm6, [rsp + 96]",
    "movups xmm7, [rsp + 112]",
    "add rsp, 136",
    "pop r9",
    "pop r8",
    "pop rcx",
    "pop rdx",
    "pop rsi",
    "pop rdi",
    "jmp rax",
    ".size passerelle_lazy_first_call, . - passerelle_lazy_first_call",
    resolve = sym resolve,
);

/// Defines `$function`s for the linker, each found in `$library` when it is first called.
macro_rules! lazy_functions {
    ($library:path: $($function:ident)*) => {
        $(std::arch::global_asm!(
            ".text",
            concat!(".globl ", stringify!($function)),
            concat!(".type ", stringify!($function), ",@function"),
            concat!(stringify!($function), ":"),
            "endbr64",
            concat!("jmp [rip + .Lslot_", stringify!($function), "]"),
            concat!(".Lfirst_", stringify!($function), ":"),
            "endbr64",
            concat!("lea r11, [rip + .Lslot_", stringify!($function), "]"),
            concat!("lea r10, [rip + .Lname_", stringify!($function), "]"),
            "lea rax, [rip + {library}]",
            "jmp passerelle_lazy_first_call",
            concat!(".size ", stringify!($function), ", . - ", stringify!($function)),
            ".data",
            ".balign 8",
            concat!(".Lslot_", stringify!($function), ": .quad .Lfirst_", stringify!($function)),
            ".section .rodata",
            concat!(".Lname_", stringify!($function), ": .asciz \"", stringify!($function), "\""),
            ".text",
            library = sym $library,
        );)*
    };
}
pub(crate) use lazy_functions;

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn error() -> c_int {
        34
    }

    static MATHEMATICS: Library = Library { file_names: &[c"libm.so.6"], absent: error, handle: OnceLock::new() };
    static NOWHERE: Library =
        Library { file_names: &[c"libpasserelle-nowhere.so.0"], absent: error, handle: OnceLock::new() };

    // Arguments in registers of both kinds; neither is called by the standard library.
    lazy_functions!(MATHEMATICS: jn scalbln passerelle_unheard_of);
    lazy_functions!(NOWHERE: passerelle_missing);

    unsafe extern "C" {
        fn jn(order: c_int, x: f64) -> f64;
        fn scalbln(x: f64, exponent: i64) -> f64;
        fn passerelle_unheard_of() -> c_int;
        fn passerelle_missing(number: c_int) -> c_int;
    }

    #[test]
    fn a_function_is_found_at_its_first_call_and_gets_its_arguments_then_and_later() {
        for _ in 0..2 {
            // SAFETY: the C library's own signatures.
            let (bessel, scaled) = unsafe { (jn(2, 1.5), scalbln(0.75, 4)) };
            assert!((bessel - 0.232_087_679).abs() < 1e-8, "{bessel}");
            assert_eq!(scaled, 12.0);
        }
    }

    #[test]
    fn a_missing_function_and_a_missing_library_are_errors_of_the_call() {
        for _ in 0..2 {
            // SAFETY: both end in `error`, which takes nothing and returns a number.
            assert_eq!(unsafe { (passerelle_unheard_of(), passerelle_missing(1)) }, (34, 34));
        }
    }
}
