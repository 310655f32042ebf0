"""Networks of torchvision and timm offer what the field's do: features, maps, stages, keys; or say that they do not."""

import pytest
import torch
from torch import nn

from dfkd.artifacts import weights
from dfkd.errors import UserError
from dfkd.names import network_name
from dfkd.networks import build, keys
from dfkd.networks.normalised import Normalised
from dfkd.synthesis.batchnorm import BatchNormLoss, NoStatistics
from dfkd.tables.definition import check_pair, table_of
from dfkd.tasks import task

LITE0 = [*(f"model.blocks.{i}" for i in (0, 1, 2, 4)), "model.bn2"]
RESNET = ["model.layer1", "model.layer2", "model.layer3", "model.layer4"]


def network(name, classes=7, size=64):
    torch.manual_seed(0)
    return build(name, classes, size).eval()


@pytest.mark.parametrize(
    ("name", "size", "stages", "width"),
    [
        ("torchvision/resnet18", 224, RESNET, 512),
        ("torchvision/resnet18", 32, RESNET, 512),  # whose last map is a single position
        ("timm/resnet18", 64, RESNET, 512),
        ("timm/efficientnet_lite0", 64, LITE0, 1280),
        ("efficientnet_lite0_96", 64, LITE0, 1280),
        ("torchvision/shufflenet_v2_x0_5", 64, ["model.conv1", "model.stage2", "model.stage3", "model.conv5"], 1024),
    ],
)
@torch.no_grad()
def test_features_maps_and_stages_are_found(name, size, stages, width):
    found, images = network(name, size=size), torch.rand(2, 3, size, size)
    torch.testing.assert_close(found.fc(found.features(images)), found(images))
    torch.testing.assert_close(found.maps(images).mean((2, 3)), found.features(images))
    assert found.features(images).shape == (2, width)
    if name.startswith("torchvision/resnet") and size == 32:
        assert found.stages[-1] == "model.layer4"
    else:
        assert found.stages == stages


def test_it_is_inspected_as_any_other_and_its_batchnorm_found():
    """Gradients reach images and stages; statistics are of all layers, timm's own kind among them."""
    spec = task("tiny_imagenet50").spec
    teacher = Normalised(network("efficientnet_lite0_96", spec.classes), spec).eval()
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    seen = teacher.inspect(images)
    torch.testing.assert_close(seen.logits, teacher(images), rtol=1e-4, atol=1e-5)
    assert [stage.shape[-1] for stage in seen.stages] == [48, 24, 12, 6, 3]  # it enlarges them to 96
    statistics = BatchNormLoss(teacher)
    assert len(statistics.layers) == 49
    with statistics.capture():
        teacher(images)
    statistics.loss().backward()
    assert images.grad.abs().sum() > 0


def test_what_a_network_does_not_offer_is_said():
    vgg = network("torchvision/vgg11_bn", size=32)
    with pytest.raises(ValueError, match="VGG does not classify by the mean of a feature map"):
        vgg.maps(torch.rand(1, 3, 32, 32))
    assert vgg.features(torch.rand(1, 3, 32, 32)).shape == (1, 4096)
    with pytest.raises(NoStatistics, match="no BatchNorm2d layer"):
        BatchNormLoss(network("timm/convnext_atto"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet19", r"unknown network of torchvision 'resnet19' \(nearest: 'resnet18'"),
        ("timm/efficientnet_lite", r"unknown network of timm 'efficientnet_lite' \(nearest: 'efficientnet_lite"),
        ("torchvision/squeezenet1_1", "SqueezeNet does not end in a linear layer of 7 classes"),
        ("torchvision/inception_v3", "Inception3 does not take images of 64 x 64 "),
        ("torchvison/resnet18", "unknown network 'torchvison/resnet18'"),
    ],
)
def test_a_network_that_cannot_be_is_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        network(name)
    assert "\n" not in str(caught.value)


def test_a_slash_is_a_dot_in_paths():
    assert network_name("timm/efficientnet_lite0-resnet8") == "timm.efficientnet_lite0-resnet8"
    assert check_pair("pacs-photo", "timm.efficientnet_lite0-resnet8") == ("timm.efficientnet_lite0", "resnet8")
    with pytest.raises(UserError, match="does not fit nyuv2"):
        check_pair("nyuv2", "timm.efficientnet_lite0-resnet8")


def test_a_librarys_own_file_fits():
    from torchvision.models import resnet18

    theirs, ours = resnet18(num_classes=7), network("torchvision/resnet18")
    ours.load_state_dict(keys.adapt(theirs.state_dict(), ours))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.eval()(images))
    assert set(keys.adapt(ours.state_dict(), ours)) == set(ours.state_dict())


