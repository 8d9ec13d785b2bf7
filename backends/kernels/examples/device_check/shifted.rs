//! Decoder layers whose heads attend in groups, with trained norms, against the graph of small operations.

use candle_core::{DType, Device, Result, Tensor};
use e2llm_kernels::*;

use crate::checker::{Checker, randn};
use crate::graphs::{apply, split};
use crate::layers::{FORMS, Parts, Spec, allow, layer_tensors};

/// Groups of sequences of such lengths, `size` wide, that begin `shift` positions earlier than the sequence.
fn groups(
    (t, lengths): (usize, &[usize]),
    (size, shift): (usize, usize),
    device: &Device,
) -> Result<HeadGroups> {
    let mut all = Vec::new();
    for (b, length) in lengths.iter().enumerate() {
        let mut start = 0;
        while start < *length {
            let end = ((start + shift) / size * size + size - shift).min(*length);
            all.push(b * t + start..b * t + end);
            start = end;
        }
    }
    HeadGroups::new(&all, lengths.len() * t, device)
}

fn graph(l: &DecoderLayer<'_>, x: &Tensor, angles: [&Tensor; 2], groups: &[HeadGroups; 2]) -> Result<Tensor> {
    let [q, k, v, o, gate, up, down] = &l.linears;
    let d = 2 * angles[0].dim(1)?;
    let norm = |x: &Tensor, weight: &Tensor| rms_norm(x, &weight.to_dtype(x.dtype())?, l.eps);
    let y = norm(x, l.input_norm)?;
    let q = rope(&split(&apply(q, &y)?, d)?, angles[0], angles[1])?;
    let k = rope(&split(&apply(k, &y)?, d)?, angles[0], angles[1])?;
    let y = group_attention(groups, &q, &k, &split(&apply(v, &y)?, d)?, 1. / (d as f64).sqrt())?;
    let x = (x + apply(o, &y.transpose(1, 2)?.flatten_from(2)?)?)?;
    let y = norm(&x, l.post_norm)?;
    &x + apply(down, &silu_mul(&apply(gate, &y)?, &apply(up, &y)?)?)?
}

pub(crate) fn shifted(c: &mut Checker) -> Result<()> {
    let spec = |outputs, inputs, rank| Spec { outputs, inputs, bias: false, rank };
    // Heads of which key heads serve both halves; a single head; lengths that leave groups of one and none at all.
    for (b, t, h, hkv, d, m, rank, size) in [
        (3, 77, 9, 3, 64, 256, 8, 20),
        (2, 130, 4, 4, 32, 96, 5, 33),
        (1, 65, 1, 1, 128, 200, 8, 17),
        (2, 64, 8, 2, 128, 512, 0, 16),
        (1, 40, 32, 32, 128, 512, 8, 10),
    ] {
        let width = h * d;
        let specs = [
            spec(h * d, width, rank),
            spec(hkv * d, width, rank),
            spec(hkv * d, width, rank),
            spec(width, h * d, rank),
            spec(m, width, 0),
            spec(m, width, 0),
            spec(width, m, 0),
        ];
        let (mut inputs, first) = layer_tensors(randn(&[b, t, width])?, &specs)?;
        // Norms are trained as well, so they stand behind the updates.
        let norms = [randn(&[width])?, randn(&[width])?];
        inputs.splice(first..first, norms);
        let (trained, angles) = (first + 2, randn(&[t, d / 2])?);
        let last = inputs.len();
        inputs.extend([angles.cos()?, angles.sin()?]);
        let lengths: Vec<usize> = (0..b).map(|i| (t - 19 * i).max(1)).collect();
        for (form, whole, keep) in FORMS {
            allow(c, whole);
            let name = format!("decoder layer in groups {b}x{t}x{h}({hkv})x{d} {form}");
            c.check(&name, &inputs, trained, |t_| {
                let mut parts = Parts { updates: t_[1..first].iter(), frozen: t_[trained..].iter() };
                let linears = specs.iter().map(|s| s.adapted(&mut parts)).collect::<Result<Vec<_>>>()?;
                let Ok(linears) = linears.try_into() else { candle_core::bail!("seven linears") };
                let norms = [t_[first].to_dtype(DType::F32)?, t_[first + 1].to_dtype(DType::F32)?];
                let layer = DecoderLayer {
                    input_norm: &norms[0],
                    post_norm: &norms[1],
                    linears,
                    heads: h,
                    kv_heads: hkv,
                    eps: 1e-5,
                };
                let device = t_[0].device();
                let half = |shift| groups((t, &lengths), (size, shift), device);
                let halves = [half(0)?, half(size / 2)?];
                let (cos, sin) = (&t_[last], &t_[last + 1]);
                let y = if whole && t_[0].dtype() == DType::BF16 {
                    let seen = Seen::Groups(&halves);
                    DecoderLayer::forward(&[layer], &t_[0], (cos, sin), seen, keep)?
                } else {
                    graph(&layer, &t_[0], [cos, sin], &halves)?
                };
                Ok(y)
            })?;
        }
    }
    Ok(())
}
