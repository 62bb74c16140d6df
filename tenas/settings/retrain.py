"""Settings of a retraining: presets in config/retrain, and retrain.json. No torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from tenas.errors import TenasError
from tenas.settings.base import Flag, Model, Real, Whole, checked, merged, read_preset

Share = Annotated[Real, Field(ge=0, le=1)]
NotNegative = Annotated[Real, Field(ge=0)]


class ColourJitter(Model):
    """Largest random changes of colour."""

    brightness: Share = 0
    """Largest change of the brightness, as a share."""
    contrast: Share = 0
    """Largest change of the contrast, as a share."""
    saturation: Share = 0
    """Largest change of the saturation, as a share."""
    hue: Annotated[Real, Field(ge=0, le=0.5)] = 0
    """Largest change of the hue, as a share of the whole circle."""


class Retraining(Model):
    """SGD with momentum; per-step cosine decay of the learning rate to zero after a linear warm-up."""

    channels: Annotated[Whole, Field(ge=1, le=4096)]
    """Channels of the network's first stage."""
    cells: Annotated[Whole, Field(ge=1, le=1000)]
    """Cells of the network: per stage for cells with one input, in all for those with two; repeats of a chain's layers."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """Stem of the network; imagenet halves height and width three times (only DARTS's networks have it)."""
    side: Annotated[Whole, Field(ge=8, le=4096)] | None = None
    """Height and width of the images in pixels; null for those of the search (the data set's entry)."""
    epochs: Annotated[Whole, Field(ge=1, le=100_000)]
    """Epochs of training."""
    batch: Annotated[Whole, Field(ge=2, le=1_000_000)]
    """Most images per step, over all processes; the steps of an epoch differ by at most one image."""
    learning_rate: Annotated[Real, Field(gt=0)]
    """Peak of the learning rate."""
    warmup_epochs: NotNegative = 0
    """Epochs over which the learning rate rises from zero to its peak."""
    momentum: Annotated[Real, Field(ge=0, lt=1)]
    """Momentum of SGD."""
    nesterov: Flag
    """Whether to use Nesterov momentum; needs a momentum above 0."""
    weight_decay: NotNegative
    """Weight decay on all parameters, including batch normalisation."""
    label_smoothing: Annotated[Real, Field(ge=0, lt=1)] = 0
    """Label smoothing: share of the label that is spread over all classes."""
    clip: Annotated[Real, Field(gt=0)] | None = None
    """Gradient clipping: largest norm over all parameters; null for none."""
    crop_padding: Annotated[Whole, Field(ge=0, le=4096)]
    """Width of the black border for random crops of the original size, in pixels."""
    resized_crop: Annotated[Real, Field(gt=0, le=1)] | None = None
    """Random resized crops (torchvision's RandomResizedCrop) instead of crop_padding: smallest share of an image's area; null for
    none."""
    evaluation_crop: Annotated[Real, Field(gt=0, le=1)] = 1
    """Central crop of validation and test images: side of the square, as a share of the shorter side."""
    colour_jitter: ColourJitter | None = None
    """Largest random change of brightness, contrast, saturation and hue; null for none."""
    flip: Flag
    """Whether images are mirrored horizontally with probability 1/2."""
    cutout: Annotated[Whole, Field(ge=0, le=4096)] = 0
    """Side of a square that is blanked at a random position, in pixels; 0 for none."""
    auxiliary: NotNegative = 0
    """Weight of the loss of DARTS's auxiliary head, which reads the second reduction cell; 0 for no such head."""
    drop_path: Annotated[Real, Field(ge=0, lt=1)] = 0
    """Drop-path probability in the last epoch, which rises from 0 with the epochs (only DARTS's networks have it)."""
    validation: Annotated[Real, Field(ge=0, lt=1)]
    """Share of the training images of each class that is held out to choose the best epoch; 0 to train on all and take the last
    epoch."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward and backward passes; weights, normalisation and loss stay in fp32."""
    compile: Flag = False
    """Whether to compile the network by torch.compile, which takes minutes at the start."""
    workers: Annotated[Whole, Field(ge=0, le=1024)] = 4
    """Most worker processes per GPU that decode image files, for a folder of images; does not affect the result."""


def check_retraining(settings: Mapping[str, Any], where: str = "retraining") -> dict[str, Any]:
    """Check complete settings of a retraining. Raises TenasError for settings that no training can use."""
    keys = checked(Retraining, settings, where).model_dump()
    if keys["nesterov"] and not keys["momentum"]:
        raise TenasError(f"{where}: 'nesterov' needs a 'momentum' above 0.")
    if keys["resized_crop"] and keys["crop_padding"]:
        raise TenasError(
            f"{where}: only one of 'resized_crop' and 'crop_padding' can crop images: set the other to null, or to 0."
        )
    return keys


def retrain_settings(preset: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Resolve the settings of a retraining from a preset (a name, or the path of a YAML file) and changes to it."""
    where = f"preset {preset}" if not changes else f"preset {preset} with the run's changes"
    return check_retraining(merged(read_preset("retrain", preset), changes or {}), where)
