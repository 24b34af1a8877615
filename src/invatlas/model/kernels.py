"""Two exact kernels that touch the nonzero counts only where the mathematics allows it.

First layer, with x sparse (cell, gene) and W (gene, hidden):

    y = x W            dW = x^T dy

Both are sums of rows weighted by the nonzeros: y over the genes of a cell, dW over the
cells of a gene.

Negative binomial with mu = l softmax(a) and inverse dispersion theta per gene:

    NLL = sum_all theta log1p(mu / theta)
        + sum_nonzero x (log(theta + mu) - log mu)
                      - (lgamma(x + theta) - lgamma(theta) - lgamma(x + 1))

At x = 0 the lgamma terms cancel, so they are needed for the nonzeros alone. Gradients:

    h          = mu dNLL/dmu = mu theta / (theta + mu) + [x mu / (theta + mu) - x]_nonzero
    dNLL/da    = h - softmax(a) sum_gene h
    dNLL/dlog theta = theta log1p(mu / theta) - mu theta / (theta + mu)
                    + theta [x / (theta + mu) - digamma(x + theta) + digamma(theta)]_nonzero
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from invatlas.data.minibatch import SparseCounts


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, counts: SparseCounts) -> Tensor:
        ctx.save_for_backward(values)
        ctx.counts = counts
        return embedding_bag(
            counts.genes, weight, counts.cell_starts, mode="sum", per_sample_weights=values
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        (values,) = ctx.saved_tensors
        counts: SparseCounts = ctx.counts
        weight_gradient = embedding_bag(
            counts.cells_by_gene,
            gradient.contiguous(),
            counts.gene_starts,
            mode="sum",
            per_sample_weights=values[counts.by_gene],
        )
        return None, weight_gradient, None


def sparse_linear(
    values: Float[Tensor, " nonzero"],
    weight: Float[Tensor, "gene hidden"],
    counts: SparseCounts,
) -> Float[Tensor, "cell hidden"]:
    """Multiply a sparse (cell, gene) matrix by a dense weight.

    ``values`` stand at the places of the nonzeros of ``counts`` and need no gradient.
    """
    product: Tensor = _SparseLinear.apply(values, weight, counts)
    return product


class _NegativeBinomial(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, library_size: Tensor, log_theta: Tensor, counts: SparseCounts
    ) -> Tensor:
        x, cells, genes = counts.values, counts.cells, counts.genes
        place = cells * counts.n_genes + genes
        theta = log_theta.exp()
        mu = torch.softmax(logits, 1).mul_(library_size[:, None])
        x_mu, x_theta = mu.view(-1)[place], theta[genes]
        tiny = torch.finfo(mu.dtype).tiny
        terms = (x_theta + x_mu).log_().sub_(x_mu.clamp_min(tiny).log_()).mul_(x)
        terms.sub_(torch.lgamma(x + x_theta)).add_(torch.lgamma(theta)[genes])
        nll = (mu / theta).log1p_() @ theta
        nll.index_add_(0, cells, terms).add_(counts.log_factorials)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(mu, theta, library_size, place)
            ctx.counts = counts
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        mu, theta, library_size, place = ctx.saved_tensors
        counts: SparseCounts = ctx.counts
        x, cells, genes = counts.values, counts.cells, counts.genes
        x_mu, x_theta = mu.view(-1)[place], theta[genes]
        ratio = mu / theta
        h = mu / (ratio + 1)
        log_theta_gradient = None
        if ctx.needs_input_grad[2]:
            x_terms = x / (x_theta + x_mu) - torch.digamma(x + x_theta)
            x_terms.add_(torch.digamma(theta)[genes]).mul_(gradient[cells])
            per_gene = (gradient @ ratio.log1p_()).index_add_(0, genes, x_terms)
            log_theta_gradient = theta * per_gene - gradient @ h
        h.view(-1).index_add_(0, place, x * x_mu / (x_theta + x_mu) - x)
        h.addcmul_(mu, (h.sum(1) / library_size)[:, None], value=-1)
        return h.mul_(gradient[:, None]), None, log_theta_gradient, None


def negative_binomial_nll(
    logits: Float[Tensor, "cell gene"],
    library_size: Float[Tensor, " cell"],
    log_theta: Float[Tensor, " gene"],
    counts: SparseCounts,
) -> Float[Tensor, " cell"]:
    """Negative log-likelihood of each cell, summed over its genes, in nats."""
    nll: Tensor = _NegativeBinomial.apply(logits, library_size, log_theta, counts)
    return nll
