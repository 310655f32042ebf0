"""The names of the classifiers, readable without torch."""

ARCHITECTURES = (
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
