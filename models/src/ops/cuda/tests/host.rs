#![expect(unsafe_code, reason = "a library is opened, and kernels are called with addresses of buffers")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use candle_core::Tensor;
use half::bf16;

use super::values;
use crate::ops::cuda::launch::{Address, Float, Launch};

/// The kernels, compiled for the CPU.
#[derive(Clone, Copy)]
pub(super) struct Host {
    launch: LaunchFunction,
}

/// In which order threads and blocks run that wait for nothing.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    Forwards,
    Backwards,
}

/// Memory of a kernel, with elements before and behind it that it must leave alone.
pub(super) struct Buffer {
    /// In units of the largest alignment that kernels ask for.
    units: Vec<u128>,
    len_bytes: usize,
}

type LaunchFunction =
    unsafe extern "C" fn(*const c_char, *const u32, u32, u32, *const c_void, u64, c_int) -> *const c_char;

const GUARD_UNITS: usize = 64;
/// Not a number in f32 and bf16, so that whatever reads it shows it.
const UNWRITTEN: u128 = u128::MAX;

unsafe extern "C" {
    fn dlopen(file_name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

impl Host {
    /// `None`, after saying so, on a machine without a C++ compiler.
    pub(super) fn get() -> Option<Self> {
        static HOST: OnceLock<Option<Host>> = OnceLock::new();
        *HOST.get_or_init(Self::compile)
    }

    fn compile() -> Option<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/cuda/host");
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libkernels.so");
        // No contraction: a product and a sum round as they are written, as the other bodies do it.
        let compiler = Command::new("g++")
            .args(["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"])
            .args(["-Wno-unknown-pragmas", "-shared", "-fPIC", "-I"])
            .arg(&source)
            .arg("-o")
            .arg(&library)
            .arg(source.join("runtime.cpp"))
            .output();
        let output = match compiler {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("skipped: the kernels are not compared, because this machine has no g++");
                return None;
            }
            Err(error) => panic!("g++: {error}"),
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let library = CString::new(library.into_os_string().into_encoded_bytes()).unwrap();
        const RTLD_NOW: c_int = 2;
        // SAFETY: the library was just compiled from `runtime.cpp`, whose `launch` has this signature.
        unsafe {
            let handle = dlopen(library.as_ptr(), RTLD_NOW);
            assert!(!handle.is_null(), "the compiled library opens");
            let launch = dlsym(handle, c"launch".as_ptr());
            assert!(!launch.is_null(), "the library has `launch`");
            Some(Self { launch: std::mem::transmute::<*mut c_void, LaunchFunction>(launch) })
        }
    }

    /// The arguments hold addresses of buffers that are alive.
    pub(super) fn run<A: Copy>(self, launch: &Launch<A>, order: Order) {
        let kernel = CString::new(launch.kernel.as_str()).unwrap();
        let (args, bytes) = ((&raw const launch.args).cast(), size_of::<A>() as u64);
        let backwards = c_int::from(matches!(order, Order::Backwards));
        // SAFETY: the name ends with a zero, the grid has three sides and the arguments `bytes` bytes, which `launch`
        // checks.
        let problem = unsafe {
            let (grid, threads, shared) = (launch.grid.as_ptr(), launch.threads, launch.shared_bytes);
            (self.launch)(kernel.as_ptr(), grid, threads, shared, args, bytes, backwards)
        };
        if !problem.is_null() {
            // SAFETY: a message that lives until the thread's next launch.
            let problem = unsafe { CStr::from_ptr(problem) };
            panic!("{}: {}", launch.kernel, problem.to_string_lossy());
        }
    }
}

/// What `run` returns, which must be the same in both orders, bit for bit.
pub(super) fn in_both_orders(run: impl Fn(Order) -> Vec<f32>) -> Vec<f32> {
    let [forwards, backwards] = [Order::Forwards, Order::Backwards].map(run);
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert!(bits(&forwards) == bits(&backwards), "the threads' order shows: a barrier is missing");
    forwards
}

impl Buffer {
    pub(super) fn unwritten(len_bytes: usize) -> Self {
        Self { units: vec![UNWRITTEN; len_bytes.div_ceil(size_of::<u128>()) + 2 * GUARD_UNITS], len_bytes }
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        let mut buffer = Self::unwritten(bytes.len());
        for (unit, chunk) in buffer.units[GUARD_UNITS..].iter_mut().zip(bytes.chunks(size_of::<u128>())) {
            let mut padded = unit.to_ne_bytes();
            padded[..chunk.len()].copy_from_slice(chunk);
            *unit = u128::from_ne_bytes(padded);
        }
        buffer
    }

    pub(super) fn of_words(words: &[u32]) -> Self {
        Self::of_bytes(&words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>())
    }

    pub(super) fn of_values(values: &[f32], float: Float) -> Self {
        let bytes: Vec<u8> = match float {
            Float::F32 => values.iter().flat_map(|value| value.to_ne_bytes()).collect(),
            Float::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_ne_bytes()).collect(),
        };
        Self::of_bytes(&bytes)
    }

    pub(super) fn of(x: &Tensor, float: Float) -> Self {
        Self::of_values(&values(x), float)
    }

    /// The kernels write through it, so the buffer is borrowed as if it changed.
    pub(super) fn address(&mut self) -> Address {
        Address(self.units[GUARD_UNITS..].as_mut_ptr().addr() as u64)
    }

    /// All elements, after a look at what stands around them.
    pub(super) fn values(&self, float: Float) -> Vec<f32> {
        let bytes = self.bytes();
        match float {
            Float::F32 => bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect(),
            Float::Bf16 => bytes.as_chunks::<2>().0.iter().map(|bytes| bf16::from_ne_bytes(*bytes).to_f32()).collect(),
        }
    }

    pub(super) fn words(&self) -> Vec<u32> {
        self.bytes().as_chunks::<4>().0.iter().map(|bytes| u32::from_ne_bytes(*bytes)).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        let all: Vec<u8> = self.units.iter().flat_map(|unit| unit.to_ne_bytes()).collect();
        let start = GUARD_UNITS * size_of::<u128>();
        let (before, rest) = all.split_at(start);
        let (bytes, behind) = rest.split_at(self.len_bytes);
        assert!(before.iter().chain(behind).all(|byte| *byte == 0xff), "a kernel wrote outside its output");
        bytes.to_vec()
    }
}
