"""The parts of `moeviz bench kernel` on a tiny size."""

import pytest
import torch

from moeviz.bench import kernel


@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_installed_layer_runs(k: int) -> None:
    layers, missing = kernel.build(e=4, k=k, d=16, f=32)
    assert set(layers) | set(missing) >= {"moeviz", "OLMoE eager", "OLMoE grouped", "pytorch-mixtures"}
    x = torch.randn(24, 16, requires_grad=True)
    for name, (module, run) in layers.items():
        y = run(x)
        assert y.shape == x.shape, name
        assert y.isfinite().all(), name
        (dx,) = torch.autograd.grad(y.sum(), [x])
        assert dx.isfinite().all(), name
        assert dx.abs().max() > 0, name
        assert any(p.requires_grad for p in module.parameters()), name


def test_layers_are_of_the_same_size() -> None:
    """Weights of matrices per expert: 3 D F in each, however it divides them."""
    for name, (module, _) in kernel.build(e=4, k=2, d=16, f=32)[0].items():
        matrices = sum(p.numel() for p in module.parameters() if p.dim() > 1)
        assert matrices == 4 * 3 * 16 * 32 + 4 * 16, name


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(e: int, k: int, d: int, f: int) -> None:
        raise ModuleNotFoundError("No module named 'absent'")

    monkeypatch.setitem(kernel.LAYERS, "st-moe", absent)
    found = kernel.cell(8, 4, 2, 16, 32, seconds=0.0)
    assert "st-moe" in found["missing"]
    assert "st-moe" not in found["ratios"]
    assert "left out, its package is not installed: st-moe" in kernel.table(
        {"threads": {"1": [found]}, "compiled": True}
    )


def test_table_marks_where_moeviz_is_not_the_fastest() -> None:
    ratios = {"moeviz": [1.2, 1.1], "OLMoE eager": [1.5, 1.3]}
    won = {"T": 8, "E": 4, "k": 2, "bound_ms": [1.0, 3.0], "ratios": ratios, "missing": []}
    lost = won | {"T": 9, "ratios": ratios | {"OLMoE eager": [1.5, 1.0]}}
    lines = kernel.table({"threads": {"1": [won, lost]}, "compiled": False}).splitlines()
    assert "1.20/1.10" in lines[2]
    assert not lines[2].endswith("*")
    assert lines[3].endswith("*")
    assert lines[4] == "moeviz is the fastest in 3 of 4"
    assert lines[5].startswith("moeviz computed by torch")
