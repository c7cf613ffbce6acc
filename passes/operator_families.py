"""Which operators behave alike, for the analyses that only ask for the kind of an operator."""

# ruff: noqa: SIM905  (a paragraph of names reads better than eighty lines of strings)

ELEMENTWISE = frozenset(
    "Abs Acos Asin Cast Ceil Clip Cos Dropout Elu Erf Exp Floor FastGelu Gelu Identity IsNaN LeakyRelu Log "
    "LogSoftmax Neg Not QuickGelu Reciprocal Relu Round Selu Sigmoid Sign Sin Softmax Softplus Sqrt Swish "
    "Tan Tanh Trilu CumSum LayerNormalization RMSNormalization SimplifiedLayerNormalization "
    "RotaryEmbedding BiasGelu CastLike BitwiseNot".split()
)
"""The first output has the shape of the first input."""

BROADCASTING = frozenset(
    "Add And BitwiseAnd BitwiseOr Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or "
    "Pow PRelu Sub Sum Where Xor".split()
)
"""The output has the common shape of all inputs under numpy rules."""

REDUCTIONS = frozenset(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare".split()
)
"""Axes became an input at opset 13 (ReduceSum) or 18 (the others)."""

NEVER_FOLDED = frozenset(
    "DequantizeLinear QuantizeLinear DynamicQuantizeLinear RandomNormal RandomUniform RandomNormalLike "
    "RandomUniformLike Bernoulli Multinomial Constant".split()
)
"""Random, or carrying the meaning of a quantized weight."""

SAME_MEANING = frozenset(
    "Abs Acos Add And ArgMax ArgMin Asin Atan BitwiseAnd BitwiseOr Cast CastLike Ceil Clip Compress Concat "
    "Constant ConstantOfShape Cos CumSum Div Einsum Equal Erf Exp Expand EyeLike Flatten Floor Gather "
    "GatherElements GatherND Gemm Greater GreaterOrEqual Identity If IsInf IsNaN LayerNormalization "
    "LeakyRelu Less LessOrEqual Log Loop MatMul Max Mean Min Mod Mul Neg NonZero Not OneHot Or Pad Pow "
    "PRelu Range Reciprocal Relu Reshape Round Scan ScatterElements ScatterND Shape Sigmoid Sign Sin Size "
    "Slice Softplus Sqrt Sub Sum Tan Tanh Tile TopK Transpose Trilu Where Xor DequantizeLinear "
    "QuantizeLinear DynamicQuantizeLinear MatMulInteger Conv Elu Selu".split()
)
"""A node that is valid at opset 11 or later means the same at every later opset up to 23."""
