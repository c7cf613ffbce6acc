"""What the CUDA provider has kernels for, by the names of the kernel classes in its library.

Read off onnxruntime-gpu 1.31.1 (the wheel on PyPI for Linux and CUDA 13): the demangled type names in
``libonnxruntime_providers_cuda.so``, where a kernel is a class such as
``onnxruntime::cuda::MatMul<MLFloat16>``. An operator that is in neither list has no kernel there, as far as
names can tell; ONNX Runtime then runs it on the CPU, with copies there and back.
"""

# ruff: noqa: SIM905  (a paragraph of names reads better than two hundred lines of strings)

SOURCE = "kernel classes of onnxruntime-gpu 1.31.1"

HALF = frozenset(
    (
        "Abs Add ArgMax ArgMin Attention BatchNormalization Cast Ceil Clip Compress Concat "
        "ConcatFromSequence ConstantOfShape Conv ConvTranspose Cos CumSum DeformConv DepthToSpace "
        "DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather "
        "GatherElements Gelu Gemm Greater GreaterOrEqual HardSigmoid HardSwish Identity If "
        "InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log "
        "Loop LpNormalization MatMul Max Min Mod Mul Neg NonMaxSuppression NonZero PRelu Pad Pow "
        "QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform "
        "RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax "
        "ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize RoiAlign "
        "RotaryEmbedding Round Scan ScatterElements Selu SequenceAt SequenceConstruct SequenceEmpty "
        "SequenceErase SequenceInsert SequenceLength Shrink Sigmoid Sign SimplifiedLayerNormalization Sin "
        "Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh TensorScatter "
        "ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where com.microsoft.Attention "
        "com.microsoft.BeamSearch com.microsoft.BiasAdd com.microsoft.BiasDropout com.microsoft.BiasGelu "
        "com.microsoft.BiasSoftmax com.microsoft.BiasSplitGelu com.microsoft.BranchwiseRMSNorm "
        "com.microsoft.CausalConvWithState com.microsoft.ComplexMul com.microsoft.DecoderAttention "
        "com.microsoft.DecoderMaskedMultiHeadAttention com.microsoft.DecoderMaskedSelfAttention "
        "com.microsoft.DequantizeWithOrder com.microsoft.DynamicSparseAttention "
        "com.microsoft.DynamicTimeWarping com.microsoft.EmbedLayerNormalization com.microsoft.EngramGate "
        "com.microsoft.FastGelu com.microsoft.GatedAdd com.microsoft.GatedDeltaNet "
        "com.microsoft.GatedRMSNorm com.microsoft.GatedRelativePositionBias "
        "com.microsoft.GatherBlockQuantized com.microsoft.GemmFloat8 com.microsoft.GemmaRotaryEmbedding "
        "com.microsoft.GreedySearch com.microsoft.GroupNorm com.microsoft.GroupQueryAttention "
        "com.microsoft.HyperConnectionPostMix com.microsoft.HyperConnectionPreMix com.microsoft.Inverse "
        "com.microsoft.Irfft com.microsoft.LinearAttention com.microsoft.LinearAttentionGate "
        "com.microsoft.LongformerAttention com.microsoft.MRotaryEmbedding "
        "com.microsoft.MatMulBlockQuantizedFp4Weight com.microsoft.MatMulBlockQuantizedFp8Weight "
        "com.microsoft.MatMulBnb4 com.microsoft.MatMulNBits com.microsoft.MoE "
        "com.microsoft.MultiHeadAttention com.microsoft.NGramRepeatBlock com.microsoft.PackedAttention "
        "com.microsoft.PackedMultiHeadAttention com.microsoft.PackedSparseAttentionIndexer "
        "com.microsoft.PagedAttention com.microsoft.QAttention com.microsoft.QMoE "
        "com.microsoft.QOrderedAttention com.microsoft.QOrderedGelu "
        "com.microsoft.QOrderedLayerNormalization com.microsoft.QOrderedLongformerAttention "
        "com.microsoft.QOrderedMatMul com.microsoft.QuantizeWithOrder com.microsoft.QuickGelu "
        "com.microsoft.RemovePadding com.microsoft.RestorePadding com.microsoft.Rfft "
        "com.microsoft.RotaryEmbedding com.microsoft.Sampling com.microsoft.ScaledSiLU "
        "com.microsoft.SkipLayerNormalization com.microsoft.SkipSimplifiedLayerNormalization "
        "com.microsoft.SparseAttention com.microsoft.SparseAttentionIndexer "
        "com.microsoft.SparsePagedAttention com.microsoft.UnfoldTensor "
        "com.microsoft.VarlenCausalConvWithState com.microsoft.WhisperBeamSearch "
    ).split()
)
"""For float16, or for any type. Operators of ``com.microsoft`` are written with their domain."""

OTHER = frozenset(
    (
        "And GatherND MatMulInteger Not Or Xor com.microsoft.ConvTransposeWithDynamicPads "
        "com.microsoft.FusedConv com.microsoft.GridSample com.microsoft.NGramHashMapping "
        "com.microsoft.VarlenNGramHashMapping "
    ).split()
)
"""For other types only."""

ON_THE_HOST = frozenset({"Constant", "Shape", "Size"})
"""Done without a kernel: the shape of a tensor is known on the CPU's side."""
