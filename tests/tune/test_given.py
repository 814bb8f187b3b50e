"""An adapter is handed the labelled pictures that it says it learns from, and records count no others."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from tests.tune.doubles import Means, arrays, folder, methods, write
from tests.tune.test_protocols import measure
from vlp.adapters.em_dirichlet import EmDirichlet
from vlp.adapters.gda_em import GdaEm
from vlp.adapters.loki import Loki
from vlp.adapters.saved import Saved
from vlp.adapters.tip import Tip
from vlp.adapters.unem import Unem
from vlp.adapters.zeroshot import ZeroShot
from vlp.tune.folder import read_folder
from vlp.tune.protocols import FewShot, Trial
from vlp.tune.record import read
from vlp.tune.stock import Opening
from vlp.tune.trial import Plan, run_grid, run_trial

__all__ = ["folder", "methods"]


@pytest.mark.parametrize(("shots", "train"), [(0, True), (None, False)])
@pytest.mark.parametrize("protocol", ["few_shot", "transductive"])
def test_who_learns_from_validation_has_it_without_support(tmp_path, protocol, shots, train):
    found = arrays()
    if not train:
        del found["train"]
    stock = read_folder(write(tmp_path, found))
    result = measure(protocol, Unem(tasks=2, epochs=1, layers=2), stock, shots=shots)
    assert result.classifier.about["selection"]["split"] == "validation"
    assert (result.counts["validation"], "support" in result.counts) == (24, False)
    assert "validation" not in measure(protocol, EmDirichlet(steps=1), stock, shots=shots).counts


@pytest.mark.parametrize(
    ("adapter", "instead"), [(Tip(), "few_shot with --shots N"), (Unem(), "transductive --shots 0")]
)
def test_unsupervised_says_where_labels_are(folder, adapter, instead):
    said = f"{type(adapter).__name__} (needs|learns from) labelled .* unsupervised gives none: use --protocol {instead}"
    with pytest.raises(ValueError, match=said):
        measure("unsupervised", adapter, read_folder(folder))


@pytest.mark.parametrize(
    ("adapter", "labelled", "support"),
    [
        (ZeroShot(), "none", None),
        (GdaEm(), "none", None),
        (Loki(), "none", None),
        (Loki(of=Tip(alpha=1.0, beta=1.0)), "all", 60),
        (EmDirichlet(steps=1), "all", 60),
        (Means(), "all", 60),
    ],
    ids=lambda one: type(one).__name__,
)
def test_labels_are_counted_where_they_are_learned_from(folder, methods, adapter, labelled, support):
    record = run_trial(Trial(adapter, read_folder(folder)), FewShot(), code="x").record
    assert (record.labelled, record.shots, record.counts.get("support")) == (labelled, None, support)


def test_a_saved_folder_that_is_not_there_fails_alone(folder, methods, tmp_path):
    plan = Plan([Saved(folder=str(tmp_path / "nowhere")), ZeroShot()], [2], [1], FewShot())
    opening = Opening("one", lambda: nullcontext(read_folder(folder)))
    found = run_grid([opening], plan, out=tmp_path).records
    assert ["holds no fitted adapter" in (row.error or "") for row in found] == [True, False]
    assert len(list(read(tmp_path / "results.jsonl"))) == 2
