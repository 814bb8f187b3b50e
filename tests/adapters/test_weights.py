"""Arithmetic of weights against loops over single numbers."""

from __future__ import annotations

import math

import pytest
import torch

from vlp.adapters.weights import lerp, mean, moved, slerp, task_vector


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(3, 2, generator=rng).to(dtype),
        "b": torch.randn(3, generator=rng).to(dtype),
        "count": torch.tensor(seed),
    }


@pytest.mark.parametrize("between", [lerp, slerp])
def test_the_ends_are_the_ends_bit_for_bit(between):
    first, second = state(1), state(2)
    for alpha, end in ((0.0, first), (1.0, second)):
        made = between(first, second, alpha)
        assert all(torch.equal(made[name], end[name]) for name in end)


def test_lerp_is_the_loop_over_numbers():
    first, second = state(1), state(2)
    made = lerp(first, second, 0.3)
    for row in range(3):
        for column in range(2):
            want = 0.7 * float(first["w"][row, column]) + 0.3 * float(second["w"][row, column])
            assert float(made["w"][row, column]) == pytest.approx(want, abs=1e-6)
    assert made["count"] == 1
    assert lerp(first, second, 0.7)["count"] == 2


def test_slerp_is_the_formula_over_numbers_and_keeps_the_length_of_unit_tensors():
    first = {"w": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}
    second = {"w": torch.tensor([[0.6, 0.8], [0.0, 0.0]])}
    angle = math.acos(0.6)
    for alpha in (0.25, 0.5, 0.9):
        made = slerp(first, second, alpha)["w"].flatten().tolist()
        for place, (a, b) in enumerate(zip(first["w"].flatten().tolist(), second["w"].flatten().tolist())):
            want = (math.sin((1 - alpha) * angle) * a + math.sin(alpha * angle) * b) / math.sin(angle)
            assert made[place] == pytest.approx(want, abs=1e-6)
        assert math.hypot(*made) == pytest.approx(1, abs=1e-6)


def test_slerp_goes_straight_where_there_is_no_arc():
    same, zero = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.zeros(2)}
    for other in ({"w": torch.tensor([2.0, 4.0])}, {"w": torch.tensor([-1.0, -2.0])}, zero):
        assert torch.allclose(slerp(same, other, 0.25)["w"], 0.75 * same["w"] + 0.25 * other["w"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_of_equal_states_is_the_state_and_of_others_the_loop(dtype):
    one = state(3, dtype)
    for count in (2, 3, 7):
        assert all(torch.equal(made, one[name]) for name, made in mean([one] * count).items())
    states = [state(seed) for seed in range(3)]
    made = mean(states)
    for row in range(3):
        assert float(made["b"][row]) == pytest.approx(sum(float(one["b"][row]) for one in states) / 3, abs=1e-6)
    assert made["count"] == 0


def test_vectors_add_up_and_take_away():
    base, tuned, other = state(1), state(2), state(3)
    vectors = [task_vector(base, tuned), task_vector(base, {"b": other["b"]})]
    assert set(vectors[0]) == {"w", "b"}
    made = moved(base, vectors, [0.5, -0.25])
    for row in range(3):
        own, one, two = (float(given["b"][row]) for given in (base, tuned, other))
        assert float(made["b"][row]) == pytest.approx(own + 0.5 * (one - own) - 0.25 * (two - own), abs=1e-6)
    assert torch.allclose(moved(base, vectors[:1], [1.0])["w"], tuned["w"], atol=1e-6)
    assert torch.equal(moved(base, vectors, [0.0, 0.0])["w"], base["w"])


def test_states_of_different_models_are_refused():
    one = state(1)
    with pytest.raises(ValueError, match="1 tensors are not in all ingredients, such as b"):
        mean([one, {"w": one["w"], "count": one["count"]}])
    with pytest.raises(ValueError, match=r"w is \[3, 2\] in one ingredient and \[2, 3\]"):
        lerp(one, {**one, "w": one["w"].T}, 0.5)
    with pytest.raises(ValueError, match="nothing|no weights"):
        mean([])
    with pytest.raises(ValueError, match="such as other"):
        task_vector(one, {"other": one["w"]})
