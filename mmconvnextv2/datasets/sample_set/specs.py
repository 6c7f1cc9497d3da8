"""What each part of the sample set holds: a frozen dataclass a task, with learnable defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

CLASSES = tuple(f"digit_{digit}" for digit in range(10))
"""The ten class names, in the order of their labels 0 to 9."""

SpecT = TypeVar("SpecT", bound="SceneSpec")


@dataclass(frozen=True)
class SceneSpec:
    """How one image is composed.

    The defaults of its children are a setting that a small network learns in minutes on a CPU: the
    photograph is dimmed, so that a bright digit always stands out, and the digits are large
    compared with the 32-px cells of the last stage.

    Raises:
        TypeError: If a count or a size is not an integer.
        ValueError: If a value is out of its range; the message names the field.
    """

    image_size: int
    """Height and width of an image, in pixels."""

    digits_per_image: tuple[int, int]
    """Least and greatest number of digits in an image; the greatest only where there is room."""

    digit_size: tuple[int, int]
    """Least and greatest side, in pixels, of the 8x8 bitmap once enlarged."""

    brightness: float = 0.45
    """Factor in (0, 1] by which the photograph is dimmed."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        object.__setattr__(self, "digits_per_image", tuple(self.digits_per_image))
        object.__setattr__(self, "digit_size", tuple(self.digit_size))
        _check_int(self, "image_size", self.image_size, low=16)
        _check_range(self, "digits_per_image", self.digits_per_image, low=1)
        _check_range(self, "digit_size", self.digit_size, low=8, high=self.image_size)
        if not 0 < self.brightness <= 1:
            raise ValueError(f"{_name(self)}.brightness must be in (0, 1], got {self.brightness}")

    def scaled_to(self: SpecT, image_size: int) -> SpecT:
        """Return the same spec for another image size, the digits scaled along.

        Args:
            image_size: Height and width of an image, in pixels.

        Returns:
            A copy whose digits take the same share of the image.
        """
        low, high = (max(8, round(s * image_size / self.image_size)) for s in self.digit_size)
        return replace(self, image_size=image_size, digit_size=(low, high))


@dataclass(frozen=True)
class PretrainSpec(SceneSpec):
    """Unlabelled images for FCMAE pre-training, of train digits and train photographs alone."""

    image_size: int = 160
    digits_per_image: tuple[int, int] = (1, 4)
    digit_size: tuple[int, int] = (40, 90)

    num_train: int = 1000
    """Number of images."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        super().__post_init__()
        _check_int(self, "num_train", self.num_train, low=1)


@dataclass(frozen=True)
class SplitSpec(SceneSpec):
    """A spec with a train and a val split."""

    num_train: int = 1000
    """Number of training images."""

    num_val: int = 200
    """Number of validation images."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        super().__post_init__()
        _check_int(self, "num_train", self.num_train, low=1)
        _check_int(self, "num_val", self.num_val, low=1)


@dataclass(frozen=True)
class ClassificationSpec(SplitSpec):
    """One digit an image; the classes take turns, so that a split is balanced."""

    image_size: int = 96
    digits_per_image: tuple[int, int] = (1, 1)
    digit_size: tuple[int, int] = (48, 86)
    num_train: int = 1500
    num_val: int = 500

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn, and more than one digit an image."""
        super().__post_init__()
        if self.digits_per_image != (1, 1):
            raise ValueError(
                "ClassificationSpec.digits_per_image must be (1, 1), since an image has one label, "
                f"got {self.digits_per_image}"
            )


@dataclass(frozen=True)
class DetectionSpec(SplitSpec):
    """Several digits an image, each with a box and an instance mask."""

    image_size: int = 160
    digits_per_image: tuple[int, int] = (1, 4)
    digit_size: tuple[int, int] = (40, 90)


@dataclass(frozen=True)
class SegmentationSpec(SplitSpec):
    """One or two large digits an image, with a map of classes."""

    image_size: int = 128
    digits_per_image: tuple[int, int] = (1, 2)
    digit_size: tuple[int, int] = (72, 112)


def _name(spec: SceneSpec) -> str:
    return type(spec).__name__


def _check_int(spec: SceneSpec, field: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{_name(spec)}.{field} must be an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{_name(spec)}.{field} must be at least {low}, got {value}")


def _check_range(
    spec: SceneSpec, field: str, value: tuple[int, ...], low: int, high: int | None = None
) -> None:
    if len(value) != 2:
        raise ValueError(f"{_name(spec)}.{field} must be a pair (least, greatest), got {value}")
    for bound in value:
        _check_int(spec, field, bound, low)
    if value[0] > value[1]:
        raise ValueError(f"{_name(spec)}.{field} must be (least, greatest), got {value}")
    if high is not None and value[1] > high:
        raise ValueError(f"{_name(spec)}.{field} must not exceed {high}, the image, got {value}")
