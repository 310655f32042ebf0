"""The names of the networks, readable without torch."""

CLASSIFIERS = (
    "resnet8",
    "resnet20",
    "resnet56",
    "resnet18",
    "resnet34",
    "resnet50",
    "wrn16_1",
    "wrn16_2",
    "wrn28_1",
    "wrn40_1",
    "wrn40_2",
    "vgg11",
)

# They label every pixel.
SEGMENTERS = (
    "deeplabv3_resnet50",
    "deeplabv3_mobilenetv2",
    "deeplabv3plus_mobilenetv2",
    "deeplabv3plus_thin32",
    "deeplabv3plus_thin16",
)

ARCHITECTURES = CLASSIFIERS + SEGMENTERS


def fitting(kind: str) -> tuple[str, ...]:
    """The networks for tasks of this kind, "classification" or "segmentation"."""
    return SEGMENTERS if kind == "segmentation" else CLASSIFIERS
