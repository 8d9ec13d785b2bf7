//! AMX: a product of 16 x 32 by 32 x 16 numbers in one instruction.
//!
//! The compiler's own intrinsics for it are unstable, so these are instructions. It never uses the tile registers
//! itself, which therefore keep what they hold from one function here to the next.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use super::pack::Line;

/// Whether the processor has it and the system lets this process use it.
pub(super) fn is_allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        #[allow(unused_unsafe, reason = "safe to call from Rust 1.94 on")]
        // SAFETY: every x86-64 processor has the instruction; leaves that it lacks are those of the last one it has.
        let (last, features) = unsafe { (__cpuid_count(0, 0).eax, __cpuid_count(7, 0).edx) };
        last >= 7 && features & (BF16 | TILE) == BF16 | TILE && ask()
    })
}

/// Asks Linux for the right to use tiles, whose state it does not keep for processes that did not ask.
#[cfg(target_os = "linux")]
fn ask() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two integers and changes nothing but this process's right.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn ask() -> bool {
    false
}

/// Eight registers of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// This thread's tile registers, configured until dropped.
pub(super) struct Tiles(());

impl Tiles {
    /// # Safety
    /// [`is_allowed`] must have said so.
    pub(super) unsafe fn configure() -> Self {
        // SAFETY: the caller vouches for the instruction, and the configuration is one of palette 1.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, preserves_flags))
        };
        Self(())
    }

    /// Sets the four registers of sums to 0.
    pub(super) fn clear(&mut self) {
        // SAFETY: the registers are configured as long as `self` lives.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nomem, nostack, preserves_flags)
            );
        }
    }

    /// Adds the product of 32 rows of `steps` times 32 numbers and as many columns to the sums.
    ///
    /// Columns pass by once for each 32 rows, so they are read without a place in the first cache, where the rows are to stay.
    ///
    /// # Safety
    /// `a` must be followed by 32 rows of `64 * steps` readable bytes that are `stride` bytes apart, `b` by `32 * steps`
    /// lines, and `steps` must not be 0.
    pub(super) unsafe fn add(&mut self, a: *const u8, stride: usize, b: *const Line, steps: usize) {
        // SAFETY: the caller vouches for the memory; the registers are configured as long as `self` lives.
        unsafe {
            asm!(
                "2:",
                "tileloaddt1 tmm6, [{b} + {line}]",
                "tileloadd tmm4, [{a} + {stride}]",
                "tileloaddt1 tmm7, [{b} + {line} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{low} + {stride}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {a}, 64",
                "add {low}, 64",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "add {b}, 2048",
                "dec {steps}",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "jnz 2b",
                a = inout(reg) a => _,
                low = inout(reg) a.add(16 * stride) => _,
                b = inout(reg) b => _,
                steps = inout(reg) steps => _,
                stride = in(reg) stride,
                line = in(reg) 64usize,
                options(readonly, nostack)
            );
        }
    }

    /// Writes the sums, row by row.
    pub(super) fn store(&self, sums: &mut super::tiles::Block) {
        // SAFETY: the block is 32 rows of 128 bytes; the registers are configured as long as `self` lives.
        unsafe {
            asm!(
                "tilestored [{c} + {stride}], tmm0",
                "tilestored [{c} + {stride} + 64], tmm1",
                "tilestored [{low} + {stride}], tmm2",
                "tilestored [{low} + {stride} + 64], tmm3",
                c = in(reg) sums.0.as_mut_ptr(),
                low = in(reg) sums.0.as_mut_ptr().add(16),
                stride = in(reg) 128usize,
                options(nostack, preserves_flags)
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the instruction is there, since it was configured; other code is not slowed by live tiles.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}
