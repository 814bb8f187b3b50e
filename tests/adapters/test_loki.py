"""Expected squared distance against loops; the oracles of methods.md 11.17; labels that nothing was fitted on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from tests.adapters.blobs import ENCODER, blobs
from tests.eval.colours import ColourDual
from vlp.adapters.descriptions import Descriptions
from vlp.adapters.loki import Loki, LokiClassifier, tree_distance
from vlp.adapters.task import Examples, Task
from vlp.adapters.tfup import Tfup
from vlp.adapters.tip import Tip
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoder

TASK = Task(("red", "green", "blue", "yellow", "white"), ("{}", "a {}"))
PATHS = {"red": "warm", "yellow": "warm", "green": "cold", "blue": "cold", "white": []}


class Fixed:
    """A classifier with known probabilities."""

    needs = "features"

    def __call__(self, inputs):
        return inputs.log()


def loki(squared, probabilities, observed):
    classifier = LokiClassifier(
        Fixed(), squared, observed=torch.tensor(observed), names=[str(n) for n in range(len(squared))]
    )
    return classifier(probabilities)


def test_with_distances_of_zero_and_one_it_is_the_arg_max():
    p = torch.rand(200, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    scores = loki(1 - torch.eye(7), p, range(7))
    assert torch.equal(scores.argsort(dim=1), p.argsort(dim=1))
    torch.testing.assert_close(scores, p.double() - 1, atol=1e-6, rtol=0)
    star = tree_distance([*"abcdefg"], [["root", name] for name in "abcdefg"])
    assert torch.equal(star, 2 * (1 - torch.eye(7, dtype=torch.float64)))


def test_between_the_ends_of_a_path_lies_its_middle():
    squared = tree_distance(["a", "b", "c"], [["a", "b"], ["b", "c"]]).square()
    p = torch.tensor([[0.5, 1e-30, 0.5]])
    assert loki(squared, p, range(3)).argmax() == 1
    assert loki(squared, torch.tensor([[0.5, 0.5]]), [0, 2]).argmax() == 1  # also where nobody ever saw it


def test_scores_equal_the_loop():
    encoder = Encoder(ColourDual())
    image = normalize(torch.rand(6, 3), dim=1)
    hops = tree_distance(TASK.names, PATHS)
    p = ZeroShot().fit(encoder, TASK)(image).double().softmax(dim=1)
    want = torch.tensor([[-sum(row[k] * hops[y, k] ** 2 for k in range(5)) for y in range(5)] for row in p])
    classifier = Loki(tree=PATHS).fit(encoder, TASK)
    torch.testing.assert_close(classifier(image), want.double(), atol=1e-6, rtol=1e-5)
    assert (classifier.needs, classifier.head, classifier.names) == ("features", None, TASK.names)
    assert torch.equal(classifier.squared, hops.square())


def test_without_a_tree_the_text_features_say_how_far():
    encoder = Encoder(ColourDual())
    weight = ZeroShot().fit(encoder, TASK).weight.double()
    classifier = Loki().fit(encoder, TASK)
    want = torch.tensor([[float((one - other).square().sum()) for other in weight] for one in weight])
    torch.testing.assert_close(classifier.squared, want.double(), atol=1e-6, rtol=1e-5)
    assert classifier.about["metric"] == "text"


def test_labels_that_were_never_observed_can_win():
    encoder = Encoder(ColourDual())
    part = Loki(tree=[["red", "yellow"], ["yellow", "green"]], observed=("red", "green"))
    task = Task(("red", "green", "yellow"))
    image = normalize(torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), dim=1)
    classifier = part.fit(encoder, task)
    assert classifier.inner.names == ("red", "green")
    assert classifier(image).argmax(dim=1).tolist() == [2, 0]
    plain = part.model_copy(update={"adjust": False}).fit(encoder, task)
    torch.testing.assert_close(plain(image)[:, :2], ZeroShot().fit(encoder, Task(task.names[:2]))(image).double())
    assert plain(image)[:, 2].tolist() == [-torch.inf, -torch.inf]
    assert torch.equal(plain.squared, classifier.squared)
    with pytest.raises(ValueError, match=r'observed: no class for 1 of 2 classes: "gren"; did you mean "green"'):
        part.model_copy(update={"observed": ("red", "gren")}).fit(encoder, task)


def test_any_adapter_lies_inside():
    sentences = {name: [name] for name in TASK.names}
    built = Loki.model_validate({"of": {"name": "zeroshot"}, "tree": PATHS})
    assert built.of == ZeroShot()
    inner = Loki(of=Descriptions(sentences=sentences), tree=PATHS).fit(Encoder(ColourDual()), TASK).inner
    assert inner.about["adapter"] == "descriptions"


def test_other_names_get_what_the_adapter_inside_makes_of_them():
    encoder, other = Encoder(ColourDual()), replace(TASK, names=TASK.names[:2])
    part = Loki(of=ZeroShot())
    moved = part.transfer(encoder, part.fit(encoder, TASK), other)
    assert moved.names == moved.inner.names == other.names
    image = torch.eye(3)
    torch.testing.assert_close(moved(image), part.fit(encoder, other)(image))
    some = Loki(observed=TASK.names[:2])
    with pytest.raises(NotImplementedError, match="`observed` names classes of the task that was learned"):
        some.transfer(encoder, some.fit(encoder, TASK), other)


def test_records_say_what_the_adapter_inside_chose_and_believed():
    task, held = blobs(validation=6, noise=1.5)
    made = Loki(of=Tip()).fit(ENCODER, task)
    chosen = Tip().fit(ENCODER, task).about["selection"]
    assert made.about["selection"] == {"split": "validation", "of": [chosen]}
    leaky = Loki(of=Tip(protocol="paper")).fit(ENCODER, replace(task, test=held))
    assert leaky.about["selection"]["split"] == "test"
    plain = Loki().fit(ENCODER, task)
    assert plain.about["selection"] == {"split": "none"}
    assert "pseudolabels" not in plain.about


def test_pseudolabels_of_the_observed_classes_are_numbered_as_all_are():
    task, held = blobs(noise=1.0)
    pool = replace(task, unlabelled=held.unlabelled())
    names = tuple(task.names[place] for place in (3, 1))
    made = Loki(of=Tfup(least=2, most=3), observed=names).fit(ENCODER, pool)
    inner = Tfup(least=2, most=3).fit(ENCODER, pool.over([1, 3])).about["pseudolabels"]
    said = made.about["pseudolabels"]
    assert (said["rows"], said["keys"]) == (inner["rows"], inner["keys"])
    assert said["label"] == [(1, 3)[label] for label in inner["label"]]
    assert said["count"] == [0, inner["count"][0], 0, inner["count"][1]]


def test_trees_by_paths_and_by_edges_are_the_same(tmp_path):
    edges = [["top", "warm"], ["top", "cold"], ["top", "white"], *([p, n] for n, p in PATHS.items() if n != "white")]
    assert torch.equal(tree_distance(TASK.names, PATHS), tree_distance(TASK.names, edges))
    assert tree_distance(["red", "yellow", "green", "white"], PATHS)[0].tolist() == [0, 2, 4, 3]
    assert tree_distance(["warm", "red", "blue"], PATHS)[0].tolist() == [0, 1, 3]  # a class above others
    twice = {"apple juice": "juice/apple", "fuji": "fruit/apple"}  # one name, two places
    assert tree_distance(["apple juice", "fuji"], twice)[0].tolist() == [0, 6]
    (tmp_path / "tree.json").write_text(json.dumps(edges))
    read = Loki(file=str(tmp_path / "tree.json")).fit(Encoder(ColourDual()), TASK)
    assert torch.equal(read.squared, tree_distance(TASK.names, PATHS).square())


def test_trees_that_leave_a_label_out_are_refused():
    with pytest.raises(ValueError, match=r'tree: no place for 1 of 2 classes: "rad"; did you mean "red"'):
        tree_distance(["rad", "green"], PATHS)
    with pytest.raises(ValueError, match='no path joins "a" and "c"'):
        tree_distance(["a", "c"], [["a", "b"], ["c", "d"]])
    with pytest.raises(ValueError, match=r"\['a'\] is no edge"):
        tree_distance(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="not both"):
        Loki(file="x", tree=PATHS)


def test_a_task_over_some_classes_renumbers_its_pictures() -> None:
    image = torch.eye(4)
    support = Examples(image, torch.tensor([0, 2, 1, 2]), keys=("a", "b", "c", "d"))
    task = Task(("x", "y", "z"), text=torch.randn(3, 1, 4), support=support, unlabelled=support.unlabelled())
    found = task.over([2, 0])
    assert found.names == ["z", "x"]
    assert found.support is not None
    assert found.support.known.tolist() == [1, 0, 0]
    assert found.support.keys == ("a", "b", "d")
    assert found.text is not None
    assert task.text is not None
    assert torch.equal(found.text, task.text[[2, 0]])
    assert found.unlabelled is task.unlabelled
