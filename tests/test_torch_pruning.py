"""The peer: Torch-Pruning removes the same filters of the same networks, and leaves the same ones.

By hand, since PyTorch is no requirement; docs/results/torch-pruning.md has the command and the
results.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntksap_jax import exchange, models, structured

torch = pytest.importorskip("torch", reason="needs `pip install torch torch-pruning`")
peer = pytest.importorskip("torch_pruning", reason="needs `pip install torch torch-pruning`")
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from experiments.benchmark import torch_models  # noqa: E402

NETWORKS = {
    "resnet20": (models.resnet20, 32),
    "vgg16_bn": (models.vgg16_bn, 32),
    "resnet50": (models.resnet50, 64),
}
FILTERS = (peer.prune_conv_out_channels, peer.prune_linear_out_channels)


def mean_sizes(group, **_):
    """`structured.l1` in the peer's terms: the mean |w| of a filter, then of the tied layers."""
    weights = [
        dependency.target.module.weight.detach()[indices]
        for dependency, indices in group
        if dependency.handler in FILTERS
    ]
    return torch.stack([weight.abs().flatten(1).mean(1) for weight in weights]).mean(0)


def flops(model, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x[:1])
    return counter.get_total_flops()


def names(group):
    layers = {dep.target._name for dep, _ in group if dep.handler in FILTERS}
    return sorted(layer.replace(".", "/") + "/kernel" for layer in layers)


@pytest.mark.long
@pytest.mark.parametrize("ratio", [0.5, 0.75])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_filters_go(name, ratio):
    make, size = NETWORKS[name]
    theirs = torch_models.MODELS[name]().eval()
    model, shape = make(num_classes=theirs.fc.out_features), (size, size, 3)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, *shape)), train=False))
    variables = init(jax.random.key(0))
    state = exchange.to_torch(variables)
    theirs.load_state_dict(
        {name: torch.from_numpy(np.array(array)) for name, array in state.items()}, strict=False
    )
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, *shape)))
    x_theirs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    pruner = peer.BasePruner(
        theirs, x_theirs, mean_sizes, pruning_ratio=ratio, ignored_layers=[theirs.fc]
    )
    groups = pruner.DG.get_all_groups(
        ignored_layers=[theirs.fc], root_module_types=[torch.nn.Conv2d, torch.nn.Linear]
    )
    channels = structured.trace(model, shape, train=False)
    ours = sorted(sorted(group) for group in structured.groups(channels))
    assert ours == sorted(map(names, groups))

    pruner.step()
    scores = structured.l1(variables["params"], channels)
    keep = structured.select(scores, structured.ratios(channels, {"*": ratio}, skip=["fc"]))
    zeroed = structured.zero_out(variables, channels, keep)
    small, fewer = structured.shrink(model, zeroed, channels, keep)
    left = theirs.state_dict()
    for key, array in exchange.to_torch(fewer).items():
        np.testing.assert_array_equal(array, left[key].numpy(), err_msg=key)
    cost = structured.cost(channels, keep)
    assert cost.params == sum(parameter.numel() for parameter in theirs.parameters())
    assert cost.flops == flops(theirs, x_theirs)
    with torch.no_grad():
        expected = theirs(x_theirs).numpy()
    np.testing.assert_allclose(
        small.apply(fewer, x, train=False), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )
    print(f"| {name} | {ratio} | {len(ours)} | {cost.params:,} | {cost.flops:,} |")
