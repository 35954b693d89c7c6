"""Chains solved for chosen forms and ranks, their errors, and the rewritten network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
from threadpoolctl import threadpool_limits

from converter.data.data import Data
from converter.decomposition.approximation import relative_error
from converter.decomposition.conv import Chain
from converter.decomposition.form import Form, Rank
from converter.graph.rewrite import rewrite
from converter.graph.survey import Layer
from converter.processes import Resources
from converter.reconstruction.moments import Metrics, second_moments
from converter.reconstruction.refit import Refit, refit_layers
from converter.reconstruction.solve import solve_layers


@dataclass(frozen=True)
class Realization:
    """Chains in place of layers.

    Attributes:
        chains: By layer name.
        errors: Relative errors of the responses, by layer name; of the weights without data.
        network: The rewritten network.
        refit: The layers as they were refit, from which another realization can start; or None.
    """

    chains: Mapping[str, Chain]
    errors: Mapping[str, float]
    network: ir.Model
    refit: Refit | None = None


def realize(
    network: ir.Model,
    layers: Sequence[Layer],
    chosen: Mapping[str, tuple[Form, Rank]],
    data: Data | None,
    resources: Resources,
    *,
    refit: bool = True,
    before: Refit | None = None,
) -> Realization:
    """Decompose the chosen layers and put their chains into the network.

    All processes of ``resources.group`` call this with the same arguments. With ``refit`` false,
    the result is complete in the first process only.

    Args:
        network: The canonical network.
        layers: All of its layers, in graph order.
        chosen: Form and rank by layer name.
        data: Sample inputs to solve for; None to solve for the weights alone.
        resources: Memory, cache, cluster, seed.
        refit: Solve each layer for the inputs that the converted layers before it produce.
        before: Layers of the network as they were refit for other forms or ranks, to start from.

    Raises:
        ConverterError: When a form does not fit a layer, or a process is gone or killed.
    """
    result = None
    with threadpool_limits(1, user_api="blas"):  # see products
        if data is not None and refit and chosen:
            result = refit_layers(network, layers, chosen, data, resources, before)
            chains, errors = result.chains, result.errors
        else:
            chains, errors = _solve_independently(network, layers, chosen, data, resources)
    return Realization(chains, errors, with_chains(network, layers, chains), result)


def balanced(network: ir.Model, layers: Sequence[Layer], realization: Realization) -> Realization:
    """Balance the norms of the steps of each chain, for training.

    Args:
        network: The canonical network.
        layers: All of its layers, in graph order.
        realization: The chains.
    """
    chains = {name: chain.balanced() for name, chain in realization.chains.items()}
    return replace(realization, chains=chains, network=with_chains(network, layers, chains))


def with_chains(
    network: ir.Model, layers: Sequence[Layer], chains: Mapping[str, Chain]
) -> ir.Model:
    """Return a copy of a network with chains in place of layers."""
    by_output = {l.output: (l.name, chains[l.name]) for l in layers if l.name in chains}
    return rewrite(network, by_output)


def _solve_independently(
    network: ir.Model,
    layers: Sequence[Layer],
    chosen: Mapping[str, tuple[Form, Rank]],
    data: Data | None,
    resources: Resources,
) -> tuple[dict[str, Chain], dict[str, float]]:
    """Solve each layer for its inputs in the original network, or for its weights alone."""
    todo = [layer for layer in layers if layer.name in chosen]
    metrics: Metrics = {}
    if data is not None and chosen:
        metrics = second_moments(network, todo, data, resources)
    if resources.group.rank:
        return {}, {}
    chains = solve_layers(todo, chosen, metrics, resources)
    errors = {
        layer.name: relative_error(layer.conv, chains[layer.name], metrics.get(layer.name))
        for layer in todo
        if layer.conv is not None
    }
    return chains, errors
