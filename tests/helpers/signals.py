"""Whether the last backward told a policy of every layer."""

import torch


def deaf_layers(ldp) -> list[str]:
    """Layers that run, of which the policy has learned nothing since the last step: no gradient of weight or input bits where
    it follows gradients, no damage of either where it follows those (at a step that senses). [] of one that learns nothing.
    """
    if ldp.policy.needs_gradients:
        found = ldp.parameters()["bits"].grad[:, :2]
    elif ldp.policy.needs_damage:
        assert ldp.sensing, "only a step that senses can tell"
        found = ldp.sensor.record.curves[:, :2, 0]
    else:
        return []
    assert torch.isfinite(found).all()
    return [name for (name, spec), row in zip(ldp.layers.items(), found, strict=True) if spec.calls and not row.all()]
