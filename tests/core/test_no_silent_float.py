"""Whatever multiplies is quantized, or it is named with its reason: at `apply`, at the first step, at `finalize`, at saving."""

import copy
import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ldp_search
from ldp_search.core.controller.strays import PATIENCE
from ldp_search.core.messages import warn
from ldp_search.core.model.patched import Beneath


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def searched(model, **options):
    options = {"policy": "static", "bits": 3, "example_inputs": torch.randn(2, 6)} | options
    return ldp_search.controller(ldp_search.apply(model, **options))


def left_out(ldp) -> dict[str, str]:
    return {item.name: item.reason for item in ldp.coverage.left_out}


def trained(model, ldp, progress=0.5) -> None:
    """One step."""
    model(torch.randn(5, 6)).sum().backward()
    ldp.step(progress)


def warnings_of(call) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        call()
    return heard


def by_lambda(layer):
    forward = layer.forward
    layer.forward = lambda x: forward(x)


def as_accelerate_does(layer):
    """`accelerate.hooks.add_hook_to_module`, in short."""
    layer._old_forward = layer.forward

    def new_forward(module, *args, **kwargs):
        return module._old_forward(*args, **kwargs)

    layer.forward = functools.update_wrapper(functools.partial(new_forward, layer), layer._old_forward)


def with_weights_loaded_in_the_forward(layer):
    """As offloading does: between two forwards the weight lies elsewhere."""
    forward, weight = layer.forward, layer.weight
    layer.weight = nn.Parameter(torch.zeros_like(weight))

    def loaded(x):
        before, layer.weight = layer.weight, nn.Parameter(weight.detach())
        try:
            return forward(x)
        finally:
            layer.weight = before

    layer.forward = loaded


PATCHES = [by_lambda, as_accelerate_does, with_weights_loaded_in_the_forward]


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("counted", [True, False])
def test_a_layer_is_quantized_beneath_a_forward_that_was_patched_before(patch, counted):
    plain, patched, x = small(), small(), torch.randn(5, 6)
    patch(patched[2])
    inputs = torch.randn(2, 6) if counted else None
    expected, found = searched(plain, example_inputs=inputs), searched(patched, example_inputs=inputs)
    plain(x), patched(x)  # the first of them counts, where nothing was counted before
    torch.testing.assert_close(patched(x), plain(x))
    with found.disabled():
        assert not torch.allclose(patched(x), plain(x)), "quantized at all"
    assert found.coverage == expected.coverage and found.coverage.share == 1
    ldp_search.remove(patched)
    assert not isinstance(patched[2].forward, Beneath) and type(patched[2]) is nn.Linear


def test_the_whole_model_under_a_patched_forward_is_counted_and_quantized():
    model, plain, x = small(), small(), torch.randn(5, 6)
    as_accelerate_does(model)
    ldp, other = searched(model, example_inputs=None), searched(plain, example_inputs=None)
    for m in (model, plain):
        m(x)
    assert ldp.coverage.share == 1 and list(ldp.bits()) == list(other.bits())
    torch.testing.assert_close(model(x), plain(x))


def test_an_owner_of_products_is_quantized_beneath_a_patched_forward():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 6))

        def forward(self, x):
            return x @ self.w

    model = nn.Sequential(Owner(), nn.Linear(6, 2))
    by_lambda(model[0])
    ldp, x = searched(model), torch.randn(5, 6)
    assert ldp.coverage.share == 1 and "0.w" in ldp.bits()
    with ldp.disabled():
        exact = model[0](x)
    assert not torch.allclose(model[0](x), exact)


def test_a_copy_of_a_patched_model_has_its_own_sites():
    model = small()
    as_accelerate_does(model[2])
    searched(model)
    twin = copy.deepcopy(model)
    assert ldp_search.controller(twin) is not ldp_search.controller(model)
    assert twin[2].forward.module is twin[2]


def replace(model):
    model[2] = nn.Linear(8, 3)


def bypass(model):
    layer = model[2]
    layer.forward = lambda x: F.linear(x, layer.weight, layer.bias)


def change_class(model):
    model[2].__class__ = nn.Linear


def go_around(model):
    last = model[2]
    model.forward = lambda x: F.linear(model[1](model[0](x)), last.weight)


def take_out(model):
    del model[2]


AFTER = {
    replace: "2 (since apply() a Linear has taken its place)",
    bypass: "2 (since apply() its forward was replaced by one that does not call it)",
    change_class: "2 (since apply() its class was changed to Linear)",
    take_out: "2 (since apply() it is no longer in the model)",
}


