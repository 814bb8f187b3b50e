"""What each protocol gives and measures, against counts and sums made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tune.doubles import NAMES, SEEN, Breaks, Looks, Means, Pool, arrays, folder, methods, write
from vlp.adapters.restricted import Restricted
from vlp.adapters.unem import Unem
from vlp.adapters.zeroshot import ZeroShot
from vlp.tune import PROTOCOLS
from vlp.tune.folder import read_folder
from vlp.tune.protocols import FewShot, Imbalanced, Transductive, Trial
from vlp.tune.support import find_draw, make_draws
from vlp.tune.transfers import CrossDataset, base_classes, harmonic_mean
from vlp.tune.trial import run_trial

__all__ = ["folder", "methods"]


def measure(name, adapter, stock, *, shots=None, seed=1, targets=(), **settings):
    drawn = make_draws(stock, shots=[shots], seeds=[seed]).draws[0] if shots else None
    return PROTOCOLS.build({"name": name, **settings}).measure(Trial(adapter, stock, shots, seed, drawn, targets))


def accuracy(classifier, stock, keep, shift=0):
    """Share of right ones by a loop."""
    label = stock.test.label("test")
    right = []
    for image, true in zip(stock.test.pictures.image, label.tolist()):
        if keep(true):
            right.append(int(classifier(image[None]).argmax()) == true - shift)
    return sum(right) / len(right)


def test_few_shot_draws_learns_and_measures_everything(folder, methods):
    stock = read_folder(folder)
    found = measure("few_shot", Means(), stock, shots=2)
    (task,) = SEEN
    assert task.support.known.bincount().tolist() == [2] * 6
    assert task.validation.known.bincount().tolist() == [2] * 6  # min(shots, 4) of val.npz
    assert len(task.unlabelled) == 60 - 12
    assert task.unlabelled.label is None
    assert found.n == 30
    assert found.metrics["acc1"] == pytest.approx(accuracy(found.classifier, stock, lambda _: True))
    assert set(found.metrics) == {"acc1", "acc5", "mean_per_class_recall", "ece", "confidence"}
    assert found.counts == {"images": 30, "classes": 6, "support": 12, "validation": 12, "unlabelled": 48}


def test_without_shots_all_of_train_is_given_and_with_none_nothing(folder, methods):
    stock = read_folder(folder)
    measure("few_shot", Means(), stock)
    assert (len(SEEN[0].support), len(SEEN[0].validation), len(SEEN[0].unlabelled)) == (60, 24, 60)
    measure("few_shot", Pool(), stock, shots=0)
    assert (SEEN[1].support, SEEN[1].validation, len(SEEN[1].unlabelled)) == (None, None, 60)


def test_without_validation_it_comes_from_the_rest_of_train(tmp_path, methods):
    found = arrays()
    del found["val"]
    stock = read_folder(write(tmp_path, found))
    measure("few_shot", Means(), stock, shots=8)
    task = SEEN[0]
    assert task.validation.known.bincount().tolist() == [2] * 6  # what 10 pictures leave of min(8, 4)
    rows = [{tuple(row.tolist()) for row in part.image} for part in (task.support, task.validation)]
    assert not rows[0] & rows[1]
    assert len(task.unlabelled) == 60  # nothing is left of train, so all of it
    measure("few_shot", Means(), stock)
    assert SEEN[1].validation is None


def test_draws_are_nested_and_depend_on_the_seed(folder):
    stock = read_folder(folder)
    draws = make_draws(stock, shots=[2, 4], seeds=[1, 2])
    small, large = (find_draw(draws, shots=count, seed=1, where="x") for count in (2, 4))
    assert all(large.train[name][:2] == small.train[name] for name in NAMES)
    assert find_draw(draws, shots=2, seed=2, where="x").train != small.train
    with pytest.raises(ValueError, match=r"file: no draw with seed 3 of 2 shots; it has"):
        find_draw(draws, shots=2, seed=3, where="file")


def test_views_are_given_where_they_are_stored(tmp_path, methods):
    found = arrays()
    views = found["train"]["image"][:, None].repeat(3, axis=1)
    found["train"]["views"] = views
    stock = read_folder(write(tmp_path, found))
    measure("few_shot", Means(), stock, shots=2)
    support = SEEN[0].support
    torch.testing.assert_close(support.views[:, 1], support.image)


def test_unsupervised_gives_no_labels(folder, methods):
    stock = read_folder(folder)
    measure("unsupervised", Pool(), stock)
    assert (SEEN[0].support, SEEN[0].validation, len(SEEN[0].unlabelled)) == (None, None, 60)
    with pytest.raises(ValueError, match="Means needs labelled pictures"):
        measure("unsupervised", Means(), stock)
    with pytest.raises(ValueError, match="no 2 shots"):
        measure("unsupervised", Pool(), stock, shots=2)


def test_semi_supervised_needs_both(folder, methods):
    stock = read_folder(folder)
    measure("semi_supervised", Means(), stock, shots=2)
    assert (len(SEEN[0].support), len(SEEN[0].unlabelled)) == (12, 48)
    for shots in (None, 10):  # all of train has its labels, so that nothing is left without
        with pytest.raises(ValueError, match="give --shots"):
            measure("semi_supervised", Means(), stock, shots=shots)


def test_shots_need_a_draw(folder, methods):
    with pytest.raises(ValueError, match="2 shots, and no draw that says which pictures"):
        run_trial(Trial(Means(), read_folder(folder), 2), FewShot(), code="x")


def test_labels_of_validation_alone_are_counted_as_such(folder):
    learner = Unem(layers=1, epochs=1, tasks=2, batch=2, queries=6, effective=2)
    record = run_trial(Trial(learner, read_folder(folder), 0), Transductive(), code="x").record
    assert (record.labelled, record.shots, record.counts["validation"]) == ("validation", None, 24)


def test_reads_of_labels_are_counted_in_every_data_set(folder, methods):
    stock = read_folder(folder)
    other = replace(read_folder(folder), dataset="other")
    record = run_trial(Trial(Means(), stock, targets=[other]), CrossDataset(), code="x").record
    assert record.test_label_reads == 2


def test_transductive_is_for_those_that_look(folder, methods):
    stock = read_folder(folder)
    measure("transductive", Looks(), stock, shots=0)
    assert (SEEN[0].support, len(SEEN[0].query)) == (None, 30)
    with pytest.raises(ValueError, match="Means does not look"):
        measure("transductive", Means(), stock)
    assert measure("transductive", ZeroShot(), stock).n == 30  # what to beat stands beside it


def test_imbalanced_has_a_tail(folder, methods):
    stock = read_folder(folder)
    measure("imbalanced", Means(), stock, shots=8, ratio=4)
    counts = SEEN[0].support.known.bincount().tolist()
    assert sorted(counts, reverse=True) == [max(1, round(8 * 4 ** (-place / 5))) for place in range(6)]
    measure("imbalanced", Means(), stock, shots=8, ratio=4, seed=2)
    assert SEEN[1].support.known.bincount().tolist() != counts
    measure("imbalanced", Means(), stock, shots=8, ratio=1)
    assert SEEN[2].support.known.bincount().tolist() == [8] * 6
    assert len(SEEN[0].unlabelled) == 60 - sum(counts)
    with pytest.raises(ValueError, match="learns from labelled pictures"):
        Imbalanced().measure(Trial(Means(), stock, 0))


@pytest.mark.parametrize(("classes", "base"), [(2, 1), (5, 3), (6, 3), (101, 51)])
def test_base_classes_are_the_larger_half(classes, base):
    assert base_classes(classes) == base


def test_the_harmonic_mean():
    assert harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_base_to_new_learns_half_and_measures_both(tmp_path, methods):
    stock = read_folder(write(tmp_path, arrays(classes=5)))
    found = measure("base_to_new", Means(), stock, shots=4)
    fitted, moved = SEEN
    assert (fitted.names, moved.names) == (NAMES[:3], NAMES[3:5])
    assert fitted.support.known.bincount().tolist() == [4] * 3
    assert fitted.validation.known.bincount().tolist() == [4] * 3
    assert len(fitted.unlabelled) == 30 - 12  # of base classes alone
    assert (moved.support, moved.validation, moved.unlabelled, moved.test) == (None,) * 4
    new = ZeroShot().fit(stock.encoder, stock.task(seed=0, classes=slice(3, None)))
    base_share = accuracy(found.classifier, stock, lambda label: label < 3)
    new_share = accuracy(new, stock, lambda label: label >= 3, shift=3)
    want = {"acc1_base": base_share, "acc1_new": new_share, "h": harmonic_mean(base_share, new_share)}
    want["acc1"] = (15 * base_share + 10 * new_share) / 25
    assert found.metrics == pytest.approx(want)
    assert found.chance == pytest.approx({"acc1_base": 1 / 3, "acc1_new": 1 / 2, "h": 0.4, "acc1": 0.4})
    assert (found.counts["base_images"], found.counts["new_images"]) == (15, 10)


def test_base_to_new_refuses_what_cannot_be_had(tmp_path, folder, methods):
    stock = read_folder(folder)
    with pytest.raises(ValueError, match="would have to part"):
        measure("base_to_new", Looks(), stock)
    with pytest.raises(ValueError, match="fewer than 2 new"):
        measure("base_to_new", Means(), read_folder(write(tmp_path / "few", arrays(classes=3))))
    with pytest.raises(NotImplementedError, match="Breaks learns weights of its own classes only"):
        Breaks().transfer(stock.encoder, None, stock.task(seed=0))
    found = measure("base_to_new", Means(protocol="paper"), stock, shots=2)
    assert set(SEEN[-2].test.known.tolist()) == {0, 1, 2}  # labels of new classes are none of its business
    assert found.n == 30


def test_open_set_tells_known_from_unknown(folder, methods):
    stock = read_folder(folder)
    found = measure("open_set", Means(), stock, shots=4)
    label = stock.test.label("test")
    top = found.classifier(stock.test.pictures.image).double().softmax(dim=1).amax(dim=1)
    known, other = top[label < 3], top[label >= 3]
    wins = [float(a > b) + 0.5 * float(a == b) for a in known for b in other]
    assert found.metrics["open_auroc"] == pytest.approx(sum(wins) / len(wins))
    assert found.metrics["acc1"] == pytest.approx(accuracy(found.classifier, stock, lambda label: label < 3))
    assert (found.n, found.counts["known_images"], found.chance["open_auroc"]) == (30, 15, 0.5)


def test_cross_dataset_moves_what_was_learned_to_other_names(tmp_path, folder, methods):
    found = arrays(seed=3)
    found["classes"]["names"] = np_names = found["classes"]["names"].copy()
    np_names[:] = [name[::-1] for name in NAMES]
    other = read_folder(write(tmp_path / "other", found))
    stock = read_folder(folder)
    result = measure("cross_dataset", Means(), stock, shots=4, targets=[other])
    zero = ZeroShot().fit(other.encoder, other.task(seed=0))
    want = accuracy(zero, other, lambda _: True)
    assert result.metrics["acc1_other"] == result.metrics["acc1_targets"] == pytest.approx(want)
    assert SEEN[1].names == other.names
    assert set(result.hits) == {"acc1", "acc1_other"}
    with pytest.raises(ValueError, match="name some with --test"):
        measure("cross_dataset", Means(), stock)
    with pytest.raises(ValueError, match="FewShot measures no other data sets"):
        FewShot().measure(Trial(Means(), stock, targets=[other]))


def test_domain_shift_keeps_the_classifier_also_over_fewer_names(tmp_path, folder, methods):
    found = arrays(seed=4)
    keep = found["test"]["label"] < 2
    found["test"] = {"image": found["test"]["image"][keep], "label": 1 - found["test"]["label"][keep]}
    found["classes"] = {"text": found["classes"]["text"][[1, 0]], "names": found["classes"]["names"][[1, 0]]}
    other = read_folder(write(tmp_path / "sketch", {name: found[name] for name in ("test", "classes")}))
    stock = read_folder(folder)
    result = measure("domain_shift", Means(), stock, shots=4, targets=[other])
    restricted = Restricted(result.classifier, ("bee", "ant"))
    assert result.metrics["acc1_sketch"] == pytest.approx(accuracy(restricted, other, lambda _: True))
    assert torch.equal(restricted(torch.eye(8)), result.classifier(torch.eye(8))[:, [1, 0]])
    strange = replace(other, names=("bee", "ent"))
    with pytest.raises(ValueError, match='not fitted to class "ent"; did you mean "ant"'):
        measure("domain_shift", Means(), stock, shots=4, targets=[strange])


def test_a_task_of_other_classes_needs_no_text(folder):
    stock = replace(read_folder(folder), text=None)
    assert stock.task(seed=0, classes=slice(3)).text is None
    assert stock.words(stock.train)[0] == "ant"
    assert replace(stock, names=("a", "a", *NAMES[2:])).words(stock.train)[0] == "0"  # names that repeat say nothing


@pytest.mark.parametrize(
    ("own", "other", "same"), [("aaaa", "cccc", 0), ("aaaa", None, 0), (None, "cccc", 0), ("a", "a", 1)]
)
@pytest.mark.parametrize("protocol", ["cross_dataset", "domain_shift"])
def test_features_of_two_models_are_not_mixed(tmp_path, methods, own, other, same, protocol):
    stocks = []
    for name, weights in (("one", own), ("two", other)):
        found = arrays(seed=len(stocks))
        if weights is not None:
            found["classes"]["weights_hash"] = weights
        stocks.append(read_folder(write(tmp_path / name, found)))
    if same:
        assert measure(protocol, Means(), stocks[0], shots=2, targets=stocks[1:]).metrics["acc1_two"] > 0
        return
    said = "aaaa, and those of cccc" if own and other else "does not say which weights made its features"
    with pytest.raises(ValueError, match=said):
        measure(protocol, Means(), stocks[0], shots=2, targets=stocks[1:])


def test_targets_need_one_width_and_names_of_their_own(tmp_path, folder, methods):
    stock, narrow = read_folder(folder), read_folder(write(tmp_path / "narrow", arrays(width=4)))
    with pytest.raises(ValueError, match="features is learned and narrow measured, but their features have 8 and 4"):
        measure("domain_shift", Means(), stock, shots=2, targets=[narrow])
    other = read_folder(write(tmp_path / "other", arrays(seed=1)))
    with pytest.raises(ValueError, match='several data sets to measure are called "other"'):
        measure("domain_shift", Means(), stock, shots=2, targets=[other, other])


def only(part, *labels):
    keep = np.isin(part["label"], labels)
    return {name: values[keep] for name, values in part.items()}


@pytest.mark.parametrize(("labels", "said"), [((0, 1, 2), "were not learned"), ((3, 4, 5), "were learned")])
def test_open_set_needs_both_kinds_of_pictures(tmp_path, methods, labels, said):
    found = arrays()
    found["test"] = only(found["test"], *labels)
    with pytest.raises(ValueError, match=f"no test picture of classes that {said}, and open_set measures"):
        measure("open_set", Means(), read_folder(write(tmp_path, found)), shots=2)
