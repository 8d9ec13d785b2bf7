//! Writing safetensors files: one, or shards with an index, as HF folders have them.

use super::index_name;
use crate::{LmError, Result};
use candle_core::Tensor;
use safetensors::tensor::serialize_to_file;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Writes `tensors` into `folder` as `<stem>.safetensors`, or, where they have more than `max_bytes`, as
/// `<stem>-00001-of-0000N.safetensors` with `<stem>.safetensors.index.json`. Every file is written beside its place,
/// synced and then renamed. Gives the files' paths.
///
/// # Errors
/// Anything that cannot be written.
pub fn write_safetensors(
    folder: &Path,
    stem: &str,
    tensors: &BTreeMap<String, Tensor>,
    max_bytes: Option<usize>,
) -> Result<Vec<PathBuf>> {
    let shards = shards(tensors, max_bytes.unwrap_or(usize::MAX));
    if let [only] = &shards[..] {
        let path = folder.join(format!("{stem}.safetensors"));
        write(&path, only)?;
        return Ok(vec![path]);
    }
    let mut files = Vec::new();
    let mut places = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("{stem}-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        places.extend(shard.iter().map(|(tensor, _)| ((*tensor).to_owned(), name.clone())));
        let path = folder.join(name);
        write(&path, shard)?;
        files.push(path);
    }
    let total: usize = tensors.values().map(bytes).sum();
    let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": places});
    let path = folder.join(index_name(stem));
    let text = serde_json::to_string_pretty(&index).map_err(|e| LmError::file(&path, e))? + "\n";
    replace(&path, |part| std::fs::write(part, &text).map_err(|e| LmError::io(part, e)))?;
    files.push(path);
    Ok(files)
}

/// Tensors of one file, in order of their names.
type Shard<'a> = Vec<(&'a str, &'a Tensor)>;

/// At least one shard; a tensor that is larger than `most` gets one of its own.
fn shards(tensors: &BTreeMap<String, Tensor>, most: usize) -> Vec<Shard<'_>> {
    let mut all: Vec<Shard<'_>> = vec![Vec::new()];
    let mut size = 0_usize;
    for (name, tensor) in tensors {
        let more = bytes(tensor);
        if size.saturating_add(more) > most && size > 0 {
            all.push(Vec::new());
            size = 0;
        }
        size += more;
        if let Some(shard) = all.last_mut() {
            shard.push((name, tensor));
        }
    }
    all
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

fn write(path: &Path, shard: &Shard<'_>) -> Result<()> {
    // transformers refuses a file that does not say which framework's layout it has.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let detached: Vec<(&str, Tensor)> = shard.iter().map(|(n, t)| (*n, t.detach())).collect();
    replace(path, |part| {
        let all = detached.iter().map(|(n, t)| (*n, t));
        serialize_to_file(all, Some(metadata), part).map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => LmError::io(path, e),
            other => LmError::file(path, other),
        })
    })
}

/// Writes a file beside `path`, makes sure that it is on the disk, and puts it in its place.
fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let part = PathBuf::from(name);
    let result = write(&part).and_then(|()| {
        let finish = || File::open(&part)?.sync_all().and_then(|()| std::fs::rename(&part, path));
        finish().map_err(|e| LmError::io(path, e))
    });
    if result.is_err() {
        // What could not be finished would only take room; the error that matters is the first one.
        drop(std::fs::remove_file(&part));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Weights;
    use candle_core::{DType, Device};

    #[test]
    fn shards_come_back_as_one() {
        let tensors: BTreeMap<String, Tensor> = (0..7)
            .map(|i| (format!("t{i}"), Tensor::full(i as f32, (i + 1, 10), &Device::Cpu).unwrap()))
            .collect();
        for (most, files) in [(None, 1), (Some(300), 6)] {
            let folder = tempfile::tempdir().unwrap();
            let written = write_safetensors(folder.path(), "x", &tensors, most).unwrap();
            assert_eq!(written.len(), files, "{written:?}");
            assert!(Weights::exist(folder.path(), "x") && !Weights::exist(folder.path(), "model"));
            let read = Weights::open_named(folder.path(), "x").unwrap();
            assert_eq!(read.tensors().len(), 7);
            for (name, tensor) in &tensors {
                let back = read.load(name, DType::F32, &Device::Cpu).unwrap();
                assert_eq!(back.to_vec2::<f32>().unwrap(), tensor.to_vec2::<f32>().unwrap());
            }
            let left = std::fs::read_dir(folder.path()).unwrap().count();
            assert_eq!(left, files, "nothing unfinished stays");
        }
    }
}
