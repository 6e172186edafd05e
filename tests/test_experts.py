"""The experts: every way of computing them against one token after another, -1 for no expert, and in a trace."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moeviz.moe import compiled
from moeviz.moe import experts as module
from moeviz.moe.experts import Experts
from moeviz.moe.traced import trace

D, F = 32, 16


@pytest.fixture(params=[*compiled.BUILDS, "torch"])
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes the experts where both can: one of the compiled codes, or torch."""
    name: str = request.param
    library = None if name == "torch" else compiled.load(name)
    if name != "torch" and library is None:
        pytest.skip("not built, or not for this processor")
    monkeypatch.setattr(compiled, "LIBRARY", library)
    return name


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make(e: int, dtype: torch.dtype = torch.float32) -> Experts:
    return Experts(e, D, F, generator=torch.Generator().manual_seed(0)).to(dtype)


def draw(t: int, e: int, k: int, dtype: torch.dtype = torch.float32, dropped: float = 0.3) -> tuple[Tensor, ...]:
    """Tokens, ids (each expert once a token, some -1) and gate weights."""
    g = torch.Generator().manual_seed(t * 100 + e * 10 + k)
    ids = torch.rand(t, e, generator=g).argsort(1)[:, :k]
    ids[torch.rand(t, k, generator=g) < dropped] = -1
    x, weights = torch.randn(t, D, generator=g), torch.rand(t, k, generator=g)
    return x.to(dtype).requires_grad_(), ids, weights.to(dtype).requires_grad_()


