"""A student's image prompts taught by a larger model's predictions (PromptKD, Li et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from vlp import trained
from vlp.adapters.adapter import Given, class_weights
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.prompted import TowerClassifier, fitted_by
from vlp.adapters.promptsrc import divergence
from vlp.adapters.pseudo_shots import PseudoLabels, logits_over
from vlp.adapters.restricted import Restricted
from vlp.adapters.selection import NOTHING, choices_of, selection_of
from vlp.adapters.shots import Shots
from vlp.adapters.task import Examples, Task
from vlp.adapters.tower_tuner import TowerTuner, picture_features, random_prompts
from vlp.adapters.tuned import refuse_features
from vlp.adapters.tuning import autocast, frozen, seeded_linear
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoder
from vlp.registry import Named

AdapterPart = Annotated[Any, Named("vlp.adapters:ADAPTERS")]


class PromptKD(TowerTuner):
    """distil * tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau)) / (B C) over a pool (2403.02781, section 3).

    z_S = s_T norm(h(f_S(x)))·w_T: the student has image prompts and the projector h (linear, BatchNorm, ReLU, linear),
    no text tower; w_T are the teacher's class weights, made once. Stage 1 is `teacher`: any adapter, also `saved`, on
    the model at `teacher_model`, or on the student's own model. A teacher that is no linear classifier teaches its
    predictions, and the student has its model's zero-shot weights. Student and teacher see the same pixels; with
    `augment: null` the teacher is asked once for each picture. `projector: none` for features of one width. Ours:
    features have unit norm before h, too. The last epoch counts, where the released code takes the best on test.
    """

    wants: ClassVar[tuple[Given, ...]] = ("unlabelled",)

    lr: float = Field(0.005, gt=0)
    batch: int = Field(8, ge=1)
    tokens: int = Field(4, ge=0)
    depth: int = Field(9, ge=1)
    teacher: AdapterPart = ZeroShot()
    teacher_model: str | None = None  # a checkpoint
    projector: Literal["mlp", "none"] = "mlp"
    distil: float = Field(1000.0, ge=0)  # published: 200 for aircraft, flowers and textures
    temperature: float = Field(1.0, gt=0)

    def usual_epochs(self, shots: int) -> int:
        """20."""
        return 20

    def fit(self, encoder: Any, task: Task) -> StudentClassifier:
        """A classifier over pictures; `about` says what the teacher took the unlabelled pictures for."""
        pool = self.given(task, "unlabelled")
        taught = self._teach(encoder, task, pool)
        student = Student(self, encoder, taught.head, task.seed)
        label = taught.logits.argmax(dim=1)
        with frozen(encoder):
            epochs = self.epochs_for(replace(pool, label=label)) if any(p.numel() for p in student.parameters()) else 0
            shots = self.shots(encoder, task, replace(pool, label=label))
            said = self.tune(encoder, student, shots, self._loss(encoder, student, taught), epochs=epochs)
        believed = PseudoLabels(torch.arange(len(pool)), label).record(pool, task.names)
        said |= {"teacher_weights": taught.encoder.weights_hash, "pseudolabels": believed}
        return self._student(encoder, task, student.vectors(), taught, said)

    def transfer(self, encoder: Any, classifier: Any, task: Task) -> StudentClassifier:
        """The student with the teacher's weights of other names; NotImplementedError where the teacher is gone."""
        made: PromptKD = fitted_by(self, encoder, classifier)
        other, own = made._teacher_encoder(encoder), None
        if classifier.taught_by is not None:
            own = made.teacher.transfer(other, classifier.taught_by, made._teacher_task(encoder, other, task))
        elif not made.teacher.wants:
            own = made.teacher.fit(other, made._teacher_task(encoder, other, task))
        else:
            raise NotImplementedError(
                f"class weights of other names come from the teacher {type(made.teacher).__name__}, which a saved "
                "student does not hold; fit it again"
            )
        taught = Taught(other, own, head_of(own, other, made._teacher_task(encoder, other, task)), torch.empty(0, 0))
        return made._student(encoder, task, classifier.learned, taught, {"fitted": list(classifier.names)})

    def _teacher_encoder(self, encoder: Any) -> Any:
        if self.teacher_model is None:
            return encoder
        dual = trained.load(self.teacher_model)
        given = {name: getattr(encoder, name) for name in ("device", "batch_size", "workers", "precision", "quiet")}
        return Encoder(dual, **given)

    def _teacher_task(self, encoder: Any, other: Any, task: Task) -> Task:
        """The task as the teacher's model sees it."""
        if other is encoder:
            return task
        refuse_features(task, who="a teacher on another model")
        given = ("support", "validation", "unlabelled", "query", "test")
        seen: dict[str, Any] = {name: _seen_by(other, getattr(task, name)) for name in given}
        return Task(task.names, task.templates, **seen, seed=task.seed)

    def _teach(self, encoder: Any, task: Task, pool: Examples) -> Taught:
        """The fitted teacher, its weights, and what it says of the pictures."""
        other = self._teacher_encoder(encoder)
        if self.augment is not None and other.dual.transform.size != encoder.dual.transform.size:
            sizes = " and ".join(str(one.dual.transform.size[0]) for one in (other, encoder))
            raise ValueError(
                f"teacher and student read pictures of {sizes} pixels, so they cannot see the same ones: augment: null"
            )
        own = self._teacher_task(encoder, other, task)
        classifier = self.teacher.fit(other, own)
        seen = own.unlabelled or pool
        logits = logits_over(classifier, other, seen, who="PromptKD")
        return Taught(other, classifier, head_of(classifier, other, own), logits)

    def _loss(self, encoder: Any, student: Student, taught: Taught) -> Callable[[Shots], Tensor]:
        logits, tau, head = taught.logits.to(encoder.device), self.temperature, taught.head.to(encoder.device)

        def loss(shots: Shots) -> Tensor:
            before = logits[shots.rows.to(logits.device)] if self.augment is None else taught.says(shots.image)
            features = student.project(picture_features(encoder, shots.image, student.visual).float())
            after = head.scale * features @ head.weight.T + head.bias
            return self.distil * tau**2 * divergence(after / tau, before / tau)

        return loss

    def _student(
        self, encoder: Any, task: Task, learned: Mapping[str, Tensor], taught: Taught, said: dict[str, Any]
    ) -> StudentClassifier:
        chosen = choices_of(NOTHING, [selection_of(taught.classifier)])
        made = StudentClassifier(
            taught.head.weight,
            encoder=encoder,
            learned={**learned, "bias": taught.head.bias},
            names=task.names,
            scale=taught.head.scale,
            about=self.about(encoder, task, **said, selection=chosen),
        )
        made.taught_by = taught.classifier
        return made


