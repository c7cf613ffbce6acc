"""What a generation request may ask for: transformers' names, meanings and defaults."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnxforge.runtimes.errors import ArtifactError, RequestError

_FROM_CONFIG = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")
_SAMPLING = ("temperature", "top_k", "top_p")
_NOT_APPLIED: Mapping[str, float | None] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "diversity_penalty": 0,
    "dola_layers": None,
    "encoder_repetition_penalty": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "min_p": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "penalty_alpha": 0,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
    "top_h": None,
    "typical_p": 1,
    "watermarking_config": None,
}
"""What else decides transformers' next token, with the value that changes nothing."""


@dataclass(frozen=True)
class GenerationOptions:
    """Checked options of one request. Defaults are those of transformers' GenerationConfig.

    As there, temperature, top_k and top_p are looked at only where tokens are drawn.
    """

    max_new_tokens: int | None = None
    """None: 256, or what is left of the context when that is less."""
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    """0 keeps every token."""
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    eos_token_id: tuple[int, ...] = ()
    seed: int | None = None
    """None draws fresh randomness."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings."""

    def __post_init__(self) -> None:
        _whole("max_new_tokens", self.max_new_tokens, 1, optional=True)
        _whole("seed", self.seed, 0, optional=True)
        if not isinstance(self.do_sample, bool):
            raise RequestError(f"do_sample is {self.do_sample!r}; pass True or False.")
        _number("repetition_penalty", self.repetition_penalty, above=0.0)
        if self.do_sample:
            _number("temperature", self.temperature, above=0.0)
            _whole("top_k", self.top_k, 0)
            _number("top_p", self.top_p, above=0.0, most=1.0)
        if not all(isinstance(text, str) and text for text in self.stop):
            raise RequestError(f"stop is {self.stop!r}; pass non-empty strings.")
        for token in self.eos_token_id:
            _whole("eos_token_id", token, 0)

    def changed(self, requested: Mapping[str, object]) -> "GenerationOptions":
        """These options with the given ones set; None leaves the default.

        What is given is checked even where nothing is drawn. Raises RequestError.
        """
        given = {name: value for name, value in requested.items() if value is not None}
        unknown = sorted(given.keys() - set(self.__dataclass_fields__))
        if unknown:
            known = ", ".join(self.__dataclass_fields__)
            raise RequestError(f"Unknown generation option {unknown}; the options are {known}.")
        if "eos_token_id" in given:
            given["eos_token_id"] = _tokens(given["eos_token_id"])
        if "stop" in given:
            given["stop"] = _texts(given["stop"])
        asked = {name: given[name] for name in _SAMPLING if name in given}
        GenerationOptions(do_sample=True, **asked)  # type: ignore[arg-type]  # refuses what is out of range
        return replace(self, **given)  # type: ignore[arg-type]  # __post_init__ checks every value


def options_from_config(generation: Mapping[str, object], config: Mapping[str, object]) -> GenerationOptions:
    """Defaults from generation_config.json; an eos_token_id that it lacks is taken from config.json.

    Warns once of everything else in it that would decide the next token. Raises ArtifactError when a value
    that counts is out of range.
    """
    ignored = [f"{name}={generation[name]!r}" for name in _NOT_APPLIED if _decides(generation, name)]
    if ignored:
        warnings.warn(
            f"generation_config.json asks for {', '.join(ignored)}, which this runtime does not apply: texts "
            "may differ from those of transformers.",
            stacklevel=3,
        )
    given: dict[str, object] = {
        name: generation[name] for name in _FROM_CONFIG if generation.get(name) is not None
    }
    named = (eos for eos in (generation.get("eos_token_id"), config.get("eos_token_id")) if eos is not None)
    given["eos_token_id"] = _tokens(next(named, ()))
    try:
        return GenerationOptions(**given)  # type: ignore[arg-type]  # __post_init__ checks every value
    except RequestError as error:
        raise ArtifactError(f"generation_config.json: {error}") from error


def _decides(generation: Mapping[str, object], name: str) -> bool:
    value = generation.get(name)
    return value is not None and value != _NOT_APPLIED[name] and value not in ([], {})


def _tokens(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)


def _texts(value: object) -> tuple[object, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence):
        raise RequestError(f"stop is {value!r}; pass a string or a list of strings.")
    return tuple(value)


def _whole(name: str, value: object, least: int, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RequestError(f"{name} is {value!r}; pass a whole number, {least} or more.")


def _number(name: str, value: object, above: float, most: float = math.inf) -> None:
    valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not valid or not above < float(str(value)) <= most:
        bound = f"a number above {above:g}" + (f" and at most {most:g}" if most < math.inf else "")
        raise RequestError(f"{name} is {value!r}; pass {bound}.")
