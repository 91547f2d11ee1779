"""Writes PyTorch .bin files without PyTorch, honest and otherwise."""

import collections
import io
import pickle
import sys
import types
import zipfile
from typing import NamedTuple
from unittest import mock

import numpy as np

CLASSES = {np.dtype(np.float32): "FloatStorage", np.dtype(np.float16): "HalfStorage",
           np.dtype(np.uint16): "BFloat16Storage", np.dtype(np.int64): "LongStorage"}


def torch_modules():
    """Modules with the names that torch.save pickles."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in CLASSES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        function = types.FunctionType((lambda *arguments: None).__code__, {}, name)
        function.__module__, function.__qualname__ = "torch._utils", name
        setattr(utils, name, function)
    torch._utils = utils
    return {"torch": torch, "torch._utils": utils}


MODULES = torch_modules()


class Storage(NamedTuple):
    key: str
    values: np.ndarray  # uint16 stands for bfloat16
    elements: int


class Tensor:
    """A view as torch.save pickles it; strides count elements."""

    def __init__(self, storage, shape, strides, offset=0, rebuild="_rebuild_tensor_v2"):
        self.arguments = (storage, offset, shape, strides, False, collections.OrderedDict())
        self.rebuild = rebuild

    def __reduce__(self):
        return getattr(MODULES["torch._utils"], self.rebuild), self.arguments


class Calls:
    """Unpickled, it would call `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        kind = getattr(MODULES["torch"], CLASSES[value.values.dtype])
        return ("storage", kind, value.key, "cpu", value.elements)


def whole(key, values):
    """A contiguous tensor of its own storage."""
    strides = tuple(stride // values.itemsize for stride in values.strides)
    return Tensor(Storage(key, values, values.size), values.shape, strides)


def dump(state, protocol=2):
    out = io.BytesIO()
    with mock.patch.dict(sys.modules, MODULES):
        Pickler(out, protocol).dump(state)
    return out.getvalue()


def save(path, state, pickled=None, compression=zipfile.ZIP_STORED, order=b"little"):
    """Writes a dict of Tensor as torch.save does; `pickled` replaces data.pkl's bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled or dump(state))
        archive.writestr("archive/byteorder", order)
        storages = {value.arguments[0].key: value.arguments[0] for value in state.values()
                    if isinstance(value, Tensor)}
        for key, storage in storages.items():
            archive.writestr(f"archive/data/{key}", storage.values.tobytes())
        archive.writestr("archive/version", b"3\n")


def save_arrays(path, arrays):
    """Writes a dict of arrays; equal objects share a storage, as tied weights do."""
    keys = {}
    for array in arrays.values():
        keys.setdefault(id(array), (str(len(keys)), array))
    save(path, {name: whole(*keys[id(array)]) for name, array in arrays.items()})
