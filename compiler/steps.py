"""Every step that a target may name: the passes, and what only the conductor can do (it runs the graph)."""

import importlib
from collections.abc import Mapping

from onnxforge.passes import registry
from onnxforge.passes.base import GraphStep

_OWN: Mapping[str, tuple[str, str]] = {
    "calibrate": ("onnxforge.compiler.calibrate", "Calibrate"),
    "calibrate-cache": ("onnxforge.compiler.calibrate_cache", "CalibrateCache"),
    "compare-unpruned": ("onnxforge.compiler.compare_unpruned", "CompareUnpruned"),
    "correlate-inputs": ("onnxforge.compiler.correlate_inputs", "CorrelateInputs"),
    "distill-blocks": ("onnxforge.compiler.distill_blocks", "DistillBlocks"),
    "distill-logits": ("onnxforge.compiler.distill_logits", "DistillLogits"),
    "measure-damage": ("onnxforge.compiler.measure_damage", "MeasureDamage"),
    "measure-gradients": ("onnxforge.compiler.measure_gradients", "MeasureGradients"),
    "count-tokens": ("onnxforge.compiler.count_tokens", "CountTokens"),
    "mix-precision": ("onnxforge.compiler.mix_precision", "MixPrecision"),
    "prune-to-budget": ("onnxforge.compiler.prune_to_budget", "PruneToBudget"),
    "rank-layers": ("onnxforge.compiler.rank_layers", "RankLayers"),
    "search-skipped": ("onnxforge.compiler.search_skipped", "SearchSkipped"),
}


def step_names() -> tuple[str, ...]:
    """Kebab-case names, passes first."""
    return (*registry.NAMES, *_OWN)


def calibrated_steps() -> tuple[str, ...]:
    """Names of the steps that run the graph on calibration data."""
    return tuple(_OWN)


def step_class(name: str) -> type[GraphStep]:
    """The class behind ``name``; its module loads only now.

    Raises:
        KeyError: no step has this name.
    """
    if name not in _OWN:
        return registry.pass_class(name)
    module, cls = _OWN[name]
    found: type[GraphStep] = getattr(importlib.import_module(module), cls)
    return found