def ported(state):
    """An EfficientNet-Lite0 of timm's with the keys of the PyTorch ports of TensorFlow's, by hand for this test."""
    places = {f"blocks.{s}.{i}": n for n, (s, i) in enumerate((s, i) for s in range(7) for i in range(keys.LITE0[s]))}
    spelled = {}
    for key, value in state.items():
        first, _, rest = key.removeprefix("model.").partition(".")
        if first == "blocks":
            stage, index, layer, part = rest.split(".")
            names = {"conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
            if (stage, index) == ("0", "0"):
                names |= {"conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
            else:
                names |= {"conv_pw": "_expand_conv", "bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
            spelled[f"_blocks.{places[f'blocks.{stage}.{index}']}.{names[layer]}.{part}"] = value
        else:
            outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
            spelled[f"{outer.get(first, '_fc')}.{rest}"] = value
    return spelled


def test_a_classifier_starts_from_declared_weights_all_but_its_head(tmp_path):
    from safetensors.torch import save_file

    from dfkd.files import file_digest

    source, started = network("timm/tf_efficientnet_lite0", classes=9), network("timm/tf_efficientnet_lite0", classes=7)
    head = started.fc.weight.clone()
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    path = tmp_path / "other_task.safetensors"
    save_file(ported(source.state_dict()), path)
    with pytest.raises(UserError, match="is not the file that the teacher starts from: sha256 0000"):
        weights.load_encoder(started, "other_task", [tmp_path], "0" * 64)
    weights.load_encoder(started, "other_task", [tmp_path], file_digest(path))
    assert torch.equal(started.fc.weight, head)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(started.features(images), source.features(images))


def test_a_head_starts_from_the_rows_of_its_classes(tmp_path):
    from safetensors.torch import save_file

    source, started = network("efficientnet_lite0_96", classes=9), network("efficientnet_lite0_96", classes=3)
    save_file(ported(source.state_dict()), tmp_path / "nine.safetensors")
    weights.load_encoder(started, "nine", [tmp_path], rows=[8, 0, 4])
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(started(images), source(images)[:, [8, 0, 4]])
    for rows, reason in (
        ([8, 0, 9], "of 9 classes, and has none of number 9"),
        ([0, 1], r"shape \(2, 1280\), not \(3"),
    ):
        with pytest.raises(UserError, match=reason):
            weights.load_encoder(started, "nine", [tmp_path], rows=rows)


def test_the_classes_of_tiny_imagenet_have_their_numbers_in_imagenet():
    from timm.data import ImageNetInfo

    numbers, info = table_of("tiny_imagenet").protocol("cpu").teacher["encoder_classes"], ImageNetInfo()
    assert numbers == sorted(set(numbers))
    for number, name in zip(numbers, task("tiny_imagenet").class_names, strict=True):
        assert name.lower() in info.index_to_description(number, detailed=True).lower()


def test_the_fields_classifiers_start_from_others_too(tmp_path):
    from safetensors.torch import save_file

    source, started = network("resnet8", classes=100), network("resnet8", classes=7)
    save_file(source.state_dict(), tmp_path / "other_task.safetensors")
    weights.load_encoder(started, "other_task", [tmp_path])
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(started.features(images), source.features(images))
    assert started.fc.out_features == 7
    with pytest.raises(UserError, match="does not fit the network: the checkpoint"):
        weights.load_encoder(network("resnet20"), "other_task", [tmp_path])