def by_hand(experts: Experts, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
    rows = []
    for x, ids, weights in zip(x_TD, ids_TK.tolist(), weights_TK, strict=True):
        y = torch.zeros_like(x)
        for e, weight in zip(ids, weights, strict=True):
            if e >= 0:
                gate, up = (experts.gate_up_proj[e] @ x).chunk(2)
                y = y + weight * (experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
        rows.append(y)
    return torch.stack(rows)


def gradients(y: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, wanted, torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("t", "e", "k"), [(21, 4, 2), (40, 8, 1), (9, 8, 8), (5, 1, 1), (1, 64, 2), (300, 2, 1), (97, 3, 2)]
)
def test_equals_one_token_after_another(code: str, threads: int, dtype: torch.dtype, t: int, e: int, k: int) -> None:
    experts, inputs = make(e, dtype), draw(t, e, k, dtype)
    y, expected = experts(*inputs), by_hand(experts, *inputs)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(y, expected, atol=tolerance, rtol=tolerance)
    wanted = (inputs[0], inputs[2], *experts.parameters())
    for ours, theirs in zip(gradients(y, *wanted), gradients(expected, *wanted), strict=True):
        torch.testing.assert_close(ours, theirs, atol=10 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("width", [17, 18, 50])
def test_an_expert_may_have_any_width(threads: int, width: int) -> None:
    experts, inputs = Experts(4, D, width, generator=torch.Generator().manual_seed(0)), draw(21, 4, 2)
    y, expected = experts(*inputs), by_hand(experts, *inputs)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(
        gradients(y, *experts.parameters()), gradients(expected, *experts.parameters()), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), t=st.integers(1, 30), e=st.integers(1, 6), k=st.integers(1, 4))
def test_any_ids_give_the_same_in_every_way(data: st.DataObject, t: int, e: int, k: int) -> None:
    ids = torch.tensor(
        data.draw(st.lists(st.lists(st.integers(-1, e - 1), min_size=k, max_size=k), min_size=t, max_size=t))
    )
    x, _, weights = draw(t, k, k)
    experts = make(e)
    gate_up, down = experts.gate_up_proj.transpose(1, 2), experts.down_proj.transpose(1, 2)
    expected = by_hand(experts, x, ids, weights)
    torch.testing.assert_close(experts(x, ids, weights), expected, atol=1e-5, rtol=1e-5)
    for group in (True, False):
        for pad in (True, False):
            y = module._mixture(x, ids, weights, gate_up, down, group, pad)
            torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_no_token_and_no_expert_at_all(code: str, threads: int) -> None:
    experts = make(4)
    assert experts(torch.zeros(0, D), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2)).shape == (0, D)
    x, ids, weights = draw(7, 4, 2, dropped=1.0)
    assert (ids == -1).all()
    assert torch.equal(experts(x, ids, weights), torch.zeros(7, D))


def test_gradients_against_finite_differences(threads: int) -> None:
    experts = Experts(4, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    ids = torch.tensor([[0, 1], [1, 0], [3, -1], [-1, -1], [1, 3]])  # expert 2 gets nothing
    g = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, dtype=torch.float64, generator=g, requires_grad=True)
    w = torch.rand(5, 2, dtype=torch.float64, generator=g, requires_grad=True)

    def of_all(x: Tensor, w: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        packed = {"gate_up_proj": gate_up, "down_proj": down}
        return torch.func.functional_call(experts, packed, (x, ids, w))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(of_all, (x, w, *experts.parameters()))


def test_what_is_dropped_gets_no_gradient(code: str, threads: int) -> None:
    x, ids, weights = draw(30, 4, 2)
    ids[3] = -1
    dx, dw = gradients(make(4)(x, ids, weights), x, weights)
    assert (dw[ids == -1] == 0).all()
    assert (dw[ids >= 0] != 0).all()
    assert (dx[3] == 0).all()


def test_rows_computed(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped pairs cost nothing. Padding is for several threads only, and only while the load is even."""
    seen: list[tuple[int, int]] = []
    outputs = module._outputs

    def watched(x: Tensor, gate_up: Tensor, down: Tensor, starts: Tensor, fullest: int, group: bool) -> Tensor:
        seen.append((x.size(0), fullest))
        return outputs(x, gate_up, down, starts, fullest, group)

    monkeypatch.setattr(compiled, "LIBRARY", None)
    monkeypatch.setattr(module, "_outputs", watched)
    even = torch.arange(800).view(400, 2) % 4
    half, one = even.clone(), torch.zeros_like(even)
    half[::2] = -1
    x, weights = torch.randn(400, D), torch.rand(400, 2)
    for ids in (even, half, one):
        make(4)(x, ids, weights)
    # without every other token two experts have 200 rows each and two have none
    assert seen == ([(800, 0), (400, 0), (800, 0)] if threads == 1 else [(800, 200), (400, 0), (800, 0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trace_follows_the_ids(code: str, threads: int, dtype: torch.dtype) -> None:
    """Traced with even ids and none dropped, called with others: the same bits as eager, gradients too."""
    experts = make(4, dtype)
    x, ids, weights = draw(60, 4, 2, dtype)
    traced = trace(experts, (x, torch.arange(120).view(60, 2) % 4, weights))
    wanted = (x, weights, *experts.parameters())
    for now in (ids, torch.where(ids == 2, -1, ids), torch.zeros_like(ids), torch.full_like(ids, 3)):
        y, expected = traced(x, now, weights), experts(x, now, weights)
        assert torch.equal(y, expected)
        for ours, theirs in zip(gradients(y, *wanted), gradients(expected, *wanted), strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(traced(x, torch.full_like(ids, -1), weights), torch.zeros_like(x))


def ways(t: int, e: int, k: int, dropped: float) -> dict[str, tuple[Tensor, ...]]:
    """Output and gradients by each code that is here."""
    experts, inputs = make(e), draw(t, e, k, dropped=dropped)
    inputs[1][0, 0] = 0  # torch's own output of no expert at all has no gradient
    wanted, found, before = (inputs[0], inputs[2], *experts.parameters()), {}, compiled.LIBRARY
    try:
        for name in (*compiled.BUILDS, "torch"):
            compiled.LIBRARY = None if name == "torch" else compiled.load(name)
            if name == "torch" or compiled.LIBRARY:
                y = experts(*inputs)
                found[name] = (y.detach(), *gradients(y, *wanted))
    finally:
        compiled.LIBRARY = before
    return found


def in_float64(t: int, e: int, k: int, dropped: float) -> tuple[Tensor, ...]:
    """The same by torch, of the same numbers."""
    experts, inputs = make(e).double(), draw(t, e, k, torch.float64, dropped)
    inputs[1][0, 0] = 0
    y = experts(*inputs)
    return (y.detach(), *gradients(y, inputs[0], inputs[2], *experts.parameters()))


@settings(deadline=None, max_examples=30)
@example(t=123, e=3, k=1, dropped=0.95)  # a gate weight's gradient is a small sum of large terms
@given(t=st.integers(1, 400), e=st.integers(1, 9), k=st.integers(1, 4), dropped=st.sampled_from([0.0, 0.4, 0.95]))
def test_compiled_code_equals_torch(t: int, e: int, k: int, dropped: float) -> None:
    """Whatever part of a panel or tile the tokens of an expert fill: to 1e-6 of the largest, or where terms cancel out
    about as near to float64 as torch's float32 is."""
    ways_found, exact = ways(t, e, min(k, e), dropped), in_float64(t, e, min(k, e), dropped)
    for name, results in ways_found.items():
        for ours, by_torch, true in zip(results, ways_found["torch"], exact, strict=True):
            of_torch = float((by_torch - true).abs().max())
            assert (ours - true).abs().max() <= 1e-6 * max(1.0, float(true.abs().max())) + 2 * of_torch, name


def test_same_bits_run_to_run_and_with_any_number_of_threads(code: str) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 1, 2):
            if code == "torch" and threads == 2:
                continue  # torch pads for two threads
            torch.set_num_threads(threads)
            experts, inputs = make(5), draw(500, 5, 2)
            y = experts(*inputs)
            found.append((y, *gradients(y, inputs[0], inputs[2], *experts.parameters())))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(ours, first) for results in found for ours, first in zip(results, found[0], strict=True))


def test_extreme_and_no_numbers(code: str) -> None:
    """Gates far from 0 saturate as silu does; a token that is not a number spoils no other's output."""
    experts, (x, ids, weights) = make(4), draw(40, 4, 2, dropped=0.0)
    scale = torch.logspace(-10, 3, 40)[:, None]
    with torch.no_grad():
        y, expected = experts(x * scale, ids, weights), by_hand(experts, x * scale, ids, weights)
        torch.testing.assert_close(y, expected, atol=1e-30, rtol=1e-4)
        x[7, 3] = torch.nan
        spoiled = experts(x * scale, ids, weights)
    assert spoiled[7].isnan().all()
    others = torch.arange(40) != 7
    assert torch.equal(spoiled[others], y[others])


def test_any_strides(code: str) -> None:
    experts, (x, ids, weights) = make(4), draw(40, 4, 2)
    laid_out = [tensor.detach().t().contiguous().t() for tensor in (x, ids, weights)]
    assert not any(tensor.is_contiguous() for tensor in laid_out)
    y = experts(laid_out[0].requires_grad_(), *laid_out[1:])
    assert torch.equal(y, experts(x, ids, weights))
    slope = torch.ones(D).expand(40, D)  # no memory of its own
    (dx,) = torch.autograd.grad(y, [laid_out[0]], slope)
    assert torch.equal(dx, torch.autograd.grad(experts(x, ids, weights), [x], torch.ones(40, D))[0])


def test_ids_of_any_whole_type(code: str) -> None:
    experts, (x, ids, weights) = make(4), draw(40, 4, 2)
    assert torch.equal(experts(x, ids.int(), weights), experts(x, ids, weights))


def narrower(x: Tensor) -> Tensor:
    return x[:, : D // 2].detach()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", narrower),
        ("x", lambda x: x[:-1].detach()),
        ("x", lambda x: x.detach()[0]),
        ("x", Tensor.double),
        ("ids", Tensor.int),
        ("ids", lambda ids: ids[:-1]),
        ("ids", lambda ids: ids.flatten()),
        ("weights", lambda weights: weights[:, :1]),
        ("weights", lambda weights: weights[:-1]),
        ("weights", Tensor.double),
        ("gate_up", lambda gate_up: gate_up[:, :-1]),
        ("gate_up", lambda gate_up: gate_up[0]),
        ("gate_up", lambda gate_up: gate_up[:, : F // 2]),
        ("gate_up", Tensor.bfloat16),
        ("down", lambda down: down[:-1]),
        ("down", lambda down: down[:, :-1]),
        ("down", lambda down: down[..., : F // 2]),
        ("down", Tensor.double),
        ("down", lambda down: down.to("meta")),
    ],
)
def test_the_compiled_code_gets_no_other_tensors(code: str, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """It would read beyond their ends."""
    if code == "torch":
        pytest.skip("checks for itself")
    experts, (x, ids, weights) = make(4), draw(20, 4, 2)
    packed = {"gate_up": experts.gate_up_proj, "down": experts.down_proj}
    given = {"x": x, "ids": ids, "weights": weights, **packed}
    compiled.mixture(*given.values())
    given[name] = change(given[name])
    with pytest.raises(ValueError, match=r"^The compiled experts take x \(T, D\), .*\.$"):
        compiled.mixture(*given.values())


def test_a_trace_checks_too(code: str) -> None:
    if code == "torch":
        pytest.skip("checks for itself")
    experts, (x, ids, weights) = make(4), draw(20, 4, 2)
    traced = trace(experts, (x, ids, weights))
    with pytest.raises(Exception, match="The compiled experts take"):
        traced(x, ids, weights[:, :1])


def test_an_expert_of_other_precision_is_told(code: str) -> None:
    if code == "torch":
        pytest.skip("checks for itself")
    experts = make(4)
    experts.down_proj.data = experts.down_proj.data.double()
    with pytest.raises(ValueError, match=r"down_proj \(4, 32, 16\) float64"):
        experts(*draw(20, 4, 2))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells a process's memory on Linux only")
def test_a_thread_that_ends_leaves_no_memory(code: str) -> None:
    """Each training runs in a thread of its own."""
    before, wide = torch.get_num_threads(), 256
    experts = Experts(1, wide, wide)
    x, ids, weights = torch.randn(8, wide), torch.zeros(8, 1, dtype=torch.int64), torch.ones(8, 1)

    def train() -> None:
        experts(x, ids, weights).sum().backward()

    def memory() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def threads(count: int) -> None:
        for _ in range(count):
            thread = threading.Thread(target=train)
            thread.start()
            thread.join()

    try:
        torch.set_num_threads(1)
        threads(10)
        settled = memory()
        threads(60)
        assert memory() - settled < 10e6  # of 0.9 MB that a thread works in
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", compiled.BUILDS)
def test_what_the_compiled_code_is_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = compiled.load(name)
    if library is None:
        pytest.skip("not built, or not for this processor")
    monkeypatch.setattr(compiled, "LIBRARY", library)
    width = library.width

    def fits(d: int, f: int, dtype: torch.dtype = torch.float32) -> bool:
        experts = Experts(2, d, f).to(dtype)
        return compiled.fits(torch.zeros(3, d, dtype=dtype), experts.gate_up_proj)

    assert fits(width, 3 * width)
    assert not fits(width + 1, width)
    assert not fits(width, width // 2)
    assert not fits(width, width, torch.float64)
    assert not fits(width, width, torch.bfloat16)


@pytest.mark.parametrize("name", compiled.BUILDS)
def test_a_build_of_another_source_is_as_good_as_none_and_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever differs, and nobody need say that it does."""
    if compiled.load(name) is None:
        pytest.skip("not built, or not for this processor")
    text = compiled.SOURCE.read_text()
    changed = text.replace("d *= each;", "d *= 2 * each;")
    assert changed != text
    monkeypatch.setattr(compiled, "SOURCE", tmp_path / "experts.c")
    assert compiled.load(name) is not None, "without a source nothing can differ from it"
    compiled.SOURCE.write_text(changed)
    with pytest.warns(UserWarning, match=r"another experts\.c.*run pip install again"):
        assert compiled.load(name) is None
    compiled.SOURCE.write_text(text)
    assert compiled.load(name) is not None


def test_a_build_that_does_not_tell_its_source_is_of_another() -> None:
    with pytest.warns(UserWarning, match=r"another experts\.c"):
        assert compiled.load("_ctypes") is None  # a library that has nothing of what is looked for


def test_two_builds_of_another_source_are_told_once() -> None:
    code = "from moeviz.moe import compiled; found = [*map(compiled.load, ['_ctypes', '_ctypes'])]"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.count("another experts.c") == 1


def test_without_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that is not there, or cannot be loaded, is passed over."""
    assert compiled.load("moeviz.moe._absent") is None
    assert compiled.load("moeviz.moe.experts") is None  # a file, but no library
