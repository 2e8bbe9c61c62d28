"""Roles on one frozen network: teacher = adapters off, student and fake score = one LoRA adapter each.

LoRA (https://arxiv.org/abs/2106.09685): W + (alpha / r) B A with B = 0 at the start, so a fresh adapter leaves the
output bitwise unchanged. Adapters are float32 master weights, whatever the dtype of the base.
"""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from stepdistill.denoisers.config import Roles
from stepdistill.errors import UserError

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

HALF_PRECISIONS = (torch.float16, torch.bfloat16)


_adapted: WeakKeyDictionary[nn.Module, list[BaseTunerLayer]] = WeakKeyDictionary()


def is_shared(network: nn.Module) -> bool:
    """Return whether `add_adapter` has added adapters to this network."""
    return network in _adapted


def switch_adapter(network: nn.Module, adapter: str | None) -> None:
    """Activate one adapter, or none (None).

    peft's public `set_adapter` and `disable_adapters` also flip `requires_grad`, which would freeze the other
    role's parameters and invalidate a pending backward pass. peft's forward reads only the two attributes set
    here.
    """
    layers = _adapted.get(network)
    if not layers:
        return
    first = layers[0]
    if first._disable_adapters is (adapter is None) and (adapter is None or first._active_adapter == [adapter]):
        return
    for layer in layers:
        layer._disable_adapters = adapter is None
        if adapter is not None:
            layer._active_adapter = [adapter]


def add_adapter(network: nn.Module, name: str, roles: Roles, default_targets: Sequence[str]) -> str:
    """Add a fresh float32 LoRA adapter and return its name (`name`, or `name_2`, ... if taken)."""
    from diffusers.loaders import PeftAdapterMixin
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=roles.rank,
        lora_alpha=roles.scaling_alpha,  # pyright: ignore[reportArgumentType] - typed int, but any number works
        target_modules=present_targets(network, roles.target_modules or default_targets),
    )
    adapter = _free_name(network, name)
    kept = {id(p): p.requires_grad for p in network.parameters()}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # A second adapter is intended.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        torch.manual_seed(zlib.crc32(f"{roles.seed}/{adapter}".encode()))
        if isinstance(network, PeftAdapterMixin):
            network.add_adapter(config, adapter_name=adapter)
        else:
            inject_adapter_in_model(config, network, adapter_name=adapter)
    for parameter in network.parameters():
        parameter.requires_grad_(kept.get(id(parameter), False))
    for parameter in adapter_tensors(network, adapter).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    _adapted[network] = list(adapted_layers(network).values())
    switch_adapter(network, None)
    return adapter


def adapted_layers(network: nn.Module) -> dict[str, BaseTunerLayer]:
    """Return the layers with adapters, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)}


def present_targets(network: nn.Module, targets: Sequence[str]) -> list[str]:
    """Filter targets that match a layer by peft's rule: the full name, or a suffix after a dot.

    Raises:
        UserError: no target matches.
    """
    names = [name.replace(".base_layer", "") for name, _ in network.named_modules()]
    present = [target for target in targets if any(n == target or n.endswith(f".{target}") for n in names)]
    if not present:
        raise UserError(
            f"roles.target_modules matches no layer of {type(network).__name__}: {', '.join(targets)}; "
            "omit it to adapt the family's default layers"
        )
    return present


def adapter_tensors(network: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """Return the parameters of one adapter under peft's file names (`blocks.0.to_q.lora_A.weight`)."""
    infix = f".{adapter}."
    return {n.replace(infix, "."): p for n, p in network.named_parameters() if ".lora_" in n and infix in n}


def remove_adapters(network: nn.Module, merge: str | None = None) -> None:
    """Remove all adapters in place, after merging the adapter `merge` into the weights."""
    for name, module in adapted_layers(network).items():
        if merge is not None:
            module.merge(adapter_names=[merge])
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, module.get_base_layer())
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        vars(network).pop(attribute, None)
    _adapted.pop(network, None)


def merged_copy(network: nn.Module, adapter: str | None) -> nn.Module:
    """Return a copy of the network with one adapter merged into the weights and all adapters removed."""
    merged = copy.deepcopy(network)
    remove_adapters(merged, merge=adapter)
    return merged


def adapted_copy(network: nn.Module) -> nn.Module:
    """Return a copy of the network including its adapters."""
    twin = copy.deepcopy(network)
    _adapted[twin] = list(adapted_layers(twin).values())
    return twin


def load_tensors(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copy `source` into `target` in place; names and shapes must match exactly."""
    if missing := sorted(set(target) - set(source)):
        raise ValueError(f"the checkpoint of this role lacks {len(missing)} tensors, first: {missing[:3]}")
    if surplus := sorted(set(source) - set(target)):
        raise ValueError(f"the checkpoint of this role has {len(surplus)} unknown tensors, first: {surplus[:3]}")
    with torch.no_grad():
        for name, tensor in target.items():
            if tensor.shape != source[name].shape:
                raise ValueError(f"'{name}' has shape {tuple(source[name].shape)}, expected {tuple(tensor.shape)}")
            tensor.copy_(source[name])


def upcast(module: nn.Module) -> None:
    """Cast half-precision parameters and buffers to float32 master weights, in place."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.dtype in HALF_PRECISIONS:
            tensor.data = tensor.data.float()


def _free_name(network: nn.Module, name: str) -> str:
    taken = set(vars(network).get("peft_config", {}))
    candidates = [name, *(f"{name}_{i}" for i in range(2, len(taken) + 3))]
    return next(candidate for candidate in candidates if candidate not in taken)
