"""Nothing that is being fitted reads a test label."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tune.doubles import SEEN, Cheat, CheatMore, Looks, Means, Pool, folder, methods
from vlp.adapters.loki import Loki
from vlp.adapters.task import Examples
from vlp.adapters.zeroshot import ZeroShot
from vlp.tune.fitting import check_level, traits
from vlp.tune.folder import read_folder
from vlp.tune.guard import Guard, GuardError
from vlp.tune.protocols import FewShot, Trial
from vlp.tune.trial import run_trial

__all__ = ["folder", "methods"]


def guard(labels=(0, 1, -1)):
    return Guard(Examples(torch.eye(3)), lambda: torch.tensor(labels), where="here")


def run(adapter, stock):
    return run_trial(Trial(adapter, stock), FewShot(), code="x")


def test_labels_are_refused_until_fitting_is_over_and_again_in_the_next():
    one = guard()
    with pytest.raises(GuardError, match="before fitting was over"):
        one.label("scoring")
    with one.fitting(), pytest.raises(GuardError, match=r"here: test labels were asked for \(peeking\)"):
        one.label("peeking")
    assert one.label("scoring").tolist() == [0, 1, -1]
    with one.fitting(), pytest.raises(GuardError):
        one.label("peeking")
    assert one.reads == {"scoring": 1}


def test_a_fit_that_failed_opens_nothing():
    one = guard()
    with pytest.raises(RuntimeError), one.fitting():
        raise RuntimeError
    with pytest.raises(GuardError):
        one.label("scoring")


def test_leaks_are_for_leaky_fits_and_counted():
    one = guard()
    with one.fitting(), pytest.raises(GuardError, match="protocol: paper"):
        one.leaked()
    with one.fitting(leaky=True):
        assert one.leaked().known.tolist() == [0, 1]  # not the one without a usable label
    with pytest.raises(GuardError):
        one.leaked()
    assert one.reads == {"fit": 1}


def test_pictures_with_labels_are_not_guarded():
    with pytest.raises(ValueError, match="give them without"):
        Guard(Examples(torch.eye(3), torch.zeros(3)), lambda: torch.zeros(3), where="here")


@pytest.mark.parametrize("adapter", [Cheat(), CheatMore(), Loki(of=Cheat())], ids=lambda one: type(one).__name__)
def test_an_adapter_that_peeks_is_stopped(folder, methods, adapter):
    stock = read_folder(folder)
    Cheat.guards[:] = [stock.test]
    with pytest.raises(GuardError):
        run(adapter, stock)
    assert stock.test.reads.total() == 0


def test_an_adapter_is_handed_neither_labels_nor_measured_pictures(folder, methods):
    found = run(Means(), read_folder(folder)).record
    (task,) = SEEN
    assert task.test is None
    assert task.query is None
    assert (found.leaky, found.transductive, found.test_label_reads) == (False, False, 1)


def test_measured_pictures_go_to_transductive_adapters_without_labels_and_are_stamped(folder, methods):
    stock = read_folder(folder)
    found = run(Looks(), stock).record
    assert torch.equal(SEEN[0].query.image, stock.test.pictures.image)
    assert SEEN[0].query.label is None
    assert (found.transductive, found.leaky) == (True, False)


def test_protocol_paper_sees_labels_and_is_stamped(folder, methods):
    found = run(Means(protocol="paper"), read_folder(folder)).record
    assert len(SEEN[0].test.known) == 30
    assert (found.leaky, found.selection["split"], found.test_label_reads) == (True, "test", 2)


def test_an_unlabelled_pool_of_test_pictures_is_stamped_as_transductive(folder, methods):
    stock = read_folder(folder)
    assert not run(Pool(), stock).record.transductive
    assert run(Pool(), replace(stock, unlabelled=stock.test.pictures)).record.transductive


def test_what_lies_inside_of_an_adapter_counts(folder):
    inside = traits(Loki(of=Means(protocol="paper")))
    assert (inside.leaky, inside.wants, inside.views, inside.setting) == (True, ("support",), 2, "few-shot")
    assert traits(ZeroShot()).setting == "zero-shot"
    assert traits(Looks()).setting == "transductive"
    with pytest.raises(ValueError, match="tower runs both towers, and stored features have none"):
        check_level("tower", "towers", read_folder(folder).encoder)
