"""The targets: a table, and nothing else. Two targets differ by their rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


class Bound(StrEnum):
    """On which side of the limit a measured number has to stay."""

    AT_MOST = "<="
    AT_LEAST = ">="


@dataclass(frozen=True)
class BudgetLine:
    """One promise about quality: ``perplexity_ratio <= 1.03``."""

    metric: str
    """A key of the proof's summary: ``perplexity_ratio``, ``max_abs``, ``top1_agreement``, ``cosine``."""
    bound: Bound
    limit: float

    def holds(self, measured: float) -> bool:
        """Whether ``measured`` keeps the promise. NaN never does."""
        return measured <= self.limit if self.bound is Bound.AT_MOST else measured >= self.limit

    def text(self) -> str:
        """The line as reports and target files write it."""
        return f"{self.metric} {self.bound} {self.limit:g}"


@dataclass(frozen=True)
class Expectation:
    """An operator that the finished graph must contain, if the pass that makes it ran."""

    op_type: str
    made_by: str

    def text(self) -> str:
        """The expectation as target files write it: ``fuse-attention:GroupQueryAttention``."""
        return f"{self.made_by}:{self.op_type}"


@dataclass(frozen=True)
class Target:
    """Where a model is to run, and everything that follows from it."""

    name: str
    summary: str
    passes: tuple[str, ...]
    """Text form of the passes, in the order in which they run."""
    expects: Mapping[str, tuple[Expectation, ...]] = field(default_factory=dict)
    """By kind of model, ``decoder`` or ``encoder``."""
    provider: str = CPU
    session: Mapping[str, str] = field(default_factory=dict)
    """ONNX Runtime session config entries."""
    budget: tuple[BudgetLine, ...] = ()
    calibration: str | None = None
    """What steps that run the graph are to run it on, as ``compile --calibration`` names it; None is the half
    of Python's help topics that evaluation never sees."""
    speculation: int | None = None
    """Drafted tokens per step, at most, as ``compile --speculation`` sets it: 0 never drafts, None has the
    proof measure whether drafting pays, and how much of it."""
    draft: str | None = None
    """What is left out of a draft model that comes in the same artifact, as ``compile --draft`` takes it:
    ``prune-layers=0.6,prune-mlp=0.2``. None: there is none."""
    refuses: Mapping[str, str] = field(default_factory=dict)
    """By kind of model: why this target does not serve it, and what does."""

    @property
    def pass_names(self) -> tuple[str, ...]:
        """The names of :attr:`passes`, without their options."""
        return tuple(text.split("{")[0] for text in self.passes)


_FUSE = (
    "canonicalize",
    "fuse-norm",
    "fuse-rotary",
    "fuse-attention{decoder=GroupQueryAttention,encoder=MultiHeadAttention}",
    "pack-qkv",
    "fuse-activation",  # fuse-skip-norm is for GPUs: its CPU kernels are slower than what they replace
    "limit-logits",
)
_LOOP = "add-speculative-loop"
"""A second graph, ``onnx/model_spec.onnx``: decoders only, 20 KB and 0.1 s, no weights of its own."""
_CPU_SESSION = {
    # ONNX Runtime would fuse Add and LayerNormalization by itself when it loads the graph. Its CPU kernel for
    # the pair is slower: encoders answer up to 10% faster without (MiniLM-L6, batches of 8x128 and 32x64).
    "optimization.disable_specified_optimizers": "SkipLayerNormFusion",
}
_FOR_CUDA = (
    "separate-bias",
    "fuse-skip-norm",
    "fuse-quantized-gather",
    "convert-float16",
    "cleanup",
)
_MIXED_PRODUCTS = {
    # Prefill multiplies float16 by integers in one kernel. Without, ONNX Runtime dequantizes each weight into
    # scratch memory first. It asks for blocks of 32, symmetric, without bias, K and N multiples of 32.
    "ep.cuda.fpa_intb_gemm": "1",
}
_FOR_TENSORRT = (
    "calibrate",
    "fold-scales{alpha=0.65}",
    "scale-inputs{alpha=0.65}",  # encoders have no place to fold; TensorRT fuses the multiplication
    "calibrate",
    "insert-qdq{provider=tensorrt,activations=int8,symmetric_activations=true,min_sqnr_db=19}",
    "convert-float16",
    "cleanup",
)
_FUSED_DECODER = (Expectation("GroupQueryAttention", made_by="fuse-attention"),)
_FUSED_ENCODER = (Expectation("MultiHeadAttention", made_by="fuse-attention"),)
_INTEGER_WEIGHTS = (Expectation("MatMulNBits", made_by="quantize-weights"),)
_FUSED = {"decoder": _FUSED_DECODER, "encoder": _FUSED_ENCODER}
_FUSED_INTEGER = {kind: (*fused, *_INTEGER_WEIGHTS) for kind, fused in _FUSED.items()}

