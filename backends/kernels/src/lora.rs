//! Linear layer with a frozen weight and a trained update of low rank, on the CPU.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use std::sync::{Mutex, PoisonError};

use crate::element::{Element, Real, for_dtype, storage};
use crate::host;
use crate::host_product::{Term, columns_times_rows, narrow_all, rows_times_columns, rows_times_rows};

/// `x weight^T + bias + scaling * (x a^T) b^T` with frozen `weight` and `bias`, on the CPU.
///
/// `x` is `[.., in]`, `weight` `[out, in]`, `bias` `[out]`, `a` `[r, in]`, `b` `[out, r]`; the result is `[.., out]`.
/// Both products end in one sum; `scaling * x a^T` is rounded to the element type before. Gradients reach `x`, `a`
/// and `b`.
///
/// # Errors
/// If sizes or element types do not fit together, or something is on another device.
pub fn lora_linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    (a, b): (&Tensor, &Tensor),
    scaling: f64,
) -> Result<Tensor> {
    let _timer = crate::profile::timer(crate::profile::Kind::Product);
    let (out, inner) = weight.dims2()?;
    let rank = a.dims2()?.0;
    let Some((&last, leading)) = x.dims().split_last() else { bail!("lora_linear: x is a scalar") };
    let biased = bias.is_none_or(|bias| bias.dims() == [out]);
    if last != inner || a.dims() != [rank, inner] || b.dims() != [out, rank] || !biased {
        bail!(
            "lora_linear: x {:?}, a {:?}, b {:?} and bias {:?} do not fit weight {:?}",
            x.shape(),
            a.shape(),
            b.shape(),
            bias.map(Tensor::shape),
            weight.shape()
        );
    }
    for t in [Some(weight), bias, Some(a), Some(b)].into_iter().flatten() {
        if t.dtype() != x.dtype() {
            bail!("lora_linear: x is {:?} but a parameter is {:?}", x.dtype(), t.dtype());
        }
    }
    let mut shape = leading.to_vec();
    shape.push(out);
    let op = LoraLinear {
        weight: weight.detach().contiguous()?,
        bias: bias.map(|b| b.detach().contiguous()).transpose()?,
        scaling,
        rank,
        shape: shape.into(),
        low: Mutex::new(None),
    };
    x.contiguous()?.apply_op3(&a.contiguous()?, &b.contiguous()?, op)
}

/// `low` keeps `scaling * x a^T`, `[m, r]`, from forward to backward.
struct LoraLinear {
    weight: Tensor,
    bias: Option<Tensor>,
    scaling: f64,
    rank: usize,
    shape: Shape,
    low: Mutex<Option<Tensor>>,
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (ws, wl) = self.weight.storage_and_layout();
        let ((n, k), r) = (self.weight.dims2()?, self.rank);
        for_dtype!("lora_linear", x.dtype(), T => {
            let (x, a, b) = (host::slice::<T>(x, xl)?, host::slice::<T>(a, al)?, host::slice::<T>(b, bl)?);
            let w = host::slice::<T>(host::cpu(&ws)?, wl)?;
            let bias = self.bias.as_ref().map(host::to_vec::<T>).transpose()?;
            let mut low = rows_times_columns(&[Term::new(x, a, k)], None, r);
            scale(&mut low, self.scaling);
            let y = rows_times_columns(&[Term::new(x, w, k), Term::new(&low, b, r)], bias.as_deref(), n);
            let low = Tensor::from_vec(low, (x.len() / k.max(1), r), &candle_core::Device::Cpu)?;
            *self.low.lock().unwrap_or_else(PoisonError::into_inner) = Some(low);
            Ok((storage(y), self.shape.clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((n, k), r) = (self.weight.dims2()?, self.rank);
        let Some(low) = self.low.lock().unwrap_or_else(PoisonError::into_inner).clone() else {
            bail!("lora_linear: backward without forward")
        };
        let g = g.contiguous()?;
        let stores = [x, a, b, &g, &low, &self.weight].map(Tensor::storage_and_layout);
        for_dtype!("lora_linear", x.dtype(), T => {
            let mut slices = Vec::with_capacity(stores.len());
            for (s, l) in &stores {
                slices.push(host::slice::<T>(host::cpu(s)?, l)?);
            }
            let [xd, ad, bd, gd, lowd, wd] = slices[..] else { bail!("lora_linear: inputs are missing") };
            let mut dlow = rows_times_rows(&[Term::new(gd, bd, n)], r);
            scale(&mut dlow, self.scaling);
            let tensor = |v: Vec<T>, like: &Tensor| Tensor::from_vec(v, like.shape(), like.device());
            let dx = x.track_op().then(|| {
                let terms = [Term::new(gd, wd, n), Term::new(&dlow, ad, r)];
                tensor(rows_times_rows(&terms, k), x)
            });
            let da = a.track_op().then(|| tensor(narrow_all(columns_times_rows(&dlow, xd, r, k)), a));
            let db = b.track_op().then(|| tensor(narrow_all(columns_times_rows(gd, lowd, n, r)), b));
            Ok((dx.transpose()?, da.transpose()?, db.transpose()?))
        })
    }
}

/// Multiplies all values.
pub(crate) fn scale<T: Element>(values: &mut [T], by: f64) {
    let by = T::Acc::real(by);
    host::for_rows(
        values,
        1,
        #[inline(always)]
        |_, values| {
            for v in values {
                *v = T::narrow(v.widen() * by);
            }
        },
    );
}
