//! GGUF files: metadata, and tensors under their HF names in HF's row order.

use super::{TensorInfo, gguf_header, map};
use crate::rope::RopeScaling;
use crate::{LmError, Result};
use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QTensor, ggml_file};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Divisors of the rotary frequencies; part of the configuration rather than a weight.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    data: Mmap,
    content: Content,
    /// Heads whose rows llama.cpp has interleaved, by GGUF name ending: q and k of `llama` files only.
    heads: Option<(usize, usize)>,
    /// GGUF name by HF name.
    names: BTreeMap<String, String>,
}

impl Gguf {
    /// Opens and checks a file: header, names, and every tensor's bytes against the file's size.
    ///
    /// # Errors
    /// Unreadable, truncated or damaged files; tensor names that are not a decoder's.
    pub fn open(path: &Path) -> Result<Self> {
        let data = map(path)?;
        gguf_header::check(&data).map_err(|m| LmError::file(path, m))?;
        let content =
            Content::read(&mut std::io::Cursor::new(&data[..])).map_err(|e| LmError::file(path, e))?;
        let mut gguf = Self { path: path.to_owned(), data, content, heads: None, names: BTreeMap::new() };
        gguf.check_ranges()?;
        if gguf.text("general.architecture")? == "llama" {
            let heads = gguf.integer("llama.attention.head_count")?;
            gguf.heads = Some((heads, gguf.integer_or("llama.attention.head_count_kv", heads)?));
        }
        let all = gguf.content.tensor_infos.keys().filter(|n| *n != ROPE_DIVISORS);
        gguf.names = all.map(|n| (hf_name(n), n.clone())).collect();
        Ok(gguf)
    }

    fn check_ranges(&self) -> Result<()> {
        let infos: BTreeMap<_, _> = self.content.tensor_infos.iter().collect();
        for name in infos.into_keys() {
            self.bytes(name)?;
        }
        Ok(())
    }

    /// A tensor's bytes, its element type and its dimensions.
    fn bytes(&self, name: &str) -> Result<(&[u8], GgmlDType, Vec<usize>)> {
        let Some(info) = self.content.tensor_infos.get(name) else {
            return Err(LmError::file(&self.path, format!("tensor `{name}` is missing")));
        };
        let (dims, dtype) = (info.shape.dims().to_vec(), info.ggml_dtype);
        let width = dims.last().copied().unwrap_or(1);
        if width % dtype.block_size() != 0 {
            let message = format!("tensor `{name}`: rows of {width} in blocks of {}", dtype.block_size());
            return Err(LmError::file(&self.path, message));
        }
        let elements = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let range = elements.and_then(|n| {
            let size = (n / dtype.block_size()).checked_mul(dtype.type_size())?;
            let start = usize::try_from(self.content.tensor_data_offset.checked_add(info.offset)?).ok()?;
            Some(start..start.checked_add(size)?)
        });
        match range.as_ref().and_then(|r| self.data.get(r.clone())) {
            Some(bytes) => Ok((bytes, dtype, dims)),
            None => {
                let size = self.data.len();
                let message = format!("tensor `{name}` {dims:?} lies beyond the file's end ({size} bytes)");
                Err(LmError::file(&self.path, message))
            }
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn infos(&self) -> Result<BTreeMap<String, TensorInfo>> {
        let mut infos = BTreeMap::new();
        for (name, gguf_name) in &self.names {
            let (_, dtype, shape) = self.bytes(gguf_name)?;
            infos.insert(name.clone(), TensorInfo { shape, dtype: format!("{dtype:?}") });
        }
        Ok(infos)
    }

    /// Reads a tensor by its HF name, quantised as it is, rows in HF's order.
    pub(super) fn load(&self, name: &str) -> Result<QTensor> {
        let Some(gguf_name) = self.names.get(name) else {
            return Err(LmError::file(&self.path, format!("tensor `{name}` is missing")));
        };
        let (bytes, dtype, dims) = self.bytes(gguf_name)?;
        let heads = self.heads.and_then(|(q, kv)| match name.rsplit('.').nth(1) {
            Some("q_proj") => Some(q),
            Some("k_proj") => Some(kv),
            _ => None,
        });
        let rows = dims[0];
        let tensor = match heads {
            Some(heads) if rows % (2 * heads) == 0 && rows > 0 => {
                let ordered = half_split_rows(bytes, rows, rows / heads);
                ggml_file::qtensor_from_ggml(dtype, &ordered, dims, &Device::Cpu)
            }
            _ => ggml_file::qtensor_from_ggml(dtype, bytes, dims, &Device::Cpu),
        };
        tensor.map_err(|e| LmError::file(&self.path, format!("tensor `{name}`: {e}")))
    }

    fn value(&self, key: &str) -> Result<&Value> {
        match self.content.metadata.get(key) {
            Some(value) => Ok(value),
            None => Err(LmError::file(&self.path, format!("metadata `{key}` is missing"))),
        }
    }

    fn wrong(&self, key: &str, wanted: &str) -> LmError {
        LmError::file(&self.path, format!("metadata `{key}` is not {wanted}"))
    }

    /// Whether there is a tensor of this GGUF name.
    pub(crate) fn has(&self, tensor: &str) -> bool {
        self.content.tensor_infos.contains_key(tensor)
    }

    pub(crate) fn rows(&self, tensor: &str) -> Result<usize> {
        Ok(self.bytes(tensor)?.2.first().copied().unwrap_or(0))
    }

    pub(crate) fn has_key(&self, key: &str) -> bool {
        self.content.metadata.contains_key(key)
    }

    /// A text of the metadata.
    ///
    /// # Errors
    /// A missing key, or another type.
    pub fn text(&self, key: &str) -> Result<&str> {
        match self.value(key)? {
            Value::String(s) => Ok(s),
            _ => Err(self.wrong(key, "a text")),
        }
    }

    /// A whole number of the metadata.
    ///
    /// # Errors
    /// A missing key, another type, or a negative number.
    pub fn integer(&self, key: &str) -> Result<usize> {
        let value = match *self.value(key)? {
            Value::U8(n) => Some(u64::from(n)),
            Value::U16(n) => Some(u64::from(n)),
            Value::U32(n) => Some(u64::from(n)),
            Value::U64(n) => Some(n),
            Value::I32(n) => u64::try_from(n).ok(),
            Value::I64(n) => u64::try_from(n).ok(),
            _ => None,
        };
        value.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| self.wrong(key, "a whole number"))
    }

    pub(crate) fn integer_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.has_key(key) { self.integer(key) } else { Ok(default) }
    }

