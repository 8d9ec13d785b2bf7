//! A look at a GGUF header before anybody allocates by what it says.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Every count and length is compared with
//! what is left of the file; duplicated names, odd alignments and deeply nested arrays are refused.

use std::collections::BTreeSet;

/// Longest name that makes sense; the format allows 64 characters for tensors.
const LONGEST_NAME: usize = 1 << 16;
const LARGEST_ALIGNMENT: u64 = 1 << 20;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Checks that the header of `data` can be read as it says.
pub(super) fn check(data: &[u8]) -> Result<(), String> {
    let mut at = Cursor { data, at: 0 };
    if at.take(4, "the magic bytes")? != b"GGUF" {
        return Err("no GGUF file: it does not begin with `GGUF`".to_owned());
    }
    let version = at.u32("the version")?;
    if !matches!(version, 2 | 3) {
        return Err(format!("GGUF version {version} is not supported (2, 3; big-endian files neither)"));
    }
    let tensors = at.count("the number of tensors", 24)?;
    let entries = at.count("the number of metadata entries", 13)?;
    let mut names = BTreeSet::new();
    for i in 0..entries {
        let key = at.name(&format!("key of metadata entry {i}"))?;
        if !names.insert(key) {
            return Err(format!("metadata key `{}` is there twice", String::from_utf8_lossy(key)));
        }
        let kind = at.u32("a metadata type")?;
        if key == b"general.alignment" {
            let alignment = match kind {
                4 => u64::from(at.u32("the alignment")?),
                10 => at.u64("the alignment")?,
                _ => return Err(format!("the alignment has type {kind}")),
            };
            if !alignment.is_power_of_two() || alignment > LARGEST_ALIGNMENT {
                return Err(format!("an alignment of {alignment} bytes"));
            }
        } else {
            at.skip_value(kind, &String::from_utf8_lossy(key))?;
        }
    }
    let mut names = BTreeSet::new();
    for i in 0..tensors {
        let name = at.name(&format!("name of tensor {i}"))?;
        if !names.insert(name) {
            return Err(format!("tensor `{}` is there twice", String::from_utf8_lossy(name)));
        }
        let dimensions = at.u32("a number of dimensions")?;
        if dimensions > 4 {
            let name = String::from_utf8_lossy(name);
            return Err(format!("tensor `{name}` has {dimensions} dimensions, at most 4 are allowed"));
        }
        at.take(8 * dimensions as usize + 4 + 8, "a tensor's dimensions, type and offset")?;
    }
    Ok(())
}

struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], String> {
        let left = self.data.len() - self.at;
        if n > left {
            return Err(format!("the file ends within its header: {what} takes {n} bytes, {left} are left"));
        }
        self.at += n;
        Ok(&self.data[self.at - n..self.at])
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().unwrap_or_default()))
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.take(8, what)?.try_into().unwrap_or_default()))
    }

    /// A count of things that take at least `smallest` bytes each.
    fn count(&mut self, what: &str, smallest: usize) -> Result<usize, String> {
        let n = self.u64(what)?;
        let left = self.data.len() - self.at;
        match usize::try_from(n).ok().filter(|n| n.checked_mul(smallest).is_some_and(|bytes| bytes <= left)) {
            Some(n) => Ok(n),
            None => Err(format!("{what} is {n}, for which the {left} bytes left do not suffice")),
        }
    }

    fn text(&mut self, what: &str) -> Result<&'a [u8], String> {
        let n = self.count(&format!("the length of {what}"), 1)?;
        self.take(n, what)
    }

    fn name(&mut self, what: &str) -> Result<&'a [u8], String> {
        match self.text(what)? {
            name if name.len() <= LONGEST_NAME => Ok(name),
            name => Err(format!("the {what} is {} bytes long", name.len())),
        }
    }

    fn skip_value(&mut self, kind: u32, key: &str) -> Result<(), String> {
        match kind {
            STRING => self.text(key).map(drop),
            ARRAY => {
                let kind = self.u32(key)?;
                if kind == ARRAY {
                    return Err(format!("metadata `{key}` is an array of arrays"));
                }
                let smallest = if kind == STRING { 8 } else { scalar_size(kind, key)? };
                let n = self.count(&format!("the number of elements of `{key}`"), smallest)?;
                if kind == STRING {
                    (0..n).try_for_each(|_| self.text(key).map(drop))
                } else {
                    self.take(n * smallest, key).map(drop)
                }
            }
            _ => self.take(scalar_size(kind, key)?, key).map(drop),
        }
    }
}

fn scalar_size(kind: u32, key: &str) -> Result<usize, String> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(format!("metadata `{key}` has unknown type {kind}")),
    }
}
