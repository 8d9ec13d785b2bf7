//! A decoder with other adapters, or with its own added to the weights.

use super::Llama;
use super::layer::Layer;
use super::tensors::{head, layer_linears, linears};
use crate::config::LinearSpec;
use crate::linear::Linear;
use crate::{LoraSource, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;

impl Llama {
    /// The same decoder with other adapters: frozen weights are shared with this one.
    ///
    /// # Errors
    /// Targets that the decoder has not, adapters that are missing.
    pub fn with_lora(&self, mut lora: LoraSource<'_>) -> Result<Self> {
        let all = linears(&self.config);
        lora.config.check(all.iter().map(|l| l.module.as_str()))?;
        let mut copy = self.clone();
        for (i, layer) in copy.layers.iter_mut().enumerate() {
            for (spec, linear) in layer_linears(&self.config, i).iter().zip(layer.linears_mut()) {
                linear.set_lora(lora.of(spec)?);
            }
        }
        copy.head.set_lora(lora.of(&head(&self.config))?);
        Ok(copy)
    }

    /// Adds every adapter to its weight (which becomes dense), for faster inference.
    ///
    /// # Errors
    /// Any of the additions.
    pub fn merge_lora(&mut self) -> candle_core::Result<()> {
        self.layers.iter_mut().try_for_each(Layer::merge_lora)?;
        self.head.merge_lora()
    }

    /// Dense tensors by HF name with the adapters added: what a plain HF model of it holds.
    ///
    /// # Errors
    /// Any of dequantising and adding.
    pub fn merged_tensors(&self) -> candle_core::Result<BTreeMap<String, Tensor>> {
        let c = &self.config;
        let mut all = BTreeMap::new();
        all.insert("model.embed_tokens.weight".to_owned(), self.embed.dense()?);
        all.insert("model.norm.weight".to_owned(), self.norm.clone());
        let mut add = |spec: &LinearSpec, linear: &Linear| -> candle_core::Result<()> {
            all.insert(format!("{}.weight", spec.module), linear.merged_weight()?);
            if let Some(bias) = linear.bias() {
                all.insert(format!("{}.bias", spec.module), bias.clone());
            }
            Ok(())
        };
        for (i, layer) in self.layers.iter().enumerate() {
            for (spec, linear) in layer_linears(c, i).iter().zip(layer.linears()) {
                add(spec, linear)?;
            }
        }
        // A tied output layer is the embedding table, unless an adapter made them differ.
        if !c.tie_word_embeddings || self.head.lora().is_some() {
            add(&head(c), &self.head)?;
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let mut norm = |name: &str, t: &Tensor| {
                all.insert(format!("model.layers.{i}.{name}.weight"), t.clone());
            };
            norm("input_layernorm", &layer.input_norm);
            norm("post_attention_layernorm", &layer.post_norm);
            if let Some((q, k)) = &layer.head_norms {
                norm("self_attn.q_norm", q);
                norm("self_attn.k_norm", k);
            }
        }
        Ok(all)
    }
}
