"""Adds to the wheel the stubs of ../../proto, as the package nibble.v1."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PROTO = Path(__file__).resolve().parents[2] / "proto"


class BuildWithStubs(build_py):
    """Generates the stubs into the build folder, so that none lies among the sources."""

    def run(self) -> None:
        super().run()
        make_stubs(Path(self.build_lib))


def make_stubs(folder: Path) -> None:
    import grpc_tools
    from grpc_tools import protoc

    files = [str(path.relative_to(PROTO)) for path in sorted(PROTO.glob("nibble/v1/*.proto"))]
    if not files:
        raise RuntimeError(f"found no nibble/v1/*.proto in {PROTO}")
    arguments = [f"-I{PROTO}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
                 f"--python_out={folder}", f"--pyi_out={folder}", f"--grpc_python_out={folder}"]
    if protoc.main(["protoc", *arguments, *files]) != 0:
        raise RuntimeError(f"protoc refused {PROTO}")
    (folder / "nibble/v1/py.typed").touch()


setup(cmdclass={"build_py": BuildWithStubs})
