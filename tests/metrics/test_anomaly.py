"""Anomaly measures against scikit-learn and loops over thresholds, regions against a search; ties, merges, draws."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from vlp.metrics import anomaly
from vlp.metrics.anomaly import AnomalyDetection, AnomalyLocalization, connected_regions
from vlp.metrics.multilabel import resamples


def scored(*shape, seed=0, levels=None, share=0.3):
    """Scores that are higher where anomalous."""
    rng = torch.Generator().manual_seed(seed)
    anomalous = torch.rand(shape, generator=rng) < share
    scores = torch.randn(shape, generator=rng) + anomalous
    return (scores if levels is None else (scores * levels).round()), anomalous


def maps(pictures=8, size=12, seed=0, levels=None):
    """Pictures with blobs; the first two are normal."""
    rng = torch.Generator().manual_seed(seed)
    masks = torch.nn.functional.avg_pool2d(torch.rand(pictures, 1, size, size, generator=rng), 3, 1, 1)[:, 0] > 0.55
    masks[:2] = False
    scores = torch.randn(masks.shape, generator=rng) + masks
    return (scores if levels is None else (scores * levels).round()), masks


def detection(scores, anomalous):
    found = AnomalyDetection()
    found.update(scores, anomalous)
    return found


def localization(scores, masks, **options):
    found = AnomalyLocalization(**options)
    found.update(scores, masks)
    return found


def from_scikit(scores, anomalous, prefix):
    precision, recall, _ = precision_recall_curve(anomalous, scores)
    return {
        f"{prefix}_auroc": roc_auc_score(anomalous, scores),
        f"{prefix}_average_precision": average_precision_score(anomalous, scores),
        f"{prefix}_f1_max": float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))),
    }


@pytest.mark.parametrize("levels", [None, 1, 4])
def test_detection_equals_scikit_learn_also_with_ties(levels):
    scores, anomalous = scored(300, levels=levels)
    assert detection(scores, anomalous).compute() == pytest.approx(from_scikit(scores, anomalous, "image"))


def test_detection_by_hand():
    found = detection(torch.tensor([3.0, 2.0, 2.0, 1.0]), torch.tensor([True, True, False, False]))
    # pairs won: 3 > 2, 3 > 1, 2 > 1 and half of 2 = 2; thresholds 3: P 1, R 1/2; 2: P 2/3, R 1
    assert found.compute() == {
        "image_auroc": pytest.approx(3.5 / 4),
        "image_average_precision": pytest.approx(1 / 2 + 1 / 3),
        "image_f1_max": pytest.approx(0.8),
    }


@pytest.mark.parametrize("levels", [None, 2])
def test_localization_equals_scikit_learn_over_all_pixels(levels):
    scores, masks = maps(levels=levels)
    found = localization(scores, masks).compute()
    theirs = from_scikit(scores.flatten(), masks.flatten(), "pixel")
    assert {name: found[name] for name in theirs} == pytest.approx(theirs)


def loop_aupro(scores, masks, limit):
    """Thresholds at every score, overlaps region by region, and numpy's trapezoid with the end interpolated."""
    regions = []
    for score, mask in zip(scores, masks):
        label = connected_regions(mask)
        regions += [score[label == r] for r in range(1, int(label.max()) + 1)]
    normal = scores[~masks]
    x, y = [0.0], [0.0]
    for threshold in scores.unique().flip(0):
        x.append(float((normal >= threshold).double().mean()))
        y.append(float(np.mean([float((r >= threshold).double().mean()) for r in regions])))
    end = np.interp(limit, x, y) if limit not in x else max(b for a, b in zip(x, y) if a == limit)
    inside = [(a, b) for a, b in zip(x, y) if a < limit] + [(limit, end)]
    return sum((c - a) * (b + d) / 2 for (a, b), (c, d) in pairwise(inside)) / limit


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_per_region_overlap_equals_the_loop(levels, limit):
    scores, masks = maps(levels=levels)
    assert localization(scores, masks, limit=limit).compute()["pixel_aupro"] == pytest.approx(
        loop_aupro(scores, masks, limit)
    )


def test_per_region_overlap_by_hand():
    """Two regions of 1 and 4 pixels; the small one is found before any normal pixel, the large one never."""
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[0, 0, 0] = True
    mask[0, 2:4, 2:4] = True
    scores = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(0))
    scores[0, 0, 0], scores[0, 2:4, 2:4] = 2.0, -1.0
    assert localization(scores, mask).compute()["pixel_aupro"] == pytest.approx(0.5)
    scores[0, 2:4, 2:4] = 3.0
    assert localization(scores, mask).compute() == pytest.approx(
        {"pixel_auroc": 1, "pixel_average_precision": 1, "pixel_f1_max": 1, "pixel_aupro": 1}
    )


def test_a_detector_that_says_the_same_of_everything_is_at_chance():
    _, anomalous = scored(200)
    same = detection(torch.zeros(200), anomalous)
    share = float(anomalous.double().mean())
    assert same.compute()["image_average_precision"] == pytest.approx(share)
    assert same.compute()["image_auroc"] == 0.5
    assert same.compute()["image_f1_max"] == pytest.approx(same.chance()["image_f1_max"])
    _, masks = maps()
    pixels = localization(torch.zeros(masks.shape), masks)
    assert pixels.compute()["pixel_aupro"] == pytest.approx(pixels.chance()["pixel_aupro"]) == 0.15
    assert pixels.compute()["pixel_f1_max"] == pytest.approx(pixels.chance()["pixel_f1_max"])


