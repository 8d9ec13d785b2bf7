//! CUPTI's activity records: every kernel, copy and fill with the GPU's own times, whoever started it.
//!
//! It is part of the CUDA toolkit and only needed here, so it is opened when it is asked for and not linked.
//! Source: "CUPTI", The CUPTI Activity API (NVIDIA's documentation) and the records' layout in `cupti_activity.h`, of which
//! the fields read here stand at the same places since CUDA 9.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use candle_core::{Result, bail};
use libloading::Library;

use crate::profile::Span;

/// Names it is found by, wherever the system looks for libraries.
const NAMES: [&str; 3] = ["libcupti.so.13", "libcupti.so.12", "libcupti.so"];

const MEMCPY: u32 = 1;
const MEMSET: u32 = 2;
const CONCURRENT_KERNEL: u32 = 10;
const ASKED: [u32; 3] = [MEMCPY, MEMSET, CONCURRENT_KERNEL];

/// What CUPTI writes records into.
const BUFFER: Layout = match Layout::from_size_align(4 << 20, 8) {
    Ok(layout) => layout,
    Err(_) => panic!("4 MiB are a size"),
};

type Status = u32;
type Request = extern "C" fn(*mut *mut u8, *mut usize, *mut usize);
type Complete = extern "C" fn(*mut c_void, u32, *mut u8, usize, usize);
type Next = unsafe extern "C" fn(*mut u8, usize, *mut *mut u8) -> Status;

/// Where kernels, copies and fills have kind and times.
#[repr(C)]
struct Timed {
    kind: u32,
    others: [u32; 3],
    start: u64,
    end: u64,
}

/// `CUpti_ActivityKernel4` and later, up to the name.
#[repr(C)]
struct KernelRecord {
    timed: Timed,
    others: [u64; 9],
    name: *const c_char,
}

const _: () = assert!(std::mem::offset_of!(KernelRecord, name) == 104 && size_of::<Timed>() == 32);

/// What the callback, which is given nothing of ours, reads records with and puts them to.
struct Shared {
    next: Option<Next>,
    spans: Vec<Span>,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared { next: None, spans: Vec::new() });

fn shared<T>(f: impl FnOnce(&mut Shared) -> T) -> T {
    f(&mut SHARED.lock().unwrap_or_else(PoisonError::into_inner))
}

extern "C" fn request(buffer: *mut *mut u8, size: *mut usize, records: *mut usize) {
    // SAFETY: the layout is not empty, and CUPTI passes three places to write to.
    unsafe {
        let memory = alloc(BUFFER);
        *buffer = memory;
        *size = if memory.is_null() { 0 } else { BUFFER.size() };
        // as many as fit
        *records = 0;
    }
}

extern "C" fn complete(_context: *mut c_void, _stream: u32, buffer: *mut u8, _size: usize, valid: usize) {
    shared(|shared| {
        let Some(next) = shared.next else { return };
        let mut record: *mut u8 = ptr::null_mut();
        // SAFETY: `buffer` is one of `request`'s with `valid` bytes of records, which `next` steps through; it ends with
        // another status than 0. Records are aligned to 8 and of the layout their kind says.
        unsafe {
            while next(buffer, valid, &raw mut record) == 0 {
                let timed = &*record.cast::<Timed>();
                let name = match timed.kind {
                    MEMCPY => "memcpy".to_owned(),
                    MEMSET => "memset".to_owned(),
                    CONCURRENT_KERNEL => {
                        let name = (*record.cast::<KernelRecord>()).name;
                        if name.is_null() {
                            "?".to_owned()
                        } else {
                            CStr::from_ptr(name).to_string_lossy().into_owned()
                        }
                    }
                    _ => continue,
                };
                shared.spans.push(Span { name, start: timed.start, end: timed.end });
            }
        }
    });
    if !buffer.is_null() {
        // SAFETY: it was made by `request` with this layout, and CUPTI is done with it.
        unsafe { dealloc(buffer, BUFFER) };
    }
}

/// Records from its making on. One at a time.
pub(crate) struct Trace {
    library: &'static Library,
}

impl Trace {
    pub(crate) fn start() -> Result<Self> {
        let trace = Self { library: library()? };
        // SAFETY: the types are those of CUPTI's headers.
        unsafe {
            let next = *trace.symbol::<Next>(b"cuptiActivityGetNextRecord\0")?;
            shared(|shared| *shared = Shared { next: Some(next), spans: Vec::new() });
            let register = trace.symbol::<unsafe extern "C" fn(Request, Complete) -> Status>(
                b"cuptiActivityRegisterCallbacks\0",
            )?;
            succeeded("register", register(request, complete))?;
        }
        trace.each(b"cuptiActivityEnable\0")?;
        Ok(trace)
    }

    /// The spans of work that the device has done; it must have been waited for.
    pub(crate) fn finish(self) -> Result<Vec<Span>> {
        self.each(b"cuptiActivityDisable\0")?;
        // SAFETY: as above; 1 asks for buffers that are not full, too.
        unsafe {
            let flush = self.symbol::<unsafe extern "C" fn(u32) -> Status>(b"cuptiActivityFlushAll\0")?;
            succeeded("flush", flush(1))?;
        }
        Ok(shared(|shared| std::mem::take(&mut shared.spans)))
    }

    fn each(&self, name: &[u8]) -> Result<()> {
        // SAFETY: as above.
        let call = unsafe { self.symbol::<unsafe extern "C" fn(u32) -> Status>(name)? };
        // SAFETY: it takes any number.
        ASKED.into_iter().try_for_each(|kind| succeeded("activity", unsafe { call(kind) }))
    }

    /// # Safety
    /// `T` must be the type that CUPTI declares for the name.
    unsafe fn symbol<T>(&self, name: &[u8]) -> Result<libloading::Symbol<'_, T>> {
        // SAFETY: the caller's.
        unsafe { self.library.get(name) }.map_err(|e| candle_core::Error::Msg(format!("CUPTI: {e}")))
    }
}

fn succeeded(what: &str, status: Status) -> Result<()> {
    if status != 0 {
        bail!(
            "CUPTI: {what} failed with status {status} (another profiler at work, or not permitted to profile?)"
        );
    }
    Ok(())
}

/// CUPTI, which stays open: it calls back when it likes.
fn library() -> Result<&'static Library> {
    static OPEN: Mutex<Option<&'static Library>> = Mutex::new(None);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = *open {
        return Ok(library);
    }
    // SAFETY: what is opened by these names is NVIDIA's library, whose initialisation may run at any time.
    let found = NAMES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    let Some(library) = found else {
        bail!(
            "a GPU's time is told by CUPTI, which is not found ({}): it comes with the CUDA toolkit, in extras/CUPTI/lib64, \
             and with the Python package nvidia-cuda-cupti; add its folder to LD_LIBRARY_PATH",
            NAMES.join(", ")
        );
    };
    Ok(*open.insert(Box::leak(Box::new(library))))
}
