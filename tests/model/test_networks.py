"""Networks side by side against the same networks one by one."""

from __future__ import annotations

import pytest
import scipy.sparse as sp
import torch

from invatlas.data.minibatch import SparseCounts
from invatlas.model.networks import Encoder, SideBySide


def test_side_by_side_is_each_map_on_its_own_columns() -> None:
    both = SideBySide(networks=2, hidden=3)
    y = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    alone = [y[:, :3] @ both.weight[0], y[:, 3:] @ both.weight[1]]
    torch.testing.assert_close(both(y), torch.cat(alone, 1))


def test_no_gradient_crosses_from_one_network_to_the_other() -> None:
    both = SideBySide(networks=2, hidden=3)
    y = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    both(y)[:, :3].sum().backward()
    assert y.grad is not None and (y.grad[:, 3:] == 0).all() and (y.grad[:, :3] != 0).any()


@pytest.mark.parametrize("which", ["invariant", "spurious"])
def test_one_set_of_latents_alone_is_what_it_is_beside_the_other(which: str) -> None:
    generator = torch.Generator().manual_seed(0)
    both = Encoder(6, {"invariant": 3, "spurious": 2}, 4, 2, 0.1, 0.3, 0.7, 9.0).eval()
    for part in both.state_dict().values():  # running means and variances of their own too
        if part.is_floating_point():
            part.copy_(torch.rand(part.shape, generator=generator))
    x = torch.randint(0, 4, (5, 6), generator=generator)
    seen = SparseCounts.from_csr(sp.csr_matrix(x.numpy())), x.sum(1).float()
    alone, expected = both.alone(which)(*seen), both(*seen)
    assert list(alone) == [which]
    torch.testing.assert_close(alone[which].mean, expected[which].mean)
    torch.testing.assert_close(alone[which].log_variance, expected[which].log_variance)
    assert both.first.shape == (6, 8), "the encoder itself stays whole"
