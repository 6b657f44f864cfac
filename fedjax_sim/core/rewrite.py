"""What clients compute, rewritten where it is traced: a loss of the user's own as well as one of the library's models,
forward passes, gradients, and gradients of single examples."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core, source_info_util
from jax.extend.core import primitives

from fedjax_sim.core import forms
from fedjax_sim.core.types import Array, PyTree

# What a program is nested in; whatever else holds a program, a kernel of Pallas say, is left alone.
_NESTING = {
    primitives.jit_p, primitives.closed_call_p, primitives.remat_p, primitives.cond_p, primitives.while_p,
    primitives.scan_p, primitives.custom_jvp_call_p, primitives.custom_vjp_call_p,
}  # fmt: skip


def _operands(equation: core.JaxprEqn) -> list[Any]:
    """Shapes and dtypes of what an equation is applied to."""
    return [v.aval for v in equation.invars]


def _dtypes(equation: core.JaxprEqn) -> list[Any]:
    results: list[Any] = [v.aval for v in equation.outvars]
    return [x.dtype for x in (*_operands(equation), *results)]


def _floating(equation: core.JaxprEqn) -> bool:
    return all(jnp.issubdtype(dtype, jnp.floating) for dtype in _dtypes(equation))


def _filled(equation: core.JaxprEqn) -> bool:
    """Whether there is an entry in whatever goes in and comes out."""
    results: list[Any] = [v.aval for v in equation.outvars]
    return all(x.size for x in (*_operands(equation), *results))


def _single(equation: core.JaxprEqn) -> bool:
    return all(dtype == jnp.float32 for dtype in _dtypes(equation))


def _convolution(equation: core.JaxprEqn, arranged: bool) -> Callable[..., Array] | None:
    parameters, (lhs, rhs) = equation.params, _operands(equation)
    out: Any = equation.outvars[0].aval
    known = _floating(equation) and 3 <= lhs.ndim <= 5 and lhs.size and rhs.size and out.size
    if known and (arranged or forms.patches_fit(lhs, rhs, out, parameters["dimension_numbers"])):
        return partial(forms.convolution, arranged=arranged, **parameters)
    return None


def _max_pool(equation: core.JaxprEqn, arranged: bool) -> Callable[..., Array] | None:
    small = math.prod(equation.params["window_dimensions"]) <= forms.UNROLLED
    return partial(forms.max_pool, **equation.params) if small and _floating(equation) and _filled(equation) else None


def _max_pool_gradient(equation: core.JaxprEqn, arranged: bool) -> Callable[..., Array] | None:
    small = math.prod(equation.params["window_dimensions"]) <= forms.UNROLLED
    if small and equation.params["select_prim"] is primitives.ge_p and _floating(equation) and _filled(equation):
        return partial(forms.max_pool_gradient, **equation.params)
    return None


def _product(equation: core.JaxprEqn, arranged: bool) -> Callable[..., Array] | None:
    """Of a weight gradient, which sums over the batch, the first axis of both operands but for lanes."""
    (contracted, batch), (lhs, rhs) = equation.params["dimension_numbers"], _operands(equation)
    lanes = lhs.ndim - 2
    leading = contracted == ((lanes,), (lanes,)) and batch == (tuple(range(lanes)),) * 2
    if not (leading and rhs.ndim == lhs.ndim and _single(equation)):
        return None
    pays = 0 < lhs.shape[-2] <= forms.OUTER_LIMIT and lhs.shape[-1] * rhs.shape[-1] >= forms.OUTER_LEAST
    return forms.outer_products if pays else None


def _sum(equation: core.JaxprEqn, arranged: bool) -> Callable[..., Array] | None:
    leading = equation.params["axes"] == (0,) and _operands(equation)[0].ndim > 2
    return forms.leading_sum if leading and _single(equation) else None


_FORMS = {
    primitives.conv_general_dilated_p: _convolution,
    primitives.reduce_window_max_p: _max_pool,
    primitives.select_and_scatter_add_p: _max_pool_gradient,
    primitives.dot_general_p: _product,
    primitives.reduce_sum_p: _sum,
}


def _nested(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    return list(core.jaxprs_in_params(equation.params)) if equation.primitive in _NESTING else []


class _Rewriting:
    """One pass over a program; programs that occur several times are rewritten once.

    Attributes:
      arranged: whether convolutions are for XLA's CPU backend.
    """

    def __init__(self, arranged: bool) -> None:
        self.arranged = arranged
        self.known: dict[int, tuple[Any, Any]] = {}  # by id of a program that is kept alive beside what became of it

    def form(self, equation: core.JaxprEqn) -> Callable[..., Array] | None:
        """The other form of an equation, a function of its operands; None where it has none."""
        look = _FORMS.get(equation.primitive)
        return None if look is None else look(equation, self.arranged)

    def concerned(self, jaxpr: core.Jaxpr) -> bool:
        """Whether anything in a program has another form."""
        return any(self.form(e) is not None or any(map(self.concerned, _nested(e))) for e in jaxpr.eqns)

    def rewritten(self, parameter: Any) -> Any:
        """A parameter of an equation, with the programs in it rewritten."""
        if isinstance(parameter, (tuple, list)):
            return type(parameter)(map(self.rewritten, parameter))
        if not isinstance(parameter, (core.Jaxpr, core.ClosedJaxpr)):
            return parameter
        if id(parameter) not in self.known:
            self.known[id(parameter)] = (parameter, self.program(parameter))
        return self.known[id(parameter)][1]

    def program(self, program: Any) -> Any:
        """A nested program rewritten, of the same kind."""
        closed = isinstance(program, core.ClosedJaxpr)
        jaxpr, constants = (program.jaxpr, program.consts) if closed else (program, ())
        if not self.concerned(jaxpr):
            return program
        new = jax.make_jaxpr(lambda *given: self.run(jaxpr, constants, given))(*(v.aval for v in jaxpr.invars))
        return new if closed else new.jaxpr

    def run(self, jaxpr: core.Jaxpr, constants: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        """The values that a program returns."""
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *given), strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for equation in jaxpr.eqns:
            operands, form = map(read, equation.invars), self.form(equation)
            stack = source_info_util.current_name_stack() + equation.source_info.name_stack
            with source_info_util.user_context(equation.source_info.traceback, name_stack=stack), equation.ctx.manager:
                if form is not None:
                    found = [form(*operands)]
                else:
                    nested = equation.primitive in _NESTING
                    parameters = {k: self.rewritten(v) if nested else v for k, v in equation.params.items()}
                    found = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(parameters))
                    found = found if equation.primitive.multiple_results else [found]
            values.update(zip(equation.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]


def quick(function: Callable[..., PyTree], *, arranged: bool = True) -> Callable[..., PyTree]:
    """`function` with its convolutions, max-pooling and small products in quick forms, the same numbers up to rounding.

    It reaches into `jit`, `scan`, `while_loop`, `cond`, `checkpoint` and functions with derivatives of their own, after
    differentiation, hence gradients as well; it is meant for a function that differentiates, not to be differentiated.
    A function without any of these is traced as it is.

    Args:
      function: of arrays and pytrees of them.
      arranged: convolutions are for XLA's CPU backend; else they are products.
    """

    def run(*given: PyTree) -> PyTree:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*given)
        leaves = _Rewriting(arranged).run(program.jaxpr, program.consts, jax.tree.leaves(given))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return run


def suited(
    function: Callable[..., PyTree], devices: Sequence[Any], rewrite: bool | None = None
) -> Callable[..., PyTree]:
    """`function`, or `quick` of it where `rewrite` says so; if that says nothing, on CPUs, where it was measured."""
    cpu = devices[0].platform == "cpu"
    return quick(function, arranged=cpu) if (cpu if rewrite is None else rewrite) else function