class Head(NamedTuple):
    """What the student compares its features with: fp32 class weights [C, D] and biases [C], and a temperature."""

    weight: Tensor
    bias: Tensor
    scale: float

    def to(self, device: torch.device) -> Head:
        """On that device."""
        return Head(self.weight.to(device), self.bias.to(device), self.scale)


def head_of(classifier: Any, encoder: Any, task: Task) -> Head:
    """The classifier's own weights where it is linear, else the zero-shot ones of its model."""
    places: Any = slice(None)
    if isinstance(classifier, Restricted):
        places, classifier = classifier.places, classifier.inner
    if isinstance(classifier, LinearClassifier):
        weight, bias = (x.detach().float().cpu() for x in (classifier.weight, classifier.bias))
        return Head(weight[places], bias[places], float(classifier.scale))
    weight = class_weights(encoder, task)
    return Head(weight, torch.zeros(len(weight)), encoder.scale)


class Taught(NamedTuple):
    """A fitted teacher on its model, what its student takes over, and its logits [n, C] of the unlabelled pictures."""

    encoder: Any
    classifier: Any
    head: Head
    logits: Tensor

    @torch.no_grad()
    def says(self, image: Tensor) -> Float[Tensor, "B C"]:
        """Logits of uint8 pictures [B, 3, H, W]."""
        inputs = image
        if self.classifier.needs == "features":
            with frozen(self.encoder), autocast(self.encoder):
                inputs = normalize(self.encoder.dual.encode_image(image).float(), dim=-1).cpu()
        found: Tensor = self.classifier(inputs)
        return found.float().to(image.device)


def _seen_by(encoder: Any, examples: Examples | None) -> Examples | None:
    """The same pictures with features of another model; ValueError where there are no pictures."""
    if examples is None:
        return None
    if examples.pictures is None:
        raise ValueError("a teacher on another model encodes the pictures anew, and only features were given")
    with torch.random.fork_rng(devices=[]):  # the encoder's loader draws from the default generator
        found = encoder.images(examples.pictures)
    if found.skips:
        raise ValueError(f"picture {found.skips[0].key} cannot be read by the teacher: {found.skips[0].reason}")
    return replace(examples, image=found.features, views=None)


class Projector(nn.Module):
    """Linear, BatchNorm, ReLU, linear; a batch of one picture is normalised by the running statistics."""

    def __init__(self, inputs: int, outputs: int, rng: torch.Generator) -> None:
        super().__init__()
        self.first, self.second = seeded_linear(inputs, outputs, rng), seeded_linear(outputs, outputs, rng)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        x = self.first(x)
        training = self.training
        self.norm.train(training and len(x) > 1)
        found: Tensor = self.second(relu(self.norm(x)))
        self.norm.train(training)
        return found


class Student(nn.Module):
    """Visual prompts [depth, p, width], and the projector into the teacher's space."""

    def __init__(self, part: PromptKD, encoder: Any, head: Head, seed: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        depth = min(part.depth, len(encoder.dual.image_blocks))
        self.visual = nn.Parameter(random_prompts(depth, part.tokens, encoder.dual.image_tower.width, rng))
        inputs, outputs = encoder.dual.dim, head.weight.shape[1]
        if part.projector == "none" and inputs != outputs:
            raise ValueError(
                f"projector: none, but the student has {inputs} numbers a picture and the teacher {outputs}"
            )
        self.projector = Projector(inputs, outputs, rng) if part.projector == "mlp" else None
        self.to(encoder.device)

    def project(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        """Unit features in the teacher's space."""
        return features if self.projector is None else normalize(self.projector(features), dim=-1)

    def vectors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}


class StudentClassifier(TowerClassifier):
    """A TowerClassifier with a projector behind the image tower."""

    kind = "student"
    taught_by: Any = None  # the fitted teacher, as long as this process lives

    def __init__(self, weight: Float[Tensor, "C D"], **given: Any) -> None:
        super().__init__(weight, **given)
        self.bias = self.learned["bias"]
        state = {
            name.removeprefix("projector."): x for name, x in self.learned.items() if name.startswith("projector.")
        }
        self.projector = None
        if state:
            outputs, inputs = state["first.weight"].shape
            self.projector = Projector(inputs, outputs, torch.Generator()).requires_grad_(False).eval()
            self.projector.load_state_dict(state)

    def features(self, pictures: Tensor) -> Float[Tensor, "B E"]:
        """Unit features of uint8 pictures [B, 3, H, W] in the teacher's space."""
        found = super().features(pictures)
        return found if self.projector is None else normalize(self.projector(found), dim=-1)
