//! Whole layers against the graphs of small operations.

use candle_core::{DType, Result, Tensor};
use e2llm_kernels::*;

use crate::checker::{Checker, randn};
use crate::graphs::{decoder_graph, encoder_graph};

/// A linear of a layer to be checked: sizes, whether it has a bias, the rank of its update.
#[derive(Clone, Copy)]
pub(crate) struct Spec {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) bias: bool,
    pub(crate) rank: usize,
}

/// What a layer's linears are made of, out of a list of tensors: x, A and B of all updates, weights, biases, the rest.
pub(crate) struct Parts<'a> {
    pub(crate) updates: std::slice::Iter<'a, Tensor>,
    pub(crate) frozen: std::slice::Iter<'a, Tensor>,
}

const SCALING: f64 = 2.;

impl Spec {
    /// Fresh tensors: the update's and the frozen ones.
    fn tensors(self) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let matrix = |n: usize, k: usize| randn(&[n, k])? / (k as f64).sqrt();
        let mut update = Vec::new();
        if self.rank > 0 {
            update = vec![matrix(self.rank, self.inputs)?, matrix(self.outputs, self.rank)?];
        }
        let mut frozen = vec![matrix(self.outputs, self.inputs)?];
        if self.bias {
            frozen.push(randn(&[self.outputs])?);
        }
        Ok((update, frozen))
    }

    pub(crate) fn adapted(self, parts: &mut Parts<'_>) -> Result<Adapted> {
        let mut frozen = || match parts.frozen.next() {
            Some(t) => Ok(t.clone()),
            None => candle_core::bail!("too few tensors"),
        };
        let weight = frozen()?;
        let bias = if self.bias { Some(frozen()?) } else { None };
        let mut update = || match parts.updates.next() {
            Some(t) => t.to_dtype(DType::F32),
            None => candle_core::bail!("too few tensors"),
        };
        let lora = if self.rank > 0 { Some((update()?, update()?, SCALING)) } else { None };
        Ok(Adapted { weight, bias, lora })
    }
}

/// The tensors of a layer: x, all updates, all frozen ones of the linears, and the number of those that are trained.
pub(crate) fn layer_tensors(x: Tensor, specs: &[Spec]) -> Result<(Vec<Tensor>, usize)> {
    let (mut all, mut frozen) = (vec![x], Vec::new());
    for spec in specs {
        let (update, rest) = spec.tensors()?;
        all.extend(update);
        frozen.extend(rest);
    }
    let trained = all.len();
    all.extend(frozen);
    Ok((all, trained))
}

/// Which form of a layer a check runs on the GPU in bf16; float32 always runs the graph.
pub(crate) const FORMS: [(&str, bool, bool); 3] =
    [("graph", false, true), ("whole", true, true), ("again", true, false)];

/// Every one of a layer's dozen steps rounds: how far the graph of small operations may be from float32.
const GRAPH: f64 = 8e-2;
/// How much further a whole layer may be than the graph is.
const SLACK: f64 = 1.5;

/// Lets the form that comes next be as wrong as what was checked last, or as the graph may be.
pub(crate) fn allow(c: &mut Checker, whole: bool) {
    // Both whole forms are held against the graph, which was checked before them, or nothing was.
    if !whole {
        (c.rounding, c.weights) = (GRAPH, None);
    } else if c.rounding == GRAPH && c.largest > 0. {
        c.rounding = SLACK * c.largest;
    }
}

