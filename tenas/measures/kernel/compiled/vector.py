"""A vector as a type of numba's, and what can be done with vectors.

A chunk's cotangents lie side by side in a vector, the innermost dimension of every array: what belongs to the forward
pass (a mask, a normalised activation, a pixel of an unfolded input) is then one scalar for the whole vector. Numba has no
vector type, and its automatic vectorisation keeps accumulators in memory.

Functions take a ``template``, a tuple of ``lanes`` zeros of the dtype: its type says what a vector is. Memory is given by
address, as an integer, since one program works on many arrays; whoever calls keeps them alive.

The first argument of an intrinsic, ``typing``, is numba's: callers leave it out. It returns the signature, and the function
that emits the instructions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.datamodel.registry import register_default

from tenas.measures.kernel.compiled.jit import intrinsic

INT = ir.IntType(64)


@functools.cache
def template(dtype: np.dtype[Any], lanes: int) -> tuple[Any, ...]:
    """What tells compiled code of vectors of ``lanes`` numbers."""
    return (np.dtype(dtype).type(0),) * lanes


class Vector(types.Type):
    def __init__(self, dtype: types.Float, lanes: int) -> None:
        self.dtype = dtype
        self.lanes = lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


def _element(dtype: types.Float) -> ir.Type:
    return ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType()


@register_default(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager: object, vector: Vector) -> None:
        super().__init__(manager, vector, ir.VectorType(_element(vector.dtype), vector.lanes))  # type: ignore[no-untyped-call]


def vector_of(template: types.UniTuple) -> Vector:
    return Vector(template.dtype, template.count)


class Emitter:
    """Emits instructions on vectors of one type."""

    def __init__(self, builder: ir.IRBuilder, template: types.UniTuple) -> None:
        self.builder = builder
        self.element = _element(template.dtype)
        self.vector = ir.VectorType(self.element, template.count)
        self.size = template.count * template.dtype.bitwidth // 8
        self.item = template.dtype.bitwidth // 8

    def pointer(self, address: ir.Value, of: ir.Type) -> ir.Value:
        return self.builder.inttoptr(address, of.as_pointer())

    def load(self, address: ir.Value) -> ir.Value:
        return self.builder.load(self.pointer(address, self.vector), align=self.item)

    def store(self, value: ir.Value, address: ir.Value) -> None:
        self.builder.store(value, self.pointer(address, self.vector), align=self.item)

    def splat(self, scalar: ir.Value) -> ir.Value:
        first = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), scalar, ir.Constant(INT, 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.vector.count), [0] * self.vector.count)
        return self.builder.shuffle_vector(first, ir.Constant(self.vector, ir.Undefined), mask)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        name = f"llvm.fma.v{self.vector.count}f{8 * self.item}"
        signature = ir.FunctionType(self.vector, [self.vector] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)  # type: ignore[no-untyped-call]
        return self.builder.call(function, [a, b, c])

    def scalar(self, base: ir.Value, index: ir.Value, of: ir.Type | None = None) -> ir.Value:
        """Element ``index`` of the array at ``base``: a lane's type by default."""
        pointer = self.builder.gep(self.pointer(base, of or self.element), [index])
        return self.builder.load(pointer)

    def offset(self, base: ir.Value, index: ir.Value) -> ir.Value:
        """An int32 of the array at ``base``, as an address difference."""
        return self.builder.sext(self.scalar(base, index, ir.IntType(32)), INT)

    def plus(self, address: ir.Value, constant: int) -> ir.Value:
        return self.builder.add(address, ir.Constant(INT, constant)) if constant else address


def emits(template: types.UniTuple, emit: Callable[..., ir.Value | None]) -> Callable[..., ir.Value]:
    """As numba wants it: a function that emits an intrinsic's instructions, ``emit`` (emitter, arguments after the template)."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        result = emit(Emitter(builder, template), *args[1:])
        return context.get_dummy_value() if result is None else result

    return code


@intrinsic
def load(typing: Any, template: Any, address: Any) -> Any:
    """The vector at an address."""
    return vector_of(template)(template, types.int64), emits(template, lambda to, address: to.load(address))


@intrinsic
def store(typing: Any, template: Any, address: Any, value: Any) -> Any:
    """Write a vector to an address."""
    signature = types.void(template, types.int64, vector_of(template))
    return signature, emits(template, lambda to, address, value: to.store(value, address))


@intrinsic
def splat(typing: Any, template: Any, value: Any) -> Any:
    """A scalar in every lane."""
    return vector_of(template)(template, template.dtype), emits(template, lambda to, value: to.splat(value))


@intrinsic
def fma(typing: Any, template: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    vector = vector_of(template)
    return vector(template, vector, vector, vector), emits(template, lambda to, a, b, c: to.fma(a, b, c))


@intrinsic
def add(typing: Any, template: Any, a: Any, b: Any) -> Any:
    vector = vector_of(template)
    return vector(template, vector, vector), emits(template, lambda to, a, b: to.builder.fadd(a, b))


@intrinsic
def multiply(typing: Any, template: Any, a: Any, b: Any) -> Any:
    vector = vector_of(template)
    return vector(template, vector, vector), emits(template, lambda to, a, b: to.builder.fmul(a, b))


@intrinsic
def scalar(typing: Any, template: Any, address: Any) -> Any:
    """The scalar at an address, of the template's dtype."""
    signature = template.dtype(template, types.int64)
    return signature, emits(template, lambda to, address: to.builder.load(to.pointer(address, to.element)))


@intrinsic
def scalar_size(typing: Any, template: Any) -> Any:
    """Bytes of a scalar."""
    return types.int64(template), emits(template, lambda to: ir.Constant(INT, to.item))


@intrinsic
def vector_size(typing: Any, template: Any) -> Any:
    """Bytes of a vector."""
    return types.int64(template), emits(template, lambda to: ir.Constant(INT, to.size))


@intrinsic
def int32_at(typing: Any, address: Any) -> Any:
    """The int32 at an address."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.sext(builder.load(builder.inttoptr(args[0], ir.IntType(32).as_pointer())), INT)

    return types.int64(types.int64), emit
