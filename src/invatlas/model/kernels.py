"""Five exact kernels. Two touch the nonzero counts only where the mathematics allows it.

First layer, with x sparse (cell, gene) and W (gene, hidden):

    y = x W            dW = x^T dy

Both are sums of rows weighted by the nonzeros: y over the genes of a cell, dW over the
cells of a gene.

Negative binomial with mu = l softmax(a) and inverse dispersion theta per gene:

    NLL = sum_all theta log1p(mu / theta)
        + sum_nonzero x (log(theta + mu) - log mu)
                      - (lgamma(x + theta) - lgamma(theta) - lgamma(x + 1))

At x = 0 the lgamma terms cancel, so they are needed for the nonzeros alone, and there

    lgamma(x + theta) - lgamma(theta)   = sum_{k<x} log(theta + k)
    digamma(x + theta) - digamma(theta) = sum_{k<x} 1 / (theta + k)

which stand in a table (x, gene) for the small counts that nearly all of them are. Gradients:

    h          = mu dNLL/dmu = mu theta / (theta + mu) + [x mu / (theta + mu) - x]_nonzero
    dNLL/da    = h - softmax(a) sum_gene h
    dNLL/dlog theta = theta log1p(mu / theta) - mu theta / (theta + mu)
                    + theta [x / (theta + mu) - digamma(x + theta) + digamma(theta)]_nonzero

Gaussian evidence of class d for the posterior of a cell, V = v_q + v_d, r = (m_q - m_d) / V:

    E = log N(m_q; m_d, V) = - 1/2 sum_latent [r (m_q - m_d) + log V + log 2 pi]
    dE/dm_q = -dE/dm_d = -r        dE/dv_q = dE/dv_d = (r^2 - 1 / V) / 2

Expected log-density of class d for the first two moments of the latents of a cell, M = E z and
S = E z^2, with precision P = 1 / v_d; G is the gradient that comes back, g its sum over cells:

    L        = E log N(z; m_d, v_d)
             = - 1/2 sum_latent [P (S - 2 m_d M + m_d^2) + log v_d + log 2 pi]
    dS       = - G P / 2                    dM = G (m_d P)
    dm_d     = P (G^T M - g m_d)
    dlog v_d = [P (G^T S - 2 m_d G^T M + g m_d^2) - g] / 2

Contrast of the distances of n cells to k partners elsewhere (s_j = 1) and k here (s_j = -1), for
the cells that have enough of them, in units of their mean distance S, which is held:

    C       = sum_ij s_j |z_i - y_ij| / (n k S)
    dC/dz_i = sum_j s_j (z_i - y_ij) / |z_i - y_ij| / (n k S)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
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
    """Every entry's gradients come with its value, for a few cells at a time that stay near.

    What a cell weighs is known in the backward pass alone, and multiplies them there.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, library_size: Tensor, log_theta: Tensor, counts: SparseCounts
    ) -> Tensor:
        x, theta = counts.values, log_theta.exp()
        x_theta = theta.index_select(0, counts.genes)
        nll, by_logit, by_theta = (torch.empty_like(y) for y in (library_size, logits, logits))
        x_log_ratio, x_mu = torch.empty_like(x), torch.empty_like(x)
        for start in range(0, len(logits), NEAR_CELLS):
            cells = slice(start, start + NEAR_CELLS)
            some = counts.nonzeros_of(cells)
            place = counts.place[some] - start * counts.n_genes
            mu = torch.softmax(logits[cells], 1).mul_(library_size[cells, None])
            ratio = mu / theta
            log_ratio = torch.log1p(ratio)
            torch.mv(log_ratio, theta, out=nll[cells])
            torch.index_select(log_ratio.view(-1), 0, place, out=x_log_ratio[some])
            torch.index_select(mu.view(-1), 0, place, out=x_mu[some])
            h = torch.div(mu, ratio.add_(1), out=by_logit[cells])
            torch.mul(log_ratio, theta, out=by_theta[cells]).sub_(h)
            x_h = x_mu[some] / (x_theta[some] + x_mu[some])
            h.view(-1).index_add_(0, place, x_h.sub_(1).mul_(x[some]))
            h.addcmul_(mu, (h.sum(1) / library_size[cells])[:, None], value=-1)
        logarithms, reciprocals = rising_sums(theta, counts)
        x_by_theta = (x / (x_theta + x_mu)).sub_(reciprocals).mul_(x_theta)
        ctx.save_for_backward(by_logit, by_theta, x_by_theta)
        ctx.counts = counts
        log_x_mu = x_mu.clamp_min_(torch.finfo(x.dtype).tiny).log_()
        terms = x_log_ratio.add_(x_theta.log_()).sub_(log_x_mu).mul_(x)
        return nll.add_(counts.sum_by_cell(terms.sub_(logarithms))).add_(counts.log_factorials)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        by_logit, by_theta, x_by_theta = ctx.saved_tensors
        counts: SparseCounts = ctx.counts
        log_theta_gradient = None
        if ctx.needs_input_grad[2]:
            x_terms = x_by_theta * gradient.index_select(0, counts.cells)
            log_theta_gradient = (gradient @ by_theta).index_add_(0, counts.genes, x_terms)
        return by_logit * gradient[:, None], None, log_theta_gradient, None


