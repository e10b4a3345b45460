import pytest
import torch
from torch import nn
from torch.nn import functional

from finesight.models.dropout import Dropout, dropped, quicken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_share_and_mean_are_those_of_torch(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.full((1000, 1003), 2.0, dtype=dtype)
    ours, theirs = dropped(values, p), functional.dropout(values, p)
    assert ours.dtype == dtype
    assert (ours == 0).double().mean().item() == pytest.approx(p, abs=0.002)
    assert set(ours.unique().tolist()) == set(theirs.unique().tolist())


def test_the_gradient_passes_where_the_value_does() -> None:
    values = torch.randn(40, 50, requires_grad=True)
    seen = dropped(values, 0.3)
    seen.sum().backward()
    torch.testing.assert_close(values.grad, torch.where(seen == 0, 0.0, 1 / 0.7))


def test_transposed_and_strided_inputs() -> None:
    layer = Dropout(0.5)
    dense = torch.rand(6, 8, 10).permute(2, 0, 1) + 1
    seen = layer(dense)
    assert seen.stride() == dense.stride()
    torch.testing.assert_close(seen[seen != 0], (dense * 2)[seen != 0])
    for gaps in (torch.rand(20, 30)[:, ::2] + 1, (torch.rand(20, 1) + 1).expand(20, 15)):
        seen = layer(gaps)
        torch.testing.assert_close(seen[seen != 0], (gaps * 2)[seen != 0])
        assert 0.2 < (seen == 0).double().mean().item() < 0.8


def test_quicken_replaces_every_dropout_and_nothing_in_evaluation_changes() -> None:
    shared = nn.Dropout(0.2)
    model = nn.Sequential(
        nn.Linear(4, 4), shared, nn.Sequential(nn.Dropout(0.1), shared), nn.Dropout(0.0), nn.Dropout2d(0.1)
    )
    model.eval()
    values, names = torch.randn(3, 4), list(model.state_dict())
    before = model[:4](values)
    quicken(model)
    assert torch.equal(model[:4](values), before)
    assert list(model.state_dict()) == names
    assert [type(part) for part in (model[1], model[2][0], model[2][1], model[3], model[4])] == [
        Dropout, Dropout, Dropout, nn.Dropout, nn.Dropout2d,
    ]  # fmt: skip
    assert not any(part.training for part in model.modules())
