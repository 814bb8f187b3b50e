"""Sequences of domains: how runs are planned, what goes on from one to the next, resuming, and the measures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from eval.continual import Course, differences, ends, read, verdict
from eval.forgetting import SCORES, Asked, Judge, drawn
from eval.suite import load_suite
from tests.shards import COLOURS, make_shards
from vlp import checkpoint, cli, config, sequence
from vlp.checkpoint import CheckpointError
from vlp.config import ConfigError
from vlp.continual import START, Arm, Continual, Domain, filled, laid_over, plan, spread
from vlp.continual_cli import continual_command
from vlp.duration import Clock, parse
from vlp.metrics.continual import measures
from vlp.optim import Cosine, Infinite
from vlp.report.continual import heat_map

ROOT = Path(__file__).parent.parent
MOVING = [{"name": "momentum_contrast", "temperature": 0.07}]
CTP = {
    "run": {
        "losses": ["infonce", *MOVING],
        "companions": [{"name": "momentum", "momentum": 0.9}, {"name": "queue", "size": 16}],
    },
    "later": {
        "losses": ["infonce", *MOVING, "topology"],
        "companions": [{"name": "compatible_momentum", "pretrained": "{previous}"}, {"name": "queue", "size": 16}],
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of shards, "plain" and "odd", the second with other words; and a suite that measures both."""
    folder = tmp_path_factory.mktemp("domains")
    make_shards(folder / "plain", samples=24, shards=2)
    other = {i: {"json": json.dumps({"caption": f"{list(COLOURS)[i % 4]} thing {i}"}).encode()} for i in range(20)}
    make_shards(folder / "odd", samples=20, shards=2, broken=other)
    benchmarks = [{"name": "retrieval", "dataset": d, "data": f"{d}/*.tar", "n_boot": 20} for d in ("plain", "odd")]
    (folder / "suite.yaml").write_text(config.to_yaml({"name": "both", "benchmarks": benchmarks}))
    return folder


def settings(out: Path, data: Path, **changes: Any) -> dict[str, Any]:
    source = {"name": "shards", "captions": {"fields": ["caption"]}}
    values = {
        "name": "c",
        "out": str(out),
        "data": str(data),
        "run": {
            "model": {"arch": "vlp-nano"},
            "data": {"batch_size": 8, "streams": 4, "workers": 0, "augment": None},
            "losses": ["infonce"],
            "optim": {"lr": 1e-3},
            "save": {"every": "2steps", "keep": 2},
            "log": {"every": "1steps"},
            "device": "cpu",
            "threads": 1,
        },
        "domains": [
            {"name": "plain", "sources": [{**source, "urls": "{data}/plain/*.tar"}], "duration": "4steps"},
            {"name": "odd", "sources": [{**source, "urls": "{data}/odd/*.tar"}], "duration": "3steps"},
        ],
        "evals": [{"suite": str(data / "suite.yaml"), "overrides": {"data": "{data}"}}],
        "arms": {"finetune": {}, "replay": {"replay": 0.25}, "joint": {"joint": True}, "ctp": CTP},
        **changes,
    }
    return dict(json.loads(json.dumps(values)))  # nothing in it twice: YAML would write that as an alias


def made(out: Path, data: Path, *overrides: str, **changes: Any) -> Continual:
    return config.validate(Continual, config.apply_overrides(settings(out, data, **changes), overrides), where="test")


def judge_of(continual: Continual) -> Judge:
    suites = [load_suite(plan.suite, [f"data={continual.data}"]) for plan in continual.evals]
    return Judge([Asked(d.name, d.test or d.name, d.metrics) for d in continual.domains], suites)


