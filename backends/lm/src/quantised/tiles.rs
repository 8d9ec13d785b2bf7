//! Quantised weights in the order in which vector registers read them.
//!
//! 16 rows make a tile. A block of 32 columns of a tile is 8 groups of 4 columns; in a group, byte `4 * row + j` is
//! column `j` of a row, so that one register holds 4 columns of all 16 rows. Weights of 4 bits share a byte: group
//! `g` in the low half, group `g + 4` in the high one, which is ggml's own pairing.

use candle_core::quantized::GgmlDType;
use candle_core::{Result, bail};
use half::f16;

/// Columns of a block.
pub(super) const BLOCK: usize = 32;
/// Rows of a tile.
pub(super) const LANES: usize = 16;
/// Columns of a group.
const GROUP: usize = 4;
/// Groups of a block.
pub(super) const GROUPS: usize = BLOCK / GROUP;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// 4 bits: `scale * (u - 8)`.
    Q4_0,
    /// 4 bits: `scale * u + least`.
    Q4_1,
    /// 8 bits: `scale * (u - 128)`.
    Q8_0,
}

impl Kind {
    /// Bytes of integers in one row's block.
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 => BLOCK / 2,
            Self::Q8_0 => BLOCK,
        }
    }

    /// The integer that stands for 0, where there is one.
    pub(super) const fn zero(self) -> Option<f32> {
        match self {
            Self::Q4_0 => Some(8.0),
            Self::Q4_1 => None,
            Self::Q8_0 => Some(128.0),
        }
    }

    /// Bytes before a block's integers in ggml's own layout: the scale, and for Q4_1 the least value.
    const fn header(self) -> usize {
        if self.zero().is_some() { 2 } else { 4 }
    }
}

/// All tiles of a matrix; the last one is filled up with rows of zeros.
#[derive(Debug)]
pub(super) struct Tiles {
    kind: Kind,
    blocks: usize,
    data: Vec<u8>,
    /// `[tile][block][row]`, float16.
    scales: Vec<u16>,
    /// The same of the least values; empty where the kind has none.
    least: Vec<u16>,
}

/// One tile.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) kind: Kind,
    pub(super) data: &'a [u8],
    pub(super) scales: &'a [u16],
    pub(super) least: &'a [u16],
}

impl Tiles {
    /// Reorders a matrix out of ggml's layout; `None` where its kind is not one of ours.
    pub(super) fn pack(dtype: GgmlDType, bytes: &[u8], rows: usize, columns: usize) -> Result<Option<Self>> {
        let kind = match dtype {
            GgmlDType::Q4_0 => Kind::Q4_0,
            GgmlDType::Q4_1 => Kind::Q4_1,
            GgmlDType::Q8_0 => Kind::Q8_0,
            _ => return Ok(None),
        };
        let (blocks, size) = (columns / BLOCK, kind.header() + kind.bytes());
        if bytes.len() != rows * blocks * size {
            bail!("a {dtype:?} matrix {rows} x {columns} of {} bytes", bytes.len());
        }
        let tiles = rows.div_ceil(LANES);
        let mut data = vec![0u8; tiles * blocks * LANES * kind.bytes()];
        let mut scales = vec![0u16; tiles * blocks * LANES];
        let mut least = vec![0u16; if kind == Kind::Q4_1 { scales.len() } else { 0 }];
        // Signed bytes become unsigned ones by their highest bit.
        let flip = if kind == Kind::Q8_0 { 0x80 } else { 0 };
        for (i, block) in bytes.chunks_exact(size).enumerate() {
            let (row, b) = (i / blocks, i % blocks);
            let (at, lane) = (row / LANES * blocks + b, row % LANES);
            scales[at * LANES + lane] = u16::from_le_bytes([block[0], block[1]]);
            if let Some(least) = least.get_mut(at * LANES + lane) {
                *least = u16::from_le_bytes([block[2], block[3]]);
            }
            let tile = &mut data[at * LANES * kind.bytes()..(at + 1) * LANES * kind.bytes()];
            for (g, group) in block[kind.header()..].chunks_exact(GROUP).enumerate() {
                for (j, byte) in group.iter().enumerate() {
                    tile[(g * LANES + lane) * GROUP + j] = byte ^ flip;
                }
            }
        }
        Ok(Some(Self { kind, blocks, data, scales, least }))
    }

    /// Number of tiles.
    pub(super) fn len(&self) -> usize {
        self.scales.len() / (self.blocks * LANES)
    }

    pub(super) fn get(&self, i: usize) -> Tile<'_> {
        let part = |n: usize| i * self.blocks * n..(i + 1) * self.blocks * n;
        let least = if self.least.is_empty() { &[] } else { &self.least[part(LANES)] };
        let data = &self.data[part(LANES * self.kind.bytes())];
        Tile { kind: self.kind, data, scales: &self.scales[part(LANES)], least }
    }

    /// Writes one row's weights to `out`.
    pub(super) fn unpack(&self, row: usize, out: &mut [f32]) {
        let (tile, lane) = (self.get(row / LANES), row % LANES);
        for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let (scale, least) = tile.line(b, lane);
            for (i, out) in out.iter_mut().enumerate() {
                // An integer less its zero is exact, its multiple is rounded once: ggml's own value.
                let u = f32::from(tile.integer(b, lane, i));
                *out = match self.kind.zero() {
                    Some(zero) => (u - zero) * scale,
                    None => u * scale + least,
                };
            }
        }
    }
}

impl Tile<'_> {
    /// Scale and least value of a row's block.
    pub(super) fn line(&self, block: usize, lane: usize) -> (f32, f32) {
        let at = block * LANES + lane;
        let scale = f16::from_bits(self.scales[at]).to_f32();
        match self.kind.zero() {
            Some(zero) => (scale, -zero * scale),
            None => (scale, f16::from_bits(self.least[at]).to_f32()),
        }
    }

    /// The integer in column `i` of a row's block.
    pub(super) fn integer(&self, block: usize, lane: usize, i: usize) -> u8 {
        let block = &self.data[block * LANES * self.kind.bytes()..];
        let byte = |group: usize| block[(group * LANES + lane) * GROUP + i % GROUP];
        let group = i / GROUP;
        match self.kind {
            Kind::Q8_0 => byte(group),
            _ if group < GROUPS / 2 => byte(group) & 15,
            _ => byte(group - GROUPS / 2) >> 4,
        }
    }
}
