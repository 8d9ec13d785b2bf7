//! Products of few float32 rows with many bf16 rows, as exact as in float32, by tensor cores.

use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{DType, Result, Tensor, bail};

use super::group::is_input;
use super::{Buffer, Context, LAYER, Mat, PACK};
use crate::cuda::{alloc, function, launch, over, tensor};
use crate::node::{self, Delivery, Node};

/// bf16 numbers that a float32 one is the sum of: all of its 24 bits.
const PARTS: usize = 3;
const ALL: [i32; PARTS] = [0, 1, 2];

/// `q x^T` in float32, `[R, N]`, for `q` (`[R, E]`, float32) and `x` (`[N, E]`, bf16) on a GPU, with gradients to both. `None`
/// where they are not, or do not start and end on 16-byte boundaries.
///
/// `x` is not widened: `q` goes into the products as three bf16 matrices whose sum it is.
///
/// # Errors
/// Sizes that do not fit together.
pub fn float_scores(q: &Tensor, x: &Tensor) -> Result<Option<Tensor>> {
    let ((_, e), (n, e2)) = (q.dims2()?, x.dims2()?);
    if e != e2 {
        bail!("float_scores: q {:?} and x {:?}", q.shape(), x.shape());
    }
    if q.dtype() != DType::F32 || !is_input(x) || !q.device().is_cuda() || e % PACK != 0 || n % PACK != 0 {
        return Ok(None);
    }
    let inputs = [&q.contiguous()?, &x.contiguous()?];
    node::apply(&inputs, Scores, true, Delivery::Graph).map(Some)
}

struct Scores;

impl Context {
    /// Three of the bf16 parts of a float32 matrix, rows below rows: parts `which`, the largest of which is number 0.
    fn float_parts(&self, x: &Tensor, which: [i32; PARTS]) -> Result<Buffer> {
        let (rows, cols) = x.dims2()?;
        let (parts, from) = (self.buffer(PARTS * rows, cols)?, self.input::<f32>(x)?);
        let f = function(&self.dev, LAYER, "", "", "float_parts")?;
        let ([first, second, third], count) = (which, (rows * cols) as i64);
        let mut args = f.builder();
        args.arg(&from).arg(&parts.mat.address).arg(&count).arg(&first).arg(&second).arg(&third);
        launch(&mut args, over(rows * cols))?;
        Ok(parts)
    }

    /// `a op(b)` in float32 for all parts `a` of a float32 matrix.
    fn product_of_parts(&self, a: Mat, (b, transposed): (Mat, bool)) -> Result<Tensor> {
        let (rows, cols) = (a.rows / PARTS, if transposed { b.rows } else { b.cols });
        let (data, mat) = self.floats(a.rows, cols)?;
        self.product((mat, DType::F32), (a, false), (b, transposed), 1.0, 0.0)?;
        let sum = alloc::<f32>(&self.dev, rows * cols)?;
        let f = function(&self.dev, LAYER, "", "", "sum_of_parts")?;
        let (count, mut args) = ((rows * cols) as i64, f.builder());
        let to = self.address(&sum);
        args.arg(&data).arg(&to).arg(&count);
        launch(&mut args, over(rows * cols))?;
        Ok(tensor(sum, (rows, cols), &self.dev))
    }
}

impl Node for Scores {
    type Kept = ();

    fn forward(&self, inputs: &[Tensor], keep: bool) -> Result<(Tensor, Option<()>)> {
        let ctx = &Context::new(inputs[0].device())?;
        let parts = ctx.float_parts(&inputs[0], ALL)?;
        Ok((ctx.product_of_parts(parts.mat, (ctx.matrix(&inputs[1])?, true))?, keep.then_some(())))
    }

    fn backward(&self, inputs: &[Tensor], (): (), g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let ctx = &Context::new(g.device())?;
        let (x, g) = (ctx.matrix(&inputs[1])?, g.contiguous()?);
        let dq = ctx.product_of_parts(ctx.float_parts(&g, ALL)?.mat, (x, false))?;
        // g^T q is rounded to bf16: the three largest of the products of their parts do.
        let (g, q) = (ctx.float_parts(&g, [0, 1, 0])?, ctx.float_parts(&inputs[0], [0, 0, 1])?);
        let dx = ctx.buffer(x.rows, x.cols)?;
        ctx.product((dx.mat, DType::BF16), (g.mat, true), (q.mat, false), 1.0, 0.0)?;
        Ok(vec![Some(dq), Some(dx.into_tensor(inputs[1].shape(), ctx))])
    }
}
