"""Settings of a retraining: what a preset of config/retrain holds, and retrain.json. No torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from tenas.errors import TenasError
from tenas.settings.base import Flag, Model, Real, Whole, checked, merged, read_preset

Share = Annotated[Real, Field(ge=0, le=1)]
NotNegative = Annotated[Real, Field(ge=0)]


class ColourJitter(Model):
    """Largest random changes; shares, and for the hue a share of the whole circle."""

    brightness: Share = 0
    """Largest change of the brightness, as a share."""
    contrast: Share = 0
    """Largest change of the contrast, as a share."""
    saturation: Share = 0
    """Largest change of the saturation, as a share."""
    hue: Annotated[Real, Field(ge=0, le=0.5)] = 0
    """Largest change of the hue, as a share of the whole circle."""


class Retraining(Model):
    """SGD with momentum; the learning rate follows half a cosine to zero, step by step, after a linear warm-up."""

    channels: Annotated[Whole, Field(ge=1, le=4096)]
    """Channels of the network's first stage."""
    cells: Annotated[Whole, Field(ge=1, le=1000)]
    """Cells of the network: per stage for cells with one input, in all for those with two; repeats of a chain's layers."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """How the network begins; imagenet halves height and width three times (DARTS's networks alone)."""
    side: Annotated[Whole, Field(ge=8, le=4096)] | None = None
    """Height and width of the images in pixels; null for that of the data set's entry, which is the search's."""
    epochs: Annotated[Whole, Field(ge=1, le=100_000)]
    """Epochs of training."""
    batch: Annotated[Whole, Field(ge=2, le=1_000_000)]
    """Images of a step, over all processes, at most; the steps of an epoch are made as equal as can be."""
    learning_rate: Annotated[Real, Field(gt=0)]
    """Peak of the learning rate."""
    warmup_epochs: NotNegative = 0
    """Epochs over which the learning rate rises from zero to its peak."""
    momentum: Annotated[Real, Field(ge=0, lt=1)]
    """Momentum of SGD."""
    nesterov: Flag
    """Nesterov's form of the momentum, which has to be above 0 for it."""
    weight_decay: NotNegative
    """Weight decay on all parameters, those of batch normalisation too."""
    label_smoothing: Annotated[Real, Field(ge=0, lt=1)] = 0
    """Share of the label that is spread over all classes."""
    clip: Annotated[Real, Field(gt=0)] | None = None
    """Largest norm of the gradient over all parameters; null for no clipping."""
    crop_padding: Annotated[Whole, Field(ge=0, le=4096)]
    """Black pixels around an image, out of which a random crop of its own size is taken."""
    resized_crop: Annotated[Real, Field(gt=0, le=1)] | None = None
    """Least share of an image's area that is cropped at random and resized (torchvision's RandomResizedCrop), in place of
    crop_padding; null for no such crop."""
    evaluation_crop: Annotated[Real, Field(gt=0, le=1)] = 1
    """Of a validation or test image, the middle square that is seen, as a share of its shorter side."""
    colour_jitter: ColourJitter | None = None
    """Largest random change of brightness, contrast, saturation and hue; null for none."""
    flip: Flag
    """Whether every second image is mirrored, left and right."""
    cutout: Annotated[Whole, Field(ge=0, le=4096)] = 0
    """Side of a square that is blanked at a random place; 0 for none."""
    auxiliary: NotNegative = 0
    """Weight of the loss of DARTS's auxiliary head, which reads the second reduction cell; 0 for no such head."""
    drop_path: Annotated[Real, Field(ge=0, lt=1)] = 0
    """Probability with which an operator's output is dropped at the end; it grows with the epochs from 0 (DARTS's networks
    alone)."""
    validation: Annotated[Real, Field(ge=0, lt=1)]
    """Share of each class of the training images that is held out to choose the epoch; 0 to train on all and take the last
    epoch."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the network computes in; weights, normalisation and loss stay in fp32."""
    compile: Flag = False
    """Whether torch.compile compiles the network, which takes minutes first."""
    workers: Annotated[Whole, Field(ge=0, le=1024)] = 4
    """Most processes that decode image files ahead of each GPU, for a folder of images; they do not change the result."""


def check_retraining(settings: Mapping[str, Any], where: str = "retraining") -> dict[str, Any]:
    """Checked settings of a retraining with every key. Raises TenasError for what cannot be trained with."""
    keys = checked(Retraining, settings, where).model_dump()
    if keys["nesterov"] and not keys["momentum"]:
        raise TenasError(f"{where}: 'nesterov' needs a 'momentum' above 0.")
    if keys["resized_crop"] and keys["crop_padding"]:
        raise TenasError(
            f"{where}: images are cropped either by 'resized_crop' or by 'crop_padding': set the other to null, or to 0."
        )
    return keys


def retrain_settings(preset: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The resolved settings of a retraining, by preset (a name, or the path of a YAML file) and keys that are different."""
    where = f"preset {preset}" if not changes else f"preset {preset} with the run's changes"
    return check_retraining(merged(read_preset("retrain", preset), changes or {}), where)
