"""Networks side by side against the same networks one by one."""

from __future__ import annotations

import torch

from invatlas.model.networks import SideBySide


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
