"""TensorFlow's operations that a SavedModel may hold without being trusted.

A graph is a program. TensorFlow knows some 1,900 operations; among them are those that read and write files,
talk to other machines and run Python, and every version brings new ones. So there is no list of what is
forbidden: what is not allowed here needs ``--trust_model``.

Allowed are mathematics, which make tensors of tensors; variables and tables, which live in the memory; calls
and control flow; and messages to the console. Three need a closer look:

* ``InitializeTableFromTextFileV2`` reads a file: only one of the model's own assets, which the loader binds.
* ``PrintV2`` may print to a file: only to the console.
* Each SavedModel holds functions that save and restore its variables. The loader does that itself and calls
  none of them, and nothing that it does call may reach them.

A bug in TensorFlow's own code for an allowed operation is beyond this: run strangers' models where they can
do no harm.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

_FAMILIES: Final = {
    "mathematics": """
        Abs AccumulateNV2 Acos Acosh Add AddN AddV2 All Angle Any ApproximateEqual ArgMax ArgMin Asin Asinh
        Atan Atan2 Atanh BandedTriangularSolve BatchMatMul BatchMatMulV2 BatchMatMulV3 BesselI0 BesselI0e
        BesselI1 BesselI1e BesselJ0 BesselJ1 BesselK0 BesselK0e BesselK1 BesselK1e BesselY0 BesselY1 Betainc
        Bincount BitwiseAnd BitwiseOr BitwiseXor Bucketize Cast Ceil Cholesky CholeskyGrad ClipByValue
        Complex ComplexAbs Conj Cos Cosh Cross Cumprod Cumsum CumulativeLogsumexp Dawsn DenseBincount
        Digamma Div DivNoNan Eig Einsum Equal Erf Erfc Erfinv EuclideanNorm Exp Expint Expm1 FFT FFT2D FFT3D
        FFTND Floor FloorDiv FloorMod FresnelCos FresnelSin Greater GreaterEqual HistogramFixedWidth IFFT
        IFFT2D IFFT3D IFFTND IRFFT IRFFT2D IRFFT3D IRFFTND Igamma IgammaGradA Igammac Imag Inv InvGrad
        Invert IsFinite IsInf IsNan LeftShift Less LessEqual Lgamma LinSpace Log Log1p LogMatrixDeterminant
        LogicalAnd LogicalNot LogicalOr Lu MatMul MatrixDeterminant MatrixExponential MatrixInverse
        MatrixLogarithm MatrixSolve MatrixSolveLs MatrixSquareRoot MatrixTriangularSolve Max Maximum Mean
        Min Minimum Mod Mul MulNoNan Ndtri Neg NextAfter NotEqual Polygamma PopulationCount Pow Prod Qr RFFT
        RFFT2D RFFT3D RFFTND RaggedBincount Range Real RealDiv Reciprocal ReciprocalGrad RequantizationRange
        RequantizationRangePerChannel Requantize RequantizePerChannel RightShift Rint Roll Round Rsqrt
        RsqrtGrad SegmentMax SegmentMaxV2 SegmentMean SegmentMin SegmentMinV2 SegmentProd SegmentProdV2
        SegmentSum SegmentSumV2 Select SelectV2 SelfAdjointEig SelfAdjointEigV2 Sigmoid SigmoidGrad Sign Sin
        Sinh SobolSample SparseBincount SparseMatMul SparseSegmentMean SparseSegmentMeanGrad
        SparseSegmentMeanGradV2 SparseSegmentMeanWithNumSegments SparseSegmentSqrtN SparseSegmentSqrtNGrad
        SparseSegmentSqrtNGradV2 SparseSegmentSqrtNWithNumSegments SparseSegmentSum SparseSegmentSumGrad
        SparseSegmentSumGradV2 SparseSegmentSumWithNumSegments Spence Sqrt SqrtGrad Square SquaredDifference
        Sub Sum Svd Tan Tanh TanhGrad TridiagonalMatMul TridiagonalSolve TruncateDiv TruncateMod
        UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum Xdivy Xlog1py Xlogy
        Zeta
    """,
    "arrays": """
        BatchToSpace BatchToSpaceND Bitcast BroadcastArgs BroadcastGradientArgs BroadcastTo CheckNumerics
        CheckNumericsV2 Concat ConcatOffset ConcatV2 ConjugateTranspose Const DepthToSpace Dequantize Diag
        DiagPart DynamicPartition DynamicStitch EditDistance Empty EmptyTensorList EnsureShape ExpandDims
        ExtractImagePatches ExtractVolumePatches FakeQuantWithMinMaxArgs FakeQuantWithMinMaxArgsGradient
        FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsGradient FakeQuantWithMinMaxVarsPerChannel
        FakeQuantWithMinMaxVarsPerChannelGradient Fill Fingerprint Gather GatherNd GatherV2 GuaranteeConst
        Identity IdentityN InvertPermutation ListDiff LowerBound MatrixBandPart MatrixDiag MatrixDiagPart
        MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixSetDiag MatrixSetDiagV2
        MatrixSetDiagV3 MirrorPad MirrorPadGrad OneHot OnesLike Pack Pad PadV2 ParallelDynamicStitch
        Placeholder PlaceholderV2 PlaceholderWithDefault PreventGradient QuantizeAndDequantize
        QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 QuantizeAndDequantizeV4Grad
        QuantizeV2 RandomIndexShuffle Rank Reshape Reverse ReverseSequence ReverseV2 ScatterNd
        ScatterNdNonAliasingAdd Shape ShapeN Size Slice Snapshot SpaceToBatch SpaceToBatchND SpaceToDepth
        Split SplitV Squeeze StopGradient StridedSlice StridedSliceGrad TensorListConcat
        TensorListConcatLists TensorListConcatV2 TensorListElementShape TensorListFromTensor
        TensorListGather TensorListGetItem TensorListLength TensorListPopBack TensorListPushBack
        TensorListPushBackBatch TensorListReserve TensorListResize TensorListScatter
        TensorListScatterIntoExistingList TensorListScatterV2 TensorListSetItem TensorListSplit
        TensorListStack TensorScatterAdd TensorScatterMax TensorScatterMin TensorScatterSub
        TensorScatterUpdate TensorStridedSliceUpdate Tile TileGrad Transpose Unique UniqueV2
        UniqueWithCounts UniqueWithCountsV2 Unpack UnravelIndex UpperBound Where ZerosLike
    """,
    "layers": """
        ApproxTopK AvgPool AvgPool3D AvgPool3DGrad AvgPoolGrad BatchNormWithGlobalNormalization
        BatchNormWithGlobalNormalizationGrad BiasAdd BiasAddGrad BiasAddV1 BlockLSTM BlockLSTMGrad
        BlockLSTMGradV2 BlockLSTMV2 CTCBeamSearchDecoder CTCGreedyDecoder CTCLoss CTCLossV2 Conv Conv2D
        Conv2DBackpropFilter Conv2DBackpropFilterV2 Conv2DBackpropInput Conv2DBackpropInputV2 Conv3D
        Conv3DBackpropFilter Conv3DBackpropFilterV2 Conv3DBackpropInput Conv3DBackpropInputV2
        DataFormatDimMap DataFormatVecPermute DepthwiseConv2dNative DepthwiseConv2dNativeBackpropFilter
        DepthwiseConv2dNativeBackpropInput Dilation2D Dilation2DBackpropFilter Dilation2DBackpropInput Elu
        EluGrad FractionalAvgPool FractionalAvgPoolGrad FractionalMaxPool FractionalMaxPoolGrad
        FusedBatchNorm FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3 FusedBatchNormV2
        FusedBatchNormV3 FusedPadConv2D FusedResizeAndPadConv2D GRUBlockCell GRUBlockCellGrad InTopK
        InTopKV2 IsotonicRegression L2Loss LRN LRNGrad LSTMBlockCell LSTMBlockCellGrad LeakyRelu
        LeakyReluGrad LogSoftmax MaxPool MaxPool3D MaxPool3DGrad MaxPool3DGradGrad MaxPoolGrad
        MaxPoolGradGrad MaxPoolGradGradV2 MaxPoolGradGradWithArgmax MaxPoolGradV2 MaxPoolGradWithArgmax
        MaxPoolV2 MaxPoolWithArgmax NearestNeighbors NthElement Relu Relu6 Relu6Grad ReluGrad Selu SeluGrad
        Softmax SoftmaxCrossEntropyWithLogits Softplus SoftplusGrad Softsign SoftsignGrad
        SparseSoftmaxCrossEntropyWithLogits TopK TopKV2
    """,
    "images and sound": """
        AdjustContrast AdjustContrastv2 AdjustHue AdjustSaturation AudioSpectrogram
        CombinedNonMaxSuppression CropAndResize CropAndResizeGradBoxes CropAndResizeGradImage
        DecodeAndCropJpeg DecodeBmp DecodeGif DecodeImage DecodeJpeg DecodeJxl DecodePng DecodeWav
        DecodeWebP DrawBoundingBoxes DrawBoundingBoxesV2 EncodeJpeg EncodeJpegVariableQuality EncodePng
        EncodeWav ExtractGlimpse ExtractGlimpseV2 ExtractJpegShape GenerateBoundingBoxProposals HSVToRGB
        ImageProjectiveTransformV2 ImageProjectiveTransformV3 Mfcc NonMaxSuppression NonMaxSuppressionV2
        NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5 NonMaxSuppressionWithOverlaps RGBToHSV
        ResizeArea ResizeBicubic ResizeBicubicGrad ResizeBilinear ResizeBilinearGrad ResizeNearestNeighbor
        ResizeNearestNeighborGrad ScaleAndTranslate ScaleAndTranslateGrad
        StatelessSampleDistortedBoundingBox
    """,
    "texts": """
        AsString DecodeBase64 DecodeCSV DecodeCompressed DecodeJSONExample DecodePaddedRaw DecodeRaw
        EncodeBase64 ParseExample ParseExampleV2 ParseSequenceExample ParseSequenceExampleV2
        ParseSingleExample ParseSingleSequenceExample ReduceJoin RegexFullMatch RegexReplace
        StaticRegexFullMatch StaticRegexReplace StringFormat StringJoin StringLength StringLower
        StringNGrams StringSplit StringSplitV2 StringStrip StringToHashBucket StringToHashBucketFast
        StringToHashBucketStrong StringToNumber StringUpper Substr UnicodeDecode UnicodeDecodeWithOffsets
        UnicodeEncode UnicodeScript UnicodeTranscode UnsortedSegmentJoin
    """,
    "sparse and ragged tensors": """
        DenseCountSparseOutput DenseToDenseSetOperation DenseToSparseSetOperation RaggedCountSparseOutput
        RaggedCross RaggedFillEmptyRows RaggedFillEmptyRowsGrad RaggedGather RaggedRange
        RaggedTensorFromVariant RaggedTensorToSparse RaggedTensorToTensor RaggedTensorToVariant
        RaggedTensorToVariantGradient SetSize SparseAdd SparseAddGrad SparseConcat SparseCountSparseOutput
        SparseCross SparseCrossHashed SparseCrossV2 SparseDenseCwiseAdd SparseDenseCwiseDiv
        SparseDenseCwiseMul SparseFillEmptyRows SparseFillEmptyRowsGrad SparseReduceMax
        SparseReduceMaxSparse SparseReduceSum SparseReduceSumSparse SparseReorder SparseReshape SparseSlice
        SparseSliceGrad SparseSoftmax SparseSparseMaximum SparseSparseMinimum SparseSplit
        SparseTensorDenseAdd SparseTensorDenseMatMul SparseToDense SparseToSparseSetOperation
    """,
    "stateless random numbers": """
        StatelessMultinomial StatelessParameterizedTruncatedNormal StatelessRandomBinomial
        StatelessRandomGammaV2 StatelessRandomGammaV3 StatelessRandomGetAlg StatelessRandomGetKeyCounter
        StatelessRandomGetKeyCounterAlg StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomPoisson
        StatelessRandomUniform StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2
        StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessShuffle
        StatelessTruncatedNormal StatelessTruncatedNormalV2
    """,
    "calls and control flow": """
        Case ControlTrigger DeviceIndex Enter Exit FakeParam For If LoopCond Merge NextIteration NoOp
        PartitionedCall StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile Switch ToBool While
    """,
    "variables": """
        AssignAddVariableOp AssignSubVariableOp AssignVariableOp DestroyResourceOp DisableCopyOnRead
        ReadVariableOp ResourceGather ResourceGatherNd ResourceScatterAdd ResourceScatterDiv
        ResourceScatterMax ResourceScatterMin ResourceScatterMul ResourceScatterNdAdd ResourceScatterNdMax
        ResourceScatterNdMin ResourceScatterNdSub ResourceScatterNdUpdate ResourceScatterSub
        ResourceScatterUpdate ResourceStridedSliceAssign VarHandleOp VarIsInitializedOp VariableShape
    """,
    "tables": """
        AnonymousHashTable AnonymousMutableDenseHashTable AnonymousMutableHashTable
        AnonymousMutableHashTableOfTensors HashTableV2 InitializeTableFromTextFileV2 InitializeTableV2
        LookupTableExportV2 LookupTableFindV2 LookupTableImportV2 LookupTableInsertV2 LookupTableRemoveV2
        LookupTableSizeV2 MutableDenseHashTableV2 MutableHashTableOfTensorsV2 MutableHashTableV2
    """,
    "arrays of tensors": """
        TensorArrayCloseV3 TensorArrayConcatV3 TensorArrayGatherV3 TensorArrayReadV3 TensorArrayScatterV3
        TensorArraySizeV3 TensorArraySplitV3 TensorArrayV3 TensorArrayWriteV3
    """,
    "random numbers": """
        Multinomial NonDeterministicInts ParameterizedTruncatedNormal RandomCrop RandomGamma RandomGammaGrad
        RandomPoisson RandomPoissonV2 RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt
        RngReadAndSkip RngSkip SampleDistortedBoundingBox SampleDistortedBoundingBoxV2
        StatefulRandomBinomial StatefulStandardNormal StatefulStandardNormalV2 StatefulTruncatedNormal
        StatefulUniform StatefulUniformFullInt StatefulUniformInt TruncatedNormal
    """,
    "layers of a GPU": """
        CudnnRNN CudnnRNNBackprop CudnnRNNBackpropV2 CudnnRNNBackpropV3 CudnnRNNCanonicalToParams
        CudnnRNNCanonicalToParamsV2 CudnnRNNParamsSize CudnnRNNParamsToCanonical CudnnRNNParamsToCanonicalV2
        CudnnRNNV2 CudnnRNNV3
    """,
    "XLA": """
        XlaConvV2 XlaDotV2 XlaDynamicSlice XlaDynamicUpdateSlice XlaEinsum XlaGather XlaKeyValueSort
        XlaOptimizationBarrier XlaPad XlaReduce XlaReducePrecision XlaReduceWindow XlaRngBitGenerator
        XlaScatter XlaSelectAndScatter XlaSelfAdjointEig XlaSort XlaSvd XlaVariadicReduceV2 XlaVariadicSort
    """,
    "messages": """
        Assert Print PrintV2 Timestamp
    """,
}

FAMILIES: Final[Mapping[str, frozenset[str]]] = {
    name: frozenset(operations.split()) for name, operations in _FAMILIES.items()
}
ALLOWED: Final = frozenset[str]().union(*FAMILIES.values())
# What the functions hold that save and restore variables, and nothing else may.
SAVING: Final = frozenset({"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename"})

_TABLE_FROM_FILE: Final = "InitializeTableFromTextFileV2"
_CONSOLE: Final = frozenset({b"stderr", b"stdout", b"log(info)", b"log(warning)", b"log(error)"})
_CALLS: Final = frozenset({"PartitionedCall", "StatefulPartitionedCall"})


def reason_to_refuse(model: Any, folder: str) -> str:
    """Return why a ``SavedModel`` message, which is that of ``folder``, needs to be trusted; else nothing."""
    if not model.meta_graphs:
        # There is nothing to run; the loader tells what is wrong.
        return ""
    graph = model.meta_graphs[0]
    if len(model.meta_graphs) > 1 or not graph.HasField("object_graph_def"):
        return "it was saved as TensorFlow 1 does, whose graphs save and restore themselves"
    for asset in graph.asset_file_def:
        if not _is_inside(asset.filename, os.path.join(folder, "assets")):
            return f"its asset {asset.filename!r} is no file in its folder"
    try:
        return _Library(graph).reason_to_refuse()
    except IndexError:
        return "its functions and its objects do not fit each other"


def _is_inside(name: str, folder: str) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "://" in name or "\0" in name:
        return False
    return os.path.isfile(os.path.join(folder, name))


class _Library:
    """The functions of a graph: what they hold, who calls whom, and what the loader binds to them."""

    def __init__(self, graph: Any) -> None:
        library = graph.graph_def.library
        self._objects = graph.object_graph_def
        self._nodes: dict[str, list[Any]] = {}
        self._arguments: dict[str, list[str]] = {}
        self._twice = ""
        for function in library.function:
            name = function.signature.name
            self._twice = name if name in self._nodes else self._twice
            self._nodes[name] = list(function.node_def)
            self._arguments[name] = [argument.name for argument in function.signature.input_arg]
        # TensorFlow may take one function for another where both say that they implement the same.
        self._called = {f.signature.name for f in library.function if "api_implements" in f.attr}
        self._called.update(gradient.gradient_func for gradient in library.gradient)
        self._called.update(gradient.gradient_func for gradient in library.registered_gradients)
        for one in self._objects.nodes:
            self._called.update(one.function.concrete_functions)
            self._called.add(one.bare_concrete_function.concrete_function_name)
            self._called.add(one.captured_tensor.concrete_function)
        self._called.update(self._objects.concrete_functions)
        self._uses: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        for name, nodes in self._nodes.items():
            for node in nodes:
                for other in self._named(node):
                    self._uses[other].append((name, node))

    def reason_to_refuse(self) -> str:
        if self._twice:
            return f"its function {self._twice!r} is there twice"
        unknown = {
            node.op
            for nodes in self._nodes.values()
            for node in nodes
            if not (node.op in SAVING or self._is_allowed(node))
        }
        reached = self._reached()
        unknown |= {node.op for name in reached for node in self._nodes[name] if node.op in SAVING}
        if unknown:
            return f"it may reach outside its graph ({', '.join(sorted(unknown))})"
        for name, nodes in self._nodes.items():
            for node in nodes:
                if node.op == _TABLE_FROM_FILE and not self._is_asset(name, node.input[1], frozenset()):
                    return f"it fills a table ({node.op}) from a file that is not among its assets"
        return ""

    def _is_allowed(self, node: Any) -> bool:
        if node.op == "PrintV2":
            # The stream may also be left to whoever calls the function; without any, it is stderr.
            return "output_stream" not in node.attr or node.attr["output_stream"].s in _CONSOLE
        return node.op in ALLOWED or (node.op in self._nodes and not _is_operation(node.op))

    def _named(self, node: Any) -> set[str]:
        """Return the functions that a node calls, or may call."""
        names = {node.op, *(name for value in node.attr.values() for name in _names(value))}
        return names & self._nodes.keys()

    def _reached(self) -> set[str]:
        """Return the functions that the loader or a signature may run."""
        reached: set[str] = set()
        waiting = list(self._called & self._nodes.keys())
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += {other for node in self._nodes[name] for other in self._named(node)}
        return reached

    def _is_asset(self, function: str, value: str, seen: frozenset[tuple[str, str]]) -> bool:
        """Say whether a value in a function can only be the path of one of the model's assets."""
        nodes = {node.name: node for node in self._nodes[function]}
        while (node := nodes.get(value.partition(":")[0])) is not None:
            if node.op != "Identity":
                return False
            value = node.input[0]
        arguments = self._arguments[function]
        # Functions that call each other in a circle bind nothing.
        if value not in arguments or (function, value) in seen:
            return False
        place = arguments.index(value)
        return self._binds_asset(function, place) and all(
            node.op in _CALLS and self._is_asset(caller, node.input[place], seen | {(function, value)})
            for caller, node in self._uses[function]
        )

    def _binds_asset(self, function: str, place: int) -> bool:
        """Say whether the loader binds an asset to a function's argument, if it calls the function at all."""
        if function not in self._objects.concrete_functions:
            return function not in self._called
        bound = self._objects.concrete_functions[function].bound_inputs
        # The last arguments are bound.
        index = place - (len(self._arguments[function]) - len(bound))
        if len(bound) > len(self._arguments[function]) or index < 0:
            return False
        found = self._objects.nodes[bound[index]]
        # Children would become attributes, and stand in the place of its path.
        plain = not (found.children or found.dependencies or found.registered_name)
        return bool(found.WhichOneof("kind") == "asset" and plain)


def _names(value: Any) -> Iterator[str]:
    """Yield every text in an attribute that may be the name of a function."""
    yield value.s.decode(errors="replace")
    for function in (value.func, *value.list.func):
        yield function.name
        for inner in function.attr.values():
            yield from _names(inner)


def _is_operation(name: str) -> bool:
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(name) is not None
