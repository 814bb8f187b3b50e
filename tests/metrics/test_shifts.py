"""Lines in logits against numpy's fit, residuals by hand, corruption errors by their formulas; resamples, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vlp.metrics.multilabel import resamples
from vlp.metrics.shifts import (
    MARGIN,
    corruption_errors,
    corruption_intervals,
    effective_robustness,
    relative_robustness,
)


def on_line(original, slope=0.9, intercept=-0.7):
    return (slope * original.logit() + intercept).sigmoid()


def baseline(models=12, noise=0.1):
    rng = torch.Generator().manual_seed(0)
    original = torch.rand(models, generator=rng).double() * 0.6 + 0.3
    shifted = (on_line(original).logit() + noise * torch.randn(models, generator=rng)).sigmoid()
    return original, shifted


def test_models_on_the_line_have_none_and_those_above_have_the_difference():
    original, shifted = baseline(noise=0)
    new = torch.tensor([0.5, 0.7]).double()
    found = effective_robustness(
        new, on_line(new) + torch.tensor([0.0, 0.1]), baseline_original=original, baseline_shifted=shifted
    )
    assert found.values.tolist() == pytest.approx([0, 0.1])
    assert found.expected.tolist() == pytest.approx(on_line(new).tolist())
    assert (found.line.slope, found.line.intercept, found.line.r2) == pytest.approx((0.9, -0.7, 1))
    assert (found.line.clipped, found.undefined) == (0, 0)
    for value, ends in zip(found.values.tolist(), found.intervals):
        assert ends == pytest.approx((value, value), abs=1e-9)  # every resample has the same line


def test_the_line_is_numpys_fit_of_logits_and_its_r2_the_squared_correlation():
    original, shifted = baseline()
    found = effective_robustness(original, shifted, baseline_original=original, baseline_shifted=shifted, n_boot=10)
    x, y = original.logit().numpy(), shifted.logit().numpy()
    slope, intercept = np.polyfit(x, y, 1)
    assert (found.line.slope, found.line.intercept) == pytest.approx((slope, intercept))
    assert found.line.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_intervals_draw_models_of_the_baseline_and_count_resamples_without_a_line():
    original, shifted = baseline(models=3)
    new = torch.tensor([0.55]).double()
    found = effective_robustness(new, new, baseline_original=original, baseline_shifted=shifted, n_boot=100)
    values, undefined = [], 0
    for times in torch.cat(list(resamples(torch.zeros(3, dtype=torch.long), n_boot=100, seed=0))):
        rows = np.arange(3).repeat(times)
        if len(set(rows)) < 2:
            undefined += 1
            continue
        slope, intercept = np.polyfit(original.logit().numpy()[rows], shifted.logit().numpy()[rows], 1)
        values.append(0.55 - 1 / (1 + math.exp(-(slope * math.log(0.55 / 0.45) + intercept))))
    assert found.undefined == undefined > 0
    assert found.intervals[0] == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_accuracies_of_0_and_1_are_clipped_and_counted():
    original, shifted = torch.tensor([0.2, 0.5, 1.0]), torch.tensor([0.0, 0.3, 0.9])
    found = effective_robustness(
        torch.tensor([0.0]), torch.tensor([0.0]), baseline_original=original, baseline_shifted=shifted
    )
    inside = effective_robustness(
        torch.tensor([MARGIN]),
        torch.tensor([0.0]),
        baseline_original=original.clamp(MARGIN, 1 - MARGIN),
        baseline_shifted=shifted.clamp(MARGIN, 1 - MARGIN),
    )
    assert found.line.clipped == 2
    assert found.values.tolist() == pytest.approx(inside.values.tolist())
    assert math.isfinite(found.line.slope)


def test_accuracies_that_determine_no_line_or_are_percentages_are_refused():
    one, two = torch.tensor([0.5]), torch.tensor([0.4, 0.6])
    with pytest.raises(ValueError, match="at least 2 accuracies"):
        effective_robustness(one, one, baseline_original=torch.tensor([0.5, 0.5]), baseline_shifted=two)
    with pytest.raises(ValueError, match="divide percentages"):
        effective_robustness(one * 100, one, baseline_original=two, baseline_shifted=two)
    with pytest.raises(ValueError, match="one accuracy a model"):
        effective_robustness(one, two, baseline_original=two, baseline_shifted=two)


def test_relative_robustness_is_the_gain_on_the_shifted_data():
    found = relative_robustness(torch.tensor([0.5, 0.4]), torch.tensor([0.3, 0.45]))
    assert found.tolist() == pytest.approx([0.2, -0.05])


ERROR = torch.tensor([[0.2, 0.4], [0.6, 0.8]])
ALEXNET = torch.tensor([[0.5, 0.7], [0.7, 0.9]])


def test_corruption_errors_by_hand():
    found = corruption_errors(ERROR, clean=0.1, baseline=ALEXNET, baseline_clean=0.4)
    assert found == {
        "mean_corruption_error": pytest.approx(0.5),
        "mce": pytest.approx((0.6 / 1.2 + 1.4 / 1.6) / 2),
        "relative_mce": pytest.approx((0.4 / 0.4 + 1.2 / 0.8) / 2),
    }
    assert corruption_errors(ERROR).keys() == {"mean_corruption_error"}
    assert corruption_errors(ERROR, baseline=ALEXNET).keys() == {"mean_corruption_error", "mce"}
    assert corruption_errors(ALEXNET, clean=0.4, baseline=ALEXNET, baseline_clean=0.4)["relative_mce"] == pytest.approx(
        1
    )


def test_corruption_intervals_draw_pictures():
    rng = torch.Generator().manual_seed(0)
    wrong, clean = torch.rand(400, 2, 2, generator=rng) < ERROR, torch.rand(400, generator=rng) < 0.1
    known = {"baseline": ALEXNET, "baseline_clean": 0.4}
    values = corruption_errors(wrong.double().mean(0), clean=float(clean.double().mean()), **known)
    found = corruption_intervals(wrong, clean=clean, **known)
    for name, value in values.items():
        assert found[name].low < value < found[name].high, name
    drawn = np.random.default_rng(1).integers(0, 400, (500, 400))
    means = [
        corruption_errors(wrong[rows].double().mean(0), clean=float(clean[rows].double().mean()), **known)
        for rows in torch.from_numpy(drawn)
    ]
    for name, ends in found.items():
        plain = np.quantile([m[name] for m in means], [0.025, 0.975])
        assert ends == pytest.approx(tuple(plain), abs=0.25 * (ends.high - ends.low)), name


def test_a_baseline_that_fits_not_is_refused():
    with pytest.raises(ValueError, match="same corruptions"):
        corruption_errors(ERROR, baseline=ALEXNET[:1])
    with pytest.raises(ValueError, match=r"no error on corruptions \[1\]"):
        corruption_errors(ERROR, baseline=torch.tensor([[0.5, 0.7], [0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"no error beyond the clean one on corruptions \[0, 1\]"):
        corruption_errors(ERROR, clean=0.1, baseline=ALEXNET, baseline_clean=0.95)
