"""Does the network rest on the pixels that a map names? Curves and scores that ask the network."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from core.agreement import is_dead, state
from core.attribution import AttributionMethod, baseline, channel_sum, explain
from core.cost import Metric, metric
from core.prepared import Prepared
from core.run import Run, seeded


@dataclass(frozen=True, eq=False)
class Curve:
    """The target's probability while pixels are taken away or put back, strongest evidence first."""

    fractions: Tensor  # (S + 1,) of the pixels changed, 0 to 1
    probabilities: Tensor  # (N, S + 1)

    @property
    def auc(self) -> Tensor:
        """Area under each image's curve, (N,), trapezoid rule."""
        return torch.trapezoid(self.probabilities, self.fractions, dim=1)


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Of the maps of N images; NaN for maps without a pattern."""

    deletion: Curve
    insertion: Curve
    deletion_auc: Tensor = metric(
        "Deletion", ".3f", "lower", "Area under the probability while the strongest pixels are replaced first"
    )
    insertion_auc: Tensor = metric(
        "Insertion", ".3f", "higher", "Area under the probability while the strongest pixels appear first"
    )
    infidelity: Tensor = metric(
        "Infidelity",
        ".3g",
        "lower",
        "Squared error in predicting the logit's change under noise, map scaled to fit",
    )
    sensitivity: Tensor = metric(
        "Sensitivity",
        ".3g",
        "lower",
        "Largest relative change of the map within a small ball around the picture",
    )

    @classmethod
    def metrics(cls) -> dict[str, Metric]:
        """Measure -> how it is shown."""
        return {f.name: f.metadata["metric"] for f in fields(cls) if "metric" in f.metadata}

    def means(self) -> dict[str, float]:
        """Measure -> mean over the images with an answer."""
        return {name: getattr(self, name).nanmean().item() for name in self.metrics()}


def faithfulness(
    model: nn.Module,
    method: AttributionMethod,
    images: Tensor,
    targets: Tensor,
    run: Run | None = None,
    seed: int = 0,
    steps: int = 16,
    samples: int = 10,
) -> Faithfulness:
    """All four scores; the maps are explained once more `samples` times for sensitivity."""
    run = run or Run()
    with run.step(0, samples + 2):
        maps = explain(model, method, images, targets, run, seed)
    curves = [curve(model, images, targets, maps, kind, steps) for kind in ("deletion", "insertion")]
    with run.step(1, samples + 2):
        infidelities = infidelity(model, images, targets, maps, run, seed, samples)
    return Faithfulness(
        *curves,
        deletion_auc=curves[0].auc,
        insertion_auc=curves[1].auc,
        infidelity=infidelities,
        sensitivity=sensitivity(model, method, images, targets, run, seed, samples),
    )


def curve(
    model: nn.Module, images: Tensor, targets: Tensor, maps: Tensor, kind: str, steps: int = 16
) -> Curve:
    """Replace pixels in the order of their signed evidence, `steps` times an equal share of them.

    "deletion" goes from the picture to the mean colour; "insertion" from the blurred picture, which
    has no sharp edges to be seen, to the picture.

    Source: Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box
    Models", BMVC 2018, arXiv:1806.07421, section 3.3.
    """
    start, end = images, baseline(images, "mean")
    if kind == "insertion":
        start, end = baseline(images, "blur"), images
    evidence = channel_sum(maps.double()).flatten(1)
    place = evidence.argsort(dim=1, descending=True, stable=True).argsort(dim=1).view(-1, *images.shape[2:])
    fractions = torch.linspace(0, 1, steps + 1)
    counts = (fractions * evidence.shape[1]).round()
    curves = torch.full((len(images), steps + 1), torch.nan, dtype=torch.float64)
    with torch.inference_mode(False), torch.no_grad():
        network = Prepared.of(model, images[:1].clone())
        for index, target in enumerate(targets.tolist()):
            if is_dead(state(maps[index])):
                continue
            changed = place[index] < counts[:, None, None]  # (S + 1, H, W)
            pictures = torch.where(changed[:, None], end[index], start[index])
            curves[index] = network(pictures.contiguous()).softmax(dim=1)[:, target].double()
    return Curve(fractions.double(), curves)


def infidelity(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    maps: Tensor,
    run: Run | None = None,
    seed: int = 0,
    samples: int = 10,
    noise: float = 0.1,
) -> Tensor:
    """How badly the maps predict the change of the logit under Gaussian noise, (N,).

    `noise` is its standard deviation as a fraction of the picture's range. Captum's normalised form:
    each map is scaled to fit first, because the strength of many methods means nothing.

    Source: Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019,
    arXiv:1901.09392, definition 2.1.
    """
    from captum.metrics import infidelity as captum_infidelity

    run = run or Run()
    scores = torch.full((len(images),), torch.nan, dtype=torch.float64)
    with torch.inference_mode(False):
        network = Prepared.of(model, images[:1].clone())
        for index in run.track(range(len(images)), "Infidelity"):
            image, map_ = images[index : index + 1].clone(), maps[index : index + 1]
            if is_dead(state(map_[0])):
                continue
            deviation = noise * (image.max() - image.min())

            def perturb(inputs: Tensor, deviation: Tensor = deviation) -> tuple[Tensor, Tensor]:
                change = torch.randn_like(inputs) * deviation
                return change, inputs - change

            with seeded(seed, run):
                scores[index] = captum_infidelity(
                    network, perturb, image, map_, target=int(targets[index]), n_perturb_samples=samples,
                    normalize=True,
                ).item()  # fmt: skip
    return scores


def sensitivity(
    model: nn.Module,
    method: AttributionMethod,
    images: Tensor,
    targets: Tensor,
    run: Run | None = None,
    seed: int = 0,
    samples: int = 10,
    radius: float = 0.02,
) -> Tensor:
    """The largest relative change of the map among `samples` pictures in a small cube around each, (N,).

    `radius` is half the side of the cube as a fraction of the picture's range. A random method keeps its
    seed, so that its own noise does not count.

    Source: Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019,
    arXiv:1901.09392, definition 3.1.
    """
    from captum.metrics import sensitivity_max

    run = run or Run()
    scores = torch.full((len(images),), torch.nan, dtype=torch.float64)
    with torch.inference_mode(False):
        for index in run.track(range(len(images)), "Sensitivity"):
            image, target = images[index : index + 1].clone(), targets[index : index + 1]

            def maps_of(inputs: tuple[Tensor, ...], target: Tensor = target) -> tuple[Tensor, ...]:
                return (explain(model, method, inputs[0], target.expand(len(inputs[0])), run, seed),)

            spread = (image.max() - image.min()).item()
            with seeded(seed, run):
                worst = sensitivity_max(
                    maps_of, image, perturb_radius=radius * spread, n_perturb_samples=samples
                )
            scores[index] = worst.item()
    return scores
