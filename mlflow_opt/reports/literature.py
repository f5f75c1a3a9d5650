"""What the literature claims for each technique, as it says it, so that `compare` can put our own figures beside it.

A claim is on its authors' models, data and machines: it says what was possible there, not what to expect here. Only what
the source itself states is listed; a technique without a figure in the literature that we could check has no entry.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One figure of one source.

    Args:
        recipe: the recipe that does the like.
        says: the figure, in a few words.
        where: what it was measured on.
        source: authors, year, title.
        url: of the source.
    """

    recipe: str
    says: str
    where: str
    source: str
    url: str


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "quantize",
        "accuracy within 1% of the float baseline",
        "8-bit, all networks studied, MobileNets and BERT-large among them",
        "Wu et al. 2020, Integer quantization for deep learning inference: principles and empirical evaluation",
        "https://arxiv.org/abs/2004.09602",
    ),
    Claim(
        "prune",
        "34% (VGG-16) and 38% (ResNet-110) less inference cost, close to the original accuracy",
        "whole filters, CIFAR-10, retrained",
        "Li et al. 2017, Pruning filters for efficient ConvNets",
        "https://arxiv.org/abs/1608.08710",
    ),
    Claim(
        "prune",
        "9x (AlexNet) and 13x (VGG-16) fewer weights without loss of accuracy",
        "single weights, ImageNet; size, not speed on dense hardware",
        "Han et al. 2015, Learning both weights and connections for efficient neural networks",
        "https://arxiv.org/abs/1506.02626",
    ),
    Claim(
        "distill",
        "60% faster and 40% smaller, keeping 97% of the teacher's language understanding",
        "BERT to DistilBERT, GLUE",
        "Sanh et al. 2019, DistilBERT, a distilled version of BERT",
        "https://arxiv.org/abs/1910.01108",
    ),
    Claim(
        "nas",
        "1.8x as fast as MobileNetV2 at 0.5% higher accuracy",
        "MnasNet on a phone, ImageNet",
        "Tan et al. 2019, MnasNet: platform-aware neural architecture search for mobile",
        "https://arxiv.org/abs/1807.11626",
    ),
    Claim(
        "compile",
        "4.8x (one row) and 2.3x (100 rows) over LightGBM: 52.31 to 11.00 us, 441.15 to 190.87 us",
        "LightGBM in ONNX Runtime, NYC taxi, one Haswell CPU",
        "Boehm 2021, lleaves (README, benchmarks)",
        "https://github.com/siboehm/lleaves",
    ),
    Claim(
        "early_stop",
        "slower stopping criteria: about 4% better generalisation for about 4 times the training time",
        "1,296 runs of multi-layer perceptrons, 12 problems",
        "Prechelt 1998, Early stopping - but when?",
        "https://doi.org/10.1007/3-540-49430-8_3",
    ),
)


def claims_for(recipe: str) -> tuple[Claim, ...]:
    """Give what the literature says of a recipe's technique.

    Example:
        >>> [claim.source[:9] for claim in claims_for("nas")]
        ['Tan et al']
    """
    return tuple(claim for claim in CLAIMS if claim.recipe == recipe)
