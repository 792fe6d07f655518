"""What validation images say about a model in training: its accuracy, and its threshold where they have boxes."""

from dataclasses import dataclass

from toolchain.data.dataset import DataSet
from toolchain.evaluation import Evaluation, batches, choose_tau, collect_outputs, evaluate
from toolchain.model.lctr import Lctr
from toolchain.model.prediction import predictor
from toolchain.preprocessing import Preprocessing
from toolchain.progress import Progress, silent

BATCH = 16


@dataclass(frozen=True)
class Validated:
    """What validation images said.

    Attributes:
        top1: accuracy, percent.
        tau: threshold; the best one on these images, or the published one where they have no boxes.
        evaluation: at `tau`; None where the images have no boxes.
    """

    top1: float
    tau: float
    evaluation: Evaluation | None

    @property
    def score(self) -> float:
        """What the best weights are chosen by: Top-1 Loc; Top-1 where there are no boxes."""
        return self.evaluation.top1_loc if self.evaluation else self.top1

    def figures(self) -> dict[str, float]:
        """For an epoch's log."""
        if self.evaluation is None:
            return {"top1": self.top1}
        found = self.evaluation
        return {
            "top1": found.top1,
            "gt_known_loc": found.gt_known_loc,
            "top1_loc": found.top1_loc,
            "tau": found.tau,
        }


@dataclass(frozen=True)
class Validator:
    """Validation images, looked at after training, or after some epochs of it.

    Attributes:
        data: the images.
        preprocessing: of the model.
        boxed: every image has a box, and localization can be judged.
        published_tau: for images that have none.
    """

    data: DataSet
    preprocessing: Preprocessing
    boxed: bool
    published_tau: float

    def __call__(self, model: Lctr, progress: Progress = silent) -> Validated:
        """Run the model over all images; it ends in eval mode."""
        if not self.boxed:
            return Validated(self._top1(model, progress), self.published_tau, None)
        (outputs,) = collect_outputs([predictor(model)], self.data, self.preprocessing, progress=progress)
        found = evaluate(outputs, choose_tau(outputs))
        return Validated(found.top1, found.tau, found)

    def _top1(self, model: Lctr, progress: Progress) -> float:
        predict = predictor(model)
        correct = done = 0
        for images, labels, _ in batches(self.data, self.preprocessing, BATCH):
            logits, _ = predict(images)
            correct += int((logits.argmax(1) == labels).sum())
            progress(done := done + len(labels), len(self.data))
        return 100 * correct / len(self.data)