pub(crate) fn layers(c: &mut Checker) -> Result<()> {
    let spec = |outputs, inputs, bias, rank| Spec { outputs, inputs, bias, rank };
    for (b, t, h, hkv, d, m, rank, bias) in [
        (3, 77, 9, 3, 64, 256, 32, false),
        (2, 200, 4, 2, 64, 96, 4, false),
        (2, 130, 4, 1, 32, 96, 5, true),
        (3, 65, 4, 4, 128, 200, 8, false),
        // Updates beside all weights but the last, whose copies are too large to be kept for the backward pass; and inputs that are.
        (1, 515, 32, 8, 128, 512, 4, false),
        (2, 33, 32, 8, 128, 1024, 5, true),
        // Copies that are not kept, nor are inputs with more beside them.
        (1, 65, 8, 2, 128, 1920, 8, false),
        (5, 641, 8, 2, 128, 1032, 8, false),
        // Several tiles of keys, and rows without any.
        (4, 290, 4, 2, 128, 96, 8, false),
        (4, 290, 4, 1, 64, 96, 8, false),
    ] {
        let (width, rows) = (h * d, (h * d, hkv * d));
        let specs = [
            spec(rows.0, width, bias, rank),
            spec(rows.1, width, bias, rank),
            spec(rows.1, width, bias, if bias { 0 } else { rank }),
            spec(width, rows.0, false, rank),
            spec(m, width, false, rank),
            spec(m, width, false, rank),
            spec(width, m, false, rank),
        ];
        let (mut inputs, trained) = layer_tensors(randn(&[b, t, width])?, &specs)?;
        let norms = inputs.len();
        let angles = randn(&[t, d / 2])?;
        inputs.extend([randn(&[width])?, randn(&[width])?, angles.cos()?, angles.sin()?]);
        let lengths: Vec<usize> = (0..b).map(|i| if i == 2 { 0 } else { t - 17 * i }).collect();
        for (form, whole, keep) in FORMS {
            allow(c, whole);
            let name = format!("decoder layer {b}x{t}x{h}({hkv})x{d} {form}");
            c.check(&name, &inputs, trained, |t| {
                let mut parts = Parts { updates: t[1..trained].iter(), frozen: t[trained..].iter() };
                let linears = specs.iter().map(|s| s.adapted(&mut parts)).collect::<Result<Vec<_>>>()?;
                let Ok(linears) = linears.try_into() else { candle_core::bail!("seven linears") };
                let layer = DecoderLayer {
                    input_norm: &t[norms],
                    post_norm: &t[norms + 1],
                    linears,
                    heads: h,
                    kv_heads: hkv,
                    eps: 1e-5,
                };
                let (cos, sin) = (&t[norms + 2], &t[norms + 3]);
                if whole && t[0].dtype() == DType::BF16 {
                    let lengths: Vec<u32> = lengths.iter().map(|&n| n as u32).collect();
                    let lengths = Tensor::new(lengths, t[0].device())?;
                    let seen = Seen::Before(Some(&lengths));
                    return DecoderLayer::forward(&[layer], &t[0], (cos, sin), seen, keep);
                }
                decoder_graph(&layer, &t[0], [cos, sin], Mask::CausalKeys(&lengths))
            })?;
        }
    }
    // Ranks of the updates of attention and of the feed-forward block, and layers one after the other.
    for (b, t, h, d, m, (rank, fed), count) in [
        (5, 61, 12, 32, 256, (32, 32), 1),
        (12, 130, 3, 48, 160, (7, 7), 1),
        // Without updates; and beside weights.
        (3, 100, 6, 64, 512, (0, 0), 1),
        (1, 33, 32, 128, 1024, (8, 8), 1),
        // So large that the product makes the activation where a GPU can; rows and columns that are no whole tiles.
        (12, 331, 4, 64, 1096, (5, 5), 1),
        (12, 331, 4, 64, 1096, (0, 0), 1),
        (12, 331, 4, 64, 1096, (5, 0), 2),
        // So large that little is kept.
        (83, 101, 16, 64, 520, (5, 0), 2),
    ] {
        let width = h * d;
        let square = spec(width, width, true, rank);
        let specs = [
            square,
            square,
            spec(width, width, false, rank),
            spec(width, width, true, fed),
            spec(m, width, true, fed),
            spec(width, m, true, fed),
        ];
        let (mut inputs, trained) = layer_tensors(randn(&[b, t, width])?, &specs)?;
        let norms = inputs.len();
        inputs.extend([randn(&[width])?, randn(&[width])?, randn(&[width])?, randn(&[width])?]);
        let lengths: Vec<usize> = (0..b).map(|i| if i == 2 { 0 } else { t - 11 * i % t }).collect();
        for (form, whole, keep) in FORMS {
            allow(c, whole);
            let name = format!("encoder layer {b}x{t}x{h}x{d} {count} of rank {rank}, {fed} {form}");
            c.check(&name, &inputs, trained, |t| {
                let mut parts = Parts { updates: t[1..trained].iter(), frozen: t[trained..].iter() };
                let linears = specs.iter().map(|s| s.adapted(&mut parts)).collect::<Result<Vec<_>>>()?;
                let Ok(linears) = linears.try_into() else { candle_core::bail!("six linears") };
                let layer = EncoderLayer {
                    attention_norm: (&t[norms], &t[norms + 1], 1e-5),
                    norm: (&t[norms + 2], &t[norms + 3], 1e-5),
                    linears,
                    heads: h,
                };
                if whole && t[0].dtype() == DType::BF16 {
                    let lengths: Vec<u32> = lengths.iter().map(|&n| n as u32).collect();
                    let lengths = Tensor::new(lengths, t[0].device())?;
                    return EncoderLayer::forward(&vec![layer; count], &t[0], Some(&lengths), keep);
                }
                let graph = |x: Tensor, _| encoder_graph(&layer, &x, Mask::Keys(&lengths));
                (0..count).try_fold(t[0].clone(), graph)
            })?;
        }
    }
    Ok(())
}