TARGETS: tuple[Target, ...] = (
    Target(
        name="cpu-fp32",
        summary="fused float32 for the CPU: the reference every other CPU target is measured against",
        passes=(*_FUSE, "cleanup", _LOOP),
        expects=_FUSED,
        session=_CPU_SESSION,
        budget=(
            BudgetLine("max_abs", Bound.AT_MOST, 1e-3),
            BudgetLine("decoding_max_relative", Bound.AT_MOST, 1e-4),  # measured: 1.3e-6
        ),
    ),
    Target(
        name="cpu-int8",
        summary="int8 times int8 for the CPU; 8-bit blocks for embedding, head and what is sensitive",
        passes=(
            *_FUSE,
            "calibrate",
            "fold-scales{alpha=0.65}",
            "calibrate",
            "mix-precision{skip=lm_head|embed|wte}",
            "insert-qdq{min_sqnr_db=0,skip=lm_head|embed|wte}",
            "quantize-weights{bits=8,block_size=32,symmetric=false,accuracy_level=4}",
            "cleanup",
            _LOOP,
        ),
        expects=_FUSED,
        session=_CPU_SESSION,
        budget=(
            BudgetLine("perplexity_ratio", Bound.AT_MOST, 1.03),
            # One row and many take different kernels, whose roundings differ (0.04 measured); a step that
            # reads its cache wrongly is off by far more.
            BudgetLine("decoding_max_relative", Bound.AT_MOST, 0.2),
            BudgetLine("cosine", Bound.AT_LEAST, 0.99),
        ),
    ),
    Target(
        name="cpu-int4",
        summary="int4 weights by AWQ and GPTQ in blocks of 64, int8 kernels; embedding and head in 8 bits",
        passes=(
            *_FUSE,
            "correlate-inputs{keep_bits=4,skip=embed|wte|lm_head}",
            "search-scales{bits=4,block_size=64,symmetric=false}",
            "quantize-weights{bits=4,block_size=64,symmetric=false,method=gptq,keep_blocks=true,"
            "skip=embed|wte|lm_head}",
            "quantize-weights{bits=8,block_size=64}",
            "cleanup",
            _LOOP,
        ),
        expects=_FUSED_INTEGER,
        session=_CPU_SESSION,
        budget=(
            # SmolLM2-135M: 1.01 with the 4-bit blocks that its source stores, 1.07 and 1.06 on two texts when
            # rounded to others. MiniLM-L6: 0.979 for the worst of 64 sentences.
            BudgetLine("perplexity_ratio", Bound.AT_MOST, 1.15),
            BudgetLine("cosine", Bound.AT_LEAST, 0.96),
        ),
    ),
    Target(
        name="cuda-fp16",
        summary="float16 for CUDA: half the memory, cache included",
        passes=(*_FUSE, *_FOR_CUDA, _LOOP),
        expects=_FUSED,
        provider=CUDA,
        budget=(
            BudgetLine("perplexity_ratio", Bound.AT_MOST, 1.005),
            BudgetLine("cosine", Bound.AT_LEAST, 0.999),
        ),
    ),
    Target(
        name="cuda-int8",
        summary="int8 weights in blocks of 32 for CUDA; the arithmetic is float16, not int8",
        passes=(*_FUSE, "quantize-weights{bits=8,block_size=32,accuracy_level=0}", *_FOR_CUDA, _LOOP),
        expects=_FUSED_INTEGER,
        provider=CUDA,
        session=_MIXED_PRODUCTS,
        budget=(
            BudgetLine("perplexity_ratio", Bound.AT_MOST, 1.02),
            BudgetLine("cosine", Bound.AT_LEAST, 0.99),
        ),
    ),
    Target(
        name="cuda-int4",
        summary="int4 weights by AWQ and GPTQ in blocks of 32, float16 arithmetic for CUDA; head in 8 bits",
        passes=(
            *_FUSE,
            "correlate-inputs{skip=embed|wte|lm_head}",
            "search-scales{bits=4,block_size=32,plain_blocks=true}",
            "quantize-weights{bits=4,block_size=32,accuracy_level=0,method=gptq,keep_blocks=true,"
            "plain_blocks=true,skip=embed|wte|lm_head}",
            "quantize-weights{bits=8,block_size=32,accuracy_level=0}",
            *_FOR_CUDA,
            _LOOP,
        ),
        expects=_FUSED_INTEGER,
        provider=CUDA,
        session=_MIXED_PRODUCTS,
        budget=(
            # SmolLM2-135M: 1.06 on two texts, each with its 4-bit blocks rounded anew.
            BudgetLine("perplexity_ratio", Bound.AT_MOST, 1.15),
            BudgetLine("cosine", Bound.AT_LEAST, 0.93),
        ),
    ),
    Target(
        name="trt-int8",
        summary="int8 times int8 for TensorRT, float16 elsewhere, in standard operators; encoders only",
        passes=("canonicalize", "fuse-norm", "decompose-attention", *_FOR_TENSORRT),
        expects={
            "encoder": (
                Expectation("Softmax", made_by="decompose-attention"),
                Expectation("QuantizeLinear", made_by="insert-qdq"),
            )
        },
        provider=TENSORRT,
        budget=(
            # MiniLM-L6, 83% of its multiplications in int8: 0.9947 for the worst of 200 sentences.
            BudgetLine("cosine", Bound.AT_LEAST, 0.98),
        ),
        refuses={
            "decoder": "TensorRT builds engines for ranges of shapes, has no attention over a growing cache, "
            "and would copy the whole cache in every step. `cuda-int8` generates text on the same GPU"
        },
    ),
)
