"""The CIFAR networks: known to timm, with the published costs and sizes, readable names and clear errors."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import ldp_search.runner.models.cifar  # noqa: F401 (the import registers the names)

DEPTHS = (20, 32, 38, 44, 56, 74, 110)
NAMES = (*(f"cifar_resnet{depth}" for depth in DEPTHS), "cifar_mobilenetv2")


def macs(model: torch.nn.Module, size: tuple[int, ...] = (3, 32, 32)) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *size))
    return counter.get_total_flops() / 2


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("depth", "millions"), [(20, 40.81), (38, 83.28), (74, 168.2), (110, 253.1)])
def test_macs_of_the_published_accounting(depth, millions):
    found = macs(timm.create_model(f"cifar_resnet{depth}", num_classes=10)) / 1e6
    assert float(f"{found:.4g}") == millions


def test_macs_of_option_a_lack_the_two_projections():
    projections = 16 * 32 * 16**2 + 32 * 64 * 8**2
    both = [macs(timm.create_model("cifar_resnet20", shortcut=shortcut)) for shortcut in "BA"]
    assert both[0] - both[1] == projections


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)  # He et al. 2016, table 6
def test_parameters_of_option_a_are_the_published_ones(depth, millions):
    found = parameters(timm.create_model(f"cifar_resnet{depth}", shortcut="A")) / 1e6
    assert found == pytest.approx(millions, rel=0.02)


def test_parameters_to_the_digit():
    assert parameters(timm.create_model("cifar_resnet20", shortcut="A")) == 269_722
    assert parameters(timm.create_model("cifar_resnet20")) == 272_474
    assert parameters(timm.create_model("cifar_mobilenetv2")) == 2_296_922


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet38", "cifar_mobilenetv2"])
def test_output_shape_and_gradients(name):
    model = timm.create_model(name, num_classes=7, in_chans=1)
    logits = model(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("size", [8, 28, 33])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_pictures_of_other_sizes(size, shortcut):
    model = timm.create_model("cifar_resnet20", shortcut=shortcut)
    assert model(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_option_a_is_subsampling_and_zeros():
    shortcut = timm.create_model("cifar_resnet20", shortcut="A").layer2[0].downsample
    x = torch.randn(1, 16, 8, 8)
    y = shortcut(x)
    assert y.shape == (1, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


@pytest.mark.parametrize("name", NAMES)
def test_registered_with_timm(name):
    assert timm.is_model(name)
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.input_size == (3, 32, 32)
    assert cfg.mean == (0.4914, 0.4822, 0.4465) and cfg.std == (0.2470, 0.2435, 0.2616)


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_mobilenetv2"])
def test_conventions_of_timm(name):
    model = timm.create_model(name, num_classes=10, drop_rate=0.1).eval()
    x = torch.randn(2, 3, 32, 32)
    assert model.default_cfg is model.pretrained_cfg
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()
    assert model.get_submodule(model.get_classifier(name_only=True)) is model.get_classifier()
    assert isinstance(model.get_submodule(model.pretrained_cfg["first_conv"]), torch.nn.Conv2d)
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    depth = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert depth["conv1.weight"] == 0 and depth["fc.weight"] == max(depth.values()) > 8


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_mobilenetv2"])
def test_reset_classifier(name):
    model = timm.create_model(name).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5) and model.num_classes == 5
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(3, global_pool="max")
    assert model(x).shape == (2, 3)


def test_names_in_the_state_dict():
    names = list(timm.create_model("cifar_resnet20").state_dict())
    assert names[:2] == ["conv1.weight", "bn1.weight"]
    assert names[-2:] == ["fc.weight", "fc.bias"]
    assert {"layer1.0.conv1.weight", "layer1.2.bn2.running_var", "layer3.2.conv2.weight"} <= set(names)
    projections = sorted(name for name in names if "downsample.0" in name)
    assert projections == ["layer2.0.downsample.0.weight", "layer3.0.downsample.0.weight"]
    assert not any("downsample" in name for name in timm.create_model("cifar_resnet20", shortcut="A").state_dict())
    mobile = set(timm.create_model("cifar_mobilenetv2").state_dict())
    assert {"conv1.weight", "stages.0.0.conv2.weight", "stages.6.0.bn3.bias", "conv2.weight", "fc.weight"} <= mobile


@pytest.mark.parametrize("name", ["cifar_resnet110", "cifar_mobilenetv2"])
def test_initial_weights_are_kaiming_normal(name):
    torch.manual_seed(0)
    model = timm.create_model(name)
    for layer, conv in model.named_modules():
        if isinstance(conv, torch.nn.Conv2d) and conv.weight.numel() > 400:  # below, the spread says little
            fan_out = conv.out_channels * conv.kernel_size[0] ** 2 / conv.groups
            assert 0.8 < conv.weight.std() * (fan_out / 2) ** 0.5 < 1.2, layer
    assert 0.05 < model(torch.randn(8, 3, 32, 32)).std() < 20


def test_own_weights_load_through_timm(tmp_path):
    trained = timm.create_model("cifar_resnet20")
    file = tmp_path / "weights.pth"
    torch.save(trained.state_dict(), file)
    loaded = timm.create_model("cifar_resnet20", pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    assert torch.equal(loaded.layer3[2].conv2.weight, trained.layer3[2].conv2.weight)


def test_unknown_shortcut():
    with pytest.raises(ValueError, match="shortcut must be 'A'.*or 'B'.*not 'C'.*published"):
        timm.create_model("cifar_resnet20", shortcut="C")


def test_impossible_depth():
    from ldp_search.runner.models.cifar_nets import CifarResNet

    with pytest.raises(ValueError, match=r"6n \+ 2.*not 21"):
        CifarResNet(depth=21)


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_mobilenetv2"])
def test_no_pretrained_weights(name):
    with pytest.raises(ValueError, match=f"No pretrained weights are published for {name}.*train from"):
        timm.create_model(name, pretrained=True)


def test_no_features_only():
    with pytest.raises(ValueError, match="forward_features"):
        timm.create_model("cifar_resnet20", features_only=True)