def weights(run: Any) -> dict[str, torch.Tensor]:
    path = checkpoint.newest(run.folder / "checkpoints").path
    assert path is not None
    return load_file(path / "model" / "open_clip_model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ---------------------------------------------------------------------------------------------------------- plans


def test_fine_tuning_is_one_run_after_another(tmp_path: Path, data: Path) -> None:
    first, second = plan(made(tmp_path, data), "finetune")
    assert first.folder == tmp_path / "c" / "finetune" / "1-plain"
    assert first.model.pretrained is None
    assert second.model.pretrained == str(first.folder)
    assert second.data.sources[0].urls == f"{data}/odd/*.tar"
    assert (str(first.duration), str(second.duration)) == ("4steps", "3steps")
    assert second.losses == first.losses


def test_replay_gives_earlier_domains_their_share(tmp_path: Path, data: Path) -> None:
    third = {"name": "more", "sources": [{"name": "shards", "urls": "x", "weight": w} for w in (1, 3)], "duration": 2}
    continual = made(tmp_path, data, domains=[*settings(tmp_path, data)["domains"], third])
    first, second, last = plan(continual, "replay")
    assert [source.weight for source in first.data.sources] == [None]
    assert [source.weight for source in second.data.sources] == [0.75, 0.25]
    assert [source.weight for source in last.data.sources] == pytest.approx([0.75 * 0.25, 0.75 * 0.75, 0.125, 0.125])
    bare = [{"name": "shards", "urls": "x"}] * 2
    continual = made(tmp_path, data, domains=[{**third, "sources": bare}, *settings(tmp_path, data)["domains"]])
    with pytest.raises(ConfigError, match="domain more has 2 sources; give each a weight"):
        plan(continual, "replay")
    assert len(plan(continual, "finetune")) == 3


def test_replay_has_the_steps_of_fine_tuning(tmp_path: Path, data: Path) -> None:
    """An epoch of a mixture is longer than one of the domain alone."""
    finetune, replay = (plan(made(tmp_path, data), arm)[1].duration for arm in ("finetune", "replay"))
    assert finetune == replay == parse("3steps")
    with pytest.raises(ConfigError, match="domain odd: 2epochs, but with replay.*in samples or steps"):
        plan(made(tmp_path, data, "domains.1.duration=2epochs"), "replay")
    assert len(plan(made(tmp_path, data, "domains.0.duration=2epochs"), "replay")) == 2


def test_joint_has_the_same_budget(tmp_path: Path, data: Path) -> None:
    (run,) = plan(made(tmp_path, data), "joint")
    assert str(run.duration) == "7steps"
    assert [source.weight for source in run.data.sources] == pytest.approx([4 / 7, 3 / 7])
    assert run.schedule == made(tmp_path, data).schedule
    with pytest.raises(ConfigError, match="joint needs the duration of every domain in steps"):
        plan(made(tmp_path, data, "domains.1.duration=1epochs"), "joint")
    with pytest.raises(ConfigError, match="domain odd has settings of its own"):
        plan(made(tmp_path, data, "domains.1.run.seed=3"), "joint")
    with pytest.raises(ValueError, match="`later` and `replay` mean nothing"):
        Arm(joint=True, replay=0.5)


def test_later_holds_from_the_second_domain_on(tmp_path: Path, data: Path) -> None:
    first, second = plan(made(tmp_path, data), "ctp")
    assert [type(part).__name__ for part in first.companions] == ["Momentum", "Queue"]
    assert [loss.name for loss in second.losses] == ["infonce", "momentum_contrast", "topology"]
    assert second.companions[0].pretrained == str(first.folder)
    with pytest.raises(ConfigError, match=r"run 1-plain: \"{previous}\" means nothing here.*`later`"):
        plan(made(tmp_path, data, arms={"a": {"run": CTP["later"]}}), "a")


def test_what_is_laid_over_what(tmp_path: Path, data: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(config.to_yaml({**settings(tmp_path, data)["run"], "seed": 5, "optim": {"lr": 1e-4, "eps": 1e-7}}))
    arms = {"a": {"run": {"seed": 7}, "later": {"optim": {"lr": 3e-3}}}}
    first, second = plan(made(tmp_path, data, "domains.1.run.clip_norm=0.5", base=str(base), arms=arms), "a")
    assert (first.seed, first.optim.lr, first.optim.eps, first.clip_norm) == (7, 1e-3, 1e-7, 1.0)
    assert (second.seed, second.optim.lr, second.optim.eps, second.clip_norm) == (7, 3e-3, 1e-7, 0.5)
    assert laid_over({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}, "d": 3}) == {"a": {"b": 1, "c": [2]}, "d": 3}
    assert filled({"a": ["{x}/y", 1]}, {"x": "z"}) == {"a": ["z/y", 1]}


def test_the_infinite_schedule_is_spread_over_the_sequence() -> None:
    whole = Infinite(warmup=parse("10%"), cooldown=parse("20%"), anneal=parse("5steps"))
    none = parse("0steps")
    first, middle, last = (spread(whole, first=n == 0, last=n == 2) for n in range(3))
    assert first == whole.model_copy(update={"anneal": none})
    assert middle == Infinite(warmup=none, cooldown=none, anneal=none)
    assert last == whole.model_copy(update={"warmup": none, "cooldown": none})
    assert spread(Cosine(), first=False, last=False) == Cosine()


def test_rates_of_a_sequence_have_no_jump(tmp_path: Path, data: Path) -> None:
    rates = []
    for run in plan(made(tmp_path, data, "domains.0.duration=20", "domains.1.duration=20"), "finetune"):
        clock = Clock(8, 24, int(run.duration.value))
        rates += [run.schedule.bind(clock)(step) for step in range(clock.total)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[6:37] == pytest.approx([0.3] * 31)
    assert 0.01 < rates[-1] < 0.03


def test_faults_are_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match='no arm "ctq"; did you mean "ctp"'):
        plan(made(tmp_path, data), "ctq")
    with pytest.raises(ConfigError, match=r"arm finetune, run 1-plain: 1 fault.*\n  optim.rate: unknown field"):
        plan(made(tmp_path, data, "run.optim.rate=1"), "finetune")
    with pytest.raises(ConfigError, match="two domains are called plain"):
        made(tmp_path, data, "domains.1.name=plain")
    with pytest.raises(ValueError, match='no benchmark of the suites has the dataset "other"; they have odd, plain'):
        judge_of(made(tmp_path, data, "domains.0.test=other"))


@pytest.mark.parametrize("path", sorted((ROOT / "configs/continual").glob("*.yaml")))
def test_every_configuration_plans_its_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    continual = config.load(Continual, path)
    for arm, method in continual.arms.items():
        assert len(plan(continual, arm)) == (1 if method.joint else len(continual.domains))
    judge_of(continual)


# ---------------------------------------------------------------------------------------------------- whole sequences


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Continual:
    """Both stages of CTP without a pause."""
    continual = made(tmp_path_factory.mktemp("straight"), data)
    sequence.train(plan(continual, "ctp"), judge_of(continual))
    return continual


def test_what_a_sequence_leaves(straight: Continual) -> None:
    first, second = plan(straight, "ctp")
    folder = first.folder.parent
    assert sorted(path.name for path in folder.iterdir()) == [START, "1-plain", "2-odd"]
    scores = json.loads((second.folder / SCORES).read_text())["scores"]
    records = [json.loads(line) for line in (second.folder / "results.jsonl").read_text().splitlines()]
    for record in records:
        recalls = [value for name, value in record["metrics"].items() if "recall" in name]
        assert scores[record["dataset"]]["value"] == pytest.approx(sum(recalls) / 6)
        parts = scores[record["dataset"]]["parts"]
        by_picture = sum(p["weight"] * sum(p["hits"]) / sum(p["counts"]) for p in parts)
        assert by_picture == pytest.approx(sum(recalls) / 6)
    started = json.loads((folder / START / "results.jsonl").read_text().splitlines()[0])
    assert (started["step"], records[0]["step"]) == (0, 3)
    assert started["weights_hash"] != records[0]["weights_hash"]
    assert {"loss", "terms"} <= json.loads((second.folder / "metrics.jsonl").read_text().splitlines()[0]).keys()


def test_the_first_step_starts_from_the_model_of_the_domain_before(straight: Continual) -> None:
    first, second = plan(straight, "ctp")
    step = json.loads((second.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert step["terms"]["topology/within"] == pytest.approx(0, abs=1e-6)  # the reference is the model itself
    assert step["terms"]["topology/cross"] == pytest.approx(0, abs=1e-6)
    later = json.loads((second.folder / "metrics.jsonl").read_text().splitlines()[2])
    assert later["terms"]["topology/cross"] > 1e-5
    assert json.loads((second.folder / sequence.ORIGIN).read_text())["run"] == first.name


class Stop:
    """A judge that ends the process where it would measure a stage."""

    def __init__(self, judge: Judge, at: str) -> None:
        self.judge, self.at, self.done = judge, at, judge.done
        self.calls: list[str] = []

    def __call__(self, dual: Any, folder: Path, *, step: int) -> None:
        self.calls.append(folder.name)
        if folder.name == self.at:
            raise KeyboardInterrupt
        self.judge(dual, folder, step=step)


def test_interrupted_between_and_within_domains_equals_uninterrupted(
    tmp_path: Path, data: Path, straight: Continual
) -> None:
    continual = made(tmp_path, data)
    runs, judge = plan(continual, "ctp"), judge_of(continual)
    with pytest.raises(KeyboardInterrupt):
        sequence.train(runs, Stop(judge, "1-plain"))  # trained, and not yet measured
    with pytest.raises(KeyboardInterrupt):
        sequence.train(runs, Stop(judge, "2-odd"))
    last = checkpoint.listed(runs[1].folder / "checkpoints")[-1]
    shutil.rmtree(last)  # as if it had been killed after step 2 of 3
    again = Stop(judge, "")
    sequence.train(runs, again)
    assert again.calls == ["2-odd"]  # what is done is left alone
    for mine, theirs in zip(runs, plan(straight, "ctp"), strict=True):
        assert same(weights(mine), weights(theirs))
    sequence.train(runs, Stop(judge, "nothing is measured again"))


def test_done_with_other_settings_or_from_another_model_is_refused(
    tmp_path: Path, data: Path, straight: Continual
) -> None:
    shutil.copytree(straight.folder, tmp_path / "c")
    continual = made(tmp_path, data)
    other = made(tmp_path, data, "run.optim.lr=0.01")
    with pytest.raises(CheckpointError, match=r"1-plain is done, but with other settings:\n  optim\.lr: 0\.001 in"):
        sequence.train(plan(other, "ctp"), judge_of(other))
    changed = made(tmp_path, data, "run.seed=9")
    shutil.rmtree(tmp_path / "c" / "ctp" / "1-plain")
    with pytest.raises(CheckpointError, match="2-odd began from other weights than .*1-plain holds now"):
        sequence.train(plan(changed, "ctp"), judge_of(changed))
    assert judge_of(continual).done(tmp_path / "c" / "ctp" / START)


def test_other_questions_are_measured_again_without_training(tmp_path: Path, data: Path, straight: Continual) -> None:
    shutil.copytree(straight.folder, tmp_path / "c")
    one = "domains.0.metrics=[image_retrieval_recall@5]"
    continual = made(tmp_path, data, one)
    runs, judge = plan(continual, "finetune"), judge_of(continual)
    assert not judge.done(tmp_path / "c" / "ctp" / "1-plain")
    moved = [run.model_copy(update={"out": str(tmp_path / "c" / "ctp")}) for run in plan(straight, "ctp")][:1]
    before = (moved[0].folder / "metrics.jsonl").read_text()
    sequence.train(moved, judge)
    assert (moved[0].folder / "metrics.jsonl").read_text() == before
    scores = json.loads((moved[0].folder / SCORES).read_text())["scores"]
    assert list(scores["plain"]["metrics"]) == ["image_retrieval_recall@5"]
    assert scores["plain"]["parts"][0]["weight"] == 1.0
    assert len(runs) == 2


def test_heads_and_queue_go_on_and_the_copy_begins_anew(tmp_path: Path, data: Path) -> None:
    losses = ["infonce", *MOVING, {"name": "simclr", "hidden": 16, "out": 16}]
    views = {"data": {**settings(tmp_path, data)["run"]["data"], "views": [{"scale": [0.5, 1.0]}] * 2}}
    arm = {"run": {**CTP["run"], "losses": losses, **views}}
    continual = made(tmp_path, data, arms={"a": arm})
    first, second = plan(continual, "a")
    sequence.Trainer(first).train()
    trainer = sequence.Trainer(second)
    fresh = {name: p.clone() for name, p in trainer.dual.heads.state_dict().items()}
    said = sequence.carry(trainer, first)
    assert any("head simclr goes on" in line for line in said)
    assert any("queue goes on" in line for line in said)
    saved = checkpoint.newest(first.folder / "checkpoints").path
    assert saved is not None
    heads = load_file(saved / "model" / "heads.safetensors")
    now = trainer.dual.heads.state_dict()
    assert same({name: x.contiguous() for name, x in now.items()}, heads)
    assert not same(fresh, heads)
    kept, queue = load_file(saved / "companion.queue.safetensors"), trainer.companions["queue"].state_dict()
    assert torch.equal(queue["image"], kept["image"])
    assert int(queue["entered"]) == int(kept["entered"]) > 0
    assert (queue["label"] == -1).all()
    copied = trainer.companions["momentum"].state_dict()
    assert all(torch.equal(copied[name], p) for name, p in trainer.dual.named_parameters() if name in copied)
    assert not same(copied, load_file(saved / "companion.momentum.safetensors"))


def test_the_command_runs_all_arms_and_sets_them_side_by_side(tmp_path: Path, data: Path) -> None:
    file = tmp_path / "sequence.yaml"
    short = settings(tmp_path, data)
    short["domains"] = [{**domain, "duration": "1steps"} for domain in short["domains"]]
    file.write_text(config.to_yaml(short))
    cli._mount()
    result = CliRunner().invoke(cli.app, ["continual", str(file), "--arm", "finetune", "--arm", "joint", "run.seed=1"])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "c"
    for name in ("report.html", "heat.png", "finetune/report.html", "finetune/continual.json", "joint/heat.png"):
        assert (folder / name).stat().st_size > 0
    assert (folder / "finetune" / "2-odd" / "report.html").is_file()
    content = json.loads((folder / "finetune" / "continual.json").read_text())
    assert content["stages"] == [START, "1-plain", "2-odd"]
    assert set(content["measures"]) == {"average", "learned", "forgetting", "backward", "forward"}
    assert json.loads((folder / "joint" / "continual.json").read_text())["measures"].keys() == {"average"}
    page = (folder / "report.html").read_text()
    assert "joint" in page
    assert "finetune" in page
    assert "from one domain" not in page
    assert (continual_command.__doc__ or "").startswith("Train on the domains of FILE")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, data: Path, straight: Continual) -> None:
    file = tmp_path / "sequence.yaml"
    file.write_text(config.to_yaml(settings(tmp_path, data)))
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vlp.cli"]
    command = [*head, "continual", str(file), "--arm", "ctp"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (plan(continual, "ctp")[-1] for continual in (straight, made(tmp_path, data)))
    scores = [json.loads((run.folder / SCORES).read_text())["scores"]["odd"]["value"] for run in (one, two)]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
    left, right = weights(one), weights(two)
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, atol=2e-3, rtol=0)
    assert len((two.folder / "results.jsonl").read_text().splitlines()) == 2


# -------------------------------------------------------------------------------------------------------- measures


def loops(R: list[list[float]]) -> dict[str, float]:
    """The measures as written; R[0] is the starting model, columns are domains 1..D."""
    T = len(R) - 1
    found = {
        "average": sum(R[T][d - 1] for d in range(1, T + 1)) / T,
        "learned": sum(R[d][d - 1] for d in range(1, T + 1)) / T,
    }
    if T > 1:
        falls = [max(R[t][d - 1] for t in range(1, T)) - R[T][d - 1] for d in range(1, T)]
        found["forgetting"] = sum(falls) / (T - 1)
        found["backward"] = sum(R[T][d - 1] - R[d][d - 1] for d in range(1, T)) / (T - 1)
        found["forward"] = sum(R[d - 1][d - 1] - R[0][d - 1] for d in range(2, T + 1)) / (T - 1)
    return found


HAND = [[0.1, 0.2, 0.0], [0.7, 0.25, 0.1], [0.8, 0.6, 0.15], [0.4, 0.5, 0.9]]


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_measures_equal_loops(stages: int) -> None:
    scores = torch.tensor(HAND[:stages], dtype=torch.float64)
    found = {name: float(value) for name, value in measures(scores).items()}
    assert found == pytest.approx(loops(HAND[:stages]))
    many = measures(scores.expand(5, -1, -1))
    assert all(
        value.shape == (5,) and torch.allclose(value, torch.tensor(found[n]).double()) for n, value in many.items()
    )


def test_measures_by_hand() -> None:
    found = measures(torch.tensor(HAND, dtype=torch.float64))
    assert float(found["average"]) == pytest.approx(0.6)
    assert float(found["forgetting"]) == pytest.approx(((0.8 - 0.4) + (0.6 - 0.5)) / 2)
    assert float(found["backward"]) == pytest.approx(((0.4 - 0.7) + (0.5 - 0.6)) / 2)
    assert float(found["forward"]) == pytest.approx(((0.25 - 0.2) + (0.15 - 0.0)) / 2)
    with pytest.raises(ValueError, match="4 stages of 3 domains"):
        measures(torch.zeros(5, 3))


def _entry(hits: list[float], counts: list[int] | None = None) -> dict[str, Any]:
    counts = counts or [1] * len(hits)
    return {
        "value": sum(hits) / sum(counts), "chance": 0.01, "metrics": {}, "n": len(hits), "spread": 0.1,
        "parts": [{"weight": 1.0, "hits": hits, "counts": counts}],
    }  # fmt: skip


def test_pictures_are_drawn_alike_at_every_stage() -> None:
    hits = [float(i % 3 == 0) for i in range(60)]
    more = [min(1.0, h + (i < 12)) for i, h in enumerate(hits)]
    values = drawn([_entry(hits), _entry(more), _entry(hits)], n_boot=400, seed=0)
    assert torch.equal(values[:, 0], values[:, 2])
    assert (values[:, 1] >= values[:, 0]).all()
    low, high = ends(values[:, 0]) or [0, 0]
    assert low < sum(hits) / 60 < high
    deviation = (1 / 3 * 2 / 3 / 60) ** 0.5
    assert float(values[:, 0].std()) == pytest.approx(deviation, rel=0.15)


def test_a_picture_with_two_captions_is_drawn_with_both() -> None:
    entry = _entry([2.0, 0.0, 1.0], [2, 1, 1])
    values = drawn([entry], n_boot=300, seed=1)[:, 0]
    possible = {round((2 * a + c) / (2 * a + b + c), 9) for a in range(4) for b in range(4 - a) for c in [3 - a - b]}
    assert {round(value, 9) for value in values.tolist()} <= possible


def test_without_hits_stages_are_drawn_apart() -> None:
    entry = {**_entry([1.0, 0.0]), "parts": None}
    values = drawn([entry, entry], n_boot=4000, seed=0)
    assert float(values.std(0)[0]) == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(values[:, 0], values[:, 1])
    assert ends(drawn([{**entry, "spread": None}], n_boot=5, seed=0)[:, 0]) is None


def _course(folder: Path, name: str, table: list[list[list[float]]], *, joint: bool = False) -> Course:
    """An arm whose folder holds these hits [stage][domain][picture]."""
    domains = ["a", "b"][: len(table[0])]
    stages = [f"{i}-x" for i in range(len(table))]
    for stage, row in zip(stages, table, strict=True):
        (folder / name / stage).mkdir(parents=True)
        scores = {domain: _entry(hits) for domain, hits in zip(domains, row, strict=True)}
        (folder / name / stage / SCORES).write_text(json.dumps({"scores": scores}))
    course = read(folder / name, arm=name, stages=stages, domains=domains, joint=joint)
    assert course is not None
    return course


def test_arms_are_compared_on_the_same_pictures(tmp_path: Path) -> None:
    none, half, all_ = [0.0] * 40, [float(i % 2) for i in range(40)], [1.0] * 40
    worse = _course(tmp_path, "worse", [[none, none], [all_, half], [none, all_]])
    better = _course(tmp_path, "better", [[none, none], [all_, half], [half, all_]])
    found = differences(better, worse)
    assert found["average"][0] == pytest.approx(0.25)
    assert found["forgetting"][0] == pytest.approx(-0.5)
    assert found["learned"] == (0.0, [0.0, 0.0])
    assert [verdict(name, found[name][1]) for name in ("average", "forgetting", "learned")] == [
        "better", "better", "no difference shown",
    ]  # fmt: skip
    together = _course(tmp_path, "joint", [[none, none], [all_, all_]], joint=True)
    assert together.measures() == {"average": 1.0}
    assert list(differences(together, worse)) == ["average"]
    with pytest.raises(ValueError, match="measured on different pictures"):
        differences(_course(tmp_path, "few", [[none[:5], none], [all_[:5], half], [half[:5], all_]]), worse)
    assert read(tmp_path / "nothing", arm="x", stages=["0-x"], domains=["a"], joint=False) is None
    png = heat_map([worse.to_json(), together.to_json()])
    assert png.startswith(b"\x89PNG")


def test_a_domain_needs_one_benchmark(tmp_path: Path) -> None:
    from eval.forgetting import score
    from eval.record import Record

    common = {"model": "m", "pretrained": "", "n": 4, "data_hash": "", "weights_hash": "", "test_label_reads": 1}
    common |= {"seconds": 1.0, "code_version": "", "dataset": "d"}
    labels = Record(task="zeroshot_classification", metrics={"acc1": 0.5}, ci95={"acc1": (0.4, 0.6)}, **common)
    health = Record(task="health", metrics={"rankme_image": 3.0}, **common)
    found = score(Asked("x", "d", ()), [health, labels], tmp_path)
    assert (found["value"], found["parts"], found["chance"]) == (0.5, None, None)
    assert found["spread"] == pytest.approx(0.2 / 3.92)
    assert score(Asked("x", "d", ("rankme_image",)), [health, labels], tmp_path)["value"] == 3.0
    with pytest.raises(ValueError, match=r"domain x: 2 benchmarks of \"d\" fit, one is needed.*acc1, rankme_image"):
        score(Asked("x", "d", ()), [labels, labels, health], tmp_path)
    assert Domain(name="x", sources=({},), duration=parse("1steps")).test is None
