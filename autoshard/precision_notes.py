"""A note where a model does not compute in the dtype that was asked for."""

from passes import ir
from passes.program import Program

_NARROW = ("bfloat16", "float16")
_WORTH_TELLING = 0.25


def precision_notes(program: Program, compute: str | None) -> tuple[str, ...]:
    """What to know of the dtypes of a program's products.

    Args:
      program: the forward program.
      compute: the dtype that was asked for; None: the model's own.
    """
    if compute not in _NARROW:
        return ()
    products = [
        e for e in ir.equations(ir.closed(program.jaxpr)[0]) if e.primitive.name in ir.PRODUCTS
    ]
    wide = [e for e in products if all(str(ir.spec(x).dtype) == "float32" for x in e.invars[:2])]
    if not products or len(wide) < _WORTH_TELLING * len(products):
        return ()
    return (
        f"{len(wide)} of {len(products)} products are computed in float32 "
        f"though dtype={compute!r}: "
        "some layer fixes its own dtype and the layers after it follow (nnx.Embed does, where it "
        "is given none): give the model the dtype as well",
    )
