"""What TensorRT's ONNX parser imports: the operators that its support matrix says yes to.

Read off the matrix that comes with TensorRT 10.15 (opsets 9 to 24), main domain only. What the parser does
not know, ONNX Runtime gives to the CUDA provider: right, but the engine is cut in two there, with a copy and
a synchronisation at each border.
"""

# ruff: noqa: SIM905  (a paragraph of names reads better than a hundred lines of strings)

SOURCE = "support matrix of TensorRT 10.15's parser"

PARSED = frozenset(
    (
        "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization "
        "BlackmanWindow Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos "
        "Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand "
        "EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool "
        "GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow "
        "HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM "
        "LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max "
        "MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or "
        "PRelu Pad Pow QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform "
        "RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax "
        "ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence "
        "RoiAlign RotaryEmbedding Round STFT Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign "
        "Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh "
        "TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor"
    ).split()
)