NEAR_CELLS = 128  # whose matrices stay near the processor
SMALL = 12  # counts up to this are looked up


def rising_sums(
    theta: Float[Tensor, " gene"], counts: SparseCounts
) -> tuple[Float[Tensor, " nonzero"], Float[Tensor, " nonzero"]]:
    """Sum_{k<x} log(theta + k) and sum_{k<x} 1 / (theta + k) at every nonzero."""
    x, genes = counts.values, counts.genes
    steps = theta + torch.arange(SMALL, dtype=theta.dtype, device=theta.device)[:, None]
    place = (x.clamp_max(SMALL) - 1).int().mul_(counts.n_genes).add_(genes)
    large = (x > SMALL).nonzero()[:, 0]
    start = theta.index_select(0, genes.index_select(0, large))
    end = x.index_select(0, large).add_(start)
    sums = []
    for step, whole in ((steps.log(), torch.lgamma), (steps.reciprocal(), torch.digamma)):
        looked_up = step.cumsum(0).view(-1).index_select(0, place)
        sums.append(looked_up.index_copy_(0, large, whole(end) - whole(start)))
    return sums[0], sums[1]


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


class _ExpectedLogDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, m: Tensor, m_d: Tensor, log_v_d: Tensor) -> Tensor:
        p = log_v_d.neg().exp_()
        slope = m_d * p
        constant = (m_d * slope).add_(log_v_d).sum(1).add_(m.shape[1] * math.log(2 * math.pi))
        expected = torch.addmm(constant, s, p.T).addmm_(m, slope.T, alpha=-2).mul_(-0.5)
        ctx.save_for_backward(s, m, m_d, p, slope)
        return expected

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s, m, m_d, p, slope = ctx.saved_tensors
        total = gradient.sum(0)[:, None]
        by_m = gradient.T @ m
        by_m_d = by_m.sub(total * m_d)
        by_log_v_d = (gradient.T @ s).sub_(m_d * (by_m + by_m_d)).mul_(p).sub_(total).mul_(0.5)
        return (gradient @ p).mul_(-0.5), gradient @ slope, by_m_d.mul_(p), by_log_v_d


def expected_log_density(
    second_moment: Float[Tensor, "cell latent"],
    mean: Float[Tensor, "cell latent"],
    m_d: Float[Tensor, "combination latent"],
    log_v_d: Float[Tensor, "combination latent"],
) -> Float[Tensor, "cell combination"]:
    """E log N(z; m_d, v_d) for the first two moments of z, in nats."""
    expected: Tensor = _ExpectedLogDensity.apply(second_moment, mean, m_d, log_v_d)
    return expected


class _EnergyContrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, partners: Tensor, enough: Tensor) -> Tensor:
        difference = z[:, None] - partners
        distance = torch.linalg.vector_norm(difference, dim=2)
        counted = enough.to(z.dtype)
        here, elsewhere = (counted @ distance).view(2, -1).sum(1)
        spread = (here + elsewhere) / (2 * counted.sum()).clamp_min(1)
        scale = 1 / (len(z) * spread.clamp_min(1e-12))
        if ctx.needs_input_grad[0]:
            weight = distance.clamp_min_(1e-12).reciprocal_().mul_((counted * scale)[:, None])
            weight[:, : weight.shape[1] // 2].neg_()
            ctx.save_for_backward(difference.mul_(weight[:, :, None]).sum(1))
        contrast: Tensor = (elsewhere - here) * scale
        return contrast

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (pull,) = ctx.saved_tensors
        return pull * gradient, None, None


def energy_contrast(
    z: Float[Tensor, "cell latent"],
    partners: Float[Tensor, "cell drawn latent"],
    enough: Bool[Tensor, " cell"],
) -> Float[Tensor, ""]:
    """How much farther cells are from partners elsewhere than from those here.

    The first half of the partners of a cell are here; cells without enough of them count nothing.
    """
    contrast: Tensor = _EnergyContrast.apply(z, partners, enough)
    return contrast
