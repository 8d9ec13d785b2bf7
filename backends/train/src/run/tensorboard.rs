//! TensorBoard event files: TFRecords of `tensorflow.Event` messages, of which a few fields are enough.

use super::crc::Crc32c;
use crate::{Result, TrainError};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file that scalars are added to.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Starts a file in `folder`. Events that another file there has at `step` or later count as undone.
    ///
    /// # Errors
    /// A folder or file that cannot be made.
    pub fn create(folder: &Path, step: usize) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("events.out.tfevents.{:010}.{:09}.e2llm", now.as_secs(), now.subsec_nanos());
        let path = folder.join(name);
        let file = File::create_new(&path).map_err(TrainError::io(&path))?;
        let mut events = Self { path, file };
        // Event.file_version = 3; Event.session_log = 7 with SessionLog.status = 1: START (1)
        events.event(0, &bytes_field(3, b"brain.Event:2"))?;
        if step > 0 {
            events.event(step, &bytes_field(7, &varint_field(1, 1)))?;
        }
        Ok(events)
    }

    /// Adds values of one step under their tags.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn scalars(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            // Summary.value = 1 of Summary.Value.tag = 1, simple_value = 2 (float)
            let mut one = bytes_field(1, tag.as_bytes());
            one.push(2 << 3 | FIXED32);
            one.extend((*value as f32).to_le_bytes());
            summary.extend(bytes_field(1, &one));
        }
        self.event(step, &bytes_field(5, &summary))
    }

    fn event(&mut self, step: usize, what: &[u8]) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        // Event.wall_time = 1 (double), step = 2 (int64)
        let mut event = vec![1 << 3 | FIXED64];
        event.extend(now.to_le_bytes());
        event.extend(varint_field(2, step as u64));
        event.extend(what);
        let record = record(&event);
        self.file.write_all(&record).map_err(TrainError::io(&self.path))
    }
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// Length, its masked check sum, data, its masked check sum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(Crc32c::of(&length).masked().to_le_bytes());
    out.extend(data);
    out.extend(Crc32c::of(data).masked().to_le_bytes());
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_field(number: u8, value: u64) -> Vec<u8> {
    let mut out = vec![number << 3 | VARINT];
    varint(value, &mut out);
    out
}

fn bytes_field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | BYTES];
    varint(value.len() as u64, &mut out);
    out.extend(value);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_and_values_are_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path(), 300).unwrap();
        events.scalars(300, &[("loss/total", 1.5)]).unwrap();
        let bytes = std::fs::read(&events.path).unwrap();
        let (mut at, mut records) = (0, Vec::new());
        while at < bytes.len() {
            let n = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            let sum = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let data = &bytes[at + 12..at + 12 + n];
            assert_eq!(sum(at + 8), Crc32c::of(&bytes[at..at + 8]).masked());
            assert_eq!(sum(at + 12 + n), Crc32c::of(data).masked());
            records.push(data);
            at += n + 16;
        }
        assert_eq!(records.len(), 3, "version, session start, scalars");
        // step 300 as a varint, then the summary: its value's tag and its float
        let expected =
            [&[0x10, 0xac, 0x02, 0x2a, 0x13, 0x0a, 0x11, 0x0a, 0x0a][..], b"loss/total", &[0x15]].concat();
        assert_eq!(records[2][9..9 + expected.len()], expected);
        assert_eq!(records[2][9 + expected.len()..], 1.5f32.to_le_bytes());
    }
}
