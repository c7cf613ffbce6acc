"""Trace a skeleton into an ONNX graph with the dynamo exporter, without storage for any weight.

Every layer is fenced: a marker operator stands where the hidden state enters it and where it leaves, so that
:mod:`onnxforge.models.stamp` finds the layer's nodes by reachability and not by guessing from names.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxforge.models.errors import UnsupportedModel
from onnxforge.models.families import Family
from onnxforge.models.skeleton import Skeleton

if TYPE_CHECKING:
    import torch

MARKER_DOMAIN = "onnxforge.trace"
ENTER = "Enter"
EXIT = "Exit"
OPSET = 23
_ROOT = "wrapped"

# Example sizes: all different, and none of them 0 or 1, which torch.export would take for constants.
_BATCH, _SEQUENCE, _PAST = 2, 3, 5


def trace(skeleton: Skeleton, family: Family) -> ir.Model:
    """The opset-23 graph of the skeleton: raw, with markers, parameters without values, buffers with them.

    Graph inputs and outputs have their final names; ``past_key_values.{j}`` counts the traced layers.

    Raises:
        UnsupportedModel: torch.export or the ONNX translation cannot follow the modelling code.
    """
    with _fenced(skeleton), quiet():
        model = _export(skeleton, family)
    _strip_root(model)
    _rename_symbols(model, "input_ids", "past_key_values.0.key" if family.is_decoder else None)
    _give_values(model, skeleton)
    return model


def _export(skeleton: Skeleton, family: Family) -> ir.Model:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        _fake_parameters(skeleton.model)
        wrapper, examples, dynamic = (_decoder if family.is_decoder else _encoder)(skeleton, family)
    try:
        with torch.no_grad():
            program = torch.export.export(wrapper.eval(), (), examples, dynamic_shapes=dynamic, strict=False)
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, optimize=False, verbose=False
            )
    except UnsupportedModel:
        raise
    except Exception as error:
        # The exporter wraps whatever modelling code raised in types of its own: the chain ends in the cause.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise UnsupportedModel(
            f"{family.model_type}: the dynamo exporter cannot follow this architecture with this version of "
            f"transformers: {lines[0].rstrip('.')}. Compile an .onnx file of the model instead."
        ) from error
    if exported is None:
        raise UnsupportedModel(f"{family.model_type}: the dynamo exporter returned no program.")
    model: ir.Model = exported.model
    for value, name in zip(model.graph.inputs, _input_names(skeleton, family), strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, _output_names(skeleton, family), strict=True):
        value.name = name
    return model


def _fake_parameters(model: "torch.nn.Module") -> None:
    """Swap meta parameters for fake CPU ones: the same shapes and ties, on the device the buffers are on."""
    import torch

    fake: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in fake:
                fake[id(parameter)] = torch.nn.Parameter(
                    torch.empty(tuple(parameter.shape)), requires_grad=False
                )
            module._parameters[name] = fake[id(parameter)]


def _decoder(
    skeleton: Skeleton, family: Family
) -> "tuple[torch.nn.Module, dict[str, object], dict[str, object]]":
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = skeleton.model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            position_ids: torch.Tensor,
            past: list[tuple[torch.Tensor, torch.Tensor]],
        ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
            # Full-length layers for windows too: the mask does the windowing, and nothing crops the past.
            cache = DynamicCache()
            for key, value in past:
                layer = DynamicLayer()
                layer.lazy_initialization(key, value)
                layer.keys, layer.values = key, value
                cache.layers.append(layer)
            output = self.wrapped(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
            return output.logits, [(layer.keys, layer.values) for layer in cache.layers]

    config = skeleton.model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    count = range(skeleton.traced_layers)
    batch, sequence, past = (torch.export.Dim(f"{n}_") for n in ("batch", "sequence", "past"))
    past_shape = (_BATCH, heads, _PAST, head_dim)
    examples: dict[str, object] = {
        "input_ids": torch.zeros(_BATCH, _SEQUENCE, dtype=torch.int64),
        "attention_mask": torch.zeros(_BATCH, _PAST + _SEQUENCE, dtype=torch.int64),
        "position_ids": torch.zeros(_BATCH, _SEQUENCE, dtype=torch.int64),
        "past": [(torch.zeros(past_shape), torch.zeros(past_shape)) for _ in count],
    }
    dynamic: dict[str, object] = {
        "input_ids": {0: batch, 1: sequence},
        "attention_mask": {0: batch, 1: torch.export.Dim.DYNAMIC},
        "position_ids": {0: batch, 1: sequence},
        "past": [({0: batch, 2: past}, {0: batch, 2: past}) for _ in count],
    }
    return Wrapper(), examples, dynamic


def _encoder(
    skeleton: Skeleton, family: Family
) -> "tuple[torch.nn.Module, dict[str, object], dict[str, object]]":
    import torch

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = skeleton.model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            token_type_ids: torch.Tensor | None = None,
        ) -> torch.Tensor:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            output = self.wrapped(input_ids=input_ids, attention_mask=attention_mask, **types)
            states: torch.Tensor = output.logits if "logits" in output else output.last_hidden_state
            return states

    # Named dimensions would refuse the upper bound that a table of positions sets.
    batch = sequence = torch.export.Dim.DYNAMIC
    names = _input_names(skeleton, family)
    examples: dict[str, object] = {n: torch.zeros(_BATCH, _SEQUENCE, dtype=torch.int64) for n in names}
    return Wrapper(), examples, {name: {0: batch, 1: sequence} for name in names}


def _input_names(skeleton: Skeleton, family: Family) -> list[str]:
    if not family.is_decoder:
        return ["input_ids", "attention_mask", *(["token_type_ids"] if family.token_types else [])]
    past = [f"past_key_values.{i}.{kv}" for i in range(skeleton.traced_layers) for kv in ("key", "value")]
    return ["input_ids", "attention_mask", "position_ids", *past]


def _output_names(skeleton: Skeleton, family: Family) -> list[str]:
    if not family.is_decoder:
        bare = skeleton.model.base_model is skeleton.model
        return ["last_hidden_state" if bare else "logits"]
    present = [f"present.{i}.{kv}" for i in range(skeleton.traced_layers) for kv in ("key", "value")]
    return ["logits", *present]


@contextlib.contextmanager
def _fenced(skeleton: Skeleton) -> Iterator[None]:
    import torch

    def mark(kind: str, layer: int, hidden: "torch.Tensor") -> "torch.Tensor":
        return torch.onnx.ops.symbolic(
            f"{MARKER_DOMAIN}::{kind}",
            (hidden,),
            {"layer": layer},
            dtype=hidden.dtype,
            shape=hidden.shape,
            version=1,
        )

    handles = []
    for position, layer in enumerate(skeleton.model.get_submodule(skeleton.layers).children()):

        def enter(
            _module: "torch.nn.Module",
            args: "tuple[torch.Tensor, ...]",
            kwargs: "dict[str, torch.Tensor]",
            position: int = position,
        ) -> "tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]":
            if args:
                return (mark(ENTER, position, args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": mark(ENTER, position, kwargs["hidden_states"])}

        def leave(
            _module: "torch.nn.Module",
            _args: "tuple[torch.Tensor, ...]",
            output: "torch.Tensor | tuple[torch.Tensor, ...]",
            position: int = position,
        ) -> "torch.Tensor | tuple[torch.Tensor, ...]":
            if isinstance(output, tuple):
                return (mark(EXIT, position, output[0]), *output[1:])
            return mark(EXIT, position, output)

        handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(layer.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's chatter (missing torchvision, weights without values) off the user's screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip_root(model: ir.Model) -> None:
    """Initializers get the model's own parameter names, without the wrapper's attribute in front."""
    for name in list(model.graph.initializers):
        if name.startswith(f"{_ROOT}."):
            value = model.graph.initializers.pop(name)
            value.name = name.removeprefix(f"{_ROOT}.")
            model.graph.initializers[value.name] = value


def _rename_symbols(model: ir.Model, ids: str, past: str | None) -> None:
    """Give every dimension its public name: ``s43`` becomes ``batch_size`` and so on."""
    inputs = {value.name: value for value in model.graph.inputs}
    ids_shape = inputs[ids].shape
    assert ids_shape is not None
    names = {str(ids_shape[0]): "batch_size", str(ids_shape[1]): "sequence_length"}
    total_shape = inputs["attention_mask"].shape
    assert total_shape is not None
    if past is None:  # nothing in the model need tie the mask's axes to those of the ids
        names |= {str(total_shape[0]): "batch_size", str(total_shape[1]): "sequence_length"}
    else:
        past_shape = inputs[past].shape
        assert past_shape is not None
        names[str(past_shape[2])] = "past_sequence_length"
        names[str(total_shape[1])] = "total_sequence_length"
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


def _renamed(dim: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return names.get(str(dim.value)) if dim.value is not None else None


def _give_values(model: ir.Model, skeleton: Skeleton) -> None:
    """Computed buffers get their values; parameters have none yet; anything else would be a lost constant."""
    parameters = {name for name, _ in skeleton.model.named_parameters(remove_duplicate=False)}
    lost = []
    for name, value in model.graph.initializers.items():
        if name in skeleton.buffers:
            value.const_value = ir.tensor(skeleton.buffers[name], name=name)
        elif name in parameters:
            value.const_value = None
        elif any(value.uses()):
            lost.append(name)
    if lost:
        raise UnsupportedModel(
            f"{type(skeleton.model).__name__}: the modelling code makes tensors that have no value without "
            f"weights ({', '.join(lost)}), so the graph would be wrong."
        )
