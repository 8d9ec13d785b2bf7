//! Linear layer whose weight and bias are trained.

use candle_core::{Result, Tensor, bail};

use crate::dense_linear::dense_linear;
use crate::linear::linear;
use crate::node::{self, Delivery, Node};

/// `x weight^T + bias` with gradients to all three.
///
/// `x` is `[.., in]`, `weight` `[out, in]`, `bias` `[out]`; the result is `[.., out]`. Weight and bias may be kept wider than
/// `x` (float32 masters beside bf16) and are rounded to its type. On the CPU this is [`dense_linear`]. On a GPU the backward
/// pass is [`backward`](crate::backward): the gradients of variables are not added to zeros, nor is that of the weight
/// transposed, as candle's own product does it.
///
/// # Errors
/// If sizes or devices do not fit together.
pub fn trained_linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (out, inner) = weight.dims2()?;
    if x.dims().last() != Some(&inner) || bias.dims() != [out] {
        bail!("trained_linear: x {:?}, weight {:?}, bias {:?}", x.shape(), weight.shape(), bias.shape());
    }
    if x.device().is_cpu() {
        return dense_linear(x, &weight.to_dtype(x.dtype())?, Some(&bias.to_dtype(x.dtype())?));
    }
    node::apply(&[&x.contiguous()?, weight, bias], TrainedLinear, true, Delivery::Direct)
}

/// The operation of a GPU.
struct TrainedLinear;

impl Node for TrainedLinear {
    type Kept = ();

    fn forward(&self, inputs: &[Tensor], _: bool) -> Result<(Tensor, Option<()>)> {
        let [x, weight, bias] = inputs else { bail!("trained_linear: three inputs") };
        let (weight, bias) = (weight.to_dtype(x.dtype())?, bias.to_dtype(x.dtype())?);
        #[cfg(feature = "cuda")]
        if let Some(y) = crate::cuda::layer::biased_product(x, &weight, &bias)? {
            return Ok((y, Some(())));
        }
        Ok((linear(x, &weight, Some(&bias))?, Some(())))
    }

    fn backward(&self, inputs: &[Tensor], (): (), g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let [x, weight, bias] = inputs else { bail!("trained_linear: three inputs") };
        let (out, inner) = weight.dims2()?;
        let g = g.contiguous()?.reshape(((), out))?;
        let dx = g.matmul(&weight.to_dtype(x.dtype())?)?.reshape(x.shape())?;
        let dw = g.t()?.matmul(&x.reshape(((), inner))?)?.to_dtype(weight.dtype())?;
        // A product, which sums in float32.
        let ones = Tensor::ones((1, g.dim(0)?), g.dtype(), g.device())?;
        let db = ones.matmul(&g)?.squeeze(0)?.to_dtype(bias.dtype())?;
        Ok(vec![Some(dx), Some(dw), Some(db)])
    }
}
