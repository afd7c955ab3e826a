"""The instructions of HLO that the reader knows, by what they do."""

COLLECTIVES = frozenset(
    """all-reduce all-gather reduce-scatter all-to-all ragged-all-to-all collective-permute
    collective-broadcast""".split()
)

# Asynchronous pairs: opcode of the start -> opcode of the done.
ASYNC_DONE = {
    "all-reduce-start": "all-reduce-done",
    "all-gather-start": "all-gather-done",
    "reduce-scatter-start": "reduce-scatter-done",
    "all-to-all-start": "all-to-all-done",
    "collective-permute-start": "collective-permute-done",
    "copy-start": "copy-done",
    "slice-start": "slice-done",
    "dynamic-slice-start": "dynamic-slice-done",
    "dynamic-update-slice-start": "dynamic-update-slice-done",
    "fusion-start": "fusion-done",
    "call-start": "call-done",
    "custom-call-start": "custom-call-done",
    "async-start": "async-done",
    "send": "send-done",
    "recv": "recv-done",
}

# Begin a copy within the device, or between it and its host.
COPY_STARTS = frozenset(
    ("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start")
)

# No work of their own: views, bookkeeping, and what the schedule's neighbours stand for.
FREE = frozenset(
    """parameter constant tuple get-tuple-element bitcast bitcast-convert after-all add-dependency
    opt-barrier optimization-barrier partition-id replica-id domain get-dimension-size
    set-dimension-size iota async-update send recv""".split()
)

_ELEMENTWISE = """abs add and atan2 cbrt ceil clamp compare complex convert copy cosine
    count-leading-zeros divide erf exponential exponential-minus-one floor imag is-finite log
    log-plus-one logistic maximum minimum multiply negate not or popcnt power real reduce-precision
    remainder round-nearest-afz round-nearest-even rsqrt select shift-left
    shift-right-arithmetic shift-right-logical sign sine sqrt stochastic-convert subtract tan tanh
    xor acos acosh asin asinh atanh cosh sinh"""

_OTHER = """batch-norm-grad batch-norm-inference batch-norm-training broadcast call cholesky
    concatenate conditional convolution custom-call dot dynamic-reshape dynamic-slice
    dynamic-update-slice fft fusion gather infeed map outfeed pad ragged-dot reduce reduce-window
    reshape reverse rng rng-bit-generator rng-get-and-update-state scaled-dot scan scatter
    select-and-scatter slice sort topk transpose triangular-solve tuple-select while"""

KNOWN = frozenset(
    {
        *COLLECTIVES,
        *ASYNC_DONE,
        *ASYNC_DONE.values(),
        *FREE,
        *_ELEMENTWISE.split(),
        *_OTHER.split(),
    }
)
