"""Reads PyTorch checkpoints (.bin) without PyTorch, and without running what a pickle asks for.

The format: a zip archive with NAME/data.pkl, a pickled dictionary of tensors, and NAME/data/KEY, the
uncompressed bytes of each storage. As torch.load(weights_only=True), only what rebuilds tensors is
allowed; anything else is refused by name.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nibble_import.folder import ImportRefused

MOST_PICKLE_BYTES = 64 << 20
# Storage class -> safetensors' name of its type and bytes of a number.
STORAGES = {"FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2)}


@dataclass(frozen=True)
class Storage:
    key: str
    dtype: str
    width: int  # bytes of a number
    size: int   # numbers


@dataclass(frozen=True)
class TorchTensor:
    storage: Storage
    offset: int  # numbers
    shape: tuple
    strides: tuple


class TorchFile:
    """An open .bin: `tensors` by name, their bytes read one at a time."""

    def __init__(self, path):
        self.path = Path(path)
        try:
            self.archive = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise ImportRefused(f"{self.path}: {error}, expected a checkpoint of torch.save in its "
                                "zip format (PyTorch 1.6 or later)") from None
        self.prefix, pickled = self._read_pickle()
        self.tensors = self._rebuild(pickled)

    def close(self):
        self.archive.close()

    def _read_pickle(self):
        names = [name for name in self.archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ImportRefused(f"{self.path}: {len(names)} data.pkl, expected one")
        size = self.archive.getinfo(names[0]).file_size
        if size > MOST_PICKLE_BYTES:
            raise ImportRefused(f"{self.path}: data.pkl of {size} bytes, "
                                f"expected at most {MOST_PICKLE_BYTES}")
        pickled = io.BytesIO(self._bytes(names[0], size))
        return names[0].removesuffix("data.pkl"), TensorUnpickler(pickled)

    def _bytes(self, entry, size):
        try:
            with self.archive.open(entry) as file:
                return file.read(size)
        except Exception as error:  # of a damaged archive: sums, methods, lengths
            raise ImportRefused(f"{self.path}: {error}, expected a whole archive") from None

    def _rebuild(self, unpickler):
        try:
            state = unpickler.load()
        except ImportRefused as error:
            raise ImportRefused(f"{self.path}: {error}") from None
        except Exception as error:  # a malformed pickle meets many kinds of error
            raise ImportRefused(f"{self.path}: {error}, expected a dictionary of tensors") from None
        if not isinstance(state, dict) or not all(
                isinstance(name, str) and isinstance(tensor, TorchTensor)
                for name, tensor in state.items()):
            raise ImportRefused(f"{self.path}: something else, expected a dictionary of tensors")
        for name, tensor in state.items():
            self._check(name, tensor)
        return dict(state)

    def _check(self, name, tensor):
        """Every number of the tensor lies in its storage, and the storage in the file."""
        def refuse(what):
            raise ImportRefused(f"{self.path}: tensor {name}: {what}")
        whole = [tensor.offset, *tensor.shape, *tensor.strides, tensor.storage.size]
        if not all(isinstance(n, int) and n >= 0 for n in whole):
            refuse("sizes that are not whole numbers, expected those")
        if len(tensor.shape) != len(tensor.strides):
            refuse("as many strides as dimensions expected")
        last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides))
        if 0 not in tensor.shape and last >= tensor.storage.size:
            refuse(f"number {last} of {tensor.storage.size}, expected one inside its storage")
        try:
            entry = self.archive.getinfo(f"{self.prefix}data/{tensor.storage.key}")
        except KeyError:
            refuse(f"no storage {tensor.storage.key}, expected one")
        if entry.file_size < tensor.storage.size * tensor.storage.width:
            refuse(f"a storage of {entry.file_size} bytes, "
                   f"expected {tensor.storage.size * tensor.storage.width}")
        if entry.compress_type != zipfile.ZIP_STORED:
            refuse("a compressed storage, expected it stored")

    def read(self, name):
        """The tensor's numbers, contiguous: u16 for the types of two bytes, else u32."""
        tensor = self.tensors[name]
        storage = tensor.storage
        content = self._bytes(f"{self.prefix}data/{storage.key}", storage.size * storage.width)
        numbers = np.frombuffer(content, dtype=f"<u{storage.width}")
        strides = [stride * storage.width for stride in tensor.strides]
        return np.ascontiguousarray(
            np.lib.stride_tricks.as_strided(numbers[tensor.offset:], tensor.shape, strides))


class TensorUnpickler(pickle.Unpickler):
    """Knows tensors, their storages and plain containers."""

    def find_class(self, module, name):
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        allowed = {("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
                   ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
                   ("collections", "OrderedDict"): OrderedDict}
        if (module, name) not in allowed:
            raise ImportRefused(f"the pickle asks for {module}.{name}, expected only tensors of "
                                "float32, float16 and bfloat16")
        return allowed[module, name]

    def persistent_load(self, pid):
        kind, (dtype, width), key, _, size = pid
        if kind != "storage" or not isinstance(key, str):
            raise ImportRefused(f"the pickle asks for {kind}, expected storages")
        return Storage(key, dtype, width, size)


def rebuild_tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, Storage):
        raise ImportRefused("a tensor without a storage, expected one")
    return TorchTensor(storage, offset, tuple(shape), tuple(strides))
