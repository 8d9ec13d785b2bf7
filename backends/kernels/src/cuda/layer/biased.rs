//! A product with its bias.

use candle_core::{Result, Tensor, bail};

use super::group::is_input;
use super::{Context, PACK};

/// `x weight^T + bias` for `x` (`[.., in]`), `weight` (`[out, in]`) and `bias` (`[out]`): `[.., out]`. The bias is added before the
/// sums are rounded. `None` unless all are contiguous bf16 on a GPU and widths are multiples of 16 bytes.
///
/// # Errors
/// Sizes that do not fit together.
pub(crate) fn biased_product(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Option<Tensor>> {
    let (out, inner) = weight.dims2()?;
    if x.dims().last() != Some(&inner) || bias.dims() != [out] {
        bail!("biased_product: x {:?}, weight {:?}, bias {:?}", x.shape(), weight.shape(), bias.shape());
    }
    let whole =
        |t: &Tensor| is_input(t) && t.is_contiguous() && t.layout().start_offset().is_multiple_of(PACK);
    if ![x, weight, bias].into_iter().all(whole) || !out.is_multiple_of(PACK) || !inner.is_multiple_of(PACK) {
        return Ok(None);
    }
    let ctx = &Context::new(x.device())?;
    let x_rows = ctx.matrix(x)?;
    let y = ctx.buffer(x_rows.rows, out)?;
    if x_rows.rows > 0 {
        ctx.product_onto(y.mat, x_rows, ctx.matrix(weight)?, ctx.matrix(bias)?.address, None)?;
    }
    let mut shape = x.dims().to_vec();
    shape[x.rank() - 1] = out;
    Ok(Some(y.into_tensor(shape, ctx)))
}