@pytest.mark.parametrize("change", AFTER)
@pytest.mark.parametrize("moment", ["first step", "finalize", "save"])
def test_a_layer_lost_after_apply_is_named(change, moment, tmp_path):
    model = small()
    ldp = searched(model)
    assert ldp.coverage.share == 1
    change(model)
    with pytest.warns(UserWarning) as heard:
        if moment == "first step":
            trained(model, ldp)
        elif moment == "finalize":
            ldp.finalize([torch.randn(4, 6)])
        else:
            model(torch.randn(4, 6))
            ldp_search.save_pretrained(model, tmp_path / "saved")
    assert any(AFTER[change] in str(warning.message) for warning in heard)
    assert left_out(ldp)["2"] == AFTER[change][3:-1] and ldp.coverage.share == pytest.approx(48 / 80)
    assert f"left out: 2: 32 MACs ({AFTER[change][3:-1]})" in ldp.summary()


def test_a_layer_that_the_forward_goes_around_is_named_in_warning_and_summary():
    model = small()
    ldp = searched(model)
    go_around(model)
    warned = [warnings_of(lambda step=step: trained(model, ldp, step / 12)) for step in range(1, PATIENCE + 2)]
    assert [len(each) for each in warned] == [0] * (PATIENCE - 1) + [1, 0], "a model may skip it at random: some steps tell"
    said = str(warned[PATIENCE - 1][0].message)
    assert (
        "reached by no forward so far, though their operations were counted: 2. Where the model skips layers at random" in said
    )
    assert "no forward has reached 2" in ldp.summary()
    with pytest.warns(UserWarning, match="reached by no forward so far"):
        ldp.finalize()


def test_a_layer_that_is_skipped_at_random_is_not_named():
    model = small()
    ldp, forward = searched(model), model.forward
    for step in range(1, PATIENCE + 2):
        model.forward = forward if step == 3 else lambda x: model[1](model[0](x))
        assert not warnings_of(lambda step=step: trained(model, ldp, step / 12))


def test_a_warning_points_at_the_line_that_called():
    model = small()
    ldp = searched(model)
    model.append(nn.Linear(4, 4))
    for call in (lambda: trained(model, ldp), ldp.finalize, lambda: warn("in the package's words")):
        assert [warning.filename for warning in warnings_of(call)] == [__file__]


def test_layers_that_come_in_after_apply_are_named():
    model = small()
    ldp = searched(model)
    model.append(nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=r"in floating point, since they came in after apply\(\): 3"):
        trained(model, ldp)
    assert "in floating point, since it came in after apply(): 3" in ldp.summary()


def test_timms_new_classifier_is_named():
    import timm

    model = timm.create_model("test_vit", num_classes=10, img_size=32)
    ldp = searched(model, example_inputs=torch.randn(1, 3, 32, 32))
    model.reset_classifier(3)
    with pytest.warns(UserWarning, match=r"head \(since apply\(\) a Linear has taken its place\)"):
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        ldp.step(0.5)


def test_too_little_coverage_is_refused_at_the_first_step_too():
    model = small()
    ldp = searched(model, min_coverage=0.9)
    replace(model)
    model(torch.randn(4, 6)).sum().backward()
    with pytest.raises(ValueError, match="2: 32 MACs, since apply"):
        ldp.step(0.5)
    assert ldp.trajectory.seen == 0, "nothing of the step was taken"


def test_a_model_that_stays_as_it_is_is_not_warned_of(recwarn, tmp_path):
    model = small()
    ldp = searched(model)
    trained(model, ldp)
    ldp.finalize([torch.randn(4, 6)])
    ldp_search.save_pretrained(model, tmp_path / "saved")
    assert not [w for w in recwarn if "Layers of the model" in str(w.message)]
    assert "no forward has reached" not in ldp.summary()


def test_a_part_that_the_inputs_do_not_reach_is_no_fault_but_is_listed(recwarn):
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            return self.one(x)

    model = TwoHeads()
    ldp = searched(model)
    trained(model, ldp)
    assert "no forward has reached other" in ldp.summary()
    assert not [w for w in recwarn if "Layers of the model" in str(w.message)]


def test_what_does_not_run_quantized_is_found_by_apply_and_undone():
    class Fussy(nn.Module):
        """Fails where its input is not what an unquantized layer gives."""

        def forward(self, x):
            if x.unique().numel() < x.numel():
                raise ArithmeticError("two values alike")
            return x

    model = nn.Sequential(nn.Identity(), Fussy(), nn.Linear(6, 2))
    model[0] = nn.Embedding(4, 6)
    inputs = torch.tensor([[1]])
    with pytest.raises(RuntimeError, match="does not run on example_inputs, but without it does. In the forward of '1': Arith"):
        searched(model, example_inputs=inputs, embeddings=True, bits=2)
    assert type(model[0]) is nn.Embedding and not hasattr(model, "_ldp_controller")
