"""Three exact kernels. Two touch the nonzero counts only where the mathematics allows it.

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

Gaussian evidence of class d for the posterior of a cell, V = v_q + v_d, r = (m_q - m_d) / V:

    E = log N(m_q; m_d, V) = - 1/2 sum_latent [r (m_q - m_d) + log V + log 2 pi]
    dE/dm_q = -dE/dm_d = -r        dE/dv_q = dE/dv_d = (r^2 - 1 / V) / 2
"""

from __future__ import annotations

import math
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
            counts.by_gene.cells,
            gradient.contiguous(),
            counts.by_gene.starts,
            mode="sum",
            per_sample_weights=values.index_select(0, counts.by_gene.order),
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
        x_mu, x_theta = mu.view(-1).index_select(0, place), theta.index_select(0, genes)
        tiny = torch.finfo(mu.dtype).tiny
        terms = (x_theta + x_mu).log_().sub_(x_mu.clamp_min(tiny).log_()).mul_(x)
        terms.sub_(torch.lgamma(x + x_theta)).add_(torch.lgamma(theta).index_select(0, genes))
        log_ratio = (mu / theta).log1p_()
        nll = (log_ratio @ theta).add_(counts.sum_by_cell(terms)).add_(counts.log_factorials)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(mu, log_ratio, theta, library_size, place)
            ctx.counts = counts
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        mu, log_ratio, theta, library_size, place = ctx.saved_tensors
        counts: SparseCounts = ctx.counts
        x, cells, genes = counts.values, counts.cells, counts.genes
        x_mu, x_theta = mu.view(-1).index_select(0, place), theta.index_select(0, genes)
        x_share = x / (x_theta + x_mu)
        h = mu / (mu / theta).add_(1)
        log_theta_gradient = None
        if ctx.needs_input_grad[2]:
            x_terms = x_share - digamma(x + x_theta)
            x_terms.add_(digamma(theta).index_select(0, genes))
            x_terms.mul_(gradient.index_select(0, cells))
            per_gene = (gradient @ log_ratio).index_add_(0, genes, x_terms)
            log_theta_gradient = theta * per_gene - gradient @ h
        h.view(-1).scatter_add_(0, place, x_share.mul_(x_mu).sub_(x))
        h.addcmul_(mu, (h.sum(1) / library_size)[:, None], value=-1)
        return h.mul_(gradient[:, None]), None, log_theta_gradient, None


def digamma(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Derivative of lgamma at x > 0, to 1e-10 of its size; torch's own takes three times as long.

    psi(x) = psi(x + 6) - sum_{k<6} 1 / (x + k), and the asymptotic series from 6 on (Abramowitz
    and Stegun 6.3.5 and 6.3.18).
    """
    i = (x + 6).reciprocal_()
    i2 = i * i
    series = i2 * (1 / 12 - i2 * (1 / 120 - i2 * (1 / 252 - i2 * (1 / 240 - i2 / 132))))
    result = i.log().neg_().sub_(i, alpha=0.5).sub_(series)
    for k in range(6):
        result.sub_((x + k).reciprocal_())
    return result


def negative_binomial_nll(
    logits: Float[Tensor, "cell gene"],
    library_size: Float[Tensor, " cell"],
    log_theta: Float[Tensor, " gene"],
    counts: SparseCounts,
) -> Float[Tensor, " cell"]:
    """Negative log-likelihood of each cell, summed over its genes, in nats."""
    nll: Tensor = _NegativeBinomial.apply(logits, library_size, log_theta, counts)
    return nll


class _GaussianEvidence(torch.autograd.Function):
    """Works with (latent, cell, combination): sums over latents then add whole planes."""

    @staticmethod
    def forward(ctx: Any, m_q: Tensor, v_q: Tensor, m_d: Tensor, v_d: Tensor) -> Tensor:
        m_q, v_q, m_d, v_d = (moment.T.contiguous() for moment in (m_q, v_q, m_d, v_d))
        total = v_q[:, :, None] + v_d[:, None]
        difference = m_q[:, :, None] - m_d[:, None]
        r = difference / total
        squares = difference.mul_(r).sum(0).add_(_sum_logs(total))
        ctx.save_for_backward(r, total)
        return squares.add_(len(m_q) * math.log(2 * math.pi)).mul_(-0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r, total = ctx.saved_tensors
        by_mean = r * gradient
        by_variance = (r * r).sub_(total.reciprocal()).mul_(0.5 * gradient)
        return -by_mean.sum(2).T, by_variance.sum(2).T, by_mean.sum(1).T, by_variance.sum(1).T


def _sum_logs(x: Float[Tensor, "latent ..."]) -> Tensor:
    """Sum of log x over the first dimension, four factors to a logarithm.

    Variances are bounded (networks.py, priors.py), so a product of four is too.
    """
    fours = len(x) // 4
    a, b, c, d = x[: 4 * fours].view(4, fours, *x.shape[1:])
    logs: Tensor = (a * b).mul_(c).mul_(d).log_().sum(0)
    return logs.add_(x[4 * fours :].log().sum(0)) if len(x) % 4 else logs


def gaussian_evidence(
    m_q: Float[Tensor, "cell latent"],
    v_q: Float[Tensor, "cell latent"],
    m_d: Float[Tensor, "combination latent"],
    v_d: Float[Tensor, "combination latent"],
) -> Float[Tensor, "cell combination"]:
    """Log E_q N(z; m_d, v_d) of diagonal Gaussians, in nats."""
    evidence: Tensor = _GaussianEvidence.apply(m_q, v_q, m_d, v_d)
    return evidence
