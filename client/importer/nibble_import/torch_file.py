"""Reads the tensors of a PyTorch .bin file without PyTorch and without running what it holds.

The file is a zip archive (torch.save since PyTorch 1.6): data.pkl names each tensor's storage, and
the storages are entries stored without compression. As with torch.load(weights_only=True), the
pickle may name only what a plain state dict needs.
"""

import collections
import io
import math
import pickle
import zipfile
from typing import NamedTuple

import numpy as np

from nibble_import.folder import ImportRefused

MOST_PICKLE_BYTES = 64 << 20
MOST_DIMENSIONS = 8  # as nibble reads them
MOST_ELEMENTS = 1 << 48  # of a shape, its zeros left out
STORAGE_DTYPES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
CODES = {"F32": np.dtype("<u4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2")}


class Storage(NamedTuple):
    """One run of numbers in the file, which tensors are views of."""

    key: str
    dtype: str
    elements: int


class View(NamedTuple):
    """A tensor of the file: `offset` and `strides` count elements of the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """The state dict of one file. `views` has each tensor's name; values are read one by one."""

    def __init__(self, path):
        """Raises ImportRefused when the file is no state dict of F32, F16 or BF16 tensors."""
        self.path = path
        if not path.is_file():
            raise ImportRefused(f"{path}: not found, expected PyTorch weights")
        try:
            with zipfile.ZipFile(path) as archive:
                self.entries = {entry.filename: entry for entry in archive.infolist()}
                self.prefix = self._find_prefix()
                self._check_byte_order(archive)
                state = StateDictUnpickler(self._read_pickle(archive)).load()
        except zipfile.BadZipFile:
            raise ImportRefused(
                f"{path}: found no zip archive, expected the format that torch.save writes since "
                "PyTorch 1.6 (torch.load and torch.save turn an older file into it)") from None
        except ImportRefused as error:
            raise ImportRefused(f"{path}: {error}") from None
        except Exception as error:  # a malformed pickle meets many kinds of error in the reader
            raise ImportRefused(f"{path}: {type(error).__name__}: {error}, "
                                "expected a whole PyTorch state dict") from error
        self.views = self._check_state(state)

    def read(self, name):
        """The tensor's bits, row-major: uint32 for F32, uint16 for F16 and BF16."""
        view = self.views[name]
        codes = CODES[view.storage.dtype]
        if 0 in view.shape:
            return np.empty(view.shape, codes)
        span = 1 + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides))
        content = self._storage_bytes(view, span * codes.itemsize)
        values = np.frombuffer(content, dtype=codes)
        strides = [stride * codes.itemsize for stride in view.strides]
        return np.ascontiguousarray(
            np.lib.stride_tricks.as_strided(values, view.shape, strides, writeable=False))

    def _find_prefix(self):
        found = [name for name in self.entries
                 if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(found) != 1:
            raise ImportRefused(f"found {len(found)} entries NAME/data.pkl, expected one")
        return found[0].removesuffix("data.pkl")

    def _check_byte_order(self, archive):
        if self.prefix + "byteorder" not in self.entries:
            return  # PyTorch before 2.1 wrote none
        entry = self._stored_entry("byteorder", most=16)
        order = archive.read(entry)
        if order != b"little":
            raise ImportRefused(f"byteorder: found {order!r}, expected little")

    def _read_pickle(self, archive):
        return io.BytesIO(archive.read(self._stored_entry("data.pkl", most=MOST_PICKLE_BYTES)))

    def _stored_entry(self, name, most=None):
        entry = self.entries.get(self.prefix + name)
        if entry is None:
            raise ImportRefused(f"{name}: not found in the archive, expected an entry")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ImportRefused(f"{name}: found it compressed, expected a stored entry")
        if most is not None and entry.file_size > most:
            raise ImportRefused(f"{name}: found {entry.file_size} bytes, expected at most {most}")
        return entry

    def _check_state(self, state):
        if not isinstance(state, dict) or not state:
            raise ImportRefused(f"{self.path}: found {type(state).__name__}, "
                                "expected a state dict with tensors")
        for name, view in state.items():
            if not isinstance(name, str) or not isinstance(view, View):
                raise ImportRefused(f"{self.path}: {str(name)[:80]}: found {type(view).__name__}, "
                                    "expected a name and a tensor")
            try:
                check_view(view)
                entry = self._stored_entry("data/" + view.storage.key)
            except ImportRefused as error:
                raise ImportRefused(f"{self.path}: tensor {name}: {error}") from None
            needed = view.storage.elements * CODES[view.storage.dtype].itemsize
            if entry.file_size != needed:
                raise ImportRefused(f"{self.path}: tensor {name}: found a storage of "
                                    f"{entry.file_size} bytes, expected {needed}")
        return dict(state)

    def _storage_bytes(self, view, count):
        """`count` bytes at the view's offset; a whole storage is held against its checksum."""
        entry = self.entries[f"{self.prefix}data/{view.storage.key}"]
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(entry) as file:
                file.seek(view.offset * CODES[view.storage.dtype].itemsize)
                content = file.read(count)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ImportRefused(f"{self.path}: {error}, expected a whole archive") from None
        if len(content) != count:
            raise ImportRefused(f"{self.path}: data/{view.storage.key}: found {len(content)} "
                                f"bytes, expected {count}")
        return content


def check_view(view):
    """Raises ImportRefused unless every element lies in the storage, at most once."""
    numbers = (view.offset, *view.shape, *view.strides)
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ImportRefused("found a size that is no count, expected counts")
    if len(view.shape) != len(view.strides):
        raise ImportRefused(f"found {len(view.strides)} strides, expected {len(view.shape)}")
    if (len(view.shape) > MOST_DIMENSIONS
            or math.prod(size or 1 for size in view.shape) > MOST_ELEMENTS):
        raise ImportRefused(f"found the shape {view.shape}, expected at most {MOST_DIMENSIONS} "
                            f"dimensions and {MOST_ELEMENTS} elements")
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides))
    elements = math.prod(view.shape)
    if elements and (last >= view.storage.elements or elements > view.storage.elements):
        raise ImportRefused(f"found {elements} elements up to {last}, "
                            f"expected them in a storage of {view.storage.elements}")


class StateDictUnpickler(pickle._Unpickler):  # the C class grows its memo to any index it is told
    """Builds dicts of View; raises ImportRefused for any other global, by its name."""

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.rebuild_tensor
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        raise ImportRefused(f"the pickle names {module}.{name}, expected only tensors of "
                            f"{', '.join(STORAGE_DTYPES)} (nothing was run)")

    def persistent_load(self, pid):
        kind, dtype, key, _, elements = pid
        if kind != "storage" or dtype not in CODES or not isinstance(key, str):
            raise ImportRefused("found a persistent id that is no storage, expected storages")
        if not isinstance(elements, int) or elements < 0:
            raise ImportRefused(f"data/{key}: found no count of elements, expected one")
        return Storage(key, dtype, elements)

    def rebuild_tensor(self, storage, offset, shape, strides, *_):
        if not isinstance(storage, Storage):
            raise ImportRefused(f"found a tensor of {type(storage).__name__}, expected a storage")
        return View(storage, offset, tuple(shape), tuple(strides))