    pub(crate) fn float(&self, key: &str) -> Result<f64> {
        match *self.value(key)? {
            // Through its shortest decimal form, so that 1e-5 is 1e-5 and not the float32 next to it.
            Value::F32(x) => x.to_string().parse().map_err(|_| self.wrong(key, "a number")),
            Value::F64(x) => Ok(x),
            _ => Err(self.wrong(key, "a number")),
        }
    }

    pub(crate) fn float_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.has_key(key) { self.float(key) } else { Ok(default) }
    }

    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.content.metadata.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Vec<&str>> {
        fn text(value: &Value) -> Option<&str> {
            match value {
                Value::String(s) => Some(s),
                _ => None,
            }
        }
        match self.value(key)? {
            Value::Array(values) => values.iter().map(text).collect::<Option<_>>(),
            _ => None,
        }
        .ok_or_else(|| self.wrong(key, "a list of texts"))
    }

    pub(crate) fn integers(&self, key: &str) -> Result<Vec<i64>> {
        let integer = |v: &Value| match *v {
            Value::I32(n) => Some(i64::from(n)),
            Value::U32(n) => Some(i64::from(n)),
            _ => None,
        };
        match self.value(key)? {
            Value::Array(values) => values.iter().map(integer).collect::<Option<_>>(),
            _ => None,
        }
        .ok_or_else(|| self.wrong(key, "a list of whole numbers"))
    }

    /// The rotary scaling that the metadata and the divisors' tensor describe.
    pub(crate) fn rope_scaling(&self, arch: &str, window: usize) -> Result<RopeScaling> {
        if self.has(ROPE_DIVISORS) {
            let (bytes, dtype, dims) = self.bytes(ROPE_DIVISORS)?;
            let divisors = ggml_file::qtensor_from_ggml(dtype, bytes, dims, &Device::Cpu)?;
            let divisors = divisors.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
            return Ok(RopeScaling::Divisors(divisors.into_iter().map(f64::from).collect()));
        }
        let key = |name: &str| format!("{arch}.rope.scaling.{name}");
        if !self.has_key(&key("type")) {
            return Ok(RopeScaling::None);
        }
        let window = self.integer_or(&key("original_context_length"), window)?;
        match self.text(&key("type"))? {
            "none" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: self.float(&key("factor"))? }),
            "yarn" => Ok(RopeScaling::yarn(self.float(&key("factor"))?, window)),
            other => Err(LmError::file(&self.path, format!("rope scaling `{other}` is not supported"))),
        }
    }
}

/// Undoes llama.cpp's order of a rotated head's rows: from pairs (a0 b0 a1 b1 ..) to halves (a0 a1 .. b0 b1 ..).
///
/// Rows are whole runs of bytes, quantised or not.
fn half_split_rows(bytes: &[u8], rows: usize, head_dim: usize) -> Vec<u8> {
    let row = bytes.len() / rows;
    let mut out = Vec::with_capacity(bytes.len());
    for head in 0..rows / head_dim {
        for half in 0..2 {
            for i in 0..head_dim / 2 {
                let from = (head * head_dim + 2 * i + half) * row;
                out.extend_from_slice(&bytes[from..from + row]);
            }
        }
    }
    out
}

/// The HF name of a decoder's tensor; unknown names stay as they are and are then reported as unexpected.
fn hf_name(name: &str) -> String {
    let (stem, kind) = name.rsplit_once('.').unwrap_or((name, ""));
    let whole = match stem {
        "token_embd" => Some("model.embed_tokens"),
        "output_norm" => Some("model.norm"),
        "output" => Some("lm_head"),
        _ => None,
    };
    if let Some(whole) = whole {
        return format!("{whole}.{kind}");
    }
    let Some((layer, part)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return name.to_owned();
    };
    let part = match part {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return name.to_owned(),
    };
    format!("model.layers.{layer}.{part}.{kind}")
}
