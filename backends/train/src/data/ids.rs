//! Files of whole numbers: written in one go, read through a memory map.

use crate::{Result, TrainError};
use memmap2::Mmap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of a stored number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Two,
    Four,
    Eight,
}

impl Width {
    /// The least that ids below `vocabulary` need.
    pub(super) fn of(vocabulary: usize) -> Self {
        if vocabulary <= 1 << 16 { Self::Two } else { Self::Four }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    pub(super) fn from_bytes(bytes: usize) -> Option<Self> {
        [Self::Two, Self::Four, Self::Eight].into_iter().find(|w| w.bytes() == bytes)
    }
}

/// A file that numbers are added to.
pub(super) struct NumberWriter {
    path: PathBuf,
    file: BufWriter<File>,
    width: Width,
    len: u64,
}

impl NumberWriter {
    pub(super) fn create(path: PathBuf, width: Width) -> Result<Self> {
        let file = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(TrainError::io(&path))?);
        Ok(Self { path, file, width, len: 0 })
    }

    /// Numbers written so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn push(&mut self, value: u64) -> Result<()> {
        let bytes = value.to_le_bytes();
        let (kept, lost) = bytes.split_at(self.width.bytes());
        if lost.iter().any(|b| *b != 0) {
            let message = format!("the number {value} does not fit {} bytes", self.width.bytes());
            return Err(TrainError::file(&self.path, message));
        }
        self.file.write_all(kept).map_err(TrainError::io(&self.path))?;
        self.len += 1;
        Ok(())
    }

    pub(super) fn extend(&mut self, ids: &[u32]) -> Result<()> {
        ids.iter().try_for_each(|id| self.push(u64::from(*id)))
    }

    pub(super) fn finish(mut self) -> Result<()> {
        let end = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        end.map_err(TrainError::io(&self.path))
    }
}

/// A mapped file; nothing where it is empty, which cannot be mapped.
pub(super) struct Bytes(Option<Mmap>);

impl Bytes {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(TrainError::io(path))?;
        if file.metadata().map_err(TrainError::io(path))?.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: prepared data is never changed in place; whoever truncates it under a training ends that training.
        let map = unsafe { Mmap::map(&file) }.map_err(TrainError::io(path))?;
        Ok(Self(Some(map)))
    }

    pub(super) fn get(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// A mapped file of numbers.
pub(super) struct Numbers {
    bytes: Bytes,
    width: Width,
}

impl Numbers {
    /// Opens a file that must hold `len` numbers.
    pub(super) fn open(path: &Path, width: Width, len: u64) -> Result<Self> {
        let bytes = Bytes::open(path)?;
        let (got, expected) = (bytes.get().len() as u64, len * width.bytes() as u64);
        if got != expected {
            return Err(TrainError::file(
                path,
                format!("has {got} bytes, not {expected}: prepare the data again"),
            ));
        }
        Ok(Self { bytes, width })
    }

    pub(super) fn at(&self, index: usize) -> u64 {
        let n = self.width.bytes();
        let mut value = [0; 8];
        value[..n].copy_from_slice(&self.bytes.get()[index * n..(index + 1) * n]);
        u64::from_le_bytes(value)
    }

    pub(super) fn ids(&self, range: Range<usize>) -> Vec<u32> {
        range.map(|i| self.at(i) as u32).collect()
    }
}