def test_random_scores_reach_chance():
    rng = torch.Generator().manual_seed(99)
    _, anomalous = scored(20000, share=0.1)
    found = detection(torch.rand(20000, generator=rng), anomalous)
    for name, value in found.compute().items():
        assert value == pytest.approx(found.chance()[name], rel=0.05), name
    _, masks = maps(pictures=150, size=24)
    pixels = localization(torch.rand(masks.shape, generator=rng), masks)
    for name, value in pixels.compute().items():
        assert value == pytest.approx(pixels.chance()[name], rel=0.1), name


def test_scores_that_are_not_numbers_are_the_wrong_extreme():
    anomalous = torch.tensor([True, True, False])
    assert detection(torch.full((3,), torch.nan), anomalous).compute()["image_auroc"] == 0
    assert detection(torch.tensor([1.0, torch.nan, 0.0]), anomalous).compute()["image_auroc"] == 0.5


def search(mask):
    """Regions one after the other, pixel by pixel."""
    label, count = torch.zeros(mask.shape, dtype=torch.long), 0
    for start in mask.nonzero().tolist():
        if label[tuple(start)]:
            continue
        count, todo = count + 1, [start]
        while todo:
            y, x = todo.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not label[y, x]:
                label[y, x] = count
                todo += [[y + a, x + b] for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return label


def same_partition(a, b):
    pairs = set(zip(a.flatten().tolist(), b.flatten().tolist()))
    return len(pairs) == len({p for p, _ in pairs}) == len({q for _, q in pairs}) and torch.equal(a > 0, b > 0)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.4, 0.6, 1.0])
def test_regions_equal_a_search(share):
    for seed in range(4):
        mask = torch.rand(23, 17, generator=torch.Generator().manual_seed(seed)) < share
        assert same_partition(connected_regions(mask), search(mask))


def test_regions_that_wind_and_touch_by_corners():
    spiral = torch.zeros(15, 15, dtype=torch.bool)
    y, x, dy, dx = 0, -1, 0, 1
    for length in (15, 14, 14, 12, 12, 10, 10, 8, 8, 6, 6, 4, 4, 2, 2):
        for _ in range(length):
            y, x = y + dy, x + dx
            spiral[y, x] = True
        dy, dx = dx, -dy
    assert same_partition(connected_regions(spiral), search(spiral))
    corners = torch.eye(4, dtype=torch.bool)
    corners[0, 3] = True
    label = connected_regions(corners)
    assert label.unique().tolist() == [0, 1, 2]
    assert len(label.diagonal().unique()) == 1


def test_parts_merge_to_the_whole():
    scores, anomalous = scored(50)
    whole, left, right = detection(scores, anomalous), detection(scores[:9], anomalous[:9]), AnomalyDetection()
    right.update(scores[9:], anomalous[9:])
    left.merge(right)
    assert (left.compute(), left.intervals(n_boot=20)) == (whole.compute(), whole.intervals(n_boot=20))
    heat, masks = maps()
    whole, left = localization(heat, masks), localization(heat[:3], masks[:3])
    left.merge(localization(heat[3:], masks[3:]))
    assert (left.compute(), left.intervals(n_boot=20)) == (whole.compute(), whole.intervals(n_boot=20))
    with pytest.raises(ValueError, match="cannot merge"):
        left.merge(AnomalyLocalization(limit=0.1))


def quantiles(values):
    return {name: pytest.approx(tuple(np.quantile([v[name] for v in values], [0.025, 0.975]))) for name in values[0]}


@pytest.mark.parametrize("levels", [None, 1])
def test_intervals_draw_normal_and_anomalous_pictures_apart(levels):
    scores, anomalous = scored(40, levels=levels)
    draws = torch.cat(list(resamples(anomalous.long(), n_boot=30, seed=0)))
    rows = [torch.arange(40).repeat_interleave(times) for times in draws]
    values = [detection(scores[r], anomalous[r]).compute() for r in rows]
    assert detection(scores, anomalous).intervals(n_boot=30) == quantiles(values)
    heat, masks = maps(levels=levels)
    draws = torch.cat(list(resamples(masks.flatten(1).any(1).long(), n_boot=30, seed=0)))
    rows = [torch.arange(8).repeat_interleave(times) for times in draws]
    values = [localization(heat[r], masks[r]).compute() for r in rows]
    assert localization(heat, masks).intervals(n_boot=30) == quantiles(values)


def test_fewer_thresholds_hardly_move_an_interval(monkeypatch):
    found = localization(*maps(pictures=20, size=24))
    exact = found.intervals(n_boot=50)
    monkeypatch.setattr(anomaly, "THRESHOLDS", 200)
    for name, ends in found.intervals(n_boot=50).items():
        assert ends == pytest.approx(exact[name], abs=0.005), name


def test_wrong_input_is_refused_and_nothing_gives_nothing():
    for empty in (AnomalyDetection(), AnomalyLocalization()):
        assert (empty.compute(), empty.intervals(), empty.chance()) == ({}, {}, {})
    normal = torch.zeros(3, dtype=torch.bool)
    one_sided = detection(torch.zeros(3), normal)
    for call in (one_sided.compute, one_sided.intervals, one_sided.chance):
        with pytest.raises(ValueError, match="3 normal and 0 anomalous pictures"):
            call()
    with pytest.raises(ValueError, match="9 normal and 0 anomalous pixels"):
        localization(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3, dtype=torch.bool)).compute()
    with pytest.raises(ValueError, match="booleans"):
        detection(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="resize"):
        localization(torch.zeros(1, 3, 3), torch.zeros(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="limit is 30"):
        AnomalyLocalization(limit=30)


def test_half_precision_maps_are_exact():
    scores, masks = maps()
    assert localization(scores.half(), masks).compute() == localization(scores.half().double(), masks).compute()
