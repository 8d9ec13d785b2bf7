//! Names and sizes of a Llama's tensors.

use crate::LoraConfig;
use crate::config::{LinearSpec, LlamaConfig, TensorSpec};

/// Names and sizes of layer `i`'s linears: q, k, v, o, gate, up, down.
pub(super) fn layer_linears(c: &LlamaConfig, i: usize) -> [LinearSpec; 7] {
    let (h, m) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let attention = |name, outputs, inputs, bias| {
        LinearSpec::new(format!("model.layers.{i}.self_attn.{name}"), outputs, inputs, bias)
    };
    let mlp = |name, outputs, inputs| {
        LinearSpec::new(format!("model.layers.{i}.mlp.{name}"), outputs, inputs, c.mlp_bias)
    };
    [
        attention("q_proj", q, h, c.qkv_bias),
        attention("k_proj", kv, h, c.qkv_bias),
        attention("v_proj", kv, h, c.qkv_bias),
        attention("o_proj", h, q, c.output_bias),
        mlp("gate_proj", m, h),
        mlp("up_proj", m, h),
        mlp("down_proj", h, m),
    ]
}

pub(super) fn head(c: &LlamaConfig) -> LinearSpec {
    LinearSpec::new("lm_head", c.vocab_size, c.hidden_size, false)
}

pub(super) fn linears(c: &LlamaConfig) -> Vec<LinearSpec> {
    (0..c.num_hidden_layers).flat_map(|i| layer_linears(c, i)).chain([head(c)]).collect()
}

impl LlamaConfig {
    /// The frozen tensors of the model; a tied output layer is left out.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let h = self.hidden_size;
        let mut all = vec![TensorSpec::new("model.embed_tokens.weight", vec![self.vocab_size, h])];
        for i in 0..self.num_hidden_layers {
            let norm = |name: &str, n| TensorSpec::new(format!("model.layers.{i}.{name}.weight"), vec![n]);
            all.extend([norm("input_layernorm", h), norm("post_attention_layernorm", h)]);
            if self.qk_norm {
                all.extend([
                    norm("self_attn.q_norm", self.head_dim),
                    norm("self_attn.k_norm", self.head_dim),
                ]);
            }
            for linear in layer_linears(self, i) {
                all.extend(linear.tensors());
            }
        }
        all.push(TensorSpec::new("model.norm.weight", vec![h]));
        if !self.tie_word_embeddings {
            all.extend(head(self).tensors());
        }
        all
    }

    /// The adapters' tensors, names behind `prefix` (`decoder.`), in the order of the model.
    pub fn lora_tensors(&self, lora: &LoraConfig, prefix: &str) -> Vec<TensorSpec> {
        let all = linears(self);
        lora.specs(prefix, all.iter().map(|l| (l.module.as_str(), l.outputs, l.inputs)))
    }

    /// The tensors of the modules with these last names (`norm`, `embed_tokens`), each name behind `prefix`: what is
    /// trained in full.
    pub fn module_tensors(&self, modules: &[String], prefix: &str) -> Vec<TensorSpec> {
        let named = |t: &TensorSpec| modules.iter().any(|m| module_of(&t.name) == m);
        let own = self.tensors().into_iter().filter(named);
        own.map(|t| TensorSpec::new(format!("{prefix}{}", t.name), t.shape)).collect()
    }

    /// Last names of the modules of embeddings and norms. An output layer that is tied to the embeddings goes with
    /// them, one that is not stays out.
    pub fn embeddings_and_norms(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for t in self.tensors() {
            let module = module_of(&t.name);
            if (module.contains("embed") || module.contains("norm")) && !names.iter().any(|n| n == module) {
                names.push(module.to_owned());
            }
        }
        names
    }

    /// Number of frozen parameters.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|t| t.len() as u64).sum()
    }
}

/// Last name of the module that a tensor belongs to.
fn module_of(tensor: &str) -> &str {
    let path = tensor.rsplit_once('.').map_or(tensor, |(path, _)| path);
    path.rsplit('.').next().unwrap_or(path)
}
